package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// newWorkerNoun is pulley worker, which runs one, with the verbs for those that
// run.
func newWorkerNoun() *cobra.Command {
	cmd := newWorkerCommand()
	for _, newVerb := range []func(*connectFlags) *cobra.Command{
		newWorkerInfoCommand, newWorkerDrainCommand, newWorkerCordonCommand, newWorkerUncordonCommand, newWorkerWeightCommand,
	} {
		cmd.AddCommand(connected(newVerb))
	}
	return cmd
}

// connected is a verb with connect flags of its own: the flags of pulley worker
// are for running one.
func connected(newVerb func(*connectFlags) *cobra.Command) *cobra.Command {
	var fs pflag.FlagSet
	cmd := newVerb(addConnectFlags(&fs))
	cmd.Flags().AddFlagSet(&fs)
	return cmd
}

func newWorkerListCommand() *cobra.Command { return connected(newWorkerListVerb) }

func newWorkerListVerb(c *connectFlags) *cobra.Command {
	return look(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the workers",
		Long: `List the workers that live: what they serve, how many requests each has of those
that it may have now, and the rung of its next bid (0 is the cheapest, 9 the
dearest).

BOUND is why it may not have more:

  slots     the configured slots
  engine    the engine's own slots, less what others have sent it
  queue     requests wait inside the engine
  kv        the KV cache has no room
  memory    the GPU memory has no room, or another process took some
  limit     with more, each would be slower than the profile allows
  throttle  a GPU is held back by heat or power
  stale     the engine's metrics are old: no more than when they were read
  unknown   neither slots nor engine metrics: one at a time
  fence     nothing may start: REASON says why

'pulley worker info' says more.`,
		Example: `  pulley worker ls
  pulley worker ls -o json | jq '.[] | select(.state != "ready")'`,
	}, c, func(s *session) (view, error) {
		list, err := workers(s.ctx(), s.nc)
		if err != nil {
			return view{}, err
		}
		return view{list, func(p *page) { printWorkers(p, list) }}, nil
	})
}

func printWorkers(p *page, list []subjects.Heartbeat) {
	t := table{
		columns: []column{text("NAME"), painted(word("STATE"), paintState), word("ENGINE"), number("IN USE"), ifAny(word("BOUND")), number("RUNG"),
			number("DONE"), number("FAILED"), text("POOLS"), wide(ifAny(number("HEADROOM"))), wide(ifAny(word("PROFILE"))), wide(ifAny(number("LIMIT"))), wide(ifAny(word("KV"))),
			wide(ifAny(word("GPUS"))), wide(number("SLOTS")), wide(number("WEIGHT")), wide(number("UP")), wide(text("HOST")), wide(text("URL")), wide(text("VERSION")), wide(word("ID")), ifAny(column{name: "REASON", cut: 12})},
		empty: "no workers; start one with 'pulley worker --engine URL'",
	}
	for i := range list {
		h := &list[i]
		var pools []string
		for _, p := range h.Pools {
			pools = append(pools, p.Pool)
		}
		var headroom, profile, limit, kv string
		if r := h.Capacity; r != nil {
			headroom, profile = share(r.Headroom), r.Profile
			if r.Limit > 0 {
				limit = fmt.Sprintf("%.0f", math.Floor(r.Limit))
			}
		}
		if h.EngineStatus != nil && h.EngineStatus.KVUsage != nil {
			kv = share(*h.EngineStatus.KVUsage)
		}
		t.row(h.Name, h.State, h.Engine, inUse(h), boundOf(h), rungsOf(*h), h.Done, h.Failed, joined(pools), headroom, profile, limit, kv,
			gpusInWords(h), h.Slots, shortFloat(h.Weight), ago(h.Started), h.Host, h.URL, h.Version, h.Worker, reasonOf(h))
	}
	p.table(t)
}

// gpusInWords are the numbers of a worker's GPUs, with how those are that are not
// well.
func gpusInWords(h *subjects.Heartbeat) string {
	if h.NVML == nil {
		return ""
	}
	var words []string
	for _, g := range h.NVML.GPUs {
		word := g.Label()
		if status, _, _ := gpuStatus(g); status != "ok" {
			word += " " + status
		}
		words = append(words, word)
	}
	return strings.Join(words, ", ")
}

// shortFloat is a number to at most two places.
func shortFloat(x float64) string { return strconv.FormatFloat(math.Round(100*x)/100, 'f', -1, 64) }

// rungsOf is the rung of a worker's next bid, or from which to which they are if
// it serves several pools.
func rungsOf(h subjects.Heartbeat) string {
	if len(h.Pools) == 0 {
		return ""
	}
	low, high := h.Pools[0].Rung, h.Pools[0].Rung
	for _, p := range h.Pools {
		low, high = min(low, p.Rung), max(high, p.Rung)
	}
	if low == high {
		return fmt.Sprint(low)
	}
	return fmt.Sprintf("%d-%d", low, high)
}

// findWorker is the worker of a name or an id, or of a beginning of one that no
// other has.
func (s *session) findWorker(named string) (subjects.Heartbeat, error) {
	list, err := workers(s.ctx(), s.nc)
	if err != nil {
		return subjects.Heartbeat{}, err
	}
	is := []func(h subjects.Heartbeat) bool{
		func(h subjects.Heartbeat) bool { return h.Worker == named },
		func(h subjects.Heartbeat) bool { return h.Name == named },
		func(h subjects.Heartbeat) bool {
			return named != "" && (strings.HasPrefix(h.Name, named) || strings.HasPrefix(h.Worker, named))
		},
	}
	for _, is := range is {
		var found []subjects.Heartbeat
		var ids []string
		for _, h := range list {
			if is(h) {
				found, ids = append(found, h), append(ids, h.Worker)
			}
		}
		switch {
		case len(found) == 1:
			return found[0], nil
		case len(found) > 1:
			return subjects.Heartbeat{}, usagef("worker %s: which of %s?", named, shorten(joined(ids), 160))
		}
	}
	var names []string
	for _, h := range list {
		names = append(names, h.Name)
	}
	return subjects.Heartbeat{}, noSuch("worker", named, names)
}

func newWorkerInfoCommand(c *connectFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "info WORKER", Short: "Describe a worker",
		Long: `Describe a worker: everything it tells of itself, how much room it has and why not
more, what its engine and its GPUs say, what it has measured, and what it has
decided of late. Headroom is the free part of whatever it has least of: room for
requests, KV cache, memory, or degrees until its GPU slows down.`,
		Example:           `  pulley worker info gpu-3`,
		Args:              wantArgs("WORKER"),
		ValidArgsFunction: complete(c, 1, liveWorkers),
	}
	return look(cmd, c, func(s *session) (view, error) {
		h, err := s.findWorker(s.args[0])
		if err != nil {
			return view{}, err
		}
		return view{h, func(p *page) { printWorker(p, h) }}, nil
	})
}

func printWorker(p *page, h subjects.Heartbeat) {
	p.fields(
		field{"worker", h.Name, bold},
		field{"id", h.Worker, ""},
		field{"state", stateOf(h), paintState(string(h.State))},
		field{"engine", strings.TrimSpace(h.Engine + " " + h.URL), ""},
		field{"host", h.Host, ""},
		field{"version", h.Version, ""},
		field{"up", fmt.Sprintf("%s, since %s", ago(h.Started), clock(h.Started)), ""},
		field{"slots", fmt.Sprintf("%d, %d running, %d of these before their first token", h.Slots, h.InFlight, h.Prefills), ""},
		field{"weight", shortFloat(h.Weight), ""},
		field{"done", fmt.Sprintf("%s, %d failed", count(h.Done, "attempt"), h.Failed), ""},
	)
	printRoom(p, &h)
	printEngine(p, &h)
	printWorkerGPUs(p, &h)
	for _, st := range h.Pools {
		p.heading("pool " + printable(st.Pool))
		model := ""
		if st.Model != "" && st.Model != st.Pool {
			model = st.Model
		}
		p.fields(append([]field{{"engine's model", model, ""}}, priceInWords(st, h)...)...)
	}
	printDecisions(p, &h)
}

// priceInWords says how a worker comes to its price.
func priceInWords(st subjects.PoolStatus, h subjects.Heartbeat) []field {
	next := fmt.Sprintf("rung %d, where 0 is the cheapest and %d the dearest", st.Rung, policy.Rungs-1)
	if st.Curve == nil {
		return []field{{"next bid", next, ""}, {"measured", "nothing yet: it bids by its load", ""}}
	}
	if price, ok := st.Curve.Price(st.Mean, h.InFlight+1, float64(h.Prefills)); ok {
		next += fmt.Sprintf("; it expects to take %s", seconds(price))
	}
	list := []field{{"next bid", next, ""}}
	if l := st.Curve.Prefill; l != nil {
		list = append(list, field{"first token", lineInWords(*l, "input token"), ""})
	}
	if l := st.Curve.ITL; l != nil {
		list = append(list, field{"each token", lineInWords(*l, "request in flight"), ""})
	}
	if st.Mean.Samples > 0 {
		list = append(list, field{"mean request", fmt.Sprintf("%.0f tokens in, %.0f out", st.Mean.Input, st.Mean.Output), ""})
	}
	return list
}

func lineInWords(l policy.Line, per string) string {
	switch {
	case l.B == 0:
		return seconds(l.A)
	case l.A == 0:
		return seconds(l.B) + " per " + per
	}
	return fmt.Sprintf("%s and %s per %s", seconds(l.A), seconds(l.B), per)
}

func newWorkerDrainCommand(c *connectFlags) *cobra.Command {
	var noWait bool
	cmd := &cobra.Command{
		Use: "drain WORKER", Short: "Let a worker finish and leave",
		Long: `Let a worker finish and leave: it takes nothing new, finishes what it has, and
ends. This waits until it has left; Ctrl-C ends the waiting, not the draining. To
take it back later, cordon it instead.`,
		Example: `  pulley worker drain gpu-3
  pulley worker drain gpu-3 --force --no-wait`,
		Args:              wantArgs("WORKER"),
		ValidArgsFunction: complete(c, 1, liveWorkers),
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "do not wait until it has left")
	return harm(cmd, c, func(s *session) error {
		h, err := s.findWorker(s.args[0])
		if err != nil {
			return err
		}
		if err := s.confirm("drain worker %s, so that it finishes what it has and leaves", h.Name); err != nil {
			return err
		}
		beats, err := s.nc.SubscribeSync(subjects.Heartbeats(h.Worker))
		if err != nil {
			return err
		}
		defer beats.Unsubscribe()
		o, err := order[subjects.Outcome](s.ctx(), s.nc, subjects.WorkerDrain(h.Worker), struct{}{}, askWait)
		switch {
		case errors.Is(err, nats.ErrNoResponders), errors.Is(err, errSilence):
			return fmt.Errorf("drain worker %s: it does not answer; it may have just left, see 'pulley worker ls'", h.Name)
		case err != nil:
			return fmt.Errorf("drain worker %s: %w", h.Name, err)
		case o.Error != "":
			return refusedf("drain worker %s: %s", h.Name, o.Error)
		case noWait:
			s.say("worker %s drains", h.Name)
			return nil
		}
		return s.awaitLeft(h, beats)
	})
}

// awaitLeft shows how a worker drains until it has left.
func (s *session) awaitLeft(h subjects.Heartbeat, beats *nats.Subscription) error {
	began := time.Now()
	t := terminalOf(s.cmd.ErrOrStderr())
	tell := func(text string) { fmt.Fprintln(s.cmd.ErrOrStderr(), text) }
	if t.width > 0 { // one line that changes
		tell = func(text string) { fmt.Fprintf(s.cmd.ErrOrStderr(), "\r\x1b[K%s", text) }
		defer fmt.Fprint(s.cmd.ErrOrStderr(), "\r\x1b[K")
	}
	last := ""
	for {
		waiting, cancel := context.WithTimeout(s.ctx(), 2*subjects.WorkerDeadline)
		m, err := beats.NextMsgWithContext(waiting)
		cancel()
		if s.ctx().Err() != nil {
			return context.Cause(s.ctx())
		}
		if err != nil {
			return fmt.Errorf("worker %s fell silent while it drained: what it had is done elsewhere", h.Name)
		}
		var now subjects.Heartbeat
		if subjects.Unmarshal(m.Data, &now) != nil {
			continue
		}
		if now.State == subjects.Left {
			break
		}
		if text := fmt.Sprintf("worker %s: %s left", h.Name, count(now.InFlight, "request")); text != last {
			tell(text)
			last = text
		}
	}
	if t.width > 0 {
		fmt.Fprint(s.cmd.ErrOrStderr(), "\r\x1b[K")
	}
	s.say("worker %s has left after %s", h.Name, age(time.Since(began)))
	return nil
}

// setWorker changes what the policy says of a worker. Only one that lives, or
// of which the policy says something, can be named.
func (s *session) setWorker(named string, edit func(*policy.Worker)) (name string, v writtenPolicy, err error) {
	h, missing := s.findWorker(named)
	name = h.Name
	v, err = s.change(func(p *policy.Policy) error {
		if _, known := p.Workers[named]; missing != nil && known {
			name = named
		} else if missing != nil {
			return missing
		}
		w := p.Workers[name]
		edit(&w)
		if p.Workers == nil {
			p.Workers = make(map[string]policy.Worker)
		}
		p.Workers[name] = w
		if w == (policy.Worker{}) {
			delete(p.Workers, name)
		}
		return nil
	})
	return name, v, err
}

func newWorkerCordonCommand(c *connectFlags) *cobra.Command {
	return newCordonCommand(c, true, &cobra.Command{
		Use: "cordon WORKER", Short: "Let a worker take nothing new",
		Long: `Let a worker take nothing new: what it has goes on. It stays so, also after a
restart under the same name, until it is uncordoned.`,
		Example: `  pulley worker cordon gpu-3`,
	})
}

func newWorkerUncordonCommand(c *connectFlags) *cobra.Command {
	return newCordonCommand(c, false, &cobra.Command{
		Use: "uncordon WORKER", Short: "Let a cordoned worker take requests again",
		Long:    "Let a cordoned worker take requests again.",
		Example: `  pulley worker uncordon gpu-3`,
	})
}

func newCordonCommand(c *connectFlags, cordon bool, cmd *cobra.Command) *cobra.Command {
	cmd.Args, cmd.ValidArgsFunction = wantArgs("WORKER"), complete(c, 1, liveWorkers)
	return act(cmd, c, func(s *session) error {
		name, v, err := s.setWorker(s.args[0], func(w *policy.Worker) { w.Cordoned = cordon })
		if err != nil {
			return err
		}
		what := "uncordoned"
		switch {
		case cordon && v.same:
			what = "is cordoned already"
		case cordon:
			what = "cordoned"
		case v.same:
			what = "was not cordoned"
		}
		s.say("worker %s %s, policy revision %d", printable(name), what, v.Revision)
		return nil
	})
}

func newWorkerWeightCommand(c *connectFlags) *cobra.Command {
	return act(&cobra.Command{
		Use: "weight WORKER WEIGHT", Short: "Set how much a worker is preferred",
		Long: `Set how much a worker is preferred: its price is divided by the weight. With 2 it
takes requests as if it were twice as fast. 0 is as it was started.`,
		Example: `  pulley worker weight gpu-3 0.5
  pulley worker weight gpu-3 0`,
		Args:              wantArgs("WORKER", "WEIGHT"),
		ValidArgsFunction: complete(c, 1, liveWorkers),
	}, c, func(s *session) error {
		weight, err := strconv.ParseFloat(s.args[1], 64)
		if err != nil {
			return usagef("weight %q: want a number, 0 for as it was started", s.args[1])
		}
		name, v, err := s.setWorker(s.args[0], func(w *policy.Worker) { w.Weight = weight })
		if err != nil {
			return err
		}
		return s.done(v, false, "worker", name)
	})
}
