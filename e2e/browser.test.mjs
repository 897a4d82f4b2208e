// A page of another origin talks to the gateway from a real browser (headless Chromium):
//
//   PAGE_PORT     the port to serve the page on
//   CORS_ORIGINS  what the gateway was told to allow; empty when CORS is off
//   CHROMIUM      the browser's executable, /usr/bin/chromium by default
import assert from "node:assert/strict";
import { createReadStream, existsSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import http from "node:http";
import { tmpdir } from "node:os";
import { join, normalize } from "node:path";
import { after, before, test } from "node:test";
import { chromium } from "playwright-core";
import { baseURL, chat, directText, expectAborted, onlyIf, stats, tokenGap } from "./harness.mjs";

const { PAGE_PORT = "0", CORS_ORIGINS = "", CHROMIUM = "/usr/bin/chromium" } = process.env;
const modules = join(import.meta.dirname, "node_modules");
const allowed = onlyIf(CORS_ORIGINS !== "", "CORS is off");
const timeLimit = { timeout: 30_000 };
let server, context, profile;

// The page's script. read() takes the stream apart by hand; viaSDK() has the OpenAI SDK do it.
const page = `<!doctype html><meta charset="utf-8"><title>another origin</title><script type="module">
import OpenAI from "/openai/index.mjs";
const times = [];
const tell = (text, id) => ({ text, times: times.map((t) => t - times[0]), id });

window.read = async ({ baseURL, body, leaveAfter }) => {
  times.length = 0;
  const gone = new AbortController();
  const res = await fetch(baseURL + "/chat/completions", {
    method: "POST", body: JSON.stringify(body), signal: gone.signal,
    headers: { "content-type": "application/json", authorization: "Bearer unused" },
  });
  let text = "", rest = "";
  const lines = res.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let r = await lines.read(); !r.done; r = await lines.read()) {
    const events = (rest + r.value).split("\\n\\n");
    rest = events.pop();
    for (const data of events.filter((e) => e.startsWith("data: ")).map((e) => e.slice(6))) {
      const piece = data === "[DONE]" ? "" : JSON.parse(data).choices[0]?.delta?.content;
      if (!piece) continue;
      text += piece;
      times.push(performance.now());
      if (times.length === leaveAfter) { gone.abort(); return tell(text); }
    }
  }
  return tell(text, res.headers.get("x-request-id"));
};

window.viaSDK = async ({ baseURL, body }) => {
  times.length = 0;
  const client = new OpenAI({ baseURL, apiKey: "unused", dangerouslyAllowBrowser: true });
  let text = "";
  for await (const chunk of await client.chat.completions.create(body)) {
    text += chunk.choices[0]?.delta?.content ?? "";
    times.push(performance.now());
  }
  return tell(text);
};
window.ready = true;
</script>`;

before(async () => {
  assert.ok(existsSync(CHROMIUM), `no browser at ${CHROMIUM}`);
  server = http.createServer(serve);
  await new Promise((listening) => server.listen(Number(PAGE_PORT), "127.0.0.1", listening));
  profile = await mkdtemp(join(tmpdir(), "pulley-e2e-browser-"));
  context = await chromium.launchPersistentContext(profile, {
    executablePath: CHROMIUM,
    headless: true,
    args: [
      "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync",
    ],
  });
}, { timeout: 60_000 });

after(async () => {
  await context?.close();
  server?.close();
  if (profile) await rm(profile, { recursive: true, force: true });
});

function serve(req, res) {
  if (req.url === "/") return res.setHeader("content-type", "text/html").end(page);
  const file = join(modules, normalize(req.url));
  if (!file.startsWith(join(modules, "openai/")) || !existsSync(file)) return res.writeHead(404).end();
  res.setHeader("content-type", "text/javascript");
  createReadStream(file).pipe(res);
}

/** Runs one of the page's functions in a fresh tab of the page, opened under the given host name. */
async function inPage(host, name, argument) {
  const tab = await context.newPage();
  try {
    await tab.goto(`http://${host}:${server.address().port}/`);
    await tab.waitForFunction("window.ready");
    return await tab.evaluate(([name, argument]) => window[name](argument), [name, argument]);
  } finally {
    await tab.close();
  }
}

function expectPaced({ text, times }, want) {
  assert.equal(text, want);
  assert.ok(times.at(-1) > (times.length * tokenGap) / 2, `${times.length} tokens came within ${times.at(-1)} ms`);
}

test("a page reads tokens as they come", { ...timeLimit, ...allowed }, async () => {
  const got = await inPage("127.0.0.1", "read", { baseURL, body: chat(40, { stream: true }) });
  expectPaced(got, await directText(chat(40)));
  assert.ok(got.id, "x-request-id is exposed to the page");
});

test("the OpenAI SDK works in a page", { ...timeLimit, ...allowed }, async () => {
  expectPaced(await inPage("127.0.0.1", "viaSDK", { baseURL, body: chat(40, { stream: true }) }), await directText(chat(40)));
});

test("a page that aborts midway frees the engine", { ...timeLimit, ...allowed }, async () => {
  const counts = await stats();
  const got = await inPage("127.0.0.1", "read", { baseURL, body: chat(900, { stream: true }), leaveAfter: 5 });
  assert.equal(got.times.length, 5);
  await expectAborted(counts);
});

test("a page of an origin that is not allowed is refused", timeLimit, async () => {
  const counts = await stats();
  // "localhost" is another origin than 127.0.0.1, and never on the list.
  await assert.rejects(inPage("localhost", "read", { baseURL, body: chat(5, { stream: true }) }), /Failed to fetch/);
  assert.equal((await stats()).started, counts.started, "the browser's preflight was refused, so no engine worked");
});

test("without the setting every page is refused", { ...timeLimit, ...onlyIf(CORS_ORIGINS === "", "CORS is on") }, async () => {
  await assert.rejects(inPage("127.0.0.1", "read", { baseURL, body: chat(5, { stream: true }) }), /Failed to fetch/);
});
