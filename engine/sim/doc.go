// Package sim is a simulated engine: an OpenAI-compatible model server with exact token counts and exact timing, for
// tests, benchmarks and demos. [Engine] is an http.Handler; package engine's Scraper reads it like any other engine.
//
// # The model of time
//
// A request first waits in the engine's own FIFO queue until one of its slots is free, there is memory for it, see below,
// and those with a slot that still wait for their prefill leave some of PrefillBatch. Its prompt is then prefilled:
// prompts are prefilled one at a time, in the order in which they took their slots, at PrefillRate tokens per second, but
// for the tokens that the prefix cache has.
// TTFT later (this part overlaps with other requests) the first token is there and the request joins the decode batch,
// in which every request makes one token per
//
//	ITLBase + ITLPerRequest × (requests in the batch)
//
// A batch that grows or shrinks changes the pace of all, from that instant on and also in the middle of a token. The last
// token frees the slot. A client that goes away frees it at once, in whatever phase its request is. A slow reader does
// not slow the engine down: its tokens wait for it.
//
// [Engine.SetClock], or POST /sim/clock?factor=0.5, changes how fast it computes while it runs, as throttled clocks do.
//
// All of it is computed from the time package's clock, one event after the other, so that it is exact to the nanosecond
// in a testing/synctest bubble and does not drift on a real clock. What takes no time starts no timer: an engine with all
// times zero answers as fast as HTTP allows.
//
// # Tokens
//
// A token is a word. The prompt has as many tokens as there are whitespace-separated words in the texts of the fields
// system, instructions, messages, prompt, input, query, documents and inputs[].data. In an array each string is a text,
// in an object the values of "text" and "content" are; an array of numbers is one text, with a word for each number. All
// else, such as image parts, roles and tools, counts nothing.
//
// The answer has max_completion_tokens, else max_tokens, else max_output_tokens tokens, else 64. Its token i is
// Token(PromptHash(prompt texts…), i), and its text is Text of that hash: anyone can check an answer, or see where
// two answers were spliced. A stream's first event carries one token, the others TokensPerEvent of them. The finish
// reason is "length" where the request named a length, else "stop". There is one choice, whatever n is.
//
// Embeddings and rerankings end with their prefill. Images cost as many tokens of time as a text. Speech is the bytes of
// the text at the pace of its tokens.
//
// # The prefix cache
//
// With PrefixCache, an engine that decodes keeps the prompts that it has prefilled, as far as that many tokens go, and a
// prompt that begins like one of them costs only the rest, as with vLLM's automatic prefix caching. It is known by the
// words themselves: each block of 16 tokens by the hash of all words up to its end, however they are spread over
// messages, and whatever name of the model is asked for. So a conversation that goes on finds what it had in common
// with its last turn, rounded down to a block.
//
// The look is taken when the prefill begins, what it computed is there when it ends, and a prefill that was broken off
// leaves nothing. The last token is always computed. Where there is no room, the block goes that was used longest ago,
// and of a prompt's blocks the last one first. Answers are not kept.
//
// The usage tells: prompt_tokens_details.cached_tokens, input_tokens_details.cached_tokens, or cache_read_input_tokens,
// which in Anthropic's API are not among the input_tokens.
//
// # The KV cache
//
// A request takes memory for its prompt and its first token when it takes its slot, and for one token more with each that
// it makes; its end gives all of it back. A prompt for which there is no room waits, and all behind it with it. When a
// token finds no room, the request that took its slot last is preempted, as with vLLM: it goes to the front of the queue,
// and when it gets its slot again, its prompt and the tokens that it had made are prefilled anew. Its answer only comes
// later. One request alone may have more than there is.
//
// The prefix cache is apart from that, and takes none of this memory.
//
// # Models that take turns
//
// With Loaded, an engine holds so many of its models at once, none to begin with, as Ollama and llama-swap do. A request
// for another one waits until nothing runs any more of the model that has to go, the one that was asked for longest ago,
// idle ones first; and then LoadTime for its load. Requests for models that are there pass it meanwhile, but for the one
// that has to go; with engine.DialectOllama nothing passes what waits before it.
//
// # Orders
//
// A request may order a misbehaviour in the header x-sim, as a comma-separated list:
//
//	fail, fail=STATUS         answer with this status (default 500) at once
//	refuse, refuse=STATUS     answer 429 or 503 with retry-after at once
//	close                     close the connection before any byte
//	hang                      take a slot and never answer
//	hang-after=N              hang after N tokens
//	cut-after=N               cut the connection after N tokens; an answer that is not streamed is cut in its middle
//	ttft=DURATION             add this to the time to the first token
//	early-header              send a stream's status and header before its first token
//	on=NAME                   the whole list is for the engine of this name; others ignore it
//
// So "x-sim: cut-after=5, ttft=2s, on=slow" cuts the connection after five tokens where the engine named slow answers.
// A hanging request keeps its slot until its client goes. When N is the length of the answer or more, the misbehaviour
// comes in place of its end. Of several misbehaviours the first in the order close, fail or refuse, hang or cut wins. What
// the header orders replaces what Config's probabilities would have drawn.
//
// Every answer names its engine in x-sim-name, and in system_fingerprint where the API has that field.
package sim
