package engine

import (
	"bytes"
	"fmt"
	"net/http"
	"strconv"
)

// showMetrics speaks vLLM's dialect, as far as routers read it. The model is the first one: vLLM has but one. The cache is
// in use as far as the slots are.
func (s *Sim) showMetrics(w http.ResponseWriter, _ *http.Request) {
	st := s.Stats()
	var b bytes.Buffer
	for _, m := range []struct {
		name, kind, help string
		value            float64
	}{
		{"num_requests_running", "gauge", "Number of requests in model execution batches.", float64(st.Running)},
		{"num_requests_waiting", "gauge", "Number of requests waiting to be processed.", float64(st.Waiting)},
		{"kv_cache_usage_perc", "gauge", "KV-cache usage. 1 means 100 percent usage.", float64(st.Running) / float64(st.Slots)},
		{"prefix_cache_queries_total", "counter", "Prefix cache queries, in terms of number of queried tokens.", float64(st.Queried)},
		{"prefix_cache_hits_total", "counter", "Prefix cache hits, in terms of number of cached tokens.", float64(st.Cached)},
		{"prompt_tokens_total", "counter", "Number of prefill tokens processed.", float64(s.tokensIn.Load())},
		{"generation_tokens_total", "counter", "Number of generation tokens processed.", float64(s.tokens.Load())},
		{"request_success_total", "counter", "Count of successfully processed requests.", float64(st.Finished)},
	} {
		fmt.Fprintf(&b, "# HELP vllm:%s %s\n# TYPE vllm:%s %s\n", m.name, m.help, m.name, m.kind)
		fmt.Fprintf(&b, "vllm:%s{engine=\"0\",model_name=%q} %s\n", m.name, s.cfg.Models[0],
			strconv.FormatFloat(m.value, 'g', -1, 64))
	}
	writeBody(w, http.StatusOK, "text/plain; version=0.0.4; charset=utf-8", b.Bytes())
}
