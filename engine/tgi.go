package engine

import "encoding/json"

var tgiMetrics = newFamily("tgi", "batch_current_size", "queue_size", "request_generated_tokens_sum")

// readTGI reads no KV cache use: tgi_batch_current_max_tokens is what the batch may grow to, not
// how much there is room for. Tokens are counted when their request ends.
func readTGI(body []byte, st *Status) error {
	m := tgiMetrics.parse(body)
	st.Running = number(m.sum(nil, "batch_current_size"))
	st.Waiting = number(m.sum(nil, "queue_size"))
	st.Generated = whole(m.sum(nil, "request_generated_tokens_sum"))
	return nil
}

// tgiInfo is also the answer of Text Embeddings Inference, except for MaxBestOf.
type tgiInfo struct {
	ModelID       string   `json:"model_id"`
	MaxConcurrent *float64 `json:"max_concurrent_requests"`
	MaxBestOf     *float64 `json:"max_best_of"`
}

// readTGIInfo takes max_concurrent_requests for the slots: beyond it there is only 429. How many of
// them fit into the batch depends on their tokens.
func readTGIInfo(body []byte, st *Status) error {
	var info tgiInfo
	if err := json.Unmarshal(body, &info); err != nil {
		return err
	}
	st.Slots = capacity(info.MaxConcurrent)
	if info.ModelID != "" {
		st.Models = []Model{{Name: info.ModelID, Loaded: true}}
	}
	return nil
}
