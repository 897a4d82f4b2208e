// Anthropic's SDK and its message batches, unmodified and with its default settings.
import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import Anthropic from "@anthropic-ai/sdk";
import { baseURL, direct, model, onlySimulated } from "./harness.mjs";

const client = new Anthropic({ baseURL: baseURL.replace(/\/v1$/, ""), apiKey: "unused" });
const timeLimit = { timeout: 60_000, ...onlySimulated };
const params = (fields = {}) => ({ model, max_tokens: 5, messages: [{ role: "user", content: "Tell me a story." }], temperature: 0, ...fields });
const requests = (n, fields = {}) => Array.from({ length: n }, (_, i) => ({ custom_id: `q${i}`, params: params(fields) }));

async function ended(id) {
  for (;;) {
    const b = await client.messages.batches.retrieve(id);
    if (b.processing_status === "ended") return b;
    const { processing, ...others } = b.request_counts;
    assert.ok(processing > 0 && Object.values(others).every((n) => n === 0), JSON.stringify(b.request_counts));
    await sleep(100);
  }
}

/** Results by custom_id. */
async function results(id) {
  const found = new Map();
  for await (const { custom_id, result } of await client.messages.batches.results(id)) {
    assert.ok(!found.has(custom_id), `two results of ${custom_id}`);
    found.set(custom_id, result);
  }
  return found;
}

test("message batches: create, poll, results, delete", timeLimit, async () => {
  const batch = await client.messages.batches.create({ requests: [...requests(20), { custom_id: "wrong", params: params({ model: "no such model" }) }] });
  assert.equal(batch.type, "message_batch");
  assert.equal(batch.processing_status, "in_progress");
  assert.equal(batch.results_url, null);
  assert.equal(new Date(batch.expires_at) - new Date(batch.created_at), 24 * 3600 * 1000);
  const end = await ended(batch.id);
  assert.deepEqual(end.request_counts, { processing: 0, succeeded: 20, errored: 1, canceled: 0, expired: 0 });
  assert.ok(new Date(end.ended_at) >= new Date(end.created_at) && end.results_url.endsWith(`/v1/messages/batches/${batch.id}/results`), JSON.stringify(end));
  const found = await results(batch.id);
  const want = (await direct("messages", params())).content;
  assert.equal(found.size, 21);
  for (const [id, result] of found) {
    if (id === "wrong") continue;
    assert.equal(result.type, "succeeded");
    assert.deepEqual(result.message.content, want);
  }
  assert.equal(found.get("wrong").type, "errored");
  assert.equal(found.get("wrong").error.error.type, "not_found_error");
  assert.deepEqual(await client.messages.batches.delete(batch.id), { id: batch.id, type: "message_batch_deleted" });
  await assert.rejects(client.messages.batches.retrieve(batch.id), Anthropic.NotFoundError);
  await assert.rejects(client.messages.batches.results(batch.id), Anthropic.NotFoundError);
});

test("message batches: cancel, also as beta", timeLimit, async () => {
  const batch = await client.beta.messages.batches.create({ requests: requests(500, { max_tokens: 2000 }) });
  await assert.rejects(client.messages.batches.delete(batch.id), Anthropic.BadRequestError);
  await assert.rejects(client.messages.batches.results(batch.id), Anthropic.AnthropicError); // it has no results_url
  const canceled = await client.messages.batches.cancel(batch.id);
  assert.equal(canceled.processing_status, "canceling");
  assert.ok(canceled.cancel_initiated_at);
  const { request_counts: counts } = await ended(batch.id);
  assert.equal(counts.canceled + counts.succeeded, 500);
  const found = [...(await results(batch.id)).values()];
  assert.equal(found.length, 500);
  assert.equal(found.filter((r) => r.type === "canceled").length, counts.canceled);
});

test("message batches: pages", timeLimit, async () => {
  const made = [];
  for (let i = 0; i < 3; i++) made.unshift((await client.messages.batches.create({ requests: requests(1) })).id);
  const ids = [];
  for await (const b of client.messages.batches.list({ limit: 2 })) ids.push(b.id);
  assert.deepEqual(ids.slice(0, 3), made);
  assert.equal(new Set(ids).size, ids.length);
  const later = [];
  for await (const b of client.messages.batches.list({ limit: 1, before_id: made[2] })) later.unshift(b.id);
  assert.deepEqual(later, made.slice(0, 2));
});

test("message batches: what is refused", timeLimit, async () => {
  const create = (list) => client.messages.batches.create({ requests: list });
  for (const [list, message] of [
    [[], /at least one/],
    [[...requests(1), ...requests(1)], /requests\.1\.custom_id/],
    [requests(1, { max_tokens: 0 }), /requests\.0\.params\.max_tokens/],
    [requests(1, { stream: true }), /requests\.0\.params\.stream/],
  ]) {
    await assert.rejects(create(list), (err) => err instanceof Anthropic.BadRequestError && err.type === "invalid_request_error" && message.test(err.message));
  }
});
