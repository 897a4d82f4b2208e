package engine

// llamacppMetrics are the names of its metrics. Those of the KV cache were removed in mid-2025.
var llamacppMetrics = newFamily("llamacpp",
	"requests_processing", "requests_deferred", "kv_cache_usage_ratio", "kv_cache_tokens", "tokens_predicted_total",
	"prompt_tokens_total", "prompt_seconds_total")

// readLlamaCpp finds nothing if the server was started without --metrics. Tokens are counted when their request ends.
func readLlamaCpp(m metrics, st *Status) {
	st.Running = number(m.sum(nil, "requests_processing"))
	st.Waiting = number(m.sum(nil, "requests_deferred"))
	st.KVUsage = fraction(m.mean(nil, "kv_cache_usage_ratio"))
	st.KVUsed = whole(m.sum(nil, "kv_cache_tokens"))
	st.Generated = whole(m.sum(nil, "tokens_predicted_total"))
	if st.PrefillTime = seconds(m.sum(nil, "prompt_seconds_total")); st.PrefillTime != nil {
		st.Prefilled = whole(m.sum(nil, "prompt_tokens_total"))
	}
}

type llamacppSlot struct {
	Processing *bool `json:"is_processing"`
	State      *int  `json:"state"` // the older form: 0 is idle
}

// readLlamaCppSlots counts the busy slots. The page does not report a queue.
func readLlamaCppSlots(slots []llamacppSlot, st *Status) {
	running := 0
	for _, s := range slots {
		switch {
		case s.Processing != nil && *s.Processing, s.Processing == nil && s.State != nil && *s.State != 0:
			running++
		case s.Processing == nil && s.State == nil:
			return
		}
	}
	if len(slots) > 0 {
		st.Running, st.Slots = &running, new(len(slots))
	}
}

type llamacppProps struct {
	Slots    *float64 `json:"total_slots"`
	Settings struct {
		Context *float64 `json:"n_ctx"`
	} `json:"default_generation_settings"`
}

func readLlamaCppProps(props llamacppProps, st *Status) {
	st.Slots = capacity(props.Slots)
	st.Context = positive(whole(props.Settings.Context)) // of a slot
}
