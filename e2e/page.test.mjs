// The live page in a real browser (headless Chromium): a fleet that does not exist, in each state (cmd/pulley/internal/page/demo),
// and a real one whose operator acts.
//
//   PULLEY_BIN   the binary
//   PAGE_DEMO    the demo's binary
//   ENGINE_URLS  engines of the real fleet, comma-separated
//   CHROMIUM     the browser's executable, /usr/bin/chromium by default
//   PICTURES     a directory to write the pictures of docs/ to; empty: none
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { promisify } from "node:util";
import { chromium } from "playwright-core";

const { PULLEY_BIN, PAGE_DEMO, ENGINE_URLS, CHROMIUM = "/usr/bin/chromium", PICTURES = "" } = process.env;
const token = "token-of-this-test";
const patience = 100_000; // milliseconds: a busy machine draws slowly
const timeLimit = { timeout: patience };
let dir, browser, demo, states, pulley, admin, api, nats;

/** Starts a process and reads what it prints until a line matches each pattern; it returns the matches. */
async function start(command, args, patterns) {
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"] });
  let out = "";
  const found = await new Promise((resolve, reject) => {
    const more = (chunk) => {
      out += chunk;
      const all = patterns.map((p) => p.exec(out)?.[1]);
      if (all.every(Boolean)) resolve(all);
    };
    child.stdout.on("data", more);
    child.stderr.on("data", more);
    child.on("exit", (code) => reject(new Error(`${command} ended with ${code}: ${out}`)));
  });
  child.removeAllListeners("exit");
  child.text = () => out;
  return [child, found];
}

const stop = (child) => child && new Promise((ended) => { child.once("exit", ended); child.kill("SIGINT"); });

before(async () => {
  dir = await mkdtemp(join(tmpdir(), "pulley-e2e-page-"));
  await writeFile(join(dir, "token"), token);
  browser = await chromium.launch({ executablePath: CHROMIUM, headless: true, args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"] });
  [demo] = await start(PAGE_DEMO, ["-token", token], [/^(serving)$/m]);
  states = Object.fromEntries([...demo.text().matchAll(/^(\w+) (http\S+)$/gm)].map((m) => [m[1], m[2]]));
  const engines = ENGINE_URLS.split(",").flatMap((url, i) => ["--engine", `${url},name=engine-${i + 1},slots=4`]);
  [pulley, [api, admin, nats]] = await start(PULLEY_BIN, ["up", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--nats-listen", "127.0.0.1:0", "--store-dir", join(dir, "store"), "--admin-token-file", join(dir, "token"), ...engines],
    [/gateway +(http\S+)/, /admin +(http\S+)/, /broker +(nats\S+)/, /models +(.+)/]);
}, { timeout: 60_000 });

after(async () => {
  await browser?.close();
  await stop(demo);
  await stop(pulley);
  if (dir) await rm(dir, { recursive: true, force: true });
});

/** Opens a page in a tab of its own, signed in; what goes wrong there, and what it asks of others, is in tab.wrong. */
async function open(url, { signedIn = true, ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 860 }, ...options });
  context.setDefaultTimeout(patience);
  const tab = await context.newPage();
  tab.wrong = [];
  tab.on("console", (m) => { if (["error", "warning"].includes(m.type()) && !/401/.test(m.text())) tab.wrong.push(m.text()); });
  tab.on("pageerror", (e) => tab.wrong.push(e.stack));
  tab.on("request", (r) => { if (new URL(r.url()).origin !== new URL(url).origin) tab.wrong.push("asked " + r.url()); });
  tab.on("dialog", (d) => { tab.wrong.push("a dialog: " + d.message()); d.dismiss(); });
  if (signedIn) await tab.addInitScript((t) => sessionStorage.setItem("pulley-token", t), token);
  await tab.goto(url);
  if (signedIn) await drawn(tab);
  return tab;
}

/** Waits until the page has drawn the whole state. */
const drawn = (tab) => tab.waitForFunction(() => document.querySelector("#numbers .number") && document.querySelector("#events .empty, #events li"));

async function close(tab) {
  assert.deepEqual(tab.wrong, []);
  await tab.context().close();
}

const pictured = { idle: 1000, busy: 1250, failing: 1500, canary: 1250, hundred: 1250, away: 860 }; // and how high

for (const [state, shows] of Object.entries({
  empty: { "#pools": /No pool yet/, "#workers": /Start one beside an engine/, "#findings": /no worker: requests wait/, "#ended": /No request has ended/ },
  starting: { "#banner": /^Starting/, "#running": /No request runs/ },
  idle: { "#workers": /gpu-6/, "#waiting": /Nobody waits/, "#workers-n": /6 of 6 ready/, "#about": /policy revision 41 by anna/ },
  busy: { "#waiting": /<b onclick="alert\(1\)">llama<\/b>/, "#dead": /<img src=x onerror=alert\(1\)> is no answer/, "#waiting-n": /37/, "#pools": /llama-70b[^]*standard[^]*waiting/ },
  failing: { "#workers": /gpu-2\s+down[^]*connection refused/, "#findings": /gpu-3\) is fenced: XID 79[^]*Remedy/, "#failures": /502[^]*dead_lettered: too many failures/, "#events": /worker gpu-4 is lost/ },
  canary: { "#shifts": /chat → llama-70b-fp8\s+running[^]*canary llama-70b-fp8\s+352[^]*stable\s+823[^]*aborts if error_rate>1%/ },
  hundred: { "#workers-n": /97 of 100 ready/, "#workers": /gpu-100/ },
  away: { "#banner": /^The broker is away: no connection to the broker/, "#workers": /gpu-1/ },
})) {
  test(`a fleet that is ${state}`, timeLimit, async () => {
    const tab = await open(states[state]);
    for (const [selector, pattern] of Object.entries(shows)) await tab.waitForFunction(([s, p]) => new RegExp(p).test(document.querySelector(s).innerText), [selector, pattern.source]);
    if (PICTURES && pictured[state]) {
      await tab.setViewportSize({ width: 1280, height: pictured[state] });
      await tab.emulateMedia({ colorScheme: ["busy", "failing"].includes(state) ? "dark" : "light", reducedMotion: "reduce" });
      await tab.screenshot({ path: join(PICTURES, `${state}.png`) });
    }
    await close(tab);
  });
}

test("it fits from a phone to a large screen", timeLimit, async () => {
  const tab = await open(states.failing);
  for (const [width, height] of [[320, 640], [390, 844], [820, 1180], [3840, 2160]]) {
    await tab.setViewportSize({ width, height });
    const over = await tab.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    assert.equal(over, 0, `at ${width} pixels the page is ${over} wider than the screen`);
    if (PICTURES && width === 390) await tab.screenshot({ path: join(PICTURES, "phone.png") });
  }
  await close(tab);
});

test("it is accessible, light and dark", timeLimit, async () => {
  const axe = readFileSync(join(import.meta.dirname, "node_modules/axe-core/axe.min.js"), "utf8");
  for (const [state, colorScheme] of [["failing", "light"], ["canary", "dark"]]) {
    const tab = await open(states[state], { colorScheme, bypassCSP: true });
    await tab.addScriptTag({ content: axe });
    const found = await tab.evaluate(async () => (await window.axe.run({ exclude: ["tr:nth-child(n+3)", ".tile:nth-child(n+5)", ".events li:nth-child(n+3)", ".number:nth-child(n+4):not(:last-child)", ".chart:nth-child(n+3)", ".pool:nth-child(n+3)"] }, { // others are like these
       resultTypes: ["violations"], runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"] })).violations.map((v) => `${v.id}: ${v.nodes.map((n) => n.html + " " + n.failureSummary).slice(0, 3).join(" | ")}`));
    assert.deepEqual(found, [], `${state}, ${colorScheme}`);
    await close(tab);
  }
});

test("the filter leaves the workers that match", timeLimit, async () => {
  const tab = await open(states.hundred);
  await tab.getByLabel("Filter").fill("node-7 vllm");
  await tab.waitForFunction(() => document.querySelectorAll("#workers > .tile").length === 2);
  await tab.getByLabel("Filter").fill("cordoned");
  await tab.waitForFunction(() => document.querySelectorAll("#workers > .tile").length === 3);
  await tab.getByLabel("Filter").fill("");
  await tab.waitForFunction(() => document.querySelectorAll("#workers > .tile").length === 100);
  await close(tab);
});

test("the keyboard reaches everything", timeLimit, async () => {
  const tab = await open(states.canary);
  await tab.keyboard.press("Tab");
  assert.equal(await tab.evaluate(() => document.activeElement.textContent), "Skip to content");
  await tab.getByRole("button", { name: "Abort the shift of chat" }).focus();
  await tab.keyboard.press("Enter");
  await tab.getByRole("dialog").waitFor();
  assert.equal(await tab.evaluate(() => document.activeElement.name), "by");
  await tab.keyboard.press("Escape");
  await tab.waitForFunction(() => !document.querySelector("dialog").open);
  assert.equal(await tab.evaluate(() => document.activeElement.textContent), "Abort", "the focus goes back");
  await close(tab);
});

test("the page asks for the token, and again for a wrong one", timeLimit, async () => {
  const tab = await open(admin, { signedIn: false });
  await tab.locator("input[name=token]").fill("wrong");
  await tab.getByRole("button", { name: "Continue" }).click();
  await tab.getByText("The token was not accepted.").waitFor();
  await tab.locator("input[name=token]").fill(token);
  await tab.keyboard.press("Enter");
  await tab.waitForFunction(() => document.querySelectorAll("#workers > .tile").length > 0);
  assert.equal(await tab.evaluate(() => localStorage.length), 0, "the token does not outlive the tab");
  await close(tab);
});

test("requests show while they run, and as they have ended", timeLimit, async () => {
  const tab = await open(admin);
  const gone = new AbortController();
  const call = fetch(api + "/v1/chat/completions", {
    method: "POST", headers: { "content-type": "application/json" }, signal: gone.signal,
    body: JSON.stringify({ model: "sim", stream: true, max_tokens: 4000, messages: [{ role: "user", content: "Hello!" }] }),
  });
  const res = await call;
  const id = res.headers.get("x-request-id").slice(-12);
  await tab.locator("#running tr", { hasText: id }).filter({ hasText: "answering" }).waitFor();
  gone.abort();
  await tab.locator("#ended tr", { hasText: id }).filter({ hasText: "cancelled" }).waitFor();
  const none = await fetch(api + "/v1/chat/completions", { method: "POST", headers: { "content-type": "application/json" }, body: '{"model":"<i>none</i>","messages":[]}' });
  assert.equal(none.status, 404);
  await tab.locator("#failures tr", { hasText: "404" }).filter({ hasText: "<i>none</i>" }).waitFor();
  await close(tab);
});

test("an action is carried out, and is in the policy's history with the name", timeLimit, async () => {
  const tab = await open(admin);
  await tab.getByRole("button", { name: "Cordon worker engine-1" }).click();
  await tab.getByLabel("Your name, for the history").fill("Anna Ö");
  await tab.getByRole("button", { name: "Cordon", exact: true }).last().click();
  await tab.getByText("worker engine-1 cordoned").first().waitFor();
  await tab.locator("#workers > .tile.cordoned", { hasText: "engine-1" }).waitFor();
  const history = JSON.parse((await promisify(execFile)(PULLEY_BIN, ["policy", "history", "-o", "json", "--nats", nats], { timeout: 20_000 })).stdout);
  assert.deepEqual([history[0].by, history[0].why], ["Anna Ö", "worker cordon engine-1"]);
  await tab.getByRole("button", { name: "Uncordon worker engine-1" }).click();
  assert.equal(await tab.getByLabel("Your name, for the history").inputValue(), "Anna Ö", "the tab remembers the name");
  await tab.keyboard.press("Enter");
  await tab.locator("#workers > .tile.ready", { hasText: "engine-1" }).waitFor();
  await close(tab);
});

test("the page says that the gateway is gone", timeLimit, async () => {
  const tab = await open(admin);
  await stop(pulley);
  pulley = null;
  await tab.getByText("No connection to the gateway; trying again.").waitFor();
  tab.wrong = tab.wrong.filter((w) => !/net::ERR|Failed to load resource/.test(w));
  await close(tab);
});
