// A small OpenAI-compatible server over llama.cpp (through node-llama-cpp, on the CPU): a real
// engine with real slots, tokens and aborts for the end-to-end tests.
//
//   node server.mjs --model tiny.gguf [--name tiny] [--listen 127.0.0.1:0] [--slots 4] [--itl 0] [--context 1024]
//                   [--cold] [--load-time 0]
//
// With --cold it has loaded nothing at first, and says so as Ollama does: /api/tags, /api/ps. A request loads the model, and
// POST /api/generate without a prompt does too. Loading takes at least --load-time milliseconds.
//
// One line on standard output, "listening on http://HOST:PORT", says that it is ready.
// GET /stats counts generations, in the simulator's words; a request that was given up by its
// client counts as aborted, whether it ran or waited for a slot.
// The header `x-sim` makes a request go wrong as it does in the simulator: see faults.mjs.
import http from "node:http";
import { once } from "node:events";
import { parseArgs } from "node:util";
import { setTimeout as sleep } from "node:timers/promises";
import { APIError, Engine } from "./engine.mjs";
import { parseFault } from "./faults.mjs";

const { values: flags } = parseArgs({
  options: {
    model: { type: "string" },
    name: { type: "string", default: "tiny" },
    listen: { type: "string", default: "127.0.0.1:0" },
    slots: { type: "string", default: "4" },
    itl: { type: "string", default: "0" }, // least milliseconds between two tokens
    context: { type: "string", default: "1024" }, // tokens per slot
    cold: { type: "boolean", default: false },
    "load-time": { type: "string", default: "0" }, // milliseconds
  },
});

const stats = { slots: Number(flags.slots), running: 0, waiting: 0, started: 0, finished: 0, aborted: 0, loads: 0 };
const card = { id: flags.name, object: "model", created: 1700000000, owned_by: flags.cold ? "library" : "realengine" };
let engine; // undefined until the model is loaded
let loading; // a promise while it is
if (!flags.cold) await load();
const minGap = Number(flags.itl);
const bodyLimit = 8 << 20;

const get = {
  "/health": () => ({ status: "ok" }),
  "/stats": () => stats,
  "/v1/models": () => ({ object: "list", data: [card] }),
  [`/v1/models/${flags.name}`]: () => card,
};
const ollama = { name: flags.name, model: flags.name, size: 1 << 20, size_vram: 1 << 20 };
if (flags.cold) {
  get["/api/version"] = () => ({ version: "0.33.0" });
  get["/api/tags"] = () => ({ models: [ollama] });
  get["/api/ps"] = () => ({ models: engine ? [ollama] : [] });
}
const post = {
  "/v1/chat/completions": (call) => generate(call, chatShape),
  "/v1/completions": (call) => generate(call, textShape),
  "/v1/embeddings": embed,
};

const server = http.createServer(async (req, res) => {
  try {
    await route(req, res);
  } catch (err) {
    answerError(res, err);
  }
});
const [host, port] = flags.listen.split(":");
server.listen(Number(port), host, () => console.log(`listening on http://${host}:${server.address().port}`));
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => process.exit(0));

async function route(req, res) {
  const path = new URL(req.url, "http://engine").pathname;
  if (req.method === "GET" && get[path]) return sendJSON(res, 200, get[path]());
  if (req.method === "POST" && path === "/api/generate" && flags.cold) {
    const body = await readJSON(req);
    await load();
    return sendJSON(res, 200, { model: body.model, created_at: new Date().toISOString(), response: "", done: true, done_reason: "load" });
  }
  if (req.method !== "POST" || !post[path]) throw new APIError(404, `no such path: ${req.method} ${path}`, "not_found");
  const body = await readJSON(req);
  if (body.model !== flags.name) throw new APIError(404, `The model \`${body.model}\` does not exist`, "model_not_found");

  await load();
  const gone = new AbortController();
  res.on("close", () => res.writableFinished || gone.abort());
  await post[path]({ body, res, signal: gone.signal, fault: parseFault(req.headers["x-sim"]) });
}

/** Loads the model, unless it is loaded or being loaded. */
async function load() {
  if (engine) return;
  loading ??= (async () => {
    await sleep(Number(flags["load-time"]));
    const loaded = await Engine.load(flags.model, { slots: Number(flags.slots), contextSize: Number(flags.context) });
    stats.loads++;
    engine = loaded;
  })();
  await loading;
}

// How a chat completion and a text completion differ.
const chatShape = {
  prefix: "chatcmpl",
  kind: "chat.completion",
  chunkKind: "chat.completion.chunk",
  prompt: (body) => {
    if (!body.messages?.length) throw new APIError(400, "messages must not be empty", "missing_messages");
    return body.messages.map((m) => `${m.role}: ${plainText(m.content)}\n`).join("") + "assistant:";
  },
  first: { delta: { role: "assistant", content: "" } },
  piece: (text) => ({ delta: { content: text } }),
  last: { delta: {} },
  whole: (text) => ({ message: { role: "assistant", content: text, refusal: null } }),
};
const textShape = {
  prefix: "cmpl",
  kind: "text_completion",
  chunkKind: "text_completion",
  prompt: (body) => plainText(body.prompt),
  first: null,
  piece: (text) => ({ text }),
  last: { text: "" },
  whole: (text) => ({ text }),
};

function plainText(content) {
  if (typeof content === "string") return content;
  return (content ?? []).map((part) => (typeof part === "string" ? part : (part.text ?? ""))).join("");
}

async function generate({ body, res, signal, fault }, shape) {
  const prompt = engine.tokenize(shape.prompt(body));
  const limit = body.max_completion_tokens ?? body.max_tokens ?? 64;
  engine.checkLength(prompt.length, limit);
  if (fault.refuse) throw new APIError(429, "all slots are taken", "rate_limit_exceeded", { "retry-after": "1" });
  if (fault.fail) throw new APIError(fault.fail, "failing as told", "engine_failure");
  if (fault.close) return res.destroy();

  stats.started++;
  try {
    stats.waiting++;
    const slot = await engine.acquire(signal).finally(() => stats.waiting--);
    stats.running++;
    try {
      if (fault.hang) await left(signal);
      await run({ body, res, signal, fault, shape, slot, prompt, limit });
    } finally {
      stats.running--;
      engine.release(slot);
    }
    signal.aborted ? stats.aborted++ : stats.finished++;
  } catch (err) {
    if (!signal.aborted) throw err;
    stats.aborted++;
  }
}

async function run({ body, res, signal, fault, shape, slot, prompt, limit }) {
  const head = { id: `${shape.prefix}-${crypto.randomUUID()}`, created: Math.floor(Date.now() / 1000), model: body.model };
  // Resolves when the event is on its way, so that a fault after it cannot take it back.
  const event = (fields) => {
    const data = JSON.stringify({ ...head, object: shape.chunkKind, ...fields });
    return new Promise((sent) => res.write(`data: ${data}\n\n`, sent));
  };
  const choice = (fields, finish = null) => event({ choices: [{ index: 0, logprobs: null, finish_reason: finish, ...fields }] });
  if (body.stream) {
    res.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-cache" });
    if (shape.first) await choice(shape.first);
  }

  let text = "", count = 0, last = 0, finish = "length";
  for await (const piece of engine.pieces(slot, prompt, body)) {
    if (piece === null) finish = "stop";
    if (piece === null || signal.aborted) break;
    await sleep(last + minGap - performance.now());
    last = performance.now();
    text += piece;
    count++;
    if (body.stream) await choice(shape.piece(piece));
    if (count === fault.cutAfter) return res.destroy();
    if (count === fault.hangAfter) await left(signal);
    if (count >= limit) break;
  }
  if (signal.aborted) return;

  const usage = { prompt_tokens: prompt.length, completion_tokens: count, total_tokens: prompt.length + count };
  if (!body.stream) {
    const choices = [{ index: 0, logprobs: null, finish_reason: finish, ...shape.whole(text) }];
    return sendJSON(res, 200, { ...head, object: shape.kind, choices, usage });
  }
  await choice(shape.last, finish);
  if (body.stream_options?.include_usage) await event({ choices: [], usage });
  res.end("data: [DONE]\n\n");
}

/** Resolves when the client has gone. */
async function left(signal) {
  if (!signal.aborted) await once(signal, "abort");
}

async function embed({ body, res }) {
  const inputs = [body.input].flat();
  const data = [];
  let tokens = 0;
  for (const [index, input] of inputs.entries()) {
    const vector = Float32Array.from(await engine.embed(input));
    const embedding = body.encoding_format === "base64" ? Buffer.from(vector.buffer).toString("base64") : [...vector];
    data.push({ object: "embedding", index, embedding });
    tokens += engine.tokenize(input).length;
  }
  sendJSON(res, 200, { object: "list", model: body.model, data, usage: { prompt_tokens: tokens, total_tokens: tokens } });
}

async function readJSON(req) {
  const chunks = [];
  let size = 0;
  for await (const chunk of req) {
    size += chunk.length;
    if (size > bodyLimit) throw new APIError(413, "body too large", "body_too_large");
    chunks.push(chunk);
  }
  try {
    return JSON.parse(Buffer.concat(chunks).toString());
  } catch {
    throw new APIError(400, "the body is not JSON", "invalid_json");
  }
}

function sendJSON(res, status, value, headers = {}) {
  const body = JSON.stringify(value);
  res.writeHead(status, { "content-type": "application/json", "content-length": Buffer.byteLength(body), ...headers });
  res.end(body);
}

function answerError(res, err) {
  if (!(err instanceof APIError)) console.error(err);
  if (res.headersSent) return res.destroy();
  const status = err.status ?? 500;
  const type = status < 500 ? "invalid_request_error" : "server_error";
  sendJSON(res, status, { error: { message: err.message, type, param: null, code: err.code ?? "internal_error" } }, err.headers);
}
