// What an engine may do, and what its client does meanwhile. Each case is played with every SDK that can ask for it, once
// with the engine alone and once through Pulley.
import { gzipSync } from "node:zlib";
import { data, dialects, events, json, pieces, text } from "./dialects.mjs";

const completions = ["chat", "responses", "messages"];
const both = [false, true];
const once = [false];

/** SDKs try again after this. */
const soon = { "retry-after-ms": "20" };
const extra = (reply, headers) => ({ ...reply, headers: { ...reply.headers, ...headers } });
const failing = (status, message, fields) => ({ api }) => extra(dialects[api].error(status, message, fields), soon);
const html = (status) => ({ status, headers: { "content-type": "text/html", ...soon }, body: "<html><body><h1>It is broken</h1></body></html>" });
const good = (options) => ({ api, stream, model }) => {
  const d = dialects[api];
  return stream ? events(d.events(model, options)) : d.good(model, options);
};
/** The number of steps of a stream of which the third token is the last. */
const thirdToken = ({ api }) => ({ chat: 4, responses: 7, messages: 6 })[api];
const cutAfter = (n, end) => (ask) => events([...dialects[ask.api].events(ask.model).slice(0, n(ask)), ...end(ask)]);
const bytes = (list, size) => {
  const all = Buffer.from(list.join(""));
  return Array.from({ length: Math.ceil(all.length / size) }, (_, i) => all.subarray(i * size, (i + 1) * size));
};
const respelled = (change) => ({ api, model }) => {
  const reply = events(dialects[api].events(model));
  return { ...reply, ...change(reply.body) };
};

/**
 * A case: name; apis; streams: which values of `stream` it is played with; options of the client; without: for which SDKs the
 * outcome depends on the time, such as for those whose timeout bounds all of a stream; reply: a function from
 * the request to the reply of the engine, or to a list of them for one request after the other. The SDKs' own helpers for
 * streams are played with the cases in which a stream begins.
 */
export const cases = [];
const add = (name, { apis = completions, streams = both, options = {}, without }, reply) => cases.push({ name, apis, streams, options, without, reply, begins });
let begins = true;

// --- Answers

add("a slow answer", { apis: [] }, (ask) => ({ ...good()(ask), late: 40 })); // for the driver itself
add("an answer", {}, good());
add("a tool call", { options: { tools: true } }, good({ tools: true }));
add("a chunk with the usage", { apis: ["chat"], streams: [true], options: { usage: true } }, good({ withUsage: true }));
add("an empty answer", {}, ({ api, stream, model }) => good(stream ? { parts: [] } : { content: "" })({ api, stream, model }));
add("an answer of the full length", { apis: ["chat"] }, good({ finish: "length" }));
add("a filtered answer", { apis: ["chat"] }, good({ finish: "content_filter" }));
add("a stream without roles", { apis: ["chat"], streams: [true] }, good({ role: false }));
add("reasoning", { apis: ["chat"], streams: [true] }, good({ reasoning: ["Let me ", "think."] }));
add("members that nobody knows", { streams: [false] }, good({ more: { timings: { predicted_ms: 1.5 }, nvext: null, x: [{}] } }));
add("an answer of 3 MiB", { streams: [false] }, good({ content: "ä long story. ".repeat(200_000) }));
add("an answer in chunks", { streams: [false] }, (ask) => ({ ...good()(ask), chunked: true }));
add("a compressed answer", { streams: [false] }, (ask) => {
  const reply = good()(ask);
  return extra({ ...reply, body: gzipSync(reply.body) }, { "content-encoding": "gzip" });
});
add("a compressed stream", { streams: [true] }, respelled((list) => (
  { headers: { "content-type": "text/event-stream", "content-encoding": "gzip" }, body: [gzipSync(list.join(""))] })));
add("a stream in one piece", { streams: [true] }, respelled((list) => ({ body: [list.join("")] })));
add("a stream in pieces of 5 bytes", { streams: [true] }, respelled((list) => ({ body: bytes(list, 5) })));
add("a stream with CRLF", { streams: [true] }, respelled((list) => ({ body: list.map((e) => e.replaceAll("\n", "\r\n")) })));
add("a stream with CR", { streams: [true] }, respelled((list) => ({ body: list.map((e) => e.replaceAll("\n", "\r")) })));
add("a stream without spaces after the colons", { streams: [true] }, respelled((list) => ({ body: list.map((e) => e.replaceAll(/^(data|event): /gm, "$1:")) })));
add("a stream with comments", { streams: [true] }, respelled((list) => ({ body: list.flatMap((e) => [": keep-alive\n\n", e]) })));
add("a stream with ids and retry", { streams: [true] }, respelled((list) => ({ body: list.map((e, i) => `id: ${i}\nretry: 1000\n${e}`) })));
add("a stream without [DONE]", { apis: ["chat"], streams: [true] }, good({ done: false }));
add("a stream without the last line's end", { streams: [true] }, respelled((list) => ({ body: [...list.slice(0, -1), list.at(-1).trimEnd()] })));
add("a stream called text/plain", { streams: [true] }, respelled(() => ({ headers: { "content-type": "text/plain; charset=utf-8" } })));
add("a stream without a content type", { streams: [true] }, respelled(() => ({ headers: {} })));
add("a stream with a byte order mark", { streams: [true] }, respelled((list) => ({ body: ["\ufeff" + list[0], ...list.slice(1)] })));
add("a slow, steady stream, longer than the timeout", { streams: [true], without: /go$/, options: { timeout: 2000 } }, (ask) => (
  { ...good()(ask), body: good()(ask).body.flatMap((e) => [{ wait: 250 }, e]) }));
add("a stream where none was asked for", { streams: [false] }, ({ api, model }) => events(dialects[api].events(model)));
add("JSON where a stream was asked for", { streams: [true] }, ({ api, model }) => dialects[api].good(model));

// --- Errors instead of an answer

begins = false;
add("400", { streams: once }, failing(400, "temperature must be positive", { type: "invalid_request_error", param: "temperature" }));
add("400 in plain text", { streams: once }, () => ({ status: 400, headers: { "content-type": "text/plain" }, body: "no" }));
add("401", { streams: once }, failing(401, "bad key", { type: "authentication_error", code: "invalid_api_key" }));
add("403", { streams: once }, failing(403, "not yours", { type: "permission_error" }));
add("403 for the content", { streams: once }, failing(403, "not this", { type: "invalid_request_error", param: "messages" }));
add("404 for the model", { streams: once }, ({ api, model }) => dialects[api].error(404, `The model \`${model}\` does not exist.`, { type: api === "messages" ? "not_found_error" : "NotFoundError", param: "model", code: "model_not_found" }));
add("404 for the path", { streams: once }, () => json({ detail: "Not Found" }, { status: 404 }));
add("404 in HTML", { streams: once }, () => html(404));
add("405", { streams: once }, () => json({ detail: "Method Not Allowed" }, { status: 405 }));
add("408", { streams: once }, failing(408, "too slow"));
add("409", { streams: once }, failing(409, "a conflict"));
add("413", { streams: once }, failing(413, "too large", { type: "request_too_large" }));
add("415", { streams: once }, failing(415, "no such media type"));
add("422", { streams: once }, () => json({ detail: [{ loc: ["body", "messages"], msg: "field required", type: "value_error.missing" }] }, { status: 422 }));
add("429", {}, failing(429, "slow down", { type: "rate_limit_error", code: "rate_limit_exceeded" }));
add("429 with retry-after", { streams: once }, (ask) => extra(dialects[ask.api].error(429, "slow down"), { "retry-after": "1" }));
add("500", {}, failing(500, "it is broken"));
add("500 for the request", { streams: once }, failing(500, "cannot parse the tools", { type: "invalid_request_error" }));
add("500 without a body", { streams: once }, () => ({ status: 500, headers: soon }));
add("500 that must not be retried", { streams: once }, (ask) => extra(failing(500, "it is broken")(ask), { "x-should-retry": "false" }));
add("501", { streams: once }, failing(501, "no logprobs here"));
add("502 in HTML", { streams: once }, () => html(502));
add("503", { streams: once }, failing(503, "loading"));
add("503 in HTML", { streams: once }, () => html(503));
add("504", { streams: once }, failing(504, "the backend is slow"));
add("529", { streams: once }, failing(529, "overloaded", { type: "overloaded_error" }));
add("500, then an answer", {}, (ask) => [failing(500, "it is broken")(ask), good()(ask)]);
add("503, then an answer", { streams: once }, (ask) => [failing(503, "loading")(ask), good()(ask)]);
add("429, then an answer", { streams: once }, (ask) => [failing(429, "slow down")(ask), good()(ask)]);
add("529, then an answer", { streams: once }, (ask) => [failing(529, "overloaded")(ask), good()(ask)]);
add("a closed connection, then an answer", { options: { retries: 1 } }, (ask) => [{ close: true }, good()(ask)]);
add("closed connections", { streams: once, options: { retries: 1 } }, () => ({ close: true }));
add("a redirect", { streams: once }, (ask) => [{ status: 307, headers: { location: dialects[ask.api].path } }, good()(ask)]);

// --- No answer, called one

add("200 without a body", { streams: once, options: { retries: 1 } }, () => ({ headers: { "content-type": "application/json" } }));
add("200 in HTML", { streams: once, options: { retries: 1 } }, () => html(200));
add("200 with an error", { streams: once, options: { retries: 1 } }, ({ api }) => ({ ...dialects[api].error(500, "out of memory"), status: 200 }));
add("a stream of nothing", { streams: [true], options: { retries: 1 } }, () => events([]));
add("a stream of nothing but [DONE]", { apis: ["chat"], streams: [true] }, () => events(["data: [DONE]\n\n"]));
add("a stream that begins with an error", { streams: [true], options: { retries: 1 } }, ({ api, model }) => events([Object.values(dialects[api].errorEvents)[0]("out of memory", model)]));

// --- Answers that break off

begins = true;
add("cut before the first token", { streams: [true] }, cutAfter(() => 1, () => ["cut"]));
add("cut before the first token, then an answer", { streams: [true] }, (ask) => [cutAfter(() => 1, () => ["cut"])(ask), good()(ask)]);
add("cut after the third token", { streams: [true] }, cutAfter(thirdToken, () => ["cut"]));
add("an end after the third token", { streams: [true] }, cutAfter(thirdToken, () => []));
add("a cut answer", { streams: [false], options: { retries: 1 } }, (ask) => ({ ...good()(ask), body: [good()(ask).body.slice(0, 60), "cut"] }));
add("an answer that ends too early", { streams: [false], options: { retries: 1 } }, (ask) => ({ ...good()(ask), body: [good()(ask).body.slice(0, 60)] }));
add("an event that is not JSON", { streams: [true] }, cutAfter(thirdToken, ({ api }) => [api === "messages" ? "event: content_block_delta\ndata: {oops\n\n" : "data: {oops\n\n"]));
for (const api of completions) {
  for (const [spelling, event] of Object.entries(dialects[api].errorEvents)) {
    add(`an error after the third token: ${spelling}`, { apis: [api], streams: [true] }, cutAfter(thirdToken, ({ model }) => [event("out of memory", model)]));
  }
}

// --- Time

const impatient = { timeout: 1000, retries: 1 };
add("no header within the timeout", { streams: [true], options: impatient }, (ask) => ({ ...good()(ask), late: 50_000 }));
add("no header within the timeout, then an answer", { streams: once, options: impatient }, (ask) => [{ ...good()(ask), late: 50_000 }, good()(ask)]);
add("no token within the timeout", { streams: [true], options: { ...impatient, patience: 4000 } }, cutAfter(() => 1, () => ["hang"]));
add("silence in the middle", { streams: [true], options: { ...impatient, patience: 4000 } }, cutAfter(thirdToken, () => ["hang"]));
add("a late first token, within the timeout", { options: { timeout: 5000 } }, (ask) => ({ ...good()(ask), late: 1500 }));
add("the client leaves before the header", { options: { abort: "header" } }, (ask) => ({ ...good()(ask), late: 60_000 }));
add("the client leaves after the third token", { streams: [true], options: { abort: "tokens" } }, cutAfter(thirdToken, () => ["hang"]));

// --- Other APIs

const vectors = [[0.5, -0.25, 0.125], [1, 2, -3]];
const embeddings = (encode) => ({ model, body }) => json({
  object: "list", model, usage: { prompt_tokens: 4, total_tokens: 4 },
  data: vectors.map((v, index) => ({ object: "embedding", index, embedding: encode && body.encoding_format === "base64" ? Buffer.from(Float32Array.from(v).buffer).toString("base64") : v })),
});
add("embeddings", { apis: ["embeddings"], streams: once }, embeddings(true));
add("embeddings that are never base64", { apis: ["embeddings"], streams: once }, embeddings(false));
add("embeddings: 400", { apis: ["embeddings"], streams: once }, () => dialects.chat.error(400, "the input is too long", { type: "BadRequestError", code: 400 }));
add("embeddings: 500, then an answer", { apis: ["embeddings"], streams: once }, (ask) => [extra(dialects.chat.error(500, "it is broken"), soon), embeddings(true)(ask)]);
const sound = Buffer.from(Array.from({ length: 70_000 }, (_, i) => (i * 31) % 251));
const audio = (fields) => ({ headers: { "content-type": "audio/mpeg" }, body: sound, ...fields });
add("speech", { apis: ["speech"], streams: once }, () => audio());
add("speech as it is made", { apis: ["speech"], streams: once }, () => audio({ body: Array.from({ length: 7 }, (_, i) => sound.subarray(i * 10_000, (i + 1) * 10_000)) }));
add("speech that breaks off", { apis: ["speech"], streams: once }, () => audio({ body: [sound.subarray(0, 30_000), "cut"] }));
add("speech: 400", { apis: ["speech"], streams: once }, () => dialects.chat.error(400, "no such voice", { type: "invalid_request_error", param: "voice" }));
add("a transcription", { apis: ["transcription"], streams: once }, ({ size }) => json({ text: `${text} (${size > 70_000 ? "all of it" : "a part"})`, usage: { type: "duration", seconds: 3 } }));
add("a transcription: 400", { apis: ["transcription"], streams: once }, () => dialects.chat.error(400, "no such format", { type: "invalid_request_error" }));
add("counted tokens", { apis: ["count_tokens"], streams: once }, () => json({ input_tokens: 42 }));
add("counted tokens: 404", { apis: ["count_tokens"], streams: once }, () => json({ detail: "Not Found" }, { status: 404 }));
add("counted tokens: 400", { apis: ["count_tokens"], streams: once }, () => dialects.messages.error(400, "messages: too few", { type: "invalid_request_error" }));
const completion = (model, text, finish_reason = null) => ({ id: "cmpl-1", object: "text_completion", created: 1700000000, model, choices: [{ index: 0, text, logprobs: null, finish_reason }] });
add("a completion", { apis: ["completions"], streams: both }, ({ model, stream }) => stream
  ? events([...pieces.map((p) => data(completion(model, p))), data(completion(model, "", "stop")), "data: [DONE]\n\n"])
  : json({ ...completion(model, text, "stop"), usage: { prompt_tokens: 3, completion_tokens: 7, total_tokens: 10 } }));
add("an image", { apis: ["image"], streams: once }, () => json({ created: 1, data: [{ b64_json: sound.toString("base64") }] }));
add("a moderation", { apis: ["moderation"], streams: once }, ({ model }) => json({ id: "modr-1", model, results: [{ flagged: true, categories: { violence: true }, category_scores: { violence: 0.9 } }] }));
add("two choices", { apis: ["two choices"], streams: both }, ({ model, stream }) => {
  const chunk = (index, delta, finish_reason = null) => data({ id: "chatcmpl-1", object: "chat.completion.chunk", created: 1, model, choices: [{ index, delta, finish_reason }] });
  if (!stream) return json({ id: "chatcmpl-1", object: "chat.completion", created: 1, model, choices: [0, 1].map((index) => ({ index, message: { role: "assistant", content: `choice ${index}` }, finish_reason: "stop" })) });
  return events([chunk(0, { role: "assistant", content: "a" }), chunk(1, { role: "assistant", content: "b" }), chunk(1, {}, "stop"), chunk(0, { content: "aa" }), chunk(0, {}, "stop"), "data: [DONE]\n\n"]);
});
add("a response that follows another", { apis: ["follow-up"], streams: once }, ({ model, body }) => body.previous_response_id
  ? dialects.responses.good(model, { content: `after ${body.previous_response_id}`, more: { id: "resp_2", previous_response_id: body.previous_response_id } })
  : dialects.responses.good(model));
add("a response that follows an unknown one", { apis: ["follow-up"], streams: once }, ({ model, body }) => body.previous_response_id
  ? dialects.responses.error(404, "Previous response with id 'resp_1' not found.", { type: "invalid_request_error", param: "previous_response_id", code: "previous_response_not_found" })
  : dialects.responses.good(model));

const byName = new Map(cases.map((c) => [c.name, c]));
const apiOf = Object.fromEntries(Object.entries(dialects).map(([api, d]) => [d.path, api]));

/** The engine's replies to a request of a case. */
export function replies(name, path, bytes) {
  let body = {};
  try {
    body = JSON.parse(bytes);
  } catch {
    // a form
  }
  const api = apiOf[path] ?? (path.startsWith("/v1/messages") ? "messages" : "chat");
  const reply = byName.get(decodeURIComponent(name)).reply({ api, stream: body.stream === true, model: body.model, body, size: bytes.length });
  return Array.isArray(reply) ? reply : [reply];
}
