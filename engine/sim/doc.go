// Package sim is a simulated engine: an OpenAI-compatible model server with exact token counts and exact timing, for
// tests, benchmarks and demos. [Engine] is an http.Handler; package engine's Scraper reads it like any other engine.
//
// # Timing
//
// A request first waits in the engine's own FIFO queue until a slot is free, there is memory for it (see below), and
// the requests which have a slot but no prefill yet leave part of PrefillBatch free. Then its prompt is prefilled:
// prompts are prefilled one at a time, in the order in which they got their slots, at PrefillRate tokens per second,
// without the tokens that the prefix cache has. After a further TTFT (this part overlaps with other requests) the first
// token is ready and the request joins the decode batch, in which every request produces one token per
//
//	ITLBase + ITLPerRequest × (requests in the batch)
//
// A batch that grows or shrinks changes the pace of all its requests from that instant on, even in
// the middle of a token. The last token frees the slot. A client that disconnects frees it at once,
// in every phase. A slow reader does not slow the engine down: its tokens are buffered.
//
// [Engine.SetClock], or POST /sim/clock?factor=0.5, changes the speed of all computation while the
// engine runs, as throttled clocks do.
//
// All of this is computed from the time package's clock, one event after the other, so it is exact
// to the nanosecond in a testing/synctest bubble and does not drift on a real clock. Work that
// takes no time starts no timer: an engine with all times zero answers as fast as HTTP allows.
//
// # Tokens
//
// A token is a word. The prompt has as many tokens as there are whitespace-separated words in the texts of the fields
// system, instructions, messages, prompt, input, query, documents and inputs[].data. In an array each string is a text;
// in an object the values of "text" and "content" are; an array of numbers is one text, with a word for each number.
// Everything else, such as image parts, roles and tools, does not count.
//
// The answer has max_completion_tokens tokens, otherwise max_tokens, otherwise max_output_tokens,
// otherwise 64. Its token i is Token(PromptHash(prompt texts…), i), and its text is Text of that
// hash: so any client can check an answer, or find the place where two answers were spliced. A
// stream's first event carries one token, the others TokensPerEvent. The finish reason is "length"
// if the request set a length, otherwise "stop". There is one choice, whatever n is.
//
// POST /tokenize, /v1/messages/count_tokens and /v1/responses/input_tokens count the tokens of a prompt at once, beside
// whatever runs; Ollama's dialect has none of them.
//
// Embeddings and rerankings end with their prefill. Images take as much time as a text of as many
// tokens. Speech is the bytes of the text at the pace of its tokens.
//
// # The prefix cache
//
// With PrefixCache, an engine keeps the prompts that it has prefilled, up to that many tokens, and a prompt that starts
// like one of them costs only the rest, as with vLLM's automatic prefix caching. Prompts are compared by their words:
// each block of 16 tokens is identified by the hash of all words up to its end, however they are spread over messages,
// and whatever model name is requested. So a follow-up of a conversation finds what it has in common with the previous
// request, rounded down to a block.
//
// The cache is looked up when the prefill starts and updated when it ends; an aborted prefill
// leaves nothing. The last token is always computed. When the cache is full, the least recently
// used block is evicted, and of a prompt's blocks the last one first. Answers are not kept.
//
// The usage reports the hits as prompt_tokens_details.cached_tokens, input_tokens_details.cached_tokens, or
// cache_read_input_tokens, which in Anthropic's API are not included in input_tokens. With engine.DialectLlamaCpp the last part of
// a completion has timings: cache_n, prompt_n and prompt_ms.
//
// # The KV cache
//
// A request takes memory for its prompt and its first token when it gets its slot, and for one more token with each
// that it produces; its end releases all of it. A prompt for which there is no room waits, and so do all behind it.
// When a token finds no room, the request that got its slot last is preempted, as with vLLM: it goes to the front of
// the queue, and when it gets its slot again, its prompt and the tokens that it had produced are prefilled again. Its
// answer is only delayed. A request that runs alone may exceed the memory.
//
// The prefix cache is separate and takes none of this memory.
//
// # Swapping models
//
// With Loaded, an engine holds that many of its models at once, none at first, as Ollama and llama-swap do. A request
// for another model waits until no request of the evicted model runs any more (idle models are evicted first, otherwise
// the least recently used), and then LoadTime for the load. Requests for loaded models overtake it meanwhile, except
// for the evicted one; with engine.DialectOllama no request overtakes a waiting one. With Cold, no model is loaded at first
// even if all fit; with KeepAlive, a model that has had no request for that long is unloaded.
//
// A model is also loaded by POST /api/generate without a prompt (engine.DialectOllama; with keep_alive 0 it is unloaded), or
// by GET /upstream/<model>/health (engine.DialectLlamaSwap). Both answer when it is loaded, and count as no request.
//
// # Dialects
//
// An engine behaves like the one of its Dialect. The pages on which it reports its state have the names and the form of that
// engine's, and it reports no more than that engine does. It takes the names of models that that engine takes, and refuses in
// its words, with its status: a model that it does not have, a prompt longer than Context (Ollama cuts it instead), a request
// for which the queue has no room (if that engine's queue has a bound), a missing field, a missing or wrong APIKey, a path that
// it does not have (LM Studio answers 200), and anything until StartTime has passed: llama.cpp answers 503, SGLang only for
// its health, Triton is not ready, and the others close the connection, since they do not listen yet.
// The tests compare all of this with recorded answers in engine/testdata/answers.
//
// # Misbehaviour on request
//
// A request may ask for misbehaviour in the header x-sim, as a comma-separated list:
//
//	fail, fail=STATUS         answer with this status (default 500) at once
//	refuse, refuse=STATUS     answer 429 or 503 with retry-after at once
//	close                     close the connection before any byte
//	hang                      take a slot and never answer
//	hang-after=N              hang after N tokens
//	cut-after=N               cut the connection after N tokens; an answer that is not streamed is cut in its middle
//	ttft=DURATION             add this to the time to the first token
//	early-header              send a stream's status and header before its first token
//	on=NAME                   apply the list only on the engine with this name; others ignore it
//
// For example, "x-sim: cut-after=5, ttft=2s, on=slow" cuts the connection after five tokens if the engine named slow
// answers. A hanging request keeps its slot until its client disconnects. If N is the length of the answer or more, the
// misbehaviour replaces the end of the answer. Of several misbehaviours the first one in the order close, fail or
// refuse, hang or cut applies. The header replaces the misbehaviour that Config's probabilities would have drawn.
//
// Every answer names its engine in x-sim-name, and in system_fingerprint where the API has that field.
package sim
