// Where users of SDKs see something else through Pulley than with the engine alone, and why that is right. Everything else
// must be the same: see matrix.mjs. docs/clients.md has these in words.
import { isDeepStrictEqual } from "node:util";

/** The outcome with the engine alone, except for these members. */
const sameBut = (...members) => (through, direct) => (
  Object.keys({ ...through, ...direct }).every((k) => k === "calls" || members.includes(k) || isDeepStrictEqual(through[k], direct[k])));

/** An error with a status, and with a message that matches. The Vercel SDK wraps one that it has tried again. */
const errorOf = (statuses, message = /./) => ({ error, status, message: got }) => (
  error !== undefined && statuses.includes(status) && message.test(got ?? "a body without a message"));

/** What the SDK makes of a good answer. */
const answer = (through, _, good) => sameBut()(through, good);

/** The part that came, and an error that tells that it is one. */
const brokenOff = (through, direct) => (
  (through.error !== undefined || /failed|error/.test(through.finish)) && through.text === direct.text && through.pieces === direct.pieces);

const vercel = /^ai, /;
const attempts = 3; // of Pulley, before the first byte
const engines = 2;  // of a lane

/** How many requests engines get for a call whose SDK tries again on errors that Pulley tells not to retry. */
const vercelCalls = 3 * attempts;

/**
 * An exception: cases, clients, apis and stream say for which rows; becomes tells whether the outcome through Pulley is the
 * right one, given that with the engine alone, and that of "an answer" with the engine alone. calls is the most requests that
 * engines may get; without it, as many as with the engine alone.
 */
export const exceptions = [
  {
    cases: /^no (header|token) within the timeout$/, clients: vercel, calls: engines, worksOn: true, becomes: sameBut("engine"),
    why: "the SDK has no timeout of its own; Pulley moves a request once whose engine shows nothing for much longer than it was measured to take",
  },
  {
    cases: /^(404 for the model|404 for the path|404 in HTML|405|counted tokens: 404)$/, calls: engines, becomes: sameBut(),
    why: "an engine that lacks the model or the path is not the only one: every other engine is asked before the first byte",
  },
  {
    cases: /^(429|503)( with retry-after| in HTML)?$/, calls: (direct) => direct * engines, becomes: sameBut(),
    why: "a full engine is not the only one: every other engine is asked before the first byte",
  },
  {
    cases: /^(401|403)$/, calls: 3 * engines, becomes: errorOf([502], /credentials/),
    why: "the engine refuses the worker's credentials, not the client's, which do not reach the engine",
  },
  {
    cases: /^(500|502|504|529)( without a body| in HTML)?$/, clients: vercel, calls: vercelCalls, becomes: sameBut("error"),
    why: "the Vercel SDK does not know x-should-retry: false, and tries again what Pulley has tried before",
  },
  {
    cases: /^closed connections$/, calls: (direct) => direct + 2, becomes: errorOf([502], /lost their engine/),
    why: "Pulley has tried two engines, and answers",
  },
  {
    cases: /^200 |^an answer that ends too early$|^a stream of nothing|^a stream that begins with an error$/, calls: (_, client) => (vercel.test(client.name) ? vercelCalls : attempts),
    becomes: errorOf([500, 502], /an empty answer|HTML|out of memory|not JSON|the stream ended|a body without|Bad Gateway/),
    why: "what is no answer is an error, once other engines have been tried before the first byte",
  },
  {
    cases: /^(cut before the first token|a cut answer)$/, calls: (_, client) => (vercel.test(client.name) ? 3 * 2 : 2),
    becomes: errorOf([502], /lost their engine/),
    why: "nothing of the answer has reached the client, so another engine is tried, and then there is an answer that says so",
  },
  {
    cases: /^cut before the first token, then an answer$/, calls: 2, becomes: answer,
    why: "nothing of the answer has reached the client, so another engine is tried",
  },
  {
    cases: /^(cut after the third token|an end after the third token)$/, clients: /\.stream\(\)$/,
    becomes: ({ error, finish }) => error !== undefined || finish === "failed",
    why: "a stream that breaks off has an error event: the helper that puts an answer together reports it",
  },
  {
    cases: /^(cut after the third token|an end after the third token)$/, becomes: brokenOff,
    why: "a stream that breaks off, or ends without its end, has an error event: it must not be taken for a whole answer",
  },
  {
    cases: /^no token within the timeout$/, clients: /^(?!ai, )/, calls: 2, becomes: ({ error }) => /Timeout|DeadlineExceeded/.test(error),
    why: "the header comes with the first token, or after --keep-alive: until then another engine can be tried. The SDKs bound the wait for it, and try again",
  },
  {
    cases: /^silence in the middle$/, clients: /^@anthropic-ai/, becomes: brokenOff,
    why: "this SDK tells its timeout, but does not apply it to a stream that has begun; Pulley ends the stream instead",
  },
];
