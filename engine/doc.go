// Package engine knows model servers: which kind of engine answers at a URL ([Probe], [Local]), what it reports
// about itself while it runs ([Scraper]), and how to call one ([Client], [Transport]). Package engine/sim is a simulated one.
//
// # Credentials
//
// A [Client] adds the credentials to all calls of an engine's own address: requests, health, metrics, models, warm-up and
// detection. It reads the files that have them again. An engine may answer /v1/models and /health to everybody, as
// llama.cpp does: so a 401 anywhere makes the [Scraper] try a chat without content, which costs an engine nothing, until that
// is not refused with 401 any more ([Scraper.Doubt]). A [Trouble] says what someone has to remove: refused credentials, a
// certificate that is not trusted, a web page in the engine's place. Nothing that this package returns or logs has a secret.
//
// testdata/answers has what real engines answer, with their versions and sources; the tests of this package, of api, of sim
// and of the scenarios read it. docs/engines.md tells the same for people.
//
// # What engines report
//
// A [Scraper] asks an engine for its health and its load twice a second, for its models and slots every ten seconds, and
// combines the answers into a [Status]. Each [Dialect] reports other values in other places; where two are named, the first
// one present counts.
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
//	dialect       preempted                      tokens generated                  prefix cache                  models; loaded models
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
// llama.cpp also counts the prompt tokens that it has computed, and the time for them: prompt_tokens_total, prompt_seconds_total.
//
// Metrics are at /metrics, those of Triton also on port 8002 of its host, those of TensorRT-LLM at /prometheus/metrics. An
// underscore instead of the colon in a name is accepted. A missing value is missing in the Status, and never zero: vLLM
// reports no slots, SGLang has no /metrics without --enable-metrics, and llama.cpp none without --metrics.
//
// The values of several engines behind one server (vLLM's label engine, SGLang's dp_rank) are added up; the use of their
// caches is averaged; those of vLLM are also reported apart (Status.Ranks). A value that every rank or process of one engine repeats (tp_rank, pp_rank, pid) counts once; the
// largest is taken.
//
// TGI's slots are the requests that it accepts, waiting ones included. SGLang's /health generates a token, queued behind
// all other requests, so it is not used. Triton answers 400 while it is not ready. An engine whose vllm:engine_sleep_state is asleep is not healthy.
package engine
