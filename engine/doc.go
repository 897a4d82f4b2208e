// Package engine knows model servers: it tells which kind of engine answers at a URL ([Detect], [Probe], [Local]) and what it
// says of itself while it runs ([Scraper]), it calls one ([Transport]), and it is one itself: [Sim], an OpenAI-compatible
// engine with exact token counts and exact timing, for tests, benchmarks and demos.
//
// # What engines tell
//
// A [Scraper] asks an engine for its health and its load twice a second, for its models and slots every ten seconds, and
// makes a [Status] of it. Each [Dialect] tells other things, in other places; where two are named, the first one that is
// there holds.
//
//	dialect       health             running, waiting                         KV cache                              slots
//	vllm          /health            vllm:num_requests_running, _waiting      kv_cache_usage_perc (to 0.10          –
//	                                 (to 0.8 + num_requests_swapped)          gpu_cache_usage_perc); size from
//	                                                                          the labels of cache_config_info
//	sglang        /v1/models         /v1/loads; sglang:num_running_reqs,      /v1/loads; token_usage,               /v1/loads;
//	                                 num_queue_reqs                           num_used_tokens,                      /get_server_info,
//	                                                                          max_total_num_tokens                  /server_info
//	tgi           /health            tgi_batch_current_size, tgi_queue_size   –                                     /info
//	llama.cpp     /health            llamacpp:requests_processing,            kv_cache_usage_ratio,                 /slots; /props
//	                                 _deferred; /slots (no waiting)           kv_cache_tokens (to 2025)
//	ollama        /api/version       –                                        –                                     –
//	triton        /v2/health/ready   nv_trt_llm_request_metrics scheduled,    nv_trt_llm_kv_cache_block_metrics     max of the same
//	                                 waiting; nv_inference_pending_…          fraction, used, max × tokens_per
//	tensorrt-llm  /health            trtllm_num_requests_running, _waiting    kv_cache_utilization; used, max       max_num_active_requests;
//	                                                                          blocks × tokens_per_block             max_batch_size_runtime
//	llama-swap    /health            –                                        –                                     –
//	lmstudio      /v1/models         –                                        –                                     –
//	openai        /v1/models         –                                        –                                     –
//
//	dialect       preempted                      tokens made                       prefix cache                  models; those that are loaded
//	vllm          num_preemptions_total          generation_tokens_total           prefix_cache_hits_total,      /v1/models
//	                                                                               _queries_total (or gpu_…)
//	sglang        num_retracted_requests_total   generation_tokens_total           cached_tokens_total of        /v1/models
//	                                                                               prompt_tokens_total
//	tgi           –                              request_generated_tokens_sum ²    –                             /info
//	llama.cpp     –                              tokens_predicted_total ²          –                             /v1/models; its status in a router
//	ollama        –                              –                                 –                             /api/tags; /api/ps
//	triton        –                              –                                 –                             POST /v2/repository/index
//	tensorrt-llm  –                              generation_tokens_total           reused and missed blocks      /v1/models
//	llama-swap    –                              –                                 –                             /v1/models; /running
//	lmstudio      –                              –                                 –                             /api/v0/models
//	openai        –                              –                                 –                             /v1/models
//
//	² counted when a request ends
//
// Metrics are at /metrics, those of Triton also on port 8002 of its host, those of TensorRT-LLM at /prometheus/metrics. An
// underscore for the colon in a name is the same name. What is absent is absent in the Status, and never zero: vLLM tells no
// slots, SGLang has no /metrics without --enable-metrics, llama.cpp none without --metrics.
//
// Several engines behind one server are added up (vLLM's label engine, SGLang's dp_rank), the use of their caches is the
// mean; what every rank of one engine or every process of it tells again (tp_rank, pp_rank, pid) counts once, by the largest.
//
// TGI's slots are the requests that it takes, waiting ones included. SGLang's /health makes a token, behind all others, and
// so is not asked. An engine whose vllm:engine_sleep_state says that it sleeps is not healthy.
//
// # The simulator's model of time
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
// [Sim.SetClock], or POST /sim/clock?factor=0.5, changes how fast it computes while it runs, as throttled clocks do.
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
// SimToken(PromptHash(prompt texts…), i), and its text is SimText of that hash: anyone can check an answer, or see where
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
// that has to go; with DialectOllama nothing passes what waits before it.
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
// the header orders replaces what SimConfig's probabilities would have drawn.
//
// Every answer names its engine in x-sim-name, and in system_fingerprint where the API has that field.
package engine
