package ops

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

func newWorkerInfoCommand(c *cli.ConnectFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "info WORKER...", Short: "Describe workers",
		Long: `Describe a worker: its capacity and what limits it, what its engine and its GPUs
report, what it has measured, and its latest decisions. Headroom is the free part
of the scarcest resource: slots, KV cache, GPU memory, or degrees until the GPU is
throttled.

Terms: docs/concepts.md`,
		Example:           `  pulley worker info gpu-3`,
		ValidArgsFunction: cli.Complete(c, 0, liveWorkers),
	}
	return cli.Describing(cmd, c, func(s *cli.Session, name string) (cli.View, error) {
		h, err := fleet.FindWorker(s.Context(), s.NC, name)
		if err != nil {
			return cli.View{}, err
		}
		return cli.View{Value: h, Print: func(p *term.Page) { printWorker(p, h) }}, nil
	})
}

func printWorker(p *term.Page, h subjects.Heartbeat) {
	p.Fields(
		term.KV("worker", h.Name, term.Bold),
		term.KV("id", h.Worker),
		term.KV("state", stateText(h), fleet.StateStyle(string(h.State))),
		term.KV("engine", strings.TrimSpace(h.Engine+" "+h.URL)),
		term.KV("host", h.Host),
		term.KV("version", h.Version),
		term.KV("uptime", fmt.Sprintf("%s, since %s", term.Ago(h.Started), term.Clock(h.Started))),
		term.KV("slots", fmt.Sprintf("%d, %d in flight, %d of them before their first token", h.Slots, h.InFlight, h.Prefills)),
		term.KV("weight", term.Float(h.Weight)),
		term.KV("done", fmt.Sprintf("%s, %d failed", term.Count(h.Done, "attempt"), h.Failed)),
	)
	printCapacity(p, &h)
	printEngine(p, &h)
	printRanks(p, &h)
	printWorkerGPUs(p, &h)
	for _, st := range h.Pools {
		p.Heading("pool " + term.Printable(st.Pool))
		model := ""
		if st.Model != "" && st.Model != st.Pool {
			model = st.Model
		}
		context := ""
		if st.Length > 0 && st.Length < policy.AnyLength {
			context = fmt.Sprintf("%d tokens of a prompt with its answer", st.Length)
		}
		notes := strings.Join(fleet.NamesOf(st.Notes, policy.Note.String), "; ")
		p.Fields(append([]term.Field{term.KV("note", notes), term.KV("engine's model", model), term.KV("context", context), term.KV("loaded", loadText(&st)), term.KV("adapters", strings.Join(st.Adapters, ", "))}, priceFields(st, h)...)...)
	}
	printDecisions(p, &h)
}

// loadText says whether the model of a pool is loaded, and how long a load takes; "" for an engine that does not load on
// demand, as far as the worker has seen.
func loadText(st *subjects.PoolStatus) string {
	text := ""
	switch {
	case !st.Loading.IsZero():
		text = "loading for " + term.Ago(st.Loading)
	case st.Cold:
		text = "no"
	case st.LoadMS > 0:
		text = "yes"
	default:
		return ""
	}
	if st.LoadMS > 0 {
		text += "; a load takes " + term.Seconds(float64(st.LoadMS)/1000)
	}
	return text
}

// priceFields explains the price of a worker's next bid.
func priceFields(st subjects.PoolStatus, h subjects.Heartbeat) []term.Field {
	next := fmt.Sprintf("rung %d (0 is the lowest price, %d the highest)", st.Rung, policy.Rungs-1)
	if st.Curve == nil {
		return []term.Field{term.KV("next bid", next), term.KV("measured", "nothing yet: the price follows from the load")}
	}
	if price, ok := st.Curve.Price(st.Mean, h.InFlight+1, float64(h.Prefills)); ok {
		next += fmt.Sprintf("; expected latency %s", term.Seconds(price))
	}
	list := []term.Field{term.KV("next bid", next)}
	if l := st.Curve.Prefill; l != nil {
		list = append(list, term.KV("first token", lineText(*l, "input token")))
	}
	if l := st.Curve.ITL; l != nil {
		list = append(list, term.KV("each token", lineText(*l, "request in flight")))
	}
	if st.Mean.Samples > 0 {
		list = append(list, term.KV("mean request", fmt.Sprintf("%.0f tokens in, %.0f out", st.Mean.Input, st.Mean.Output)))
	}
	return list
}

// lineText describes a line: a constant part, and a part that grows.
func lineText(l policy.Line, per string) string {
	switch {
	case l.B == 0:
		return term.Seconds(l.A)
	case l.A == 0:
		return term.Seconds(l.B) + " per " + per
	}
	return fmt.Sprintf("%s + %s per %s", term.Seconds(l.A), term.Seconds(l.B), per)
}

// printCapacity shows how many requests a worker may have, what limits them, and how fresh the signals are.
func printCapacity(p *term.Page, h *subjects.Heartbeat) {
	r := h.Capacity
	if r == nil {
		return
	}
	inFlight := term.KV("in flight", fmt.Sprintf("%d of %d: %s", h.InFlight, r.Total, fleet.BoundText(r)))
	if r.Bound == policy.BoundFence {
		inFlight.Style = term.Red
	} else if r.Factor < 1 {
		inFlight.Style = term.Yellow
	}
	p.Heading("capacity")
	list := []term.Field{inFlight, term.KV("bounds", fleet.BoundsText(r))}
	if r.Bound != policy.BoundFence {
		list = append(list, term.KV("headroom", term.Share(r.Headroom)))
		if r.Factor < 1 {
			list = append(list, term.KV("reduced", "to "+term.Share(r.Factor)+" by the state of the GPU", term.Yellow))
		}
	}
	list = append(list, term.KV("profile", r.Profile), term.KV("limit", limitText(r)), term.KV("token time", fleet.TokenTimeText(r)))
	if r.Infeasible {
		list = append(list, term.KV("objective", "cannot be met: even a request that runs alone is slower", term.Yellow))
	}
	p.Fields(append(list, term.KV("engine metrics", engineFreshness(h), freshStyle(r.Engine)), term.KV("GPU samples", gpuFreshness(h), freshStyle(r.GPU)))...)
}

func limitText(r *subjects.Capacity) string {
	if r.Limit <= 0 {
		return ""
	}
	how := "measured"
	if r.PaceMS <= 0 {
		how = "initial value"
	}
	return fmt.Sprintf("%.0f, %s", math.Floor(r.Limit), how)
}

// stateText returns the state of a worker, with the reason.
func stateText(h subjects.Heartbeat) string {
	if h.Reason == "" {
		return string(h.State)
	}
	return fmt.Sprintf("%s (%s)", h.State, h.Reason)
}

// engineFreshness says how current the engine's metrics are, and what that means.
func engineFreshness(h *subjects.Heartbeat) string {
	switch h.Capacity.Engine {
	case "fresh":
		if h.EngineStatus != nil && !h.EngineStatus.At.IsZero() {
			return "fresh, " + term.Ago(h.EngineStatus.At) + " old"
		}
	case "stale":
		return "stale: capacity is not raised until they are fresh"
	case "missing":
		return "none: the worker relies on its own count of requests"
	}
	return h.Capacity.Engine
}

// gpuFreshness says how current the samples of the GPUs are, and what that means.
func gpuFreshness(h *subjects.Heartbeat) string {
	switch {
	case h.NVML == nil:
		return "none: NVML is off"
	case h.Capacity.GPU == "stale":
		return "stale: the limit does not grow until they are fresh"
	case h.Capacity.GPU == "missing" && h.NVML.Mode == "required":
		return "none, although --nvml required was given"
	case h.Capacity.GPU == "missing":
		return "none: the worker relies on its engine alone"
	}
	return h.Capacity.GPU
}

func freshStyle(freshness string) term.Style {
	if freshness == "stale" {
		return term.Yellow
	}
	return term.Unstyled
}

func printEngine(p *term.Page, h *subjects.Heartbeat) {
	t := h.EngineStatus
	if t == nil {
		return
	}
	kv := ""
	switch {
	case t.KVUsage != nil && t.KVTokens != nil:
		kv = fmt.Sprintf("%s of %d tokens in use", term.Share(*t.KVUsage), *t.KVTokens)
	case t.KVUsage != nil:
		kv = term.Share(*t.KVUsage) + " in use"
	case t.KVTokens != nil:
		kv = fmt.Sprintf("%d tokens", *t.KVTokens)
	}
	p.Heading("engine metrics")
	p.Fields(
		term.KV("dialect", t.Dialect),
		term.KV("running", optional(t.Running)),
		term.KV("waiting", optional(t.Waiting)),
		term.KV("slots", optional(t.Slots)),
		term.KV("KV cache", kv),
		term.KV("preemptions", optional(t.Preemptions)),
		term.KV("loaded models", strings.Join(t.Loaded, ", ")),
	)
}

// printRanks shows the data-parallel ranks of an engine, if the worker chooses among them.
func printRanks(p *term.Page, h *subjects.Heartbeat) {
	if len(h.Ranks) == 0 {
		return
	}
	p.Heading("data-parallel ranks")
	var list []term.Field
	for i, r := range h.Ranks {
		text := fmt.Sprintf("%d in flight", r.InFlight)
		if r.Running != nil && r.Waiting != nil {
			text += fmt.Sprintf("; %d running, %d waiting in the engine", *r.Running, *r.Waiting)
		}
		if r.KVUsage != nil {
			text += "; KV cache " + term.Share(*r.KVUsage) + " in use"
		}
		list = append(list, term.KV(fmt.Sprintf("rank %d", i), text))
	}
	p.Fields(list...)
}

// optional formats a number; it returns "" for nil.
func optional[N int | int64](n *N) string {
	if n == nil {
		return ""
	}
	return fmt.Sprint(*n)
}

func printWorkerGPUs(p *term.Page, h *subjects.Heartbeat) {
	if h.NVML == nil {
		return
	}
	p.Heading("GPUs")
	var list []term.Field
	if f := h.NVML.Failure; f != nil {
		s := term.Yellow
		if f.Kind == gpu.NoGPU && h.NVML.Mode != "required" {
			s = term.Unstyled
		}
		list = append(list, term.KV("NVML", f.Error(), s), term.KV("remedy", f.Remedy()))
	}
	for _, g := range h.NVML.GPUs {
		_, _, remedy := fleet.GPUStatus(g)
		list = append(list, fleet.GPUField(g.Label(), &g), term.KV("remedy", remedy))
	}
	if len(list) == 0 {
		list = append(list, term.KV("NVML", "no GPU reported yet", term.Yellow))
	}
	p.Fields(list...)
}

// printDecisions shows the latest decisions about the capacity, with their reasons.
func printDecisions(p *term.Page, h *subjects.Heartbeat) {
	if h.Capacity == nil || len(h.Capacity.Decisions) == 0 {
		return
	}
	p.Heading("latest decisions")
	for _, d := range h.Capacity.Decisions {
		p.Fields(term.KV(d.At.Local().Format(time.TimeOnly), d.Text))
	}
}
