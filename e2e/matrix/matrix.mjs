// Plays every case with every SDK twice, with a scripted engine alone and through Pulley, and compares what the SDK's user
// sees and how many requests the engine got.
//
//   PULLEY_BIN=PATH node matrix/matrix.mjs [-v] [CASE [SDK]]    CASE and SDK are parts of names
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import net from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { isDeepStrictEqual, parseArgs } from "node:util";
import { cases, replies } from "./cases.mjs";
import { clients as javaScript } from "./clients.mjs";
import { ScriptedEngines } from "./engine.mjs";
import { exceptions } from "./exceptions.mjs";
import { goClients } from "./go.mjs";
import { clients as python } from "./python.mjs";

const { values: flags, positionals: [caseFilter = "", clientFilter = ""] } = parseArgs({ allowPositionals: true, options: { verbose: { type: "boolean", short: "v" } } });
const laneCount = 24;    // models, each with two engines; the rows of a lane run one after the other
const directAtOnce = 24; // rows that run at once with an engine alone

const stack = [];
const work = mkdtempSync(path.join(tmpdir(), "pulley-matrix."));

async function main() {
  const engines = new ScriptedEngines(replies);
  stack.push(() => engines.close());
  const lanes = await Promise.all(Array.from({ length: laneCount }, async (_, i) => {
    const model = `lane-${i}`;
    return { model, urls: [await engines.listen(model), await engines.listen(model)] };
  }));
  const go = goClients();
  stack.push(() => go.stop());
  const rows = allRows([...javaScript, ...python, ...go.clients]);
  rows.forEach((row, i) => { row.lane = lanes[i % laneCount]; });
  const gateway = await startPulley(lanes);

  const started = performance.now();
  await pool(rows, directAtOnce, async (row) => { row.direct = await play(engines, row, row.lane.urls[0], "direct"); });
  const between = performance.now();
  await Promise.all(lanes.map(async (lane) => {
    for (const row of rows) {
      if (row.lane !== lane) continue;
      row.through = await play(engines, row, gateway, "pulley");
      if (!row.through.finish) await heal(engines, lane, gateway);
    }
  }));
  const ended = performance.now();
  const failed = rows.filter((row) => !judge(row, rows));
  report(rows, failed);
  const seconds = (ms) => `${(ms / 1000).toFixed(0)} s`;
  console.log(`${rows.length} rows: ${rows.filter((r) => r.same).length} the same, ${rows.filter((r) => r.exception).length} documented exceptions, ${failed.length} failed; alone ${seconds(between - started)}, through Pulley ${seconds(ended - between)}`);
  return failed.length === 0 && staleExceptions(rows).length === 0;
}

function allRows(clients) {
  const rows = [];
  for (const c of cases) {
    for (const client of clients) {
      for (const api of c.apis) {
        for (const stream of c.streams) {
          if (!client.apis.includes(api) || client.streamsOnly && !(stream && c.begins)) continue;
          if (c.without?.test(client.name)) continue;
          if ((c.name.includes(caseFilter) || c.name === "an answer") && client.name.includes(clientFilter)) rows.push({ case: c, client, api, stream });
        }
      }
    }
  }
  return rows;
}

/** Plays a row once, and returns what the SDK's user saw, and what the engine did. */
async function play(engines, row, url, where) {
  const id = encodeURIComponent(`${where}: ${rowName(row)}`);
  const run = engines.run(id);
  const gone = new AbortController();
  const { options } = row.case;
  const call = {
    url, model: row.lane.model, api: row.api, stream: row.stream, options,
    headers: { "x-case": encodeURIComponent(row.case.name), "x-run": id },
    signal: options.abort || options.patience ? gone.signal : undefined,
    onToken: (n) => { if (options.abort === "tokens" && n === 3) gone.abort(); },
  };
  let playing = true;
  if (options.abort === "header") until(() => run.calls > 0 || !playing).then(() => gone.abort());
  const timer = options.patience && setTimeout(() => gone.abort(), options.patience);
  const began = performance.now();
  const seen = await Promise.race([row.client.play(call), sleep(49_000, { error: "none: the call did not end" }, { ref: false })]);
  playing = false;
  clearTimeout(timer);
  const idle = await until(() => run.open === 0);
  row.took = { ...row.took, [where]: Math.round(performance.now() - began) };
  return { ...seen, calls: run.calls, engine: idle ? undefined : "works on" };
}

/** Lets both engines of a lane answer, so that their workers do not pause any more. */
async function heal(engines, lane, gateway) {
  for (let round = 0; round < 5; round++) {
    const id = `heal-${lane.model}-${lane.healed = (lane.healed ?? 0) + 1}`;
    await Promise.all([0, 1].map(async () => {
      const res = await fetch(`${gateway}/v1/chat/completions`, {
        method: "POST", headers: { "content-type": "application/json", "x-case": encodeURIComponent("a slow answer"), "x-run": id },
        body: JSON.stringify({ model: lane.model, messages: [{ role: "user", content: "heal" }] }),
      });
      await res.arrayBuffer();
    }));
    if (new Set(engines.run(id).ports).size === 2) return;
  }
}

const rowName = ({ client, api, stream, case: c }) => `${client.name}, ${api}${stream ? " streamed" : ""}: ${c.name}`;

async function until(holds, limit = 5000) {
  for (const end = Date.now() + limit; !holds(); await sleep(10)) {
    if (Date.now() > end) return false;
  }
  return true;
}

async function pool(list, size, work) {
  const queue = [...list];
  await Promise.all(Array.from({ length: size }, async () => {
    for (let one = queue.shift(); one; one = queue.shift()) await work(one);
  }));
}

// --- Judging

/** Reports whether the two outcomes of a row are equal, or differ just as an exception says. */
function judge(row, rows) {
  const { direct, through } = row;
  row.same = through.calls <= direct.calls && isDeepStrictEqual({ ...through, calls: 0 }, { ...direct, calls: 0 });
  if (row.same) return true;
  const good = rows.find((other) => other.case.name === "an answer" && other.client === row.client && other.api === row.api && other.stream === row.stream);
  row.exception = exceptions.find((e) => excepts(e, row, good?.direct));
  if (row.exception) row.exception.used = true;
  return row.exception !== undefined;
}

function excepts(e, { case: { name }, client, direct, through }, good) {
  if (!e.cases.test(name) || e.clients && !e.clients.test(client.name)) return false;
  const most = typeof e.calls === "function" ? e.calls(direct.calls, client) : e.calls ?? direct.calls;
  return through.calls <= most && (e.worksOn || through.engine === undefined) && e.becomes(through, direct, good ?? {});
}

const staleExceptions = (rows) => (caseFilter || clientFilter ? [] : exceptions.filter((e) => !e.used));

function report(rows, failed) {
  const line = (outcome) => Object.entries(outcome).filter(([, v]) => v !== undefined).map(([k, v]) => `${k} ${typeof v === "string" && v.length > 150 ? JSON.stringify(v.slice(0, 150)) + "…" : JSON.stringify(v)}`).join(", ");
  for (const row of flags.verbose ? rows : failed) {
    console.log(`${row.same ? "same   " : row.exception ? "except " : "FAILED "} ${rowName(row)} (${row.took.direct} ms, ${row.took.pulley} ms)`);
    console.log(`    engine alone    ${line(row.direct)}`);
    if (!row.same) console.log(`    through Pulley  ${line(row.through)}`);
    if (row.exception) console.log(`    because         ${row.exception.why}`);
  }
  for (const e of staleExceptions(rows)) console.log(`FAILED  no row needs this exception any more: ${e.cases} ${e.clients ?? ""}: ${e.why}`);
}

// --- Pulley, in processes of its own

async function startPulley(lanes) {
  const [nats, gateway] = await freePorts(2);
  const url = `http://127.0.0.1:${gateway}`;
  start("broker", "--listen", `127.0.0.1:${nats}`, "--store-dir", path.join(work, "store"), "--sync", "2m");
  start("gateway", "--nats", `nats://127.0.0.1:${nats}`, "--listen", `127.0.0.1:${gateway}`, "--admin", "127.0.0.1:0", "--retry-budget", "100");
  for (const i of [0, 1]) {
    start("worker", "--nats", `nats://127.0.0.1:${nats}`, "--profile", "fixed", ...lanes.flatMap((lane) => ["--engine", `${lane.urls[i]},slots=4,name=${lane.model}-${"ab"[i]}`]));
  }
  const ready = await waitFor(async () => {
    const list = await (await fetch(`${url}/v1/models`)).json();
    return list.data.length === lanes.length;
  });
  if (!ready) throw new Error("Pulley does not serve the models");
  return url;
}

async function waitFor(holds) {
  for (const end = Date.now() + 30_000; Date.now() < end; await sleep(50)) {
    if (await holds().catch(() => false)) return true;
  }
  return false;
}

function start(part, ...args) {
  const child = spawn(process.env.PULLEY_BIN, [part, ...args], { env: withoutSettings(), stdio: ["ignore", "pipe", "pipe"] });
  let log = "";
  for (const out of [child.stdout, child.stderr]) out.on("data", (piece) => { log = (log + piece).slice(-200_000); });
  child.once("exit", (status) => { if (!stopping) console.log(`pulley ${part} ended with ${status}:\n${log.slice(-4000)}`); });
  stack.push(async () => {
    if (process.env.MATRIX_LOGS) (await import("node:fs")).writeFileSync(path.join(process.env.MATRIX_LOGS, `${part}-${child.pid}.log`), log);
    child.kill("SIGKILL");
  });
}

const withoutSettings = () => Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("PULLEY_")));

async function freePorts(n) {
  const servers = await Promise.all(Array.from({ length: n }, () => new Promise((resolve) => {
    const s = net.createServer().listen(0, "127.0.0.1", () => resolve(s));
  })));
  const ports = servers.map((s) => s.address().port);
  await Promise.all(servers.map((s) => new Promise((resolve) => s.close(resolve))));
  return ports;
}

let stopping = false;
let ok = false;
try {
  ok = await main();
} finally {
  stopping = true;
  for (const stop of stack.reverse()) await stop();
  rmSync(work, { recursive: true, force: true, maxRetries: 5 });
}
process.exit(ok ? 0 : 1);
