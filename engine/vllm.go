package engine

import "strconv"

// vllmMetrics are the names of its metrics, with older ones. Until 0.8 the KV cache was called "gpu
// cache", and requests were swapped to the host.
var vllmMetrics = newFamily("vllm",
	"num_requests_running", "num_requests_waiting", "num_requests_swapped",
	"kv_cache_usage_perc", "gpu_cache_usage_perc", "cache_config_info",
	"num_preemptions_total", "generation_tokens_total",
	"prefix_cache_hits_total", "gpu_prefix_cache_hits_total",
	"prefix_cache_queries_total", "gpu_prefix_cache_queries_total",
	"engine_sleep_state")

// vllmRanks distinguish the data-parallel engines behind one server. Several API servers report
// each of them, with their own pid.
var vllmRanks = []string{"model_name", "engine"}

func readVLLM(m metrics, st *Status) {
	st.Running = number(m.sum(vllmRanks, "num_requests_running"))
	st.Waiting = number(m.sum(vllmRanks, "num_requests_waiting"))
	if swapped := number(m.sum(vllmRanks, "num_requests_swapped")); st.Waiting != nil && swapped != nil {
		st.Waiting = new(*st.Waiting + *swapped)
	}
	st.Ranks = vllmRankStatuses(m)
	st.KVTotal = vllmCapacity(m)
	st.KVUsage = fraction(m.mean(vllmRanks, "kv_cache_usage_perc", "gpu_cache_usage_perc"))
	st.Preemptions = whole(m.sum(vllmRanks, "num_preemptions_total"))
	st.Generated = whole(m.sum(vllmRanks, "generation_tokens_total"))
	st.PrefixHits = whole(m.sum(vllmRanks, "prefix_cache_hits_total", "gpu_prefix_cache_hits_total"))
	st.PrefixQueries = whole(m.sum(vllmRanks, "prefix_cache_queries_total", "gpu_prefix_cache_queries_total"))
	if awake := m.where("engine_sleep_state", "sleep_state", "awake").sum(nil, "engine_sleep_state"); awake != nil && *awake == 0 {
		st.Reason = "the engine is asleep"
	}
}

// vllmRankStatuses returns the load of each data-parallel engine. They are numbered from 0; if some number is missing, nothing
// is known.
func vllmRankStatuses(m metrics) []RankStatus {
	running, waiting := m.byLabel("engine", "num_requests_running"), m.byLabel("engine", "num_requests_waiting")
	usage := m.byLabel("engine", "kv_cache_usage_perc", "gpu_cache_usage_perc")
	var list []RankStatus
	for i := range len(running) {
		id := strconv.Itoa(i)
		if running[id] == nil {
			return nil
		}
		list = append(list, RankStatus{Running: number(running[id]), Waiting: number(waiting[id]), KVUsage: fraction(usage[id])})
	}
	return list
}

// vllmCapacity is the size of the engines' KV caches in tokens. Older versions report only one of
// several engines that run side by side; the others are alike. The number of blocks may be None.
func vllmCapacity(m metrics) *int64 {
	known := make(map[string]int64)
	for _, s := range m["cache_config_info"] {
		tokens, err := strconv.ParseInt(s.label("kv_cache_size_tokens"), 10, 48)
		if err != nil {
			blocks, err1 := strconv.ParseInt(s.label("num_gpu_blocks"), 10, 32)
			size, err2 := strconv.ParseInt(s.label("block_size"), 10, 16)
			if err1 != nil || err2 != nil {
				continue
			}
			tokens = blocks * size
		}
		if tokens > 0 {
			known[s.label("engine")] = tokens
		}
	}
	var total int64
	for _, tokens := range known {
		total += tokens
	}
	if total == 0 {
		return nil
	}
	if engines := len(m.values(vllmRanks, "num_requests_running")); len(known) == 1 && engines > 1 {
		total *= int64(engines)
	}
	return &total
}
