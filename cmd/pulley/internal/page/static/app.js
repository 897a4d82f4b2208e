// The live page. It reads the state as server-sent events with fetch, so that the token travels in a header, and shows it with
// textContent alone: nothing that a client, an engine or another operator has named becomes markup.

const $ = (id) => document.getElementById(id);
const state = {}; // the last value of each section, by its name
let offset = 0; // what the server's clock is ahead of ours
const now = () => Date.now() + offset;
const memory = { get: (k) => sessionStorage.getItem("pulley-" + k) ?? "", set: (k, v) => (v ? sessionStorage.setItem("pulley-" + k, v) : sessionStorage.removeItem("pulley-" + k)) };

// --- Text

// One of each: making them is what takes time.
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 }), hms = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" }), byName = new Intl.Collator("en", { numeric: true });
const number = (n) => (n >= 1e6 ? (n / 1e6).toFixed(1) + "M" : n >= 1e4 ? Math.round(n / 1e3) + "k" : n >= 100 || Number.isInteger(n) ? whole.format(n) : n >= 10 ? n.toFixed(1) : n.toFixed(2).replace(/0$/, ""));
const ms = (n) => (n == null ? "–" : n < 1000 ? Math.round(n) + " ms" : n < 10_000 ? (n / 1000).toFixed(2) + " s" : n < 120_000 ? (n / 1000).toFixed(1) + " s" : Math.round(n / 60_000) + " min");
const age = (n) => { const s = Math.max(0, n / 1000); return s < 10 ? s.toFixed(1) + " s" : s < 120 ? Math.floor(s) + " s" : s < 7200 ? Math.floor(s / 60) + " min" : s < 172_800 ? Math.floor(s / 3600) + " h" : Math.floor(s / 86_400) + " d"; };
const bytes = (n) => (n < 1024 ? n + " B" : n < 1 << 20 ? (n / 1024).toFixed(1) + " KiB" : n < 2 ** 30 ? (n / 2 ** 20).toFixed(1) + " MiB" : (n / 2 ** 30).toFixed(0) + " GiB");
const clock = (t) => hms.format(t);
const percent = (n) => (n > 0 && n < 0.001 ? "<0.1 %" : (100 * n).toFixed(n < 0.1 && n > 0 ? 1 : 0) + " %");
const short = (id) => "…" + id.slice(-12);

// --- Elements

function el(tag, cls, ...kids) {
  const e = document.createElement(tag);
  if (cls) e.className = cls;
  e.append(...kids);
  return e;
}
function svg(tag, attrs, ...kids) {
  const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const k in attrs) e.setAttribute(k, attrs[k]);
  e.append(...kids);
  return e;
}
const text = (e, s) => { if (e.textContent !== s) e.textContent = s; };
const cls = (e, s) => { if (e.className !== s) e.className = s; };
const attr = (e, k, v) => { if (e.getAttribute(k) !== v) e.setAttribute(k, v); };
const show = (e, on) => { if (e.hidden === on) e.hidden = !on; };
const wide = (e, share) => { const w = (100 * Math.min(1, Math.max(0, share || 0))).toFixed(1) + "%"; if (e.style.width !== w) e.style.width = w; };

/** Shows a list in parent: an element for each item, made once for its key by make, which returns [element, update]. */
function keyed(parent, items, key, make) {
  const have = (parent.have ??= new Map());
  const seen = new Set();
  let at = parent.firstElementChild;
  for (const item of items) {
    const k = String(key(item));
    if (seen.has(k)) continue;
    seen.add(k);
    if (!have.has(k)) have.set(k, make(item));
    const [e, update] = have.get(k);
    update(item);
    if (e === at) at = at.nextElementSibling;
    else parent.insertBefore(e, at);
  }
  for (const [k, [e]] of have) if (!seen.has(k)) { e.remove(); have.delete(k); }
}

/** Shows rows as a table in box. A column is [title, cell(row) → text or [text, class], class]. */
function table(box, label, columns, rows, key, empty, act) {
  if (!box.body) {
    const head = el("tr", "", ...columns.map(([title, , c]) => { const th = el("th", c, title); th.scope = "col"; return th; }));
    if (act) head.append(el("th", "r", el("span", "dim", "")));
    box.body = el("tbody");
    box.table = el("table", "", el("thead", "", head), box.body);
    box.table.setAttribute("aria-label", label);
    box.empty = el("p", "empty");
    box.append(box.table, box.empty);
  }
  show(box.table, rows.length > 0);
  show(box.empty, rows.length === 0);
  text(box.empty, empty);
  keyed(box.body, rows, key, (first) => {
    const cells = columns.map(([, , c]) => el("td", c));
    const tr = el("tr", "", ...cells);
    let latest = first;
    if (act) tr.append(el("td", "r", act(() => latest)));
    return [tr, (row) => {
      latest = row;
      columns.forEach(([, cell, c = ""], i) => {
        const v = cell(row);
        text(cells[i], Array.isArray(v) ? v[0] : v);
        cls(cells[i], Array.isArray(v) ? `${c} ${v[1]}`.trim() : c);
      });
    }];
  });
}

function button(label, about, run, c = "") {
  const b = el("button", c, label);
  b.type = "button";
  b.addEventListener("click", run);
  attr(b, "aria-label", about);
  b.dataset.act = "";
  return b;
}

// --- Charts

const CHART = { width: 360, height: 60 };
const LENGTH = 10_000;

/** A chart of the last hour: series are [class, values by period]; null leaves a gap. Bars stand at the bottom. */
function chart(id, title, series, format, now_, legend, bars = []) {
  const box = $("hour");
  box.charts ??= {};
  let c = box.charts[id];
  if (!c) {
    const k = el("span", "k", title), v = el("span", "v"), paths = svg("g"), at = el("span");
    const drawing = svg("svg", { viewBox: `0 0 ${CHART.width} ${CHART.height}`, preserveAspectRatio: "none", role: "img" }, svg("path", { class: "grid", d: "M0 .5H360M0 30H360M0 59.5H360" }), paths);
    const l = el("div", "legend");
    box.append(el("div", "chart", el("div", "top", k, v), drawing, el("div", "axis", el("span", "", "1 h ago"), at, el("span", "", "now")), l));
    c = box.charts[id] = { v, paths, drawing, l, at };
    drawing.addEventListener("pointermove", (e) => { const r = drawing.getBoundingClientRect(); c.hover = Math.floor(((e.clientX - r.left) / r.width) * CHART.width); readout(c); });
    drawing.addEventListener("pointerleave", () => { c.hover = null; readout(c); });
  }
  const most = Math.max(...series.flatMap(([, values]) => values.filter((v) => v != null)), ...bars.flatMap(([, values]) => values), 0), top = most || 1;
  c.values = series.map(([, values, name]) => [name, values]).concat(bars.map(([, values, name]) => [name, values]));
  c.format = format;
  const y = (v) => (CHART.height - 1 - (v / top) * (CHART.height - 3)).toFixed(1);
  const made = [];
  for (const [kind, values] of series) {
    let d = "", pen = false;
    values.forEach((v, i) => {
      if (v == null) { pen = false; return; }
      d += pen ? `L${i + 0.5} ${y(v)}` : `M${i} ${y(v)}L${i + 0.5} ${y(v)}`;
      pen = true;
    });
    if (kind === "one" && id === "rate") {
      let a = `M0 ${CHART.height}`;
      values.forEach((v, i) => { a += `L${i + 0.5} ${y(v ?? 0)}`; });
      made.push(svg("path", { class: "area", d: a + `L${CHART.width} ${CHART.height}Z` }));
    }
    made.push(svg("path", { class: kind, d }));
  }
  for (const [kind, values] of bars) {
    const d = values.map((v, i) => (v > 0 ? `M${i} ${CHART.height}V${Math.min(y(v), CHART.height - 4)}h1.6V${CHART.height}Z` : "")).join("");
    made.push(svg("path", { class: kind, d }));
  }
  c.paths.replaceChildren(...made);
  text(c.v, now_);
  attr(c.drawing, "aria-label", `${title} over the last hour: ${now_}, highest ${format(most)}`);
  c.top = most ? `max ${format(most)}` : "nothing yet";
  readout(c);
  if (c.legend !== legend.map((x) => x.join()).join()) {
    c.legend = legend.map((x) => x.join()).join();
    c.l.replaceChildren(...legend.map(([kind, name, value]) => el("span", "", el("i", kind), name, value ? el("b", "", " " + value) : "")));
  }
}
function readout(c) {
  if (c.hover == null) return text(c.at, c.top);
  const parts = c.values.map(([name, v]) => (v[c.hover] ? `${name} ${c.format(v[c.hover])}` : "")).filter(Boolean);
  text(c.at, `${age((CHART.width - c.hover) * LENGTH)} ago: ${parts.join(", ") || "nothing"}`);
}

function drawHour() {
  const h = state.hour, t = now(), first = Math.floor(t / LENGTH) - CHART.width + 1;
  const column = () => new Array(CHART.width).fill(0), gaps = () => new Array(CHART.width).fill(null);
  const rate = column(), failed = column(), refused = column(), tokens = column(), ttft = [gaps(), gaps()], e2e = [gaps(), gaps()];
  for (const [start, answered, f, r, cancelled, out, t50, t95, e50, e95] of h.periods) {
    const i = Math.round(start / LENGTH) - first;
    if (i < 0 || i >= CHART.width) continue;
    const over = i === CHART.width - 1 ? Math.max(2000, t - start) : LENGTH; // the present one goes on
    rate[i] = ((answered + f + r + cancelled) * 1000) / over;
    failed[i] = (f * 1000) / over;
    refused[i] = (r * 1000) / over;
    tokens[i] = (out * 1000) / over;
    if (answered) { ttft[0][i] = t50; ttft[1][i] = t95; e2e[0][i] = e50; e2e[1][i] = e95; }
  }
  const minute = (list) => list.slice(-7, -1).reduce((a, b) => a + b, 0) / 6;
  state.perSecond = minute(rate);
  state.tokensPerSecond = minute(tokens);
  const all = h.answered + h.failed + h.refused + h.cancelled;
  chart("rate", "Requests per second", [["one", rate, "ended"]], number, number(minute(rate)) + "/s",
    [["", "ended", number(all)], ["bad", "failed", number(h.failed)], ["warn", "refused", number(h.refused)]], [["warn", refused, "refused"], ["bad", failed, "failed"]]);
  for (const [id, title, lines, q] of [["ttft", "Time to first byte", ttft, h.ttft], ["e2e", "Time to last byte", e2e, h.e2e]]) {
    chart(id, title, [["two", lines[1], "p95"], ["one", lines[0], "p50"]], ms, q ? "p95 " + ms(q.p95) : "–", [["", "p50", q ? ms(q.p50) : ""], ["two", "p95", q ? ms(q.p95) : ""], ...(q ? [["none", "p99", ms(q.p99)]] : [])]);
  }
  chart("tokens", "Tokens out per second", [["one", tokens, "tokens"]], number, number(minute(tokens)) + "/s", [["", "as engines report them", ""]]);
}

// --- Sections

function drawHead() {
  const h = state.head, r = state.requests, hour = state.hour;
  const away = !h.server, starting = !h.settled && !away;
  document.body.classList.toggle("starting", starting);
  document.body.classList.toggle("away", away || link !== "ok");
  text($("about"), [`gateway ${h.gateway}` + (h.gateways > 1 ? ` of ${h.gateways}` : ""), h.version, h.policy.revision ? `policy revision ${h.policy.revision} by ${h.policy.by}, ${age(now() - Date.parse(h.policy.at))} ago` : "default policy"].join(" · "));
  const banner = $("banner");
  const why = link !== "ok" ? "No connection to the gateway; trying again. What follows is what was last known."
    : away ? `The broker is away: ${h.not_ready || "no connection"}. The gateway keeps the requests it has and tries again; workers are as last heard.`
    : starting ? "Starting: not every part has reported yet." : h.not_ready ? `This gateway is not ready: ${h.not_ready}.` : "";
  text(banner, why);
  cls(banner, starting && link === "ok" ? "banner quiet" : "banner");
  show(banner, why !== "");
  show($("sign"), h.acts && !memory.get("token"));
  text($("foot"), (h.acts ? "Actions are written into the policy's history with your name: pulley policy history." : "Read only: actions need a token, so start the gateway with --admin-token-file.") + " The same in a terminal: pulley top. Remedies and terms: docs/page.md.");
  text($("hour-scope"), h.gateways > 1 ? "of this gateway" : "");
  document.body.classList.toggle("may-act", h.acts);
  if (!r || !hour) return;
  const ended = hour.answered + hour.failed + hour.refused + hour.cancelled, oldest = r.waiting[0];
  const bad = state.workers?.filter((w) => ["down", "fenced", "lost"].includes(w.state)).length ?? 0;
  const total = h.totals;
  keyed($("numbers"), [
    ["Requests/s", number(state.perSecond ?? 0), "last minute"],
    ["Tokens out/s", number(state.tokensPerSecond ?? 0), ""],
    ["In flight", number(total.in_flight), `of ${number(total.slots)} slots`],
    ["Waiting", number(total.waiting), oldest ? "oldest " + age(now() - oldest.arrived) : "", total.waiting > total.slots ? "warn" : ""],
    ["TTFT p95", hour.ttft ? ms(hour.ttft.p95) : "–", hour.ttft ? "p50 " + ms(hour.ttft.p50) : ""],
    ["E2E p95", hour.e2e ? ms(hour.e2e.p95) : "–", hour.e2e ? "p50 " + ms(hour.e2e.p50) : ""],
    ["Failed, last hour", number(hour.failed), ended ? percent(hour.failed / ended) : "", hour.failed > ended / 100 ? "bad" : ""],
    ["Workers", number(total.workers), bad ? `${bad} not working` : "accept requests", bad || !total.workers ? "bad" : ""],
  ], (n) => n[0], ([k]) => {
    const v = el("span", "v"), small = el("small"), box = el("div", "number", el("div", "k", k), v, small);
    return [box, ([, value, note, kind]) => { text(v, value); text(small, note); cls(box, "number " + (kind || "")); }];
  });
}

function drawFindings() {
  const list = state.findings.filter((f) => f.verdict !== "ok" && f.verdict !== "notice");
  show($("findings-box"), list.length > 0);
  keyed($("findings"), list.slice(0, 30), (f) => f.text.replace(/\d+/g, "#") + f.check, () => {
    const what = el("span"), remedy = el("span", "remedy"), li = el("li", "", what, remedy);
    return [li, (f) => { cls(li, f.verdict); text(what, f.text); text(remedy, f.remedy ? "Remedy: " + f.remedy : ""); show(remedy, !!f.remedy); }];
  });
}

function drawPools() {
  const list = state.pools;
  text($("pools-n"), list.length ? String(list.length) : "");
  emptyNote($("pools"), list.length ? "" : "No pool yet. A pool appears when a worker serves a model: pulley worker --engine URL.");
  keyed($("pools"), list, (p) => p.pool, (first) => {
    const title = el("h3"), chip = el("span", "chip"), busy = el("span"), bar = el("div", "bar", busy), facts = el("div", "facts"), tiers = el("div", "tiers");
    let p = first;
    const pause = button("Pause", "", () => order({ do: p.paused ? "resume" : "pause", name: p.pool }, `${p.paused ? "Resume" : "Pause"} pool ${p.pool}?`, p.paused ? "Its requests go to workers again." : "Its requests wait until it is resumed; what runs continues."));
    const shift = button("Shift…", `Shift a model from pool ${p.pool}`, () => askShift(p.pool));
    const box = el("article", "card pool", el("div", "head", title, chip), bar, facts, tiers, el("div", "acts", pause, shift));
    return [box, (next) => {
      p = next;
      text(title, p.pool);
      const [word, kind] = p.paused ? ["paused", "warn"] : p.live === 0 ? ["no worker", "bad"] : p.load.waiting > 0 && p.busy >= p.slots ? ["full", "warn"] : p.live < p.workers ? [`${p.live} of ${p.workers} workers`, "warn"] : ["ready", "good"];
      text(chip, word); cls(chip, "chip " + kind);
      wide(busy, p.busy / p.slots);
      attr(bar, "role", "img");
      attr(bar, "aria-label", `${p.busy} of ${p.slots} slots in use`);
      const list = [["slots", `${p.busy}/${p.slots}`], ["workers", `${p.live}/${p.workers}`], ["waiting", number(p.load.waiting)]];
      if (p.ttft) list.push(["TTFT p50 / p95", `${ms(p.ttft.p50)} / ${ms(p.ttft.p95)}`], ["E2E p95", ms(p.e2e.p95)]);
      if (p.answered + p.failed) list.push(["failed in 5 min", `${p.failed} of ${number(p.answered + p.failed)}`]);
      keyed(facts, list, (f) => f[0], ([k]) => { const b = el("b"); return [el("span", "", k + " ", b), ([, v]) => text(b, v)]; });
      const most = Math.max(...p.tiers.map((t) => t.waiting), 10);
      keyed(tiers, p.tiers.flatMap((t) => [[t, 0], [t, 1], [t, 2], [t, 3]]), ([t, i]) => t.tier + i, ([, i]) => {
        const e = el("span", ["", "q", "n", "n dim"][i]), fill = el("span");
        if (i === 1) e.append(fill);
        return [e, ([t]) => {
          if (i === 0) text(e, t.tier);
          if (i === 1) { wide(fill, t.waiting / (t.max_queue || most)); attr(e, "role", "img"); attr(e, "aria-label", `${t.waiting} waiting in ${t.tier}`); }
          if (i === 2) text(e, `${number(t.waiting)} waiting`);
          if (i === 3) text(e, t.oldest ? "oldest " + age(now() - t.oldest) : `${number(t.in_flight)} in flight`);
        }];
      });
      text(pause, p.paused ? "Resume" : "Pause");
      attr(pause, "aria-label", `${p.paused ? "Resume" : "Pause"} pool ${p.pool}`);
    }];
  });
}

const ranks = { fenced: 0, down: 0, lost: 0, busy: 1, paused: 1, draining: 2, cordoned: 2 };
const MOST_TILES = 300, MANY = 24; // workers from which on tiles are small

function drawWorkers() {
  const all = [...state.workers].sort((a, b) => (ranks[a.state] ?? 3) - (ranks[b.state] ?? 3) || byName.compare(a.name, b.name));
  show($("filter-box"), all.length > 12);
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = words.length ? all.filter((w) => { const t = [w.name, w.state, w.host, w.engine, ...w.pools].join(" ").toLowerCase(); return words.every((x) => t.includes(x)); }) : all;
  const list = found.slice(0, MOST_TILES);
  text($("workers-n"), all.length ? [`${all.filter((w) => w.state === "ready").length} of ${all.length} ready`, words.length ? `${found.length} shown` : "", found.length > list.length ? `the first ${list.length}: filter for others` : ""].filter(Boolean).join(" · ") : "");
  emptyNote($("workers"), all.length ? "" : "No worker. Start one beside an engine: pulley worker --engine http://127.0.0.1:8000");
  cls($("workers"), all.length > MANY ? "workers many" : "workers");
  keyed($("workers"), list, (w) => w.id, makeTile);
}

function makeTile(first) {
  let w = first;
  const title = el("h3"), chip = el("span", "chip"), slots = el("div", "slots"), facts = el("div", "facts"), gauges = el("div", "gauges"), why = el("p", "why"), meta = el("p", "meta more");
  const cordon = button("Cordon", "", () => order({ do: w.cordoned ? "uncordon" : "cordon", name: w.name }, `${w.cordoned ? "Uncordon" : "Cordon"} worker ${w.name}?`, w.cordoned ? "It takes requests again." : "It takes no new requests, also after a restart, until it is uncordoned. What runs continues."));
  const weight = button("Weight", `Set the weight of worker ${w.name}`, () => ask({ title: `Weight of ${w.name}`, text: "Its price is divided by this: with 2 it gets requests as if it were twice as fast. 0 is the weight it was started with.", fields: [["weight", "Weight", String(w.set_weight || w.weight), "number"]], yes: "Set" }, (f) => send({ do: "weight", name: w.name, weight: Number(f.weight) })));
  const drain = button("Drain", `Drain worker ${w.name}`, () => order({ do: "drain", name: w.id }, `Drain worker ${w.name}?`, "It takes no new requests, finishes those that run, and exits. To use it again without a restart, cordon it instead.", true), "danger");
  const tile = el("li", "tile", el("div", "head", title, chip), slots, facts, gauges, why, meta, el("div", "acts", cordon, weight, drain));
  return [tile, (next) => {
    w = next;
    text(title, w.name);
    text(chip, w.state);
    const rank = ranks[w.state] ?? 3;
    cls(chip, "chip " + (rank === 0 ? "bad" : rank < 3 ? "warn" : "good"));
    cls(tile, `tile ${w.state}${w.failed_per_second > 0 || (w.gpu && !["ok", "stale"].includes(w.gpu.status)) ? " warn" : ""}`);
    drawSlots(slots, w);
    const list = [["slots", `${w.in_flight}/${w.slots}`]];
    const dense = state.workers.length > MANY;
    if (w.rung != null) list.push(["price", (w.price && !dense ? ms(w.price) + ", " : "") + "rung " + w.rung]);
    if (w.tokens_per_second && !dense) list.push(["tok/s", number(w.tokens_per_second)]);
    if (w.failed_per_second) list.push(["failing", number(w.failed_per_second) + "/s"]);
    if (w.silent) list.push(["silent for", age(now() - w.silent)]);
    keyed(facts, list, (f) => f[0], ([k]) => { const b = el("b"); return [el("span", "", k + " ", b), ([, v]) => text(b, v)]; });
    const g = w.gpu, levels = [];
    if (g?.temperature != null) levels.push(["heat", g.temperature / 100, g.temperature + " °C", g.temperature >= 87 ? "hot" : g.temperature >= 80 ? "warm" : ""]);
    if (g?.memory_total && !dense) levels.push(["memory", g.memory_used / g.memory_total, `${Math.round(g.memory_used / 2 ** 30)}/${bytes(g.memory_total)}`, ""]);
    if (w.kv != null) levels.push(["KV", w.kv, percent(w.kv), w.kv > 0.99 ? "hot" : w.kv > 0.92 ? "warm" : ""]);
    keyed(gauges, levels.flatMap((l) => [[l, 0], [l, 1], [l, 2]]), ([l, i]) => l[0] + i, ([l, i]) => {
      const fill = el("span"), e = i === 1 ? el("div", "bar", fill) : el("span", "", i === 0 ? l[0] : "");
      return [e, ([v]) => { if (i === 1) { wide(fill, v[1]); cls(e, "bar " + v[3]); } else if (i === 2) text(e, v[2]); }];
    });
    const reason = w.reason || (g && g.status !== "ok" ? g.reason : "") || (w.loading ? `loading ${w.loading}` : "") || (w.in_flight >= w.slots && w.why && w.bound !== "slots" ? w.why : "");
    text(why, reason); show(why, !!reason);
    text(meta, [w.engine, w.host, w.pools.join(", "), g?.name ? (g.count > 1 ? `${g.count} × ` : "") + g.name : "", w.set_weight ? `weight ${w.set_weight}` : w.weight !== 1 ? `weight ${number(w.weight)}` : ""].filter(Boolean).join(" · "));
    text(cordon, w.cordoned ? "Uncordon" : "Cordon");
    attr(cordon, "aria-label", `${w.cordoned ? "Uncordon" : "Cordon"} worker ${w.name}`);
  }];
}

/** A square for each slot: blue answers, violet has no token yet. Above 48 slots a bar. */
function drawSlots(box, w) {
  attr(box, "role", "img");
  attr(box, "aria-label", `${w.in_flight} of ${w.slots} slots in use` + (w.prefills ? `, ${w.prefills} before their first token` : ""));
  const many = Math.max(w.slots, w.in_flight) > 48;
  if (box.many !== many) { box.replaceChildren(...(many ? [el("div", "bar", el("span"))] : [])); box.many = many; }
  if (many) return wide(box.firstChild.firstChild, w.in_flight / w.slots);
  const n = Math.max(w.slots, w.in_flight);
  while (box.childElementCount > n) box.lastChild.remove();
  while (box.childElementCount < n) box.append(el("span"));
  for (let i = 0; i < n; i++) cls(box.children[i], i >= w.in_flight ? "" : i < w.in_flight - (w.prefills || 0) ? "on" : "first");
}

function drawShifts() {
  show($("shifts-box"), state.shifts.length > 0);
  keyed($("shifts"), state.shifts, (s) => s.model, (first) => {
    let s = first;
    const title = el("h3"), chip = el("span", "chip"), canary = el("span", "canary"), stable = el("span", "stable"), split = el("div", "split", canary, stable), note = el("p", "dim"), sides = el("div");
    const act = (verb, what, danger) => button(verb, `${verb} the shift of ${s.model}`, () => order({ do: verb.toLowerCase().replace(" ", "") === "nextstep" ? "step" : verb.toLowerCase(), name: s.model }, `${verb}: ${s.model}?`, what, danger), danger ? "danger" : "");
    const acts = el("div", "acts", act("Next step", "The canary gets its next part now, whatever the answers say."), act("Promote", "All requests go to the canary."), act("Abort", "All requests go back to the pools from before.", true));
    return [el("article", "card shift", el("div", "pool head", el("div", "head", title, chip)), split, sides, note, acts), (next) => {
      s = next;
      text(title, `${s.model} → ${s.to}`);
      text(chip, s.state); cls(chip, "chip " + (s.state === "aborted" ? "bad" : s.state === "done" ? "good" : "info"));
      wide(canary, s.share / 100);
      cls(canary, s.share > 0 ? "canary" : "canary none");
      text(canary, s.share >= 8 ? percent(s.share / 100) : "");
      text(stable, `${s.others.join(", ") || "–"} ${percent(1 - s.share / 100)}`);
      attr(split, "role", "img"); attr(split, "aria-label", `${percent(s.share / 100)} of the requests go to ${s.to}`);
      const row = (name, d) => ({ name, d });
      table(sides, "Both sides of the shift", [
        ["", (r) => r.name], ["answers", (r) => number(r.d.answers) + (s.state === "running" && r.d.answers < s.min_sample ? ` of ${s.min_sample}` : ""), "r"],
        ["errors", (r) => [r.d.answers ? percent(r.d.errors / r.d.answers) : "–", r.d.errors ? "bad-t" : ""], "r"],
        ["TTFT p50 / p95", (r) => (r.d.ttft ? `${ms(r.d.ttft.p50)} / ${ms(r.d.ttft.p95)}` : "–"), "r"], ["E2E p95", (r) => (r.d.e2e ? ms(r.d.e2e.p95) : "–"), "r"],
      ], [row("canary " + s.to, s.canary), row("stable", s.stable)], (r) => r.name, "");
      cls(sides.table, "sides");
      text(note, [s.reason || "", s.state === "running" ? `${number(s.by)} % more every ${ms(s.every)}, this step for ${age(now() - s.since)}` : `${age(now() - s.since)} ago`, s.state === "running" && s.abort?.length ? "aborts if " + s.abort.join(" or ") : ""].filter(Boolean).join(" · "));
      show(acts, s.state === "running");
    }];
  });
}

function drawRequests() {
  const r = state.requests, cancel = (row) => button("Cancel", "Cancel the request", () => order({ do: "cancel", name: row().id }, `Cancel request ${short(row().id)}?`, "Its client gets an error.", true), "danger");
  text($("waiting-n"), r.queued ? number(r.queued) : "");
  text($("running-n"), r.running_all + r.answering ? `${number(r.running_all)} before the first byte, ${number(r.answering)} answering` : "");
  table($("waiting"), "Requests that wait", [
    ["for", (q) => age(now() - q.arrived), "r"], ["request", (q) => short(q.id), "id"], ["model", (q) => q.model], ["tier", (q) => q.tier], ["tenant", (q) => q.tenant || "–", "wide"], ["attempt", (q) => String(q.attempt + 1), "r wide"],
  ], r.waiting, (q) => q.id, "Nobody waits.", cancel);
  table($("running"), "Requests in progress", [
    ["age", (q) => age(now() - q.arrived), "r"], ["request", (q) => short(q.id), "id"], ["state", (q) => [q.state, q.state === "answering" ? "good-t" : ""]], ["model", (q) => q.model], ["worker", (q) => q.worker || "–"],
    ["queued", (q) => ms(q.queue), "r wide"], ["out", (q) => bytes(q.bytes_out), "r"],
  ], r.running, (q) => q.id, "No request runs.", cancel);
}

const outcomes = { answered: "good-t", failed: "bad-t", refused: "warn-t", cancelled: "dim" };

function drawEnded() {
  table($("ended"), "Requests that have just ended", [
    ["at", (e) => clock(e.when)], ["request", (e) => short(e.id), "id wide"], ["outcome", (e) => [e.outcome + (e.status ? " " + e.status : ""), outcomes[e.outcome]]], ["model", (e) => e.model || "–"], ["worker", (e) => e.worker || "–"],
    ["TTFT", (e) => (e.ttft ? ms(e.ttft) : "–"), "r"], ["total", (e) => (e.pool ? ms(e.took) : "–"), "r"], ["tokens", (e) => (e.output_tokens ? number(e.output_tokens) : "–"), "r wide"],
  ], state.ended, (e) => e.id, "No request has ended since the gateway started.");
}

function drawFailures() {
  const list = state.failures;
  text($("failures-n"), list.length ? "the newest first" : "");
  table($("failures"), "Requests that failed or were refused", [
    ["at", (e) => clock(e.when)], ["outcome", (e) => [e.outcome + (e.status ? " " + e.status : ""), outcomes[e.outcome]]], ["model", (e) => e.model || "–", "wide"], ["reason", (e) => (e.code ? e.code + ": " : "") + e.reason, "long"], ["worker", (e) => e.worker || "–", "wide"],
  ], list, (e) => e.id, "Nothing has failed since the gateway started.");
}

function drawDead() {
  text($("dead-n"), state.dead.total ? `${number(state.dead.total)}: pulley dead ls, show, retry` : "");
  table($("dead"), "Dead letters", [
    ["age", (d) => age(now() - d.when), "r"], ["seq", (d) => String(d.seq), "r"], ["pool", (d) => d.pool], ["tier", (d) => d.tier, "wide"], ["reason", (d) => d.reason, "long"],
  ], state.dead.list, (d) => d.seq, "No dead letters.");
}

function drawEvents() {
  emptyNote($("events"), state.events.length ? "" : "No events yet.");
  keyed($("events"), state.events.map((e, i) => [e, i]), ([e, i]) => e.at + e.kind + e.text, ([e]) => {
    const t = el("time", "", clock(Date.parse(e.at)));
    t.dateTime = e.at;
    return [el("li", "", t, el("span", "", e.text + (e.kind === "policy" && !e.from.startsWith("gateway ") ? `, by ${e.from}` : ""))), () => {}];
  });
}

function emptyNote(list, note) {
  list.note ??= el(list.tagName === "DIV" ? "p" : "li", "empty");
  if (note) { text(list.note, note); if (!list.note.isConnected) list.append(list.note); } else list.note.remove();
}

const draw = { hour: drawHour, head: drawHead, findings: drawFindings, shifts: drawShifts, pools: drawPools, workers: drawWorkers, requests: drawRequests, ended: drawEnded, failures: drawFailures, dead: drawDead, events: drawEvents };
const aging = ["pools", "requests", "shifts", "dead"]; // they show ages
const dirty = new Set();

function changed(...names) {
  if (dirty.size === 0) requestAnimationFrame(() => {
    const names = Object.keys(draw).filter((n) => dirty.has(n) && state[n]);
    dirty.clear();
    for (const n of names) draw[n]();
    document.body.dataset.drawn = String(Number(document.body.dataset.drawn ?? 0) + 1);
  });
  for (const n of [...names, "head"]) dirty.add(n); // the totals are of several sections
}

// --- The stream

let link = "", stream = null;
const SILENT = 40_000; // the gateway sends something every 15 s

function linked(kind, note) {
  link = kind;
  text($("link"), note);
  cls($("link"), "link " + kind);
  changed("head");
}

function take(name, value) {
  state[name] = value;
  changed(name);
  if (name === "head") { offset = value.at - Date.now(); changed(...aging); if (state.workers?.some((w) => w.silent)) changed("workers"); }
}

/** Reads one stream to its end. */
async function read() {
  stream = new AbortController();
  let watchdog;
  const alive = () => { clearTimeout(watchdog); watchdog = setTimeout(() => stream.abort(), SILENT); };
  const token = memory.get("token");
  alive();
  try {
    const res = await fetch("/page/live", { cache: "no-store", signal: stream.signal, headers: token ? { authorization: "Bearer " + token } : {} });
    if (res.status === 401) return "token";
    if (!res.ok) throw new Error(res.status === 403 ? await res.text() : `the gateway answered ${res.status}`);
    const lines = res.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (let r = await lines.read(); !r.done; r = await lines.read()) {
      alive();
      const events = (rest + r.value).split("\n\n");
      rest = events.pop();
      for (const e of events) {
        const [, name, data] = /^event: (\w+)\ndata: (.*)$/s.exec(e) ?? [];
        if (name) take(name, JSON.parse(data));
      }
      if (link !== "ok" && state.head) linked("ok", "live");
    }
  } finally {
    clearTimeout(watchdog);
  }
  return "over";
}

async function follow() {
  for (let wait = 0; ; ) {
    if (document.hidden) await new Promise((seen) => document.addEventListener("visibilitychange", seen, { once: true }));
    let outcome = "", error = "";
    try { outcome = await read(); } catch (e) { error = e.message; }
    if (outcome === "token") {
      const wrong = memory.get("token") !== "";
      memory.set("token", "");
      linked("bad", "token needed");
      await signIn(wrong ? "The token was not accepted." : "");
      wait = 0;
      continue;
    }
    if (outcome === "over" && link === "ok") wait = 0; // streams end after a while
    if (!(outcome === "over" && wait === 0)) linked("bad", "no connection" + (error && !/fetch|network|abort/i.test(error) ? ": " + error : ""));
    await new Promise((r) => setTimeout(r, wait));
    wait = Math.min(Math.max(wait * 2, 500), 5000);
    if (link === "ok") wait = 0;
  }
}

// A tab that nobody sees costs nothing after a while.
let leaving;
document.addEventListener("visibilitychange", () => {
  clearTimeout(leaving);
  if (document.hidden) leaving = setTimeout(() => stream?.abort(), 30_000);
});

// --- Dialogs and actions

let answering = null;

/** Asks with a dialog; run gets the fields, and its error is shown there. Resolves when it is over. */
function ask({ title, text: about, fields = [], yes = "OK", danger = false, must = false }, run) {
  const d = $("dialog"), form = $("form");
  text($("dialog-h"), title);
  text($("dialog-p"), about ?? "");
  text($("dialog-e"), "");
  const inputs = fields.map(([name, label, value, type = "text", attrs = {}]) => {
    const input = el("input");
    Object.assign(input, { name, type, value, required: true, autocomplete: "off", ...attrs });
    if (type === "number") { input.step = "any"; input.min = "0"; }
    return [name, input, el("label", "", label, input)];
  });
  $("fields").replaceChildren(...inputs.map((i) => i[2]));
  text($("yes"), yes);
  cls($("yes"), danger ? "main danger-main" : "main");
  show($("no"), !must);
  return new Promise((over) => {
    const close = () => { d.oncancel = null; form.onsubmit = null; answering = null; if (d.open) d.close(); over(); };
    answering = close;
    d.oncancel = (e) => { if (must) e.preventDefault(); else close(); };
    form.onsubmit = async (e) => {
      e.preventDefault();
      $("yes").disabled = true;
      try { await run(Object.fromEntries(inputs.map(([name, input]) => [name, input.value.trim()]))); close(); } catch (err) { text($("dialog-e"), err.message); } finally { $("yes").disabled = false; }
    };
    if (!d.open) d.showModal();
    (inputs[0]?.[1] ?? $("yes")).focus();
  });
}
$("no").addEventListener("click", () => answering?.());

function signIn(error, must = true) {
  const asked = ask({ title: "Token of the admin port", text: "It is in the file that --admin-token-file names. This tab keeps it until it is closed.", must, yes: "Continue", fields: [["token", "Token", "", "password"]] }, async (f) => memory.set("token", f.token));
  text($("dialog-e"), error);
  return asked;
}
$("sign").addEventListener("click", () => signIn("", false).then(() => changed("head")));

async function send(what) {
  const res = await fetch("/page/do", { method: "POST", headers: { "content-type": "application/json", authorization: "Bearer " + memory.get("token") }, body: JSON.stringify({ by: memory.get("name"), ...what }) });
  const type = res.headers.get("content-type") ?? "";
  const answer = type.startsWith("application/json") ? await res.json() : { error: await res.text() };
  if (!res.ok) throw new Error(answer.error);
  text($("said"), answer.text);
  setTimeout(() => { if ($("said").textContent === answer.text) text($("said"), ""); }, 6000);
}

const named = () => ["by", "Your name, for the history", memory.get("name"), "text", { maxLength: 64 }];

/** Asks whether to carry out an order, and in whose name. */
function order(what, title, about, danger = false) {
  return ask({ title, text: about, danger, yes: title.split(" ")[0].replace(":", ""), fields: [named()] }, (f) => { memory.set("name", f.by); return send({ ...what, by: f.by }); });
}

function askShift(pool) {
  return ask({ title: "Shift a model to another pool", text: "The gateways move its requests step by step, and back if a condition holds.", yes: "Start", fields: [
    ["model", "Model", pool], ["to", "To pool", ""], ["percent", "Percent per step", "10", "number"], ["seconds", "Seconds per step at least", "120", "number"],
    ["abort", "Abort if (conditions, separated by commas)", "error_rate>1%, p95_ttft>1.5x", "text", { required: false }], named(),
  ] }, (f) => {
    memory.set("name", f.by);
    return send({ do: "shift", by: f.by, name: f.model, to: f.to, percent: Number(f.percent), seconds: Number(f.seconds), abort: f.abort.split(",").map((c) => c.trim()).filter(Boolean) });
  });
}

$("filter").addEventListener("input", () => changed("workers"));
setInterval(() => { if (link !== "ok") changed("head", ...aging); }, 1000);
linked("", "connecting");
follow();
