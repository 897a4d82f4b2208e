// The SDKs for Go, in a process of their own: e2e/go/matrix.
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";

export function goClients() {
  const process_ = spawn(process.env.GO_MATRIX, { stdio: ["pipe", "pipe", "inherit"] });
  const calls = new Map();
  let lastID = 0;
  const say = (line) => process_.stdin.write(`${JSON.stringify(line)}\n`);
  createInterface({ input: process_.stdout }).on("line", (line) => {
    const { id, token, outcome } = JSON.parse(line);
    if (outcome) {
      calls.get(id).resolve(outcome);
      calls.delete(id);
    } else {
      calls.get(id)?.onToken(token);
    }
  });

  const play = ({ onToken, signal, ...call }) => new Promise((resolve) => {
    const id = ++lastID;
    calls.set(id, { resolve, onToken });
    say({ id, ...call });
    signal?.addEventListener("abort", () => say({ id, cancel: true }));
  });
  return {
    clients: [
      { name: "openai-go", apis: ["chat", "responses", "embeddings", "speech"], play },
      { name: "anthropic-sdk-go", apis: ["messages", "count_tokens"], play },
    ],
    stop: () => process_.kill(),
  };
}
