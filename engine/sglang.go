package engine

var sglangMetrics = newFamily("sglang",
	"num_running_reqs", "num_queue_reqs", "token_usage", "num_used_tokens", "max_total_num_tokens",
	"num_retracted_requests_total", "generation_tokens_total", "prompt_tokens_total", "cached_tokens_total")

// sglangRanks distinguish the data-parallel engines behind one server. Every tensor- and
// pipeline-parallel rank of one engine may report the same values.
var sglangRanks = []string{"model_name", "dp_rank"}

// readSGLang ignores num_retracted_reqs, a gauge of the last batch, whose name differs from the counter's by one word.
func readSGLang(m metrics, st *Status) {
	// With priorities there is a series for each, and one without a priority for all.
	for _, name := range []string{"num_running_reqs", "num_queue_reqs"} {
		if all := m.where(name, "priority", "")[name]; all != nil {
			m[name] = all
		}
	}
	st.Running = number(m.sum(sglangRanks, "num_running_reqs"))
	st.Waiting = number(m.sum(sglangRanks, "num_queue_reqs"))
	st.KVUsage = fraction(m.mean(sglangRanks, "token_usage"))
	st.KVUsed = whole(m.sum(sglangRanks, "num_used_tokens"))
	st.KVTotal = positive(whole(m.sum(sglangRanks, "max_total_num_tokens")))
	st.Preemptions = whole(m.sum(sglangRanks, "num_retracted_requests_total"))
	// These come from the process that serves the clients, split by stream and by the cache's level.
	st.Generated = whole(m.sum(nil, "generation_tokens_total"))
	st.PrefixHits = whole(m.sum(nil, "cached_tokens_total"))
	if st.PrefixHits != nil {
		st.PrefixQueries = whole(m.sum(nil, "prompt_tokens_total"))
	}
}

// positive returns n, or nil if it is zero.
func positive(n *int64) *int64 {
	if n == nil || *n <= 0 {
		return nil
	}
	return n
}

type sglangLoads struct {
	Loads []struct {
		Running    *float64 `json:"num_running_reqs"`
		Waiting    *float64 `json:"num_waiting_reqs"`
		Used       *float64 `json:"num_used_tokens"`
		Total      *float64 `json:"max_total_num_tokens"`
		Usage      *float64 `json:"token_usage"`
		MaxRunning *float64 `json:"max_running_requests"`
	} `json:"loads"`
}

// readSGLangLoads reads what the schedulers report now. The gauges of /metrics are older: they are
// set when the scheduler logs.
func readSGLangLoads(page sglangLoads, st *Status) {
	var running, waiting, used, total, usage, slots []*float64
	for _, l := range page.Loads {
		running, waiting = append(running, l.Running), append(waiting, l.Waiting)
		used, total = append(used, l.Used), append(total, l.Total)
		usage, slots = append(usage, l.Usage), append(slots, l.MaxRunning)
	}
	st.Running, st.Waiting = number(addUp(running)), number(addUp(waiting))
	st.KVUsed, st.KVTotal = whole(addUp(used)), positive(whole(addUp(total)))
	if sum := addUp(usage); sum != nil {
		st.KVUsage = fraction(new(*sum / float64(len(usage))))
	}
	st.Slots = capacity(addUp(slots))
}

type sglangInfo struct {
	States []struct {
		MaxRunning *float64 `json:"effective_max_running_requests_per_dp"`
	} `json:"internal_states"`
	Asked   *float64 `json:"max_running_requests"`
	Context *float64 `json:"context_length"`
}

// readSGLangInfo reads what each scheduler allows itself. The max_running_requests on the same page
// is what was configured, which may be four times as much.
func readSGLangInfo(info sglangInfo, st *Status) {
	st.Context = positive(whole(info.Context))
	var slots []*float64
	for _, s := range info.States {
		slots = append(slots, s.MaxRunning)
	}
	if st.Slots = capacity(addUp(slots)); st.Slots == nil {
		st.Slots = capacity(info.Asked)
	}
}

// addUp returns nil if any value is nil, or if there are none.
func addUp(values []*float64) *float64 {
	if len(values) == 0 {
		return nil
	}
	sum := 0.0
	for _, v := range values {
		if v == nil {
			return nil
		}
		sum += *v
	}
	return &sum
}
