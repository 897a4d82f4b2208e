package sim

import (
	"bytes"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/pulley-lb/pulley/engine"
)

// Dialects lists the dialects that an Engine can speak.
func Dialects() []engine.Dialect {
	return []engine.Dialect{engine.DialectVLLM, engine.DialectSGLang, engine.DialectTGI, engine.DialectLlamaCpp, engine.DialectOllama, engine.DialectTriton, engine.DialectTRTLLM,
		engine.DialectLlamaSwap, engine.DialectLMStudio, engine.DialectOpenAI}
}

// pages are the pages on which an engine of this dialect reports. Triton's metrics are on the same
// port as everything else: an Engine has only one.
func (s *Engine) pages() map[string]http.HandlerFunc {
	healthy := func(http.ResponseWriter, *http.Request) {}
	pages := map[string]http.HandlerFunc{"GET /health": healthy}
	switch s.cfg.Dialect {
	case engine.DialectVLLM:
		pages["GET /metrics"] = s.showMetrics(s.vllmMetrics)
		pages["GET /version"] = showJSON(func(state) any { return object{"version": version} }, s)
	case engine.DialectSGLang:
		pages["GET /metrics"] = s.showMetrics(s.sglangMetrics)
		pages["GET /v1/loads"] = showJSON(s.sglangLoads, s)
		pages["GET /get_model_info"] = showJSON(s.sglangModel, s)
		pages["GET /model_info"] = showJSON(s.sglangModel, s)
		pages["GET /get_server_info"] = showJSON(s.sglangServer, s)
		pages["GET /server_info"] = showJSON(s.sglangServer, s)
	case engine.DialectTGI:
		pages["GET /metrics"] = s.showMetrics(s.tgiMetrics)
		pages["GET /info"] = showJSON(s.tgiInfo, s)
	case engine.DialectLlamaCpp:
		pages["GET /health"] = showJSON(func(state) any { return object{"status": "ok"} }, s)
		pages["GET /metrics"] = s.showMetrics(s.llamacppMetrics)
		pages["GET /props"] = showJSON(s.llamacppProps, s)
		pages["GET /slots"] = showJSON(s.llamacppSlots, s)
	case engine.DialectOllama:
		delete(pages, "GET /health")
		pages["GET /api/version"] = showJSON(func(state) any { return object{"version": version} }, s)
		pages["GET /api/tags"] = showJSON(s.ollamaModels, s)
		pages["GET /api/ps"] = showJSON(s.ollamaLoaded, s)
		pages["POST /api/generate"] = s.ollamaGenerate
	case engine.DialectLlamaSwap:
		pages["GET /health"] = llamaSwapHealth
		pages["GET /running"] = showJSON(s.llamaSwapRunning, s)
		pages["GET /upstream/{path...}"] = s.llamaSwapUpstream
	case engine.DialectTriton:
		delete(pages, "GET /health")
		pages["GET /v2"] = showJSON(func(state) any {
			return object{"name": "triton", "version": version, "extensions": []string{"model_repository", "statistics"}}
		}, s)
		pages["GET /v2/health/ready"] = healthy
		pages["GET /metrics"] = s.showMetrics(s.tritonMetrics)
		pages["POST /v2/repository/index"] = showJSON(s.tritonModels, s)
	case engine.DialectTRTLLM:
		pages["GET /version"] = showJSON(func(state) any { return object{"version": version} }, s)
		pages["GET /prometheus/metrics"] = s.showMetrics(s.trtllmMetrics)
		pages["GET /metrics"] = showJSON(func(state) any { return []any{} }, s)
	case engine.DialectLMStudio:
		delete(pages, "GET /health")
		pages["GET /api/v0/models"] = showJSON(s.lmStudioModels, s)
	case engine.DialectOpenAI:
		delete(pages, "GET /health")
	}
	return pages
}

const version = "0.0.0-sim"

// state is what the pages report.
type state struct {
	Stats
	model          string // the first one: most engines have only one
	held, kvTokens int    // tokens in the KV cache, and its size
	in, out        int64  // tokens of completed requests
}

func (s *Engine) state() state {
	st, held := s.batch.stats()
	st.Name, st.Slots = s.cfg.Name, s.cfg.Slots
	st.Received, st.Finished, st.Aborted = s.received.Load(), s.finished.Load(), s.aborted.Load()
	st.Refused, st.Failed = s.refused.Load(), s.failed.Load()
	s.loader.stats(&st)
	return state{
		Stats: st, model: s.cfg.Models[0], held: min(held, s.cfg.KVTokens), kvTokens: s.cfg.KVTokens,
		in: s.tokensIn.Load(), out: s.tokens.Load(),
	}
}

func (st state) usage() float64 { return float64(st.held) / float64(st.kvTokens) }

func showJSON(of func(state) any, s *Engine) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, of(s.state())) }
}

func (s *Engine) showMetrics(of func(state) []metric) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		var b bytes.Buffer
		described := ""
		for _, m := range of(s.state()) {
			if described != m.name {
				fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", m.name, m.help, m.name, m.kind)
				described = m.name
			}
			b.WriteString(m.name)
			if m.labels != "" {
				b.WriteString("{" + m.labels + "}")
			}
			b.WriteString(" " + strconv.FormatFloat(m.value, 'g', -1, 64) + "\n")
		}
		writeBody(w, http.StatusOK, "text/plain; version=0.0.4; charset=utf-8", b.Bytes())
	}
}

type metric struct {
	name, labels, kind, help string
	value                    float64
}

// withLabels adds the same labels to all metrics.
func withLabels(prefix, labels string, ms []metric) []metric {
	for i := range ms {
		ms[i].name = prefix + ms[i].name
		ms[i].labels = strings.Trim(labels+","+ms[i].labels, ",")
	}
	return ms
}

func (s *Engine) vllmMetrics(st state) []metric {
	return withLabels("vllm:", fmt.Sprintf(`engine="0",model_name=%q`, st.model), []metric{
		{"num_requests_running", "", "gauge", "Number of requests in model execution batches.", float64(st.Running)},
		{"num_requests_waiting", "", "gauge", "Number of requests waiting to be processed.", float64(st.Waiting)},
		{"kv_cache_usage_perc", "", "gauge", "KV-cache usage. 1 means 100 percent usage.", st.usage()},
		{"cache_config_info", fmt.Sprintf(`block_size="1",num_gpu_blocks="%d"`, st.kvTokens), "gauge",
			"Information of the LLMEngine CacheConfig", 1},
		{"num_preemptions_total", "", "counter", "Cumulative number of preemption from the engine.", float64(st.Preempted)},
		{"prefix_cache_queries_total", "", "counter", "Prefix cache queries, in terms of number of queried tokens.", float64(st.Queried)},
		{"prefix_cache_hits_total", "", "counter", "Prefix cache hits, in terms of number of cached tokens.", float64(st.Cached)},
		{"prompt_tokens_total", "", "counter", "Number of prefill tokens processed.", float64(st.in)},
		{"generation_tokens_total", "", "counter", "Number of generation tokens processed.", float64(st.out)},
		{"request_success_total", "", "counter", "Count of successfully processed requests.", float64(st.Finished)},
	})
}

func (s *Engine) sglangMetrics(st state) []metric {
	return withLabels("sglang:", fmt.Sprintf(`engine_type="unified",model_name=%q,pp_rank="0",tp_rank="0"`, st.model), []metric{
		{"num_running_reqs", "", "gauge", "The number of running requests.", float64(st.Running)},
		{"num_queue_reqs", "", "gauge", "The number of requests in the waiting queue.", float64(st.Waiting)},
		{"num_used_tokens", "", "gauge", "The number of used tokens.", float64(st.held)},
		{"token_usage", "", "gauge", "The token usage.", st.usage()},
		{"max_total_num_tokens", "", "gauge", "Maximum total number of tokens in the KV cache pool.", float64(st.kvTokens)},
		{"num_retracted_requests_total", "", "counter", "Total number of retracted requests.", float64(st.Preempted)},
		{"prompt_tokens_total", "", "counter", "Number of prefill tokens processed.", float64(st.in)},
		{"generation_tokens_total", "", "counter", "Number of generation tokens processed.", float64(st.out)},
		{"cached_tokens_total", `cache_source="device"`, "counter", "Number of cached prompt tokens.", float64(st.Cached)},
	})
}

func (s *Engine) sglangLoads(st state) any {
	return object{"timestamp": time.Now().UTC().Format(time.RFC3339), "version": version, "accelerator": nil, "num_accelerators": 1, "loads": []object{{
		"dp_rank": 0, "num_running_reqs": st.Running, "num_waiting_reqs": st.Waiting, "num_total_reqs": st.Running + st.Waiting,
		"num_used_tokens": st.held, "max_total_num_tokens": st.kvTokens, "token_usage": st.usage(), "max_running_requests": st.Slots,
	}}}
}

// sglangServer says, as SGLang does, what was asked for and what each scheduler allows itself.
func (s *Engine) sglangServer(st state) any {
	return object{"model_path": st.model, "served_model_name": st.model, "version": version, "max_running_requests": nil,
		"internal_states": []object{{"effective_max_running_requests_per_dp": st.Slots}}}
}

func (s *Engine) sglangModel(st state) any {
	return object{"model_path": st.model, "tokenizer_path": st.model, "is_generation": true}
}

func (s *Engine) tgiMetrics(st state) []metric {
	return withLabels("tgi_", "", []metric{
		{"batch_current_size", "", "gauge", "Current batch size", float64(st.Running)},
		{"batch_current_max_tokens", "", "gauge", "Maximum tokens of the current batch", float64(st.held)},
		{"queue_size", "", "gauge", "Current queue size", float64(st.Waiting)},
		{"request_generated_tokens_sum", "", "counter", "Generated tokens of finished requests", float64(st.out)},
		{"request_generated_tokens_count", "", "counter", "Finished requests", float64(st.Finished)},
		{"request_success", "", "counter", "Finished requests", float64(st.Finished)},
	})
}

func (s *Engine) tgiInfo(st state) any {
	info := object{"model_id": st.model, "max_concurrent_requests": st.Slots + s.cfg.MaxQueue, "max_best_of": 1, "max_stop_sequences": 4,
		"router": "text-generation-router", "version": version}
	if s.cfg.Context > 0 {
		info["max_input_tokens"], info["max_total_tokens"] = s.cfg.Context-1, s.cfg.Context
	}
	return info
}

func (s *Engine) llamacppMetrics(st state) []metric {
	return withLabels("llamacpp:", "", []metric{
		{"prompt_tokens_total", "", "counter", "Number of prompt tokens processed.", float64(st.Computed)},
		{"prompt_seconds_total", "", "counter", "Prompt process time", st.PrefillTime.Seconds()},
		{"tokens_predicted_total", "", "counter", "Number of generation tokens processed.", float64(st.out)},
		{"requests_processing", "", "gauge", "Number of requests processing.", float64(st.Running)},
		{"requests_deferred", "", "gauge", "Number of requests deferred.", float64(st.Waiting)},
	})
}

func (s *Engine) llamacppProps(st state) any {
	settings := object{}
	if s.cfg.Context > 0 {
		settings["n_ctx"] = s.cfg.Context
	}
	return object{"total_slots": st.Slots, "model_path": st.model, "model_alias": st.model, "build_info": version, "default_generation_settings": settings,
		"endpoint_slots": true, "endpoint_metrics": true}
}

func (s *Engine) llamacppSlots(st state) any {
	slots := make([]object, st.Slots)
	for i := range slots {
		slots[i] = object{"id": i, "is_processing": i < st.Running}
	}
	return slots
}

func (s *Engine) tritonMetrics(st state) []metric {
	ofModel := fmt.Sprintf(`model=%q,version="1"`, st.model)
	requests := func(kind string, n int) metric {
		return metric{"trt_llm_request_metrics", `request_type="` + kind + `"`, "gauge", "TRT LLM request metrics", float64(n)}
	}
	blocks := func(kind string, v float64) metric {
		return metric{"trt_llm_kv_cache_block_metrics", `kv_cache_block_type="` + kind + `"`, "gauge", "TRT LLM KV cache block metrics", v}
	}
	return withLabels("nv_", ofModel, []metric{
		requests("waiting", st.Waiting), requests("scheduled", st.Running), requests("max", st.Slots),
		requests("active", st.Running+st.Waiting),
		blocks("fraction", st.usage()), blocks("tokens_per", 1), blocks("used", float64(st.held)),
		blocks("free", float64(st.kvTokens-st.held)), blocks("max", float64(st.kvTokens)),
		{"inference_request_success", "", "counter", "Number of successful inference requests, all batch sizes", float64(st.Finished)},
		{"inference_pending_request_count", "", "gauge", "Instantaneous number of pending requests awaiting execution per-model.", float64(st.Waiting)},
	})
}

func (s *Engine) tritonModels(state) any {
	var models []object
	for _, m := range s.cfg.Models {
		models = append(models, object{"name": m, "version": "1", "state": "READY", "reason": ""})
	}
	return models
}

func (s *Engine) trtllmMetrics(st state) []metric {
	return withLabels("trtllm_", fmt.Sprintf(`engine_type="trtllm",model_name=%q`, st.model), []metric{
		{"num_requests_running", "", "gauge", "Number of active requests", float64(st.Running)},
		{"num_requests_waiting", "", "gauge", "Number of queued requests", float64(st.Waiting)},
		{"max_num_active_requests", "", "gauge", "Maximum number of active requests", float64(st.Slots)},
		{"kv_cache_utilization", "", "gauge", "KV cache utilization", st.usage()},
		{"kv_cache_max_blocks", "", "gauge", "Maximum number of KV cache blocks", float64(st.kvTokens)},
		{"kv_cache_used_blocks", "", "gauge", "Used KV cache blocks", float64(st.held)},
		{"kv_cache_tokens_per_block", "", "gauge", "Tokens per KV cache block", 1},
		{"generation_tokens_total", "", "counter", "Cumulative number of generation (output) tokens produced.", float64(st.out)},
	})
}
