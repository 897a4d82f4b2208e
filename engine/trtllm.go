package engine

// trtllmMetrics are the names of its metrics. Older versions have only those of the cache.
var trtllmMetrics = newFamily("trtllm",
	"num_requests_running", "num_requests_waiting", "max_num_active_requests", "max_batch_size_runtime",
	"kv_cache_utilization", "kv_cache_max_blocks", "kv_cache_used_blocks", "kv_cache_tokens_per_block",
	"kv_cache_reused_blocks_total", "kv_cache_missed_blocks_total", "generation_tokens_total")

func readTRTLLM(m metrics, st *Status) {
	st.Running = number(m.sum(nil, "num_requests_running"))
	st.Waiting = number(m.sum(nil, "num_requests_waiting"))
	st.Slots = capacity(m.sum(nil, "max_num_active_requests", "max_batch_size_runtime"))
	st.KVUsage = fraction(m.mean(nil, "kv_cache_utilization"))
	if per := m.mean(nil, "kv_cache_tokens_per_block"); per != nil {
		st.KVTotal = positive(whole(times(m.sum(nil, "kv_cache_max_blocks"), *per)))
		st.KVUsed = whole(times(m.sum(nil, "kv_cache_used_blocks"), *per))
	}
	st.Generated = whole(m.sum(nil, "generation_tokens_total"))
	st.PrefixHits = whole(m.sum(nil, "kv_cache_reused_blocks_total"))
	if missed := whole(m.sum(nil, "kv_cache_missed_blocks_total")); st.PrefixHits != nil && missed != nil {
		st.PrefixQueries = new(*st.PrefixHits + *missed)
	}
}
