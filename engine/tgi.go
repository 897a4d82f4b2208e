package engine

var tgiMetrics = newFamily("tgi", "batch_current_size", "queue_size", "request_generated_tokens_sum")

// readTGI reads no KV cache use: tgi_batch_current_max_tokens is what the batch may grow to, not
// how much there is room for. Tokens are counted when their request ends.
func readTGI(m metrics, st *Status) {
	st.Running = number(m.sum(nil, "batch_current_size"))
	st.Waiting = number(m.sum(nil, "queue_size"))
	st.Generated = whole(m.sum(nil, "request_generated_tokens_sum"))
}

// tgiInfo is also the answer of Text Embeddings Inference, except for MaxBestOf.
type tgiInfo struct {
	ModelID       string   `json:"model_id"`
	MaxConcurrent *float64 `json:"max_concurrent_requests"`
	MaxBestOf     *float64 `json:"max_best_of"`
	MaxTotal      *float64 `json:"max_total_tokens"`
}

// readTGIInfo takes max_concurrent_requests for the slots: beyond it there is only 429. How many of
// them fit into the batch depends on their tokens.
func readTGIInfo(info tgiInfo, st *Status) {
	st.Slots = capacity(info.MaxConcurrent)
	st.Context = positive(whole(info.MaxTotal))
	if info.ModelID != "" {
		st.Models = []Model{{Name: info.ModelID, Loaded: true}}
	}
}
