package engine

var tritonMetrics = newFamily("nv",
	"trt_llm_request_metrics", "trt_llm_kv_cache_block_metrics", "inference_pending_request_count")

// readTriton reads the metrics of the TensorRT-LLM backend, which counts its own requests. Other
// backends report only how many requests are pending over all models.
func readTriton(m metrics, st *Status) {
	requests := func(kind string) *float64 {
		return m.where("trt_llm_request_metrics", "request_type", kind).sum(nil, "trt_llm_request_metrics")
	}
	blocks := func(kind string) metrics {
		return m.where("trt_llm_kv_cache_block_metrics", "kv_cache_block_type", kind)
	}
	st.Running = number(requests("scheduled"))
	st.Waiting = number(requests("waiting"))
	if st.Running == nil && st.Waiting == nil {
		st.Waiting = number(m.sum(nil, "inference_pending_request_count"))
	}
	st.Slots = capacity(requests("max"))
	st.KVUsage = fraction(blocks("fraction").mean(nil, "trt_llm_kv_cache_block_metrics"))
	if per := blocks("tokens_per").mean(nil, "trt_llm_kv_cache_block_metrics"); per != nil {
		st.KVTotal = positive(whole(times(blocks("max").sum(nil, "trt_llm_kv_cache_block_metrics"), *per)))
		st.KVUsed = whole(times(blocks("used").sum(nil, "trt_llm_kv_cache_block_metrics"), *per))
	}
}

func times(v *float64, by float64) *float64 {
	if v == nil {
		return nil
	}
	return new(*v * by)
}

type tritonModel struct {
	Name  string `json:"name"`
	State string `json:"state"`
}

// readTritonModels takes the models that are ready as loaded.
func readTritonModels(index []tritonModel, st *Status) {
	st.Models = []Model{}
	for _, m := range index {
		st.Models = append(st.Models, Model{Name: m.Name, Loaded: m.State == "READY"})
	}
}
