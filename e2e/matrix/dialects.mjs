// Answers, streams and errors as engines give them, for each API.

/** The pieces of the text that every good answer has. Some characters have two bytes or four. */
export const pieces = ["Once ", "upon a ", "tïme, ", "thére ", "wäs ", "a 🐙", "."];
export const text = pieces.join("");
export const usage = { in: 11, out: pieces.length };
export const toolArguments = `{"city":"Zürich","days":3}`;

const json = (value, fields = {}) => ({ headers: { "content-type": "application/json" }, body: JSON.stringify(value), ...fields });
const events = (list) => ({ headers: { "content-type": "text/event-stream" }, body: list });
const data = (value) => `data: ${JSON.stringify(value)}\n\n`;
const named = (value) => `event: ${value.type}\ndata: ${JSON.stringify(value)}\n\n`;

// --- Chat completions and completions

const chatUsage = { prompt_tokens: usage.in, completion_tokens: usage.out, total_tokens: usage.in + usage.out };

const chat = {
  path: "/v1/chat/completions",
  good: (model, { content = text, finish = "stop", tools = false, more = {} } = {}) => json({
    id: "chatcmpl-1", object: "chat.completion", created: 1700000000, model,
    choices: [{
      index: 0, logprobs: null, finish_reason: tools ? "tool_calls" : finish,
      message: tools
        ? { role: "assistant", content: null, tool_calls: [{ id: "call_1", type: "function", function: { name: "get_weather", arguments: toolArguments } }] }
        : { role: "assistant", content },
    }],
    usage: chatUsage, ...more,
  }),
  /** The events of a stream: the first has no content, the last is the end. */
  events: (model, { parts = pieces, finish = "stop", tools = false, withUsage = false, done = true, role = true, reasoning = [] } = {}) => {
    const chunk = (delta, finish_reason = null) => data({
      id: "chatcmpl-1", object: "chat.completion.chunk", created: 1700000000, model, choices: [{ index: 0, delta, logprobs: null, finish_reason }],
    });
    const list = role ? [chunk({ role: "assistant", content: tools ? null : "" })] : [];
    for (const part of reasoning) list.push(chunk({ reasoning_content: part }));
    if (tools) {
      const call = (fields) => ({ tool_calls: [{ index: 0, ...fields }] });
      list.push(chunk(call({ id: "call_1", type: "function", function: { name: "get_weather", arguments: "" } })));
      for (let i = 0; i < toolArguments.length; i += 9) list.push(chunk(call({ function: { arguments: toolArguments.slice(i, i + 9) } })));
      finish = "tool_calls";
    } else {
      for (const part of parts) list.push(chunk({ content: part }));
    }
    if (finish) list.push(chunk({}, finish));
    if (withUsage) list.push(data({ id: "chatcmpl-1", object: "chat.completion.chunk", created: 1700000000, model, choices: [], usage: chatUsage }));
    if (done) list.push("data: [DONE]\n\n");
    return list;
  },
  error: (status, message, { type = "server_error", code = null, param = null } = {}) => json({ error: { message, type, param, code } }, { status }),
  errorEvents: {
    "error object": (message) => data({ error: { message, type: "server_error", param: null, code: 500 } }),
    "error text": (message) => data({ error: message }),
    "vLLM's old form": (message) => data({ object: "error", message, type: "InternalServerError", param: null, code: 500 }),
    "event: error": (message) => `event: error\n${data({ error: { message, type: "server_error", code: "internal" } })}`,
    "with [DONE] after": (message) => data({ error: { message, type: "server_error", code: 500 } }) + "data: [DONE]\n\n",
    "choice that aborts": (message, model) => data({ id: "chatcmpl-1", object: "chat.completion.chunk", created: 1700000000, model, choices: [{ index: 0, delta: {}, finish_reason: "abort" }] }) + "data: [DONE]\n\n",
  },
};

// --- Responses

const responseUsage = {
  input_tokens: usage.in, input_tokens_details: { cached_tokens: 0 }, output_tokens: usage.out, output_tokens_details: { reasoning_tokens: 0 },
  total_tokens: usage.in + usage.out,
};
const response = (model, status, output, more = {}) => ({
  id: "resp_1", object: "response", created_at: 1700000000, status, background: false, error: null, incomplete_details: null, instructions: null,
  max_output_tokens: null, model, output, parallel_tool_calls: true, previous_response_id: null, reasoning: { effort: null, summary: null },
  store: true, temperature: 1, text: { format: { type: "text" } }, tool_choice: "auto", tools: [], top_p: 1, truncation: "disabled",
  usage: status === "completed" ? responseUsage : null, user: null, metadata: {}, ...more,
});
const message = (content) => ({ id: "msg_1", type: "message", status: "completed", role: "assistant", content: [{ type: "output_text", text: content, annotations: [], logprobs: [] }] });
const functionCall = { id: "fc_1", type: "function_call", status: "completed", call_id: "call_1", name: "get_weather", arguments: toolArguments };

const responses = {
  path: "/v1/responses",
  good: (model, { content = text, tools = false, more = {} } = {}) => json(response(model, "completed", [tools ? functionCall : message(content)], more)),
  events: (model, { parts = pieces, tools = false, done = true } = {}) => {
    let n = 0;
    const list = [];
    const add = (type, fields) => list.push(named({ type, sequence_number: n++, ...fields }));
    add("response.created", { response: response(model, "in_progress", []) });
    add("response.in_progress", { response: response(model, "in_progress", []) });
    const item = tools ? functionCall : message(parts.join(""));
    const at = { item_id: item.id, output_index: 0 };
    if (tools) {
      add("response.output_item.added", { output_index: 0, item: { ...item, status: "in_progress", arguments: "" } });
      for (let i = 0; i < toolArguments.length; i += 9) add("response.function_call_arguments.delta", { ...at, delta: toolArguments.slice(i, i + 9) });
      add("response.function_call_arguments.done", { ...at, name: item.name, arguments: toolArguments });
    } else {
      add("response.output_item.added", { output_index: 0, item: { ...item, status: "in_progress", content: [] } });
      add("response.content_part.added", { ...at, content_index: 0, part: { type: "output_text", text: "", annotations: [], logprobs: [] } });
      for (const delta of parts) add("response.output_text.delta", { ...at, content_index: 0, delta, logprobs: [] });
      add("response.output_text.done", { ...at, content_index: 0, text: parts.join(""), logprobs: [] });
      add("response.content_part.done", { ...at, content_index: 0, part: item.content[0] });
    }
    add("response.output_item.done", { output_index: 0, item });
    if (done) add("response.completed", { response: response(model, "completed", [item]) });
    return list;
  },
  error: chat.error,
  errorEvents: {
    "response.failed": (message, model) => named({ type: "response.failed", sequence_number: 99, response: response(model, "failed", [], { error: { code: "server_error", message } }) }),
    "error event": (message) => named({ type: "error", sequence_number: 99, code: "server_error", message, param: null }),
    "error object": (message) => data({ error: { message, type: "server_error", param: null, code: 500 } }),
  },
};

// --- Messages

const messages = {
  path: "/v1/messages",
  good: (model, { content = text, tools = false, more = {} } = {}) => json({
    id: "msg_1", type: "message", role: "assistant", model,
    content: tools ? [{ type: "tool_use", id: "toolu_1", name: "get_weather", input: JSON.parse(toolArguments) }] : [{ type: "text", text: content }],
    stop_reason: tools ? "tool_use" : "end_turn", stop_sequence: null, usage: { input_tokens: usage.in, output_tokens: usage.out }, ...more,
  }),
  events: (model, { parts = pieces, tools = false, done = true } = {}) => {
    const list = [named({ type: "message_start", message: {
      id: "msg_1", type: "message", role: "assistant", model, content: [], stop_reason: null, stop_sequence: null, usage: { input_tokens: usage.in, output_tokens: 1 } } })];
    list.push(named({ type: "content_block_start", index: 0, content_block: tools ? { type: "tool_use", id: "toolu_1", name: "get_weather", input: {} } : { type: "text", text: "" } }));
    list.push(named({ type: "ping" }));
    const deltas = tools
      ? toolArguments.match(/.{1,9}/gsu).map((partial_json) => ({ type: "input_json_delta", partial_json }))
      : parts.map((text) => ({ type: "text_delta", text }));
    for (const delta of deltas) list.push(named({ type: "content_block_delta", index: 0, delta }));
    list.push(named({ type: "content_block_stop", index: 0 }));
    if (done) {
      list.push(named({ type: "message_delta", delta: { stop_reason: tools ? "tool_use" : "end_turn", stop_sequence: null }, usage: { output_tokens: usage.out } }));
      list.push(named({ type: "message_stop" }));
    }
    return list;
  },
  error: (status, message, { type = "api_error" } = {}) => json({ type: "error", error: { type, message } }, { status }),
  errorEvents: {
    "error event": (message) => named({ type: "error", error: { type: "api_error", message } }),
    "overloaded": (message) => named({ type: "error", error: { type: "overloaded_error", message } }),
  },
};

export const dialects = { chat, responses, messages };
export { data, events, json, named };
