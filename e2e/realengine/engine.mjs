// The model, its slots and its token loop: everything that touches llama.cpp.
import { getLlama, LlamaLogLevel } from "node-llama-cpp";

/** An error that the server answers with its status, in the API's shape. */
export class APIError extends Error {
  constructor(status, message, code, headers = {}) {
    super(message);
    Object.assign(this, { status, code, headers });
  }
}

export class Engine {
  #model;
  #embedding;
  #contextSize;
  #free; // sequences that no request holds
  #waiting = []; // requests without a sequence, first come first

  static async load(modelPath, { slots, contextSize }) {
    const llama = await getLlama({ gpu: false, build: "never", logLevel: LlamaLogLevel.error, maxThreads: 1 });
    const model = await llama.loadModel({ modelPath });
    const context = await model.createContext({ sequences: slots, contextSize, threads: 1 });
    const embedding = await model.createEmbeddingContext({ contextSize });
    const engine = new Engine();
    engine.#model = model;
    engine.#embedding = embedding;
    engine.#contextSize = contextSize;
    engine.#free = Array.from({ length: slots }, () => context.getSequence());
    return engine;
  }

  tokenize(text) {
    return this.#model.tokenize(text);
  }

  checkLength(prompt, limit) {
    if (!(limit >= 1)) throw new APIError(400, `max_tokens is ${limit}: want 1 or more`, "invalid_max_tokens");
    if (prompt + limit <= this.#contextSize) return;
    const room = `the context has ${this.#contextSize}`;
    throw new APIError(400, `the request needs ${prompt + limit} tokens, ${room}`, "context_length_exceeded");
  }

  async embed(text) {
    return (await this.#embedding.getEmbeddingFor(text)).vector;
  }

  /** Resolves to a slot when one is free; rejects when the signal fires first. */
  async acquire(signal) {
    signal.throwIfAborted();
    if (this.#free.length > 0) return this.#free.pop();
    return new Promise((resolve, reject) => {
      this.#waiting.push(resolve);
      signal.addEventListener("abort", () => {
        const place = this.#waiting.indexOf(resolve);
        if (place < 0) return;
        this.#waiting.splice(place, 1);
        reject(signal.reason);
      }, { once: true });
    });
  }

  release(slot) {
    const next = this.#waiting.shift();
    next ? next(slot) : this.#free.push(slot);
  }

  /** Yields the answer's text token by token, without end; null when the model ends it. */
  async *pieces(slot, prompt, { temperature = 0.7, top_p, seed }) {
    await slot.clearHistory();
    const tokens = [...prompt];
    for await (const token of slot.evaluate(prompt, { temperature, topP: top_p ?? undefined, seed: seed ?? undefined })) {
      if (this.#model.isEogToken(token)) return yield null;
      yield this.#model.detokenize([token], false, tokens.slice(-8));
      tokens.push(token);
    }
  }
}
