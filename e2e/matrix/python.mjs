// What the SDKs for Python do on the wire, and what they make of an answer, as their documentation has it: which requests
// they send with which headers, when they try again, how long they wait for each read, how they read a stream, and which
// error they raise. This is no copy of the SDKs, and there is no Python in it: packages of Python are not installed here.
import http from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import zlib from "node:zlib";
import { digest, question } from "./clients.mjs";

const agent = new http.Agent({ keepAlive: true });
const readTimeout = 600; // seconds between two reads, by default
const longestRetryAfter = { openai: 120, anthropic: 60 };

class Raised extends Error {
  constructor(error, fields) {
    super(fields.message ?? error);
    Object.assign(this, { error, ...fields });
  }
}

/** Sends one request. A wait for the header, or between two pieces, that is too long is a ReadTimeout. */
function send(call, sdk, path, body, headers) {
  const limit = (call.options.timeout ?? readTimeout * 1000);
  return new Promise((resolve, reject) => {
    const req = http.request(call.url + path, { method: "POST", agent, headers: { ...headers, "content-length": Buffer.byteLength(body) } });
    const timedOut = new Raised("ReadTimeout", { message: "The read operation timed out" });
    req.setTimeout(limit, () => req.destroy(timedOut));
    call.signal?.addEventListener("abort", () => req.destroy(new Raised("closed by its user", {})));
    req.once("error", (err) => reject(err instanceof Raised ? err : new Raised("RemoteProtocolError", { message: "Server disconnected without sending a response." })));
    req.once("response", (res) => {
      res.setTimeout(limit, () => res.destroy(timedOut));
      resolve(res);
    });
    req.end(body);
  });
}

async function* pieces(res) {
  const body = res.headers["content-encoding"] === "gzip" ? res.pipe(zlib.createGunzip({ flush: zlib.constants.Z_SYNC_FLUSH })) : res;
  try {
    for await (const piece of body) yield piece;
  } catch (err) {
    if (err instanceof Raised) throw err;
    throw new Raised("RemoteProtocolError", { message: "peer closed connection without sending complete message body (incomplete chunked read)" });
  }
}

async function whole(res) {
  const list = [];
  for await (const piece of pieces(res)) list.push(piece);
  return Buffer.concat(list);
}

/** Sends a request, and sends it again as the SDK does. Resolves with the answer: read, unless it is to be streamed. */
async function request(call, sdk, path, body) {
  const most = call.options.retries ?? 2;
  for (let n = 0; ; n++) {
    const headers = {
      accept: "application/json", "accept-encoding": "gzip, deflate", "content-type": "application/json", connection: "keep-alive",
      "user-agent": `${sdk.agent}/Python 2.0.0`, "x-stainless-lang": "python", "x-stainless-async": "false", "x-stainless-retry-count": String(n),
      "x-stainless-read-timeout": String((call.options.timeout ?? readTimeout * 1000) / 1000), ...sdk.headers, ...call.headers,
    };
    let res;
    let content;
    try {
      res = await send(call, sdk, path, body, headers);
      for (let hops = 0; res.statusCode >= 300 && res.statusCode < 400 && res.headers.location && hops < 20; hops++) {
        res.resume();
        path = new URL(res.headers.location, call.url).href.slice(new URL(call.url).origin.length);
        res = await send(call, sdk, path, body, headers);
      }
      if (!call.stream || res.statusCode >= 400) content = await whole(res);
    } catch (err) {
      if (call.signal?.aborted) throw err;
      if (n < most) {
        await sleep(pause(n, {}, sdk));
        continue;
      }
      throw err.error === "ReadTimeout" ? new Raised("APITimeoutError", { message: "Request timed out." }) : new Raised("APIConnectionError", { message: "Connection error." });
    }
    if (res.statusCode < 400) return { res, content };
    if (n < most && triesAgain(res, sdk)) {
      await sleep(pause(n, res.headers, sdk));
      continue;
    }
    throw statusError(res.statusCode, content.toString(), sdk);
  }
}

function triesAgain(res, sdk) {
  if (Number(res.headers["retry-after"]) > longestRetryAfter[sdk.name]) return sdk.name === "anthropic";
  if (res.headers["x-should-retry"] === "true") return true;
  if (res.headers["x-should-retry"] === "false") return false;
  return [408, 409, 429].includes(res.statusCode) || res.statusCode >= 500;
}

function pause(n, headers, sdk) {
  const asked = headers["retry-after-ms"] ? Number(headers["retry-after-ms"]) : headers["retry-after"] ? 1000 * Number(headers["retry-after"]) : NaN;
  if (asked > 0 && asked <= 1000 * longestRetryAfter[sdk.name]) return asked;
  return Math.min(500 * 2 ** n, 8000);
}

function parsed(textOf) {
  try {
    return JSON.parse(textOf);
  } catch {
    return undefined;
  }
}

const classes = { 400: "BadRequestError", 401: "AuthenticationError", 403: "PermissionDeniedError", 404: "NotFoundError", 409: "ConflictError", 422: "UnprocessableEntityError", 429: "RateLimitError" };

function statusError(status, content, sdk) {
  const body = parsed(content.trim());
  const error = body?.error ?? body;
  return new Raised(sdk.classes?.[status] ?? classes[status] ?? (status >= 500 ? "InternalServerError" : "APIStatusError"), {
    status, message: body !== undefined ? `Error code: ${status} - ${JSON.stringify(body)}` : content || `Error code: ${status}`,
    code: error?.code ?? undefined, type: error?.type ?? undefined,
  });
}

/** The events of a stream. One that no empty line ends is not read. */
async function* events(res) {
  let rest = Buffer.alloc(0);
  let event, list = [];
  const line = function* (bytes) {
    if (bytes.length === 0) {
      if (event !== undefined || list.length > 0) yield { event, data: list.join("\n") };
      event = undefined;
      list = [];
      return;
    }
    const text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
    const [, name, value] = /^([^:]*):? ?([^]*)$/.exec(text);
    if (name === "event") event = value;
    if (name === "data") list.push(value);
  };
  for await (const piece of pieces(res)) {
    rest = Buffer.concat([rest, piece]);
    let from = 0;
    for (let at = 0; at < rest.length; at++) {
      if (rest[at] !== 10 && rest[at] !== 13) continue;
      if (rest[at] === 13 && at + 1 === rest.length) break; // a line feed may follow
      yield* line(rest.subarray(from, at));
      if (rest[at] === 13 && rest[at + 1] === 10) at++;
      from = at + 1;
    }
    rest = rest.subarray(from);
  }
  if (rest.length > 0) yield* line(rest.at(-1) === 13 ? rest.subarray(0, -1) : rest);
}

function json(textOf) {
  const value = parsed(textOf);
  if (value === undefined) throw new Raised("JSONDecodeError", { message: "not JSON" });
  return value;
}

/** An answer that is no JSON is a string to its user, who then misses its members. */
function answerOf({ res, content }) {
  if (!/json$/.test((res.headers["content-type"] ?? "").split(";")[0].trim())) throw new Raised("AttributeError", { message: "'str' object has no such attribute" });
  return json(content.toString());
}

const member = (value, name) => {
  if (value?.[name] === undefined || value[name] === null) throw new Raised("TypeError", { message: `'NoneType' object: ${name}` });
  return value[name];
};

const openai = { name: "openai", agent: "OpenAI", headers: { authorization: "Bearer unused" } };
const anthropic = {
  name: "anthropic", agent: "Anthropic", headers: { "x-api-key": "unused", "anthropic-version": "2023-06-01" },
  classes: { 413: "RequestTooLargeError", 503: "ServiceUnavailableError", 504: "DeadlineExceededError", 529: "OverloadedError" },
};

const tokens = (input, output) => `${input} + ${output}`;
const parameters = { type: "object", properties: { city: { type: "string" } } };

const ways = {
  chat: async (call, see) => {
    const body = { messages: [{ role: "user", content: question }], model: call.model };
    if (call.options.tools) body.tools = [{ type: "function", function: { name: "get_weather", parameters } }];
    if (call.stream) body.stream = true;
    if (call.options.usage) body.stream_options = { include_usage: true };
    const got = await request(call, openai, "/v1/chat/completions", JSON.stringify(body));
    if (!call.stream) {
      const answer = answerOf(got);
      const { message, finish_reason } = member(answer, "choices")[0];
      see({ text: message.content, finish: finish_reason, tools: message.tool_calls?.[0].function.arguments, usage: answer.usage && tokens(answer.usage.prompt_tokens, answer.usage.completion_tokens) });
      return;
    }
    for await (const chunk of openaiStream(got.res)) {
      const choice = chunk.choices?.[0];
      see({ text: choice?.delta?.content, tools: choice?.delta?.tool_calls?.[0].function.arguments, finish: choice?.finish_reason, usage: chunk.usage && tokens(chunk.usage.prompt_tokens, chunk.usage.completion_tokens) });
    }
  },
  responses: async (call, see) => {
    const body = { input: question, model: call.model };
    if (call.options.tools) body.tools = [{ type: "function", name: "get_weather", parameters, strict: false }];
    if (call.stream) body.stream = true;
    const got = await request(call, openai, "/v1/responses", JSON.stringify(body));
    const last = (answer) => see({ finish: answer.status, usage: answer.usage && tokens(answer.usage.input_tokens, answer.usage.output_tokens) });
    if (!call.stream) {
      const answer = answerOf(got);
      for (const item of member(answer, "output")) see({ text: item.content?.[0].text, tools: item.arguments });
      return last(answer);
    }
    for await (const event of openaiStream(got.res)) {
      if (event.type === "response.output_text.delta") see({ text: event.delta });
      if (event.type === "response.function_call_arguments.delta") see({ tools: event.delta });
      if (/^response\.(completed|incomplete|failed)$/.test(event.type)) last(event.response);
      if (event.type === "error") see({ finish: `error event: ${event.message}` });
    }
  },
  embeddings: async (call, see) => {
    const answer = answerOf(await request(call, openai, "/v1/embeddings", JSON.stringify({ input: ["a", "b"], model: call.model, encoding_format: "base64" })));
    const vectors = member(answer, "data").map(({ embedding }) => (
      typeof embedding === "string" ? [...new Float32Array(Uint8Array.from(Buffer.from(embedding, "base64")).buffer)] : embedding));
    see({ text: JSON.stringify(vectors) });
  },
  speech: async (call, see) => {
    const { content } = await request(call, openai, "/v1/audio/speech", JSON.stringify({ input: question, model: call.model, voice: "alloy" }));
    see({ text: digest(content) });
  },
  messages: async (call, see) => {
    const body = { max_tokens: 100, messages: [{ role: "user", content: question }], model: call.model };
    if (call.options.tools) body.tools = [{ name: "get_weather", input_schema: parameters }];
    if (call.stream) body.stream = true;
    const got = await request(call, anthropic, "/v1/messages", JSON.stringify(body));
    if (!call.stream) {
      const answer = answerOf(got);
      for (const part of member(answer, "content")) see({ text: part.text, tools: part.input && JSON.stringify(part.input) });
      see({ finish: answer.stop_reason, usage: tokens(answer.usage.input_tokens, answer.usage.output_tokens) });
      return;
    }
    for await (const { event, data } of events(got.res)) {
      if (event === "error") {
        const error = parsed(data)?.error;
        throw new Raised("APIStatusError", { status: 200, message: data, type: error?.type });
      }
      if (!event || event === "ping") continue;
      const value = json(data);
      see({ text: value.delta?.text, tools: value.delta?.partial_json, finish: value.delta?.stop_reason });
    }
  },
};

async function* openaiStream(res) {
  for await (const { data } of events(res)) {
    if (data.startsWith("[DONE]")) break;
    const value = json(data);
    if (value?.error) {
      const { message = "An error occurred during streaming", code, type } = typeof value.error === "object" ? value.error : {};
      throw new Raised("APIError", { message, code: code ?? undefined, type });
    }
    yield value;
  }
  res.destroy();
}

async function play(call) {
  const seen = { text: "", tools: "", pieces: 0 };
  const see = ({ text, tools, finish, usage }) => {
    if (text) {
      seen.text += text;
      call.onToken?.(++seen.pieces);
    }
    seen.tools += tools ?? "";
    seen.finish = finish ?? seen.finish;
    seen.usage = usage ?? seen.usage;
  };
  try {
    await ways[call.api](call, see);
  } catch (err) {
    if (!(err instanceof Raised)) throw err;
    const { error, status, code, type, message } = err;
    Object.assign(seen, { error, status, code, type, message });
  }
  if (seen.text.length > 200) seen.text = digest(Buffer.from(seen.text));
  return JSON.parse(JSON.stringify({ ...seen, text: seen.text || undefined, tools: seen.tools || undefined, pieces: call.stream ? seen.pieces : undefined }));
}

export const clients = [
  { name: "openai for Python, imitated", apis: ["chat", "responses", "embeddings", "speech"], play },
  { name: "anthropic for Python, imitated", apis: ["messages"], play },
];
