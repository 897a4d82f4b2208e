// An engine that answers as it is told, word by word. A request names its case (x-case) and its call (x-run): the engine
// answers the n-th request of a call with the n-th reply of the case, and the last one from then on. It counts the requests
// of each call, and notes how each one ended.
import http from "node:http";
import { setTimeout as sleep } from "node:timers/promises";

/**
 * A reply is { status, headers, body } with a body that is a string, bytes, or a list of steps, each of them a string, bytes,
 * or what the engine does:
 *
 *   { wait: ms }   nothing for a time
 *   "hang"         nothing any more
 *   "cut"          break the connection
 *
 * A body that is no list has a content length, unless `chunked` is set; a list is sent step by step. With `late: ms` the
 * engine waits before the header, with `close: true` it closes the connection instead of answering.
 */
export class ScriptedEngines {
  #runs = new Map();
  #servers = [];

  /** replies returns the replies of a case, given its name and the request's path and body. */
  constructor(replies) {
    this.replies = replies;
  }

  /** Starts one more engine, with one model, and returns its URL. */
  async listen(model) {
    const server = http.createServer((req, res) => this.#serve(model, req, res).catch((err) => res.destroy(err)));
    server.keepAliveTimeout = 60_000;
    await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
    this.#servers.push(server);
    return `http://127.0.0.1:${server.address().port}`;
  }

  close() {
    for (const server of this.#servers) {
      server.closeAllConnections();
      server.close();
    }
  }

  run(id) {
    if (!this.#runs.has(id)) this.#runs.set(id, { calls: 0, open: 0, left: 0, ports: [] });
    return this.#runs.get(id);
  }

  async #serve(model, req, res) {
    const path = req.url.split("?")[0];
    const pieces = [];
    for await (const piece of req) pieces.push(piece);
    const body = Buffer.concat(pieces);
    const { "x-case": name, "x-run": id } = req.headers;
    if (!id) return this.#idle(model, path, res);

    const run = this.run(id);
    const nth = run.calls++;
    run.ports.push(req.socket.localPort);
    run.open++;
    res.once("close", () => {
      run.open--;
      if (!res.writableFinished) run.left++;
    });
    const replies = this.replies(name, path, body);
    await send(replies[Math.min(nth, replies.length - 1)], res);
  }

  /** Answers what a worker asks on its own: the models, the health, and nothing else. */
  #idle(model, path, res) {
    res.setHeader("content-type", "application/json");
    if (path === "/v1/models") return res.end(JSON.stringify({ object: "list", data: [{ id: model, object: "model", created: 1, owned_by: "matrix" }] }));
    if (path === "/health") return res.end("{}");
    res.statusCode = 404;
    res.end(`{"detail":"Not Found"}`);
  }
}

async function send(reply, res) {
  const { status = 200, headers = {}, body = "", late = 0, close = false, chunked = false } = reply;
  if (late) await sleep(late);
  if (close || res.destroyed) return res.destroy();
  for (const [name, value] of Object.entries(headers)) res.setHeader(name, value);
  res.statusCode = status;
  if (!Array.isArray(body)) {
    if (!chunked) res.setHeader("content-length", Buffer.byteLength(body));
    return res.end(body);
  }
  res.flushHeaders();
  for (const step of body) {
    if (res.destroyed) return;
    if (step === "cut") return res.destroy();
    if (step === "hang") return;
    if (step.wait) {
      await sleep(step.wait);
      continue;
    }
    if (!res.write(step)) await new Promise((resolve) => { res.once("drain", resolve); res.once("close", resolve); });
    await new Promise(setImmediate); // each step is a write of its own
  }
  res.end();
}
