// The SDKs for JavaScript, unmodified, with their default settings but for what a case sets. Each plays a case and tells what its user sees:
//
//   error    the class of the error; undefined after success
//   status, code, type, message   of the error
//   text, finish, tools, usage    of the answer, or of the part that came
//   pieces   the number of pieces that the text of a stream came in
//
// A call is { url, model, api, stream, options, headers, onToken, signal }.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import Anthropic from "@anthropic-ai/sdk";
import { APICallError, embedMany, experimental_generateSpeech, experimental_transcribe, generateText, jsonSchema, RetryError, streamText, tool } from "ai";
import { createHash } from "node:crypto";
import OpenAI, { toFile } from "openai";

globalThis.AI_SDK_LOG_WARNINGS = false;

export const question = "What is the weather?";
const parameters = { type: "object", properties: { city: { type: "string" }, days: { type: "integer" } } };
export const form = Buffer.alloc(90_000, "sound");
export const digest = (bytes) => `${bytes.length} bytes, ${createHash("sha256").update(bytes).digest("hex").slice(0, 12)}`;

/** What has been seen of an answer so far. */
class Seen {
  #text = "";
  pieces = 0;

  constructor(call) {
    this.call = call;
  }

  add(piece) {
    if (!piece) return;
    this.#text += piece;
    this.pieces++;
    this.call.onToken?.(this.pieces);
  }

  toJSON() {
    const { call, error, status, code, type, message, finish, tools, usage, pieces } = this;
    const text = this.#text.length > 200 ? digest(Buffer.from(this.#text)) : this.#text || undefined;
    return { error, status, code, type, message, text, finish, tools, usage, pieces: call.stream ? pieces : undefined };
  }
}

/** Plays a call with the SDK's way of it, and tells what was seen. */
const played = (ways) => async (call) => {
  const seen = new Seen(call);
  try {
    await ways[call.api](call, seen);
  } catch (err) {
    seen.error = className(err);
    Object.assign(seen, describe(err));
  }
  return JSON.parse(JSON.stringify(seen));
};

const className = (err) => (err?.constructor?.name === "Error" || !err?.constructor ? err?.name ?? String(err) : err.constructor.name.replace(/^_/, ""));
const describe = (err) => ({ status: err?.status, code: err?.code ?? undefined, type: err?.type ?? undefined, message: err?.message });

const openAI = ({ url, options, headers }) => new OpenAI({
  baseURL: `${url}/v1`, apiKey: "unused", maxRetries: options.retries ?? 2, timeout: options.timeout, defaultHeaders: headers, logLevel: "off",
});
const chatBody = ({ model, options }) => ({
  model, messages: [{ role: "user", content: question }],
  ...(options.tools && { tools: [{ type: "function", function: { name: "get_weather", parameters } }] }),
  ...(options.usage && { stream_options: { include_usage: true } }),
});
const tokens = (input, output) => `${input} + ${output}`;
const chatUsage = (u) => u && tokens(u.prompt_tokens, u.completion_tokens);
const called = (name, args) => `${name}(${args})`;

function sawCompletion(seen, answer) {
  const choice = answer.choices[0];
  seen.add(choice.message.content);
  seen.finish = choice.finish_reason;
  seen.tools = choice.message.tool_calls?.map((c) => called(c.function.name, c.function.arguments)).join();
  seen.usage = chatUsage(answer.usage);
}

function sawResponse(seen, answer, add = true) {
  if (add) seen.add(answer.output_text);
  seen.finish = answer.status;
  seen.tools = answer.output.filter((o) => o.type === "function_call").map((c) => called(c.name, c.arguments)).join() || undefined;
  seen.usage = answer.usage && tokens(answer.usage.input_tokens, answer.usage.output_tokens);
}

function sawMessage(seen, answer, add = true) {
  for (const part of answer.content) {
    if (part.type === "text" && add) seen.add(part.text);
    if (part.type === "tool_use") seen.tools = called(part.name, JSON.stringify(part.input));
  }
  seen.finish = answer.stop_reason;
  seen.usage = tokens(answer.usage.input_tokens, answer.usage.output_tokens);
}

const openai = {
  name: "openai",
  play: played({
    chat: async (call, seen) => {
      const client = openAI(call);
      const answer = await client.chat.completions.create({ ...chatBody(call), stream: call.stream }, { signal: call.signal });
      if (!call.stream) return sawCompletion(seen, answer);
      let tools = "";
      for await (const chunk of answer) {
        const choice = chunk.choices?.[0];
        seen.add(choice?.delta?.content);
        for (const c of choice?.delta?.tool_calls ?? []) tools += (c.function.name ? `${c.function.name} ` : "") + c.function.arguments;
        seen.finish = choice?.finish_reason ?? seen.finish;
        seen.usage = chatUsage(chunk.usage) ?? seen.usage;
      }
      seen.tools = tools || undefined;
    },
    responses: async (call, seen) => {
      const client = openAI(call);
      const answer = await client.responses.create({ ...responseBody(call), stream: call.stream }, { signal: call.signal });
      if (!call.stream) return sawResponse(seen, answer);
      for await (const event of answer) {
        if (event.type === "response.output_text.delta") seen.add(event.delta);
        if (/^response\.(completed|incomplete|failed)$/.test(event.type)) {
          sawResponse(seen, event.response, false);
          seen.message = event.response.error?.message;
        }
        if (event.type === "error") Object.assign(seen, { finish: "error event", message: event.message, code: event.code });
      }
    },
    completions: async (call, seen) => {
      const answer = await openAI(call).completions.create({ model: call.model, prompt: question, stream: call.stream });
      if (!call.stream) {
        seen.add(answer.choices[0].text);
        seen.usage = chatUsage(answer.usage);
        seen.finish = answer.choices[0].finish_reason;
        return;
      }
      for await (const chunk of answer) {
        seen.add(chunk.choices[0].text);
        seen.finish = chunk.choices[0].finish_reason ?? undefined;
      }
    },
    embeddings: async (call, seen) => {
      const answer = await openAI(call).embeddings.create({ model: call.model, input: ["a", "b"] });
      seen.add(JSON.stringify(answer.data.map((d) => d.embedding)));
      seen.usage = String(answer.usage.total_tokens);
    },
    speech: async (call, seen) => {
      const answer = await openAI(call).audio.speech.create({ model: call.model, voice: "alloy", input: question });
      seen.add(digest(Buffer.from(await answer.arrayBuffer())));
    },
    transcription: async (call, seen) => {
      seen.add((await openAI(call).audio.transcriptions.create({ model: call.model, file: await toFile(form, "a.mp3") })).text);
    },
    image: async (call, seen) => {
      const answer = await openAI(call).images.generate({ model: call.model, prompt: question });
      seen.add(digest(Buffer.from(answer.data[0].b64_json, "base64")));
    },
    moderation: async (call, seen) => {
      seen.add(JSON.stringify((await openAI(call).moderations.create({ model: call.model, input: question })).results));
    },
    "two choices": async (call, seen) => {
      const answer = await openAI(call).chat.completions.create({ ...chatBody(call), n: 2, stream: call.stream });
      if (!call.stream) return seen.add(answer.choices.map((c) => c.message.content).join(", "));
      for await (const { choices: [c] } of answer) seen.add(`${c.index}: ${c.delta.content ?? c.finish_reason} `);
    },
    "follow-up": async (call, seen) => {
      const client = openAI(call);
      const first = await client.responses.create(responseBody(call));
      sawResponse(seen, await client.responses.create({ ...responseBody(call), previous_response_id: first.id }));
    },
  }),
};

const responseBody = ({ model, options }) => ({
  model, input: question, ...(options.tools && { tools: [{ type: "function", name: "get_weather", parameters, strict: false }] }),
});

/** What the SDK puts together from a stream itself. */
const openaiHelpers = {
  name: "openai .stream()",
  streamsOnly: true,
  play: played({
    chat: async (call, seen) => {
      const stream = openAI(call).chat.completions.stream(chatBody(call), { signal: call.signal });
      stream.on("content", (delta) => call.onToken?.(++seen.pieces));
      sawCompletion(seen, await stream.finalChatCompletion());
    },
    responses: async (call, seen) => {
      const stream = openAI(call).responses.stream(responseBody(call), { signal: call.signal });
      stream.on("response.output_text.delta", () => call.onToken?.(++seen.pieces));
      sawResponse(seen, await stream.finalResponse());
    },
  }),
};

// --- Anthropic's

const anthropicClient = ({ url, options, headers }) => new Anthropic({
  baseURL: url, apiKey: "unused", maxRetries: options.retries ?? 2, timeout: options.timeout, defaultHeaders: headers, logLevel: "off",
});
const messagesBody = ({ model, options }) => ({
  model, max_tokens: 100, messages: [{ role: "user", content: question }],
  ...(options.tools && { tools: [{ name: "get_weather", input_schema: parameters }] }),
});

const anthropic = {
  name: "@anthropic-ai/sdk",
  play: played({
    messages: async (call, seen) => {
      const answer = await anthropicClient(call).messages.create({ ...messagesBody(call), stream: call.stream }, { signal: call.signal });
      if (!call.stream) return sawMessage(seen, answer);
      let tools = "";
      for await (const event of answer) {
        if (event.type === "content_block_start" && event.content_block.type === "tool_use") tools += `${event.content_block.name} `;
        if (event.type === "content_block_delta") {
          seen.add(event.delta.text);
          tools += event.delta.partial_json ?? "";
        }
        if (event.type === "message_delta") {
          seen.finish = event.delta.stop_reason;
          seen.usage = String(event.usage.output_tokens);
        }
      }
      seen.tools = tools || undefined;
    },
    count_tokens: async (call, seen) => {
      const { max_tokens, ...body } = messagesBody(call);
      seen.add(String((await anthropicClient(call).messages.countTokens(body)).input_tokens));
    },
  }),
};

const anthropicHelpers = {
  name: "@anthropic-ai/sdk .stream()",
  streamsOnly: true,
  play: played({
    messages: async (call, seen) => {
      const stream = anthropicClient(call).messages.stream(messagesBody(call), { signal: call.signal });
      stream.on("text", () => call.onToken?.(++seen.pieces));
      sawMessage(seen, await stream.finalMessage());
    },
  }),
};

// --- Vercel's

const tools = { get_weather: tool({ inputSchema: jsonSchema(parameters) }) };

const provider = {
  compatible: ({ url, headers, options }) => createOpenAICompatible({ name: "matrix", baseURL: `${url}/v1`, apiKey: "unused", headers, includeUsage: options.usage }),
  openai: ({ url, headers }) => createOpenAI({ baseURL: `${url}/v1`, apiKey: "unused", headers }),
  anthropic: ({ url, headers }) => createAnthropic({ baseURL: `${url}/v1`, apiKey: "unused", headers }),
};

const vercelFailure = (err) => {
  const last = RetryError.isInstance(err) ? err.lastError : err;
  if (!APICallError.isInstance(last)) return { message: last?.message ?? String(last) };
  return { status: last.statusCode, code: last.data?.error?.code ?? undefined, type: last.data?.error?.type, message: last.message };
};

const vercelText = (model) => async (call, seen) => {
  const { options } = call;
  const ask = {
    model: model(call), prompt: question, maxRetries: options.retries ?? 2, abortSignal: call.signal,
    ...(options.tools && { tools }),
    ...(options.timeout && { timeout: call.stream ? { chunkMs: options.timeout } : options.timeout }),
  };
  const finish = async (result) => {
    seen.finish = await result.finishReason;
    seen.tools = (await result.toolCalls).map((c) => called(c.toolName, JSON.stringify(c.input))).join() || undefined;
    const { inputTokens, outputTokens } = await result.usage;
    seen.usage = tokens(inputTokens, outputTokens);
  };
  try {
    if (!call.stream) {
      const result = await generateText(ask);
      seen.add(result.text);
      return await finish(result);
    }
    let failed;
    const result = streamText({ ...ask, onError: ({ error }) => { failed ??= error; } });
    for await (const part of result.stream) {
      if (part.type === "text-delta") seen.add(part.text);
      if (part.type === "error") failed ??= part.error;
      if (part.type === "abort") failed ??= Object.assign(new Error("aborted"), { name: "Aborted" });
      if (part.type === "finish") seen.finish = part.finishReason;
    }
    if (failed !== undefined) throw failed;
    await finish(result);
  } catch (err) {
    seen.error = err?.name ?? typeof err;
    Object.assign(seen, vercelFailure(err));
  }
};

const vercel = (name, ways) => ({ name, play: played(ways) });
const caught = (way) => async (call, seen) => {
  try {
    await way(call, seen);
  } catch (err) {
    seen.error = err.name;
    Object.assign(seen, vercelFailure(err));
  }
};

const compatible = vercel("ai, openai-compatible", {
  chat: vercelText((call) => provider.compatible(call)(call.model)),
  completions: vercelText((call) => provider.compatible(call).completionModel(call.model)),
  embeddings: caught(async (call, seen) => {
    const { embeddings, usage } = await embedMany({ model: provider.compatible(call).embeddingModel(call.model), values: ["a", "b"] });
    seen.add(JSON.stringify(embeddings));
    seen.usage = String(usage.tokens);
  }),
});

const vercelOpenAI = vercel("ai, openai", {
  chat: vercelText((call) => provider.openai(call).chat(call.model)),
  responses: vercelText((call) => provider.openai(call)(call.model)),
  embeddings: caught(async (call, seen) => {
    const { embeddings } = await embedMany({ model: provider.openai(call).embedding(call.model), values: ["a", "b"] });
    seen.add(JSON.stringify(embeddings));
  }),
  speech: caught(async (call, seen) => {
    const { audio } = await experimental_generateSpeech({ model: provider.openai(call).speech(call.model), text: question });
    seen.add(digest(Buffer.from(audio.uint8Array)));
  }),
  transcription: caught(async (call, seen) => {
    seen.add((await experimental_transcribe({ model: provider.openai(call).transcription(call.model), audio: form })).text);
  }),
});

const vercelAnthropic = vercel("ai, anthropic", { messages: vercelText((call) => provider.anthropic(call)(call.model)) });

export const clients = [
  { ...openai, apis: ["chat", "responses", "completions", "embeddings", "speech", "transcription", "image", "moderation", "two choices", "follow-up"] },
  { ...openaiHelpers, apis: ["chat", "responses"] },
  { ...anthropic, apis: ["messages", "count_tokens"] },
  { ...anthropicHelpers, apis: ["messages"] },
  { ...compatible, apis: ["chat", "completions", "embeddings"] },
  { ...vercelOpenAI, apis: ["chat", "responses", "embeddings", "speech", "transcription"] },
  { ...vercelAnthropic, apis: ["messages"] },
];
