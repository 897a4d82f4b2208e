// Vercel's AI SDK with its OpenAI-compatible provider, unmodified and with its default settings.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, embed, embedMany, generateText, jsonSchema, RetryError, streamText, tool } from "ai";
import {
  Arrivals, baseURL, chat, direct, directText, engineBusy, expectAborted, model, onlySimulated, refusingFetch, stats,
  throughPulley, weatherTool,
} from "./harness.mjs";

const connect = (settings = {}) =>
  createOpenAICompatible({ name: "pulley", baseURL, apiKey: "unused", includeUsage: true, ...settings });
const provider = connect();
const sim = (fault) => ({ headers: { "x-sim": fault } });
const timeLimit = { timeout: 20_000 };

/** The same question as the harness's chat, in this SDK's words. */
const ask = (tokens, fields = {}) => {
  const { messages: [{ content }], temperature } = chat(tokens);
  return { model: provider(model), prompt: content, temperature, maxOutputTokens: tokens, ...fields };
};

/** Reads a stream to its end. Some errors come as parts of the stream, some are thrown: both are kept. */
async function read(result, onPiece = () => {}) {
  const arrivals = new Arrivals();
  const seen = { arrivals, error: undefined, aborted: false, finish: undefined };
  try {
    for await (const part of result.stream) {
      if (part.type === "error") seen.error = part.error;
      if (part.type === "abort") seen.aborted = true;
      if (part.type === "finish") seen.finish = part;
      if (part.type !== "text-delta") continue;
      arrivals.add(part.text);
      onPiece(arrivals);
    }
  } catch (err) {
    seen.error = err;
  }
  return seen;
}

const quietly = { onError: () => {} }; // the default prints the error

test("generateText", timeLimit, async () => {
  const { text, finishReason, usage } = await generateText(ask(20));
  assert.equal(text, await directText(chat(20)));
  assert.equal(finishReason, "length");
  assert.equal(usage.outputTokens, 20);
});

test("streamText, token by token", timeLimit, async () => {
  const { arrivals, error, finish } = await read(streamText(ask(40)));
  assert.equal(error, undefined);
  arrivals.expectStream(await directText(chat(40)), 40);
  assert.equal(finish.finishReason, "length");
  assert.equal(finish.totalUsage.outputTokens, 40);
});

test("embed and embedMany", timeLimit, async () => {
  const values = ["hello", "a longer sentence"];
  const want = (await direct("embeddings", { model, input: values, encoding_format: "float" })).data.map((d) => d.embedding);
  const one = await embed({ model: provider.embeddingModel(model), value: values[0] });
  const many = await embedMany({ model: provider.embeddingModel(model), values });
  assert.deepEqual(one.embedding, want[0]);
  assert.deepEqual(many.embeddings, want);
});

test("a forced tool call", { ...timeLimit, ...onlySimulated }, async () => {
  const tools = { get_weather: tool({ inputSchema: jsonSchema(weatherTool.function.parameters) }) };
  const forced = { tools, toolChoice: { type: "tool", toolName: "get_weather" } };
  for (const result of [await generateText(ask(20, forced)), streamText(ask(20, forced))]) {
    const [call] = await result.toolCalls;
    assert.equal(call.toolName, "get_weather");
    assert.equal(typeof call.input, "object");
    assert.equal(await result.finishReason, "tool-calls");
  }
});

test("an unknown model is an APICallError with 404 that names it", timeLimit, async () => {
  const err = await generateText(ask(5, { model: provider("no/such:model") })).catch((err) => err);
  assert.ok(APICallError.isInstance(err), err);
  assert.equal(err.statusCode, 404);
  assert.equal(err.isRetryable, false);
  assert.match(err.message, /no\/such:model/);
  if (throughPulley) assert.ok(err.message.includes(model), `the message names the models there are: ${err.message}`);
});

test("429 is retried by the SDK after retry-after", timeLimit, async () => {
  for (const generate of [generateText, streamText]) {
    const fetch = refusingFetch(1);
    const { text } = await generate(ask(5, { model: connect({ fetch })(model) }));
    assert.equal(await text, await directText(chat(5)));
    assert.deepEqual(fetch.statuses, [429, 200]);
  }
});

test("429 to the end is a RetryError that tells the last answer", timeLimit, async () => {
  const err = await generateText(ask(5, { maxRetries: 1, ...sim("refuse") })).catch((err) => err);
  assert.ok(RetryError.isInstance(err), err);
  assert.equal(err.lastError.statusCode, 429);
  assert.ok(Number(err.lastError.responseHeaders["retry-after"]) > 0);
});

test("abort mid-stream frees the engine", timeLimit, async () => {
  const before = await stats();
  const gone = new AbortController();
  const result = streamText(ask(900, { abortSignal: gone.signal, ...quietly }));
  const { aborted } = await read(result, (arrivals) => arrivals.pieces.length === 5 && gone.abort());
  assert.ok(aborted);
  await expectAborted(before);
});

test("abort before the first token frees the engine", timeLimit, async () => {
  const before = await stats();
  const gone = new AbortController();
  const failed = assert.rejects(generateText(ask(5, { abortSignal: gone.signal, ...sim("hang") })), { name: "AbortError" });
  await engineBusy(before);
  gone.abort();
  await failed;
  await expectAborted(before);
});

test("the SDK's timeout is a TimeoutError and frees the engine", timeLimit, async () => {
  const before = await stats();
  await assert.rejects(generateText(ask(5, { timeout: 1000, ...sim("hang") })), { name: "TimeoutError" });
  await expectAborted(before);
});

test("the SDK's timeout between tokens frees the engine", timeLimit, async () => {
  const before = await stats();
  const { arrivals, aborted } = await read(streamText(ask(40, { timeout: { chunkMs: 1000 }, ...sim("hang-after=5"), ...quietly })));
  assert.ok(aborted);
  assert.equal(arrivals.pieces.length, 5);
  await expectAborted(before);
});

test("a stream cut by the engine is an error, never a short answer", timeLimit, async () => {
  const { arrivals, error, finish } = await read(streamText(ask(40, { ...sim("cut-after=5"), ...quietly })));
  assert.ok(error, "the stream ended as if it were whole");
  if (finish) assert.equal(finish.finishReason, "error");
  arrivals.expectPart(await directText(chat(40)));
});

test("an answer cut by the engine is never delivered truncated", timeLimit, async () => {
  await assert.rejects(generateText(ask(40, { maxRetries: 0, ...sim("cut-after=5") })));
});
