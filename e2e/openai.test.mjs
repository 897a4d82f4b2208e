// The official OpenAI SDK for JavaScript, unmodified and with its default settings.
import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import OpenAI, { toFile } from "openai";
import {
  Arrivals, baseURL, chat, direct, directText, engineBusy, engineStats, engineURLs, expectAborted, model, onlyIf,
  onlyPulley, onlySimulated, refusingFetch, simulated, stats, throughPulley, until, weatherTool,
} from "./harness.mjs";

const client = new OpenAI({ baseURL, apiKey: "unused" });
const once = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0 });
const sim = (fault, options = {}) => ({ headers: { "x-sim": fault }, ...options });
const timeLimit = { timeout: 20_000 };

async function collect(stream) {
  const arrivals = new Arrivals();
  for await (const chunk of stream) arrivals.add(chunk.choices[0]?.delta?.content);
  return arrivals;
}

test("models: list and retrieve", timeLimit, async () => {
  const ids = [];
  for await (const m of client.models.list()) ids.push(m.id);
  assert.ok(ids.includes(model), `${model} is in ${ids}`);
  const one = await client.models.retrieve(model);
  assert.equal(one.id, model);
  assert.equal(one.object, "model");
});

test("chat", timeLimit, async () => {
  const answer = await client.chat.completions.create(chat(20));
  assert.equal(answer.choices[0].message.content, await directText(chat(20)));
  assert.equal(answer.choices[0].finish_reason, "length");
  assert.equal(answer.usage.completion_tokens, 20);
});

test("chat, streaming, token by token", timeLimit, async () => {
  const stream = await client.chat.completions.create(chat(40, { stream: true, stream_options: { include_usage: true } }));
  const arrivals = new Arrivals();
  let finish, usage;
  for await (const chunk of stream) {
    arrivals.add(chunk.choices[0]?.delta?.content);
    finish ??= chunk.choices[0]?.finish_reason;
    usage ??= chunk.usage;
  }
  arrivals.expectStream(await directText(chat(40)), 40);
  assert.equal(finish, "length");
  assert.equal(usage.completion_tokens, 40);
});

test("chat, the SDK's own stream helper", timeLimit, async () => {
  const answer = await client.chat.completions.stream(chat(20)).finalChatCompletion();
  assert.equal(answer.choices[0].message.content, await directText(chat(20)));
});

test("text completion, streaming", timeLimit, async () => {
  const ask = { model, prompt: "Once upon a time", temperature: 0, max_tokens: 20 };
  const arrivals = new Arrivals();
  for await (const chunk of await client.completions.create({ ...ask, stream: true })) arrivals.add(chunk.choices[0]?.text);
  arrivals.expectStream((await direct("completions", ask)).choices[0].text, 20);
});

test("embeddings: the SDK asks for base64, and for floats when told to", timeLimit, async () => {
  const input = ["hello", "a longer sentence"];
  const want = (await direct("embeddings", { model, input, encoding_format: "float" })).data.map((d) => d.embedding.map(Math.fround));
  for (const format of [undefined, "float"]) {
    const got = await client.embeddings.create({ model, input, encoding_format: format });
    assert.deepEqual(got.data.map((d) => d.embedding.map(Math.fround)), want, `encoding_format ${format}`);
    assert.ok(want[0].length > 1);
  }
});

test("tools in the body", timeLimit, async () => {
  const forced = { tools: [weatherTool], tool_choice: { type: "function", function: { name: "get_weather" } } };
  const answer = await client.chat.completions.create(chat(20, forced));
  if (!simulated) return assert.ok(answer.choices[0].message.content, "a model without tools answers in words");

  const [call] = answer.choices[0].message.tool_calls;
  assert.equal(answer.choices[0].finish_reason, "tool_calls");
  assert.equal(call.function.name, "get_weather");
  JSON.parse(call.function.arguments);

  const streamed = await client.chat.completions.stream(chat(20, forced)).finalChatCompletion();
  assert.equal(streamed.choices[0].message.tool_calls[0].function.arguments, call.function.arguments);
});

test("an unknown model is a NotFoundError that names it", timeLimit, async () => {
  const err = await client.chat.completions.create(chat(5, { model: "no/such:model" })).catch((err) => err);
  assert.ok(err instanceof OpenAI.NotFoundError, err);
  assert.equal(err.code, "model_not_found");
  assert.match(err.message, /no\/such:model/);
  if (!throughPulley) return;
  assert.ok(err.message.includes(model), `the message names the models there are: ${err.message}`);
  assert.deepEqual(Object.keys(err.error).sort(), ["code", "message", "param", "type"]);
  assert.ok(err.requestID);
  await assert.rejects(client.models.retrieve("no/such:model"), OpenAI.NotFoundError);
});

test("429 is retried by the SDK after retry-after", timeLimit, async () => {
  const fetch = refusingFetch(1);
  const retrying = new OpenAI({ baseURL, apiKey: "unused", fetch });
  const answer = await retrying.chat.completions.create(chat(5));
  assert.deepEqual(fetch.statuses, [429, 200]);
  assert.equal(answer.choices[0].message.content, await directText(chat(5)));
});

test("429 to the end is a RateLimitError with retry-after", timeLimit, async () => {
  const err = await once.chat.completions.create(chat(5), sim("refuse")).catch((err) => err);
  assert.ok(err instanceof OpenAI.RateLimitError, err);
  const after = Number(err.headers.get("retry-after"));
  assert.ok(after > 0 && after <= 120, `retry-after ${after}`);
});

test("abort mid-stream frees the engine", timeLimit, async () => {
  const before = await stats();
  const stream = await client.chat.completions.create(chat(900, { stream: true }));
  const arrivals = new Arrivals();
  for await (const chunk of stream) {
    arrivals.add(chunk.choices[0]?.delta?.content);
    if (arrivals.pieces.length === 5) stream.controller.abort();
  }
  await expectAborted(before);
});

test("abort before the first token frees the engine", timeLimit, async () => {
  for (const stream of [true, false]) {
    const before = await stats();
    const gone = new AbortController();
    const call = client.chat.completions.create(chat(5, { stream }), sim("hang", { signal: gone.signal }));
    const failed = assert.rejects(async () => { for await (const _ of await call); }, OpenAI.APIUserAbortError);
    await engineBusy(before);
    gone.abort();
    await failed;
    await expectAborted(before);
  }
});

test("abort of a request that does not stream frees the engine", timeLimit, async () => {
  const before = await stats();
  const gone = new AbortController();
  const failed = assert.rejects(client.chat.completions.create(chat(900), { signal: gone.signal }), OpenAI.APIUserAbortError);
  await engineBusy(before);
  gone.abort();
  await failed;
  await expectAborted(before);
});

test("the SDK's timeout is an APIConnectionTimeoutError and frees the engine", timeLimit, async () => {
  for (const stream of [true, false]) {
    const before = await stats();
    const call = once.chat.completions.create(chat(5, { stream }), sim("hang", { timeout: 1500 }));
    await assert.rejects(call, OpenAI.APIConnectionTimeoutError);
    await expectAborted(before);
  }
});

test("a stream cut by the engine is an error, never a short answer", timeLimit, async () => {
  const arrivals = new Arrivals();
  const stream = await client.chat.completions.create(chat(40, { stream: true }), sim("cut-after=5"));
  const err = await (async () => { for await (const chunk of stream) arrivals.add(chunk.choices[0]?.delta?.content); })().catch((err) => err);
  assert.ok(err instanceof Error, "the stream ended as if it were whole");
  arrivals.expectPart(await directText(chat(40)));
  if (throughPulley) {
    assert.ok(err instanceof OpenAI.APIError, err);
    assert.ok(err.code && err.type && err.message, "the error event tells what happened");
  }
});

test("an answer cut by the engine is never delivered truncated", timeLimit, async () => {
  const answered = throughPulley ? OpenAI.InternalServerError : Error; // else the bare network error
  await assert.rejects(once.chat.completions.create(chat(40), sim("cut-after=5")), answered);
});

test("the engine's own refusal of a request is passed on", timeLimit, async () => {
  await assert.rejects(client.chat.completions.create(chat(-1)), OpenAI.BadRequestError);
});

test("responses", { ...timeLimit, ...onlySimulated }, async () => {
  const ask = { model, input: "Tell me a story.", max_output_tokens: 20 };
  const want = await direct("responses", ask);
  const answer = await client.responses.create(ask);
  assert.ok(answer.output_text);
  assert.deepEqual(answer.output[0].content, want.output[0].content);

  const arrivals = new Arrivals();
  let last;
  for await (const event of await client.responses.create({ ...ask, stream: true })) {
    if (event.type === "response.output_text.delta") arrivals.add(event.delta);
    last = event;
  }
  arrivals.expectStream(answer.output_text, 20);
  assert.equal(last.response.output_text ?? arrivals.text, answer.output_text);
  assert.ok(["response.completed", "response.incomplete"].includes(last.type), last.type);
});

test("background responses: created, polled, cancelled, resumed, deleted", { ...timeLimit, ...onlyIf(simulated && throughPulley, "needs Pulley and simulated engines") }, async () => {
  const ask = { model, input: "Tell me a story.", max_output_tokens: 60 };
  const want = await direct("responses", ask);
  let answer = await client.responses.create({ ...ask, background: true });
  assert.equal(answer.status, "queued");
  while (["queued", "in_progress"].includes(answer.status)) {
    await sleep(50);
    answer = await client.responses.retrieve(answer.id);
  }
  assert.equal(answer.status, "completed");
  assert.equal(answer.output_text, want.output[0].content[0].text);
  assert.equal((await client.responses.cancel(answer.id)).status, "completed");

  const long = await client.responses.create({ ...ask, max_output_tokens: 100_000, background: true });
  for (let i = 0; i < 2; i++) assert.equal((await client.responses.cancel(long.id)).status, "cancelled");

  let id, at = -1, text = "", types = [];
  const note = (event) => {
    assert.equal(event.sequence_number, at + 1);
    at = event.sequence_number;
    types.push(event.type);
    if (event.type === "response.output_text.delta") text += event.delta;
  };
  for await (const event of await client.responses.create({ ...ask, background: true, stream: true })) {
    note(event);
    id ??= event.response?.id;
    if (text.length > 100) break;
  }
  for await (const event of await client.responses.retrieve(id, { stream: true, starting_after: at })) note(event);
  assert.equal(text, answer.output_text);
  assert.deepEqual([types[0], types.at(-1)], ["response.created", "response.completed"]);
  const whole = await client.responses.stream({ response_id: id }).finalResponse();
  assert.equal(whole.output_text, answer.output_text);

  await client.responses.delete(id);
  await assert.rejects(client.responses.retrieve(id), OpenAI.NotFoundError);
  await assert.rejects(client.responses.cancel("resp_" + "0".repeat(48)), OpenAI.NotFoundError);
  await assert.rejects(client.responses.create({ ...ask, background: true, store: false }), OpenAI.BadRequestError);
});

test("idempotency keys: replayed, joined, refused for another body", { ...timeLimit, ...onlyIf(simulated && throughPulley, "needs Pulley and simulated engines") }, async () => {
  const key = () => ({ headers: { "Idempotency-Key": crypto.randomUUID() } });
  const whole = key();
  const first = await client.chat.completions.create(chat(20), whole);
  const { data: again, response } = await client.chat.completions.create(chat(20), whole).withResponse();
  assert.deepEqual(again, first);
  assert.equal(response.headers.get("idempotent-replayed"), "true");
  await assert.rejects(client.chat.completions.create(chat(21), whole), OpenAI.ConflictError);
  await assert.rejects(client.chat.completions.create(chat(20), { headers: { "Idempotency-Key": "x".repeat(256) } }), OpenAI.BadRequestError);

  const streamed = key(), ids = new Set();
  const read = async () => {
    let text = "";
    for await (const chunk of await client.chat.completions.create(chat(40, { stream: true }), streamed)) {
      ids.add(chunk.id);
      text += chunk.choices[0]?.delta?.content ?? "";
    }
    return text;
  };
  const texts = await Promise.all([read(), read()]);
  texts.push(await read());
  assert.deepEqual(texts, Array(3).fill(await directText(chat(40))));
  assert.equal(ids.size, 1);
});

test("a responses stream cut by the engine is an error", { ...timeLimit, ...onlySimulated }, async () => {
  const ask = { model, input: "Tell me a story.", max_output_tokens: 40, stream: true };
  const types = [];
  const read = async () => { for await (const event of await client.responses.create(ask, sim("cut-after=5"))) types.push(event.type); };
  const err = await read().catch((err) => err);
  assert.ok(err instanceof Error || types.at(-1) === "response.failed" || types.at(-1) === "error", `ended with ${types.at(-1)}`);
  assert.ok(!types.includes("response.completed"));
});

test("every answer has its request id and timings", { ...timeLimit, ...onlyPulley }, async () => {
  const seen = new Set();
  for (const stream of [false, true]) {
    const { data, response, request_id: id } = await client.chat.completions.create(chat(3, { stream })).withResponse();
    if (stream) await collect(data);
    assert.match(id, /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-/, "a UUIDv7");
    assert.match(response.headers.get("openai-processing-ms"), /^\d+$/);
    assert.ok(response.headers.get("server-timing"));
    seen.add(id);
  }
  assert.equal(seen.size, 2);
});

test("more streams than slots all come whole", { ...timeLimit, ...onlyPulley }, async () => {
  const want = await directText(chat(20));
  const streams = Array.from({ length: 24 }, async () => collect(await client.chat.completions.create(chat(20, { stream: true }))));
  for (const arrivals of await Promise.all(streams)) assert.equal(arrivals.text, want);
});

test("an aborted request that still waited never reaches an engine", { ...timeLimit, ...onlyPulley }, async () => {
  // The refusals of earlier tests have lowered the workers' limits, which grow again under load.
  for (const end = Date.now() + 5000; Date.now() < end; ) {
    await Promise.all(Array.from({ length: 16 }, () => client.chat.completions.create(chat(5))));
  }
  const before = await stats();
  const [hold, waits] = [new AbortController(), new AbortController()];
  const hang = () => assert.rejects(once.chat.completions.create(chat(5), sim("hang", { signal: hold.signal })));
  const held = Array.from({ length: before.slots }, hang);
  try {
    await until("all slots are taken", async () => (await stats()).running === before.slots);
    const failed = assert.rejects(once.chat.completions.create(chat(5), { signal: waits.signal }), OpenAI.APIUserAbortError);
    await sleep(300);
    waits.abort();
    await failed;
    await sleep(200);
  } finally {
    hold.abort();
    await Promise.all(held);
  }
  await expectAborted(before);
  await sleep(200);
  assert.equal((await stats()).started, before.started + before.slots);
});

test("a body larger than a NATS message arrives", { ...timeLimit, ...onlyIf(throughPulley && simulated, "needs Pulley and simulated engines") }, async () => {
  const content = [
    { type: "text", text: "What is this?" },
    { type: "image_url", image_url: { url: `data:image/png;base64,${"A".repeat(2 << 20)}` } },
  ];
  const answer = await client.chat.completions.create(chat(5, { messages: [{ role: "user", content }] }));
  assert.equal(answer.usage.completion_tokens, 5);
});

test("what fails on one worker succeeds on another, unseen", { ...timeLimit, ...onlyIf(throughPulley && engineURLs.length > 1, "needs Pulley and two engines") }, async () => {
  const want = await directText(chat(5));
  const before = await engineStats(engineURLs[0]);
  for (const fault of ["fail=500", "close", "cut-after=0", "fail=503", "refuse"]) {
    for (const stream of [false, true]) {
      const call = once.chat.completions.create(chat(5, { stream }), sim(`${fault}, on=${before.name}`));
      const { data, response } = await call.withResponse();
      const text = stream ? (await collect(data)).text : data.choices[0].message.content;
      assert.equal(text, want, `${fault}, stream ${stream}`);
      assert.notEqual(response.headers.get("x-sim-name"), before.name);
    }
  }
  const after = await engineStats(engineURLs[0]);
  assert.ok(after.failed + after.refused > before.failed + before.refused, "the engine that fails was never tried");
});

test("files and batches: upload, create, poll, results, list, cancel, delete", { timeout: 60_000, ...onlyPulley }, async () => {
  const line = (i, fields = {}) => JSON.stringify({ custom_id: `q${i}`, method: "POST", url: "/v1/chat/completions", body: { ...chat(5), ...fields } });
  const upload = async (text) => client.files.create({ file: await toFile(Buffer.from(text), "in.jsonl"), purpose: "batch" });
  const run = async (text) => client.batches.create({ input_file_id: (await upload(text)).id, endpoint: "/v1/chat/completions", completion_window: "24h", metadata: { a: "b" } });
  const ended = async (id) => {
    for (;;) {
      const b = await client.batches.retrieve(id);
      if (["completed", "failed", "cancelled", "expired"].includes(b.status)) return b;
      await sleep(100);
    }
  };
  const lines = Array.from({ length: 20 }, (_, i) => line(i)).concat(line(20, { model: "no such model" }));
  const batch = await ended((await run(lines.join("\n"))).id);
  assert.equal(batch.status, "completed");
  assert.deepEqual(batch.request_counts, { total: 21, completed: 20, failed: 1 });
  assert.deepEqual(batch.metadata, { a: "b" });
  const output = (await (await client.files.content(batch.output_file_id)).text()).trim().split("\n").map((l) => JSON.parse(l));
  assert.equal(new Set(output.map((l) => l.custom_id)).size, 20);
  const want = await directText(chat(5));
  for (const l of output) assert.equal(l.response.body.choices[0].message.content, want);
  assert.equal((await ended((await run("{")).id)).errors.data[0].line, 1);
  const long = await run(Array.from({ length: 500 }, (_, i) => line(i, { max_tokens: 2000 })).join("\n"));
  assert.equal((await client.batches.cancel(long.id)).status, "cancelling");
  assert.equal((await ended(long.id)).status, "cancelled");
  const ids = [];
  for await (const b of client.batches.list({ limit: 1 })) ids.push(b.id);
  assert.ok(ids.includes(batch.id) && ids.length >= 3 && new Set(ids).size === ids.length, `${ids}`);
  const files = [];
  for await (const f of client.files.list({ purpose: "batch" })) files.push(f.id);
  assert.ok(files.includes(batch.input_file_id));
  assert.equal((await client.files.delete(batch.output_file_id)).deleted, true);
  await assert.rejects(client.files.retrieve(batch.output_file_id), OpenAI.NotFoundError);
});
