// Package engine knows model servers: which kind of engine answers at a URL (Detect, [Probe], [Local]), what it reports
// about itself while it runs ([Scraper]), and how to call one ([Transport]). Package engine/sim is one.
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
package engine
