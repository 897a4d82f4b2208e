// What an operator changes at run time, as a client with the official SDK sees it. This suite is the last:
// once a key has existed, the gateway requires one.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { test } from "node:test";
import { promisify } from "node:util";
import OpenAI from "openai";
import { baseURL, chat, directText, model, until } from "./harness.mjs";

const { PULLEY_BIN } = process.env; // NATS_URL says where the broker is
const run = promisify(execFile);
const pulley = async (...args) => (await run(PULLEY_BIN, args, { timeout: 20_000 })).stdout.trim();
const client = (apiKey) => new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const timeLimit = { timeout: 40_000 };

test("a route gives a model another name", timeLimit, async () => {
  await pulley("route", "set", "gpt-4o-mini", "--to", model, "--restore-model");
  await until("the route is in force", async () => (await client("unused").models.list()).data.some((m) => m.id === "gpt-4o-mini"));
  const answer = await client("unused").chat.completions.create(chat(10, { model: "gpt-4o-mini" }));
  assert.equal(answer.model, "gpt-4o-mini");
  assert.equal(answer.choices[0].message.content, await directText(chat(10)));
  const stream = await client("unused").chat.completions.create(chat(10, { model: "gpt-4o-mini", stream: true }));
  for await (const chunk of stream) assert.equal(chunk.model, "gpt-4o-mini");
  assert.equal((await client("unused").chat.completions.create(chat(1))).model, model);
});

test("the answer says which tier served", timeLimit, async () => {
  const { data, response } = await client("unused").chat.completions.create(chat(1, { service_tier: "flex" })).withResponse();
  assert.equal(data.service_tier, "flex");
  assert.equal(response.headers.get("x-service-tier"), "batch");
});

test("keys: needed, limited, revoked", timeLimit, async () => {
  const key = await pulley("key", "add", "--tenant", "acme", "--rpm", "3", "--tier", "standard", "--models", model);
  const id = key.split("-")[2];
  const acme = client(key);
  await until("the key works", () => acme.models.list().then(() => true, () => false));
  await assert.rejects(client("sk-wrong").chat.completions.create(chat(1)), OpenAI.AuthenticationError);
  await assert.rejects(acme.chat.completions.create(chat(1, { service_tier: "priority" })), OpenAI.PermissionDeniedError);
  await assert.rejects(acme.chat.completions.create(chat(1, { model: "gpt-4o-mini" })), OpenAI.PermissionDeniedError);
  const { response } = await acme.chat.completions.create(chat(1)).withResponse();
  assert.equal(response.headers.get("x-ratelimit-limit-requests"), "3");
  await assert.rejects(
    async () => { for (let i = 0; i < 4; i++) await acme.chat.completions.create(chat(1)); },
    (err) => err instanceof OpenAI.RateLimitError && err.code === "rate_limit_exceeded" && Number(err.headers.get("retry-after")) > 0,
  );
  await pulley("key", "rm", id, "--force");
  await until("the key is revoked", () => acme.models.list().then(() => false, (err) => err instanceof OpenAI.AuthenticationError));
});
