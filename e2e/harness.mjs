// What the suites share: where the service is, what the engines behind it say, and how to make
// one of them misbehave. Everything comes from the environment, set by ./run:
//
//   BASE_URL     the API under test, with /v1
//   MODEL        the model to ask for
//   ENGINE       sim or real: what the engines are
//   ENGINE_URLS  the engines themselves, comma-separated, all serving MODEL
//   PULLEY       1 when BASE_URL is Pulley's gateway, so that its own promises are checked too
//
// The engines' pace is at least tokenGap; the tests rely on it to tell a stream from a lump.
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";

const { BASE_URL, MODEL, ENGINE, ENGINE_URLS, PULLEY } = process.env;
assert.ok(BASE_URL && MODEL && ENGINE && ENGINE_URLS, "BASE_URL, MODEL, ENGINE and ENGINE_URLS must be set; see ./run");

export const baseURL = BASE_URL;
export const model = MODEL;
export const simulated = ENGINE === "sim";
export const throughPulley = PULLEY === "1";
export const engineURLs = ENGINE_URLS.split(",");
export const tokenGap = 5; // milliseconds

/** node:test options that skip a test unless the condition holds. */
export const onlyIf = (condition, reason) => ({ skip: condition ? false : reason });
export const onlySimulated = onlyIf(simulated, "needs simulated engines");
export const onlyPulley = onlyIf(throughPulley, "needs Pulley in front");

/** A greedy chat of a given length: the same request has the same answer every time. */
export const chat = (tokens, fields = {}) => ({
  model,
  messages: [{ role: "user", content: "Tell me a story." }],
  temperature: 0,
  max_tokens: tokens,
  ...fields,
});

/** What the first engine answers when asked without anything between. */
export async function direct(path, body) {
  const res = await fetch(`${engineURLs[0]}/v1/${path}`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  assert.equal(res.status, 200, `the engine itself answers ${path}`);
  return res.json();
}

export const directText = async (body) => (await direct("chat/completions", body)).choices[0].message.content;

/** One engine's counters. */
export const engineStats = async (url) => (await fetch(url + (simulated ? "/sim/stats" : "/stats"))).json();

/** The engines' counters, added up. */
export async function stats() {
  const sum = { slots: 0, running: 0, waiting: 0, started: 0, finished: 0, aborted: 0 };
  for (const one of await Promise.all(engineURLs.map(engineStats))) {
    for (const key in sum) sum[key] += one[key];
  }
  return sum;
}

/** Resolves once the engines have started another request than those counted before. */
export const engineBusy = (before) => until("an engine starts the request", async () => (await stats()).started > before.started);

/** Checks that an engine noticed a client's leaving and does nothing any more. */
export async function expectAborted(before) {
  const freed = (now) => now.aborted > before.aborted && now.running === 0 && now.waiting === 0;
  await until("the engine drops the request", async () => freed(await stats()));
}

export async function until(what, condition) {
  const deadline = Date.now() + 3000;
  while (!(await condition())) {
    if (Date.now() > deadline) assert.fail(`waited 3 s in vain until ${what}: ${JSON.stringify(await stats())}`);
    await sleep(20);
  }
}

/**
 * A fetch for an SDK's constructor. It tells the engine to refuse the first n attempts with 429 and
 * keeps the status of every attempt; whether there is another attempt is up to the SDK.
 */
export function refusingFetch(n) {
  const statuses = [];
  const fetchAttempt = async (url, init) => {
    const headers = new Headers(init.headers);
    if (statuses.length < n) headers.set("x-sim", "refuse");
    const res = await fetch(url, { ...init, headers });
    statuses.push(res.status);
    return res;
  };
  return Object.assign(fetchAttempt, { statuses });
}

/** Collects pieces of text and when each came. */
export class Arrivals {
  pieces = [];
  times = [];

  add(piece) {
    if (!piece) return;
    this.pieces.push(piece);
    this.times.push(performance.now());
  }

  get text() {
    return this.pieces.join("");
  }

  /** Checks that the tokens came one by one, at the engine's pace, and nothing was lost. */
  expectStream(want, tokens) {
    assert.equal(this.text, want);
    assert.equal(this.pieces.length, tokens, "one piece per token");
    const span = this.times.at(-1) - this.times[0];
    assert.ok(span > (tokens * tokenGap) / 2, `${tokens} tokens came within ${span.toFixed(0)} ms: not as they were made`);
  }

  /** Checks for an honest beginning: more than nothing, less than all. */
  expectPart(want) {
    assert.ok(this.text.length > 0 && this.text.length < want.length, `got ${this.text.length} of ${want.length} characters`);
    assert.ok(want.startsWith(this.text), `${JSON.stringify(this.text)} does not begin the answer`);
  }
}

export const weatherTool = {
  type: "function",
  function: {
    name: "get_weather",
    description: "The weather in a city.",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};
