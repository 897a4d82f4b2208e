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
		Use: "info WORKER", Short: "Describe a worker",
		Long: `Describe a worker: everything it tells of itself, how much room it has and why not
more, what its engine and its GPUs say, what it has measured, and what it has
decided of late. Headroom is the free part of whatever it has least of: room for
requests, KV cache, memory, or degrees until its GPU slows down.`,
		Example:           `  pulley worker info gpu-3`,
		Args:              cli.ExactArgs("WORKER"),
		ValidArgsFunction: cli.Complete(c, 1, liveWorkers),
	}
	return cli.Listing(cmd, c, func(s *cli.Session) (cli.View, error) {
		h, err := fleet.FindWorker(s.Context(), s.NC, s.Args[0])
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
		term.KV("up", fmt.Sprintf("%s, since %s", term.Ago(h.Started), term.Clock(h.Started))),
		term.KV("slots", fmt.Sprintf("%d, %d running, %d of these before their first token", h.Slots, h.InFlight, h.Prefills)),
		term.KV("weight", term.Float(h.Weight)),
		term.KV("done", fmt.Sprintf("%s, %d failed", term.Count(h.Done, "attempt"), h.Failed)),
	)
	printCapacity(p, &h)
	printEngine(p, &h)
	printWorkerGPUs(p, &h)
	for _, st := range h.Pools {
		p.Heading("pool " + term.Printable(st.Pool))
		model := ""
		if st.Model != "" && st.Model != st.Pool {
			model = st.Model
		}
		p.Fields(append([]term.Field{term.KV("engine's model", model)}, priceFields(st, h)...)...)
	}
	printDecisions(p, &h)
}

// priceFields says how a worker comes to its price.
func priceFields(st subjects.PoolStatus, h subjects.Heartbeat) []term.Field {
	next := fmt.Sprintf("rung %d, where 0 is the cheapest and %d the dearest", st.Rung, policy.Rungs-1)
	if st.Curve == nil {
		return []term.Field{term.KV("next bid", next), term.KV("measured", "nothing yet: it bids by its load")}
	}
	if price, ok := st.Curve.Price(st.Mean, h.InFlight+1, float64(h.Prefills)); ok {
		next += fmt.Sprintf("; it expects to take %s", term.Seconds(price))
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

func lineText(l policy.Line, per string) string {
	switch {
	case l.B == 0:
		return term.Seconds(l.A)
	case l.A == 0:
		return term.Seconds(l.B) + " per " + per
	}
	return fmt.Sprintf("%s and %s per %s", term.Seconds(l.A), term.Seconds(l.B), per)
}

// printCapacity says how much a worker may have and why not more, what it goes by,
// and what it decided of late.
func printCapacity(p *term.Page, h *subjects.Heartbeat) {
	r := h.Capacity
	if r == nil {
		return
	}
	use := term.KV("in use", fmt.Sprintf("%d of %d: %s", h.InFlight, r.Total, fleet.BoundText(r)))
	if r.Bound == policy.BoundFence {
		use.Style = term.Red
	} else if r.Factor < 1 {
		use.Style = term.Yellow
	}
	p.Heading("room")
	list := []term.Field{use, term.KV("bounds", fleet.BoundsText(r))}
	if r.Bound != policy.BoundFence {
		list = append(list, term.KV("headroom", term.Share(r.Headroom)))
		if r.Factor < 1 {
			list = append(list, term.KV("held back", "to "+term.Share(r.Factor)+" of its room", term.Yellow))
		}
	}
	list = append(list, term.KV("profile", r.Profile), term.KV("limit", limitText(r)), term.KV("token time", fleet.TokenTimeText(r)))
	if r.Infeasible {
		list = append(list, term.KV("objective", "cannot be met: a request alone is slower than that", term.Yellow))
	}
	p.Fields(append(list, term.KV("engine metrics", engineFreshness(h), freshStyle(r.Engine)), term.KV("GPU samples", gpuFreshness(h), freshStyle(r.GPU)))...)
}

func limitText(r *subjects.Capacity) string {
	if r.Limit <= 0 {
		return ""
	}
	how := "found by trying"
	if r.PaceMS <= 0 {
		how = "not tried yet"
	}
	return fmt.Sprintf("%.0f, %s", math.Floor(r.Limit), how)
}

// stateText is a worker's state with its reason.
func stateText(h subjects.Heartbeat) string {
	if h.Reason == "" {
		return string(h.State)
	}
	return fmt.Sprintf("%s (%s)", h.State, h.Reason)
}

// engineFreshness says how far the engine's own word counts.
func engineFreshness(h *subjects.Heartbeat) string {
	switch h.Capacity.Engine {
	case "fresh":
		if h.EngineStatus != nil && !h.EngineStatus.At.IsZero() {
			return "fresh, " + term.Ago(h.EngineStatus.At) + " old"
		}
	case "stale":
		return "stale: no more than it had when they were read"
	case "missing":
		return "none: the worker goes by its own count of requests"
	}
	return h.Capacity.Engine
}

// gpuFreshness says how far NVML's word counts.
func gpuFreshness(h *subjects.Heartbeat) string {
	switch {
	case h.NVML == nil:
		return "none: NVML is off"
	case h.Capacity.GPU == "stale":
		return "stale: the limit does not grow until they are fresh"
	case h.Capacity.GPU == "missing" && h.NVML.Mode == "required":
		return "none, and they are required"
	case h.Capacity.GPU == "missing":
		return "none: the worker goes by its engine alone"
	}
	return h.Capacity.GPU
}

func freshStyle(freshness string) term.Style {
	if freshness == "stale" {
		return term.Yellow
	}
	return term.Unstyled
}

// printEngine says what an engine tells of itself.
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
	p.Heading("the engine says")
	p.Fields(
		term.KV("dialect", t.Dialect),
		term.KV("running", optional(t.Running)),
		term.KV("waiting", optional(t.Waiting)),
		term.KV("slots", optional(t.Slots)),
		term.KV("KV cache", kv),
		term.KV("preempted", optional(t.Preemptions)),
		term.KV("loaded", strings.Join(t.Loaded, ", ")),
	)
}

// optional is a number that was told, or nothing.
func optional[N int | int64](n *N) string {
	if n == nil {
		return ""
	}
	return fmt.Sprint(*n)
}

// printWorkerGPUs says how a worker's GPUs are.
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
	for i := range h.NVML.GPUs {
		g := &h.NVML.GPUs[i]
		_, _, remedy := fleet.GPUStatus(*g)
		list = append(list, term.KV(g.Label(), fleet.GPUText(g), fleet.GPUStatusStyle(fleet.GpuWord(g))), term.KV("remedy", remedy))
	}
	if len(list) == 0 {
		list = append(list, term.KV("NVML", "no word of a GPU yet", term.Yellow))
	}
	p.Fields(list...)
}

func printDecisions(p *term.Page, h *subjects.Heartbeat) {
	if h.Capacity == nil || len(h.Capacity.Decisions) == 0 {
		return
	}
	p.Heading("last decisions")
	for _, d := range h.Capacity.Decisions {
		p.Fields(term.KV(d.At.Local().Format(time.TimeOnly), d.Text))
	}
}
