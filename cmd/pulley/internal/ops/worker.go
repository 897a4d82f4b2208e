package ops

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

func newWorkerListCommand(c *cli.ConnectFlags) *cobra.Command {
	return cli.Listing(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the workers",
		Long: `List live workers: engine, requests in flight out of the current capacity, price of
the next bid (RUNG, from 0, the lowest, to 9), the most tokens of a prompt with its
answer (CONTEXT, where engines say it), and pools.

RANKS has the requests in flight on each data-parallel rank of an engine with dp=.

BOUND names what limits the capacity:

  slots     the configured slots (slots=)
  engine    the engine's own slots, as it says or as found, less the requests of others
  queue     requests are waiting inside the engine
  kv        space in the KV cache
  memory    GPU memory, or another process uses it
  limit     more requests would make each slower than the profile allows
  throttle  a GPU is throttled by heat or power
  stale     the engine's metrics are stale: no more than when they were read
  unknown   neither slots nor engine metrics are known: one request at a time
  fence     no request may start; see REASON

'pulley worker info' has the details. Terms: docs/concepts.md`,
		Example: `  pulley worker ls
  pulley worker ls -o json | jq '.[] | select(.state != "ready")'`,
	}, c, func(s *cli.Session) (cli.View, error) {
		list, err := fleet.Workers(s.Context(), s.NC)
		if err != nil {
			return cli.View{}, err
		}
		return cli.View{Value: list, Print: func(p *term.Page) { printWorkers(p, list) }}, nil
	})
}

func printWorkers(p *term.Page, list []subjects.Heartbeat) {
	t := term.Table{
		Columns: []term.Column{term.Text("NAME"), term.Styled(term.Fixed("STATE"), fleet.StateStyle), term.Fixed("ENGINE"), term.Number("IN FLIGHT"), term.NonEmpty(term.Fixed("RANKS")), term.NonEmpty(term.Fixed("BOUND")), term.Number("RUNG"),
			term.Number("DONE"), term.Number("FAILED"), term.NonEmpty(term.Number("CONTEXT")), term.Text("POOLS"), term.Wide(term.NonEmpty(term.Number("HEADROOM"))), term.Wide(term.NonEmpty(term.Fixed("PROFILE"))), term.Wide(term.NonEmpty(term.Number("LIMIT"))), term.Wide(term.NonEmpty(term.Fixed("KV"))),
			term.Wide(term.NonEmpty(term.Fixed("GPUS"))), term.Wide(term.Number("SLOTS")), term.Wide(term.Number("WEIGHT")), term.Wide(term.Number("UPTIME")), term.Wide(term.Text("HOST")), term.Wide(term.Text("URL")), term.Wide(term.Text("VERSION")), term.Wide(term.Fixed("ID")), term.NonEmpty(term.Column{Name: "REASON", MinWidth: 12})},
		Empty: "no workers; start one with 'pulley worker --engine URL'",
	}
	for i := range list {
		h := &list[i]
		pools := fleet.NamesOf(h.Pools, poolLabel)
		var headroom, profile, limit, kv string
		if r := h.Capacity; r != nil {
			headroom, profile = term.Share(r.Headroom), r.Profile
			if r.Limit > 0 {
				limit = fmt.Sprintf("%.0f", math.Floor(r.Limit))
			}
		}
		if h.EngineStatus != nil && h.EngineStatus.KVUsage != nil {
			kv = term.Share(*h.EngineStatus.KVUsage)
		}
		t.Row(h.Name, h.State, h.Engine, inFlightText(h), ranksText(h), fleet.Bound(h), rungsOf(h), h.Done, h.Failed, contextsOf(h), term.Join(pools), headroom, profile, limit, kv,
			gpuLabels(h), h.Slots, term.Float(h.Weight), term.Ago(h.Started), h.Host, h.URL, h.Version, h.Worker, reasonOf(h))
	}
	p.Table(t)
}

// poolLabel returns the name of a pool, with a note while the engine loads its model.
func poolLabel(p subjects.PoolStatus) string {
	if p.Loading.IsZero() {
		return p.Pool
	}
	return p.Pool + " (loading)"
}

// inFlightText returns the requests in flight and the capacity, such as 12/16.
func inFlightText(h *subjects.Heartbeat) string {
	capacity := h.Slots
	if h.Capacity != nil {
		capacity = h.Capacity.Total
	}
	return fmt.Sprintf("%d/%d", h.InFlight, capacity)
}

// ranksText returns the requests in flight on each data-parallel rank, such as 3+4+3+3; "" if the worker does not choose
// among ranks. Of many ranks it returns the number, the least and the most, such as 16: 3-5.
func ranksText(h *subjects.Heartbeat) string {
	var each []string
	least, most := math.MaxInt, 0
	for _, r := range h.Ranks {
		each = append(each, strconv.Itoa(r.InFlight))
		least, most = min(least, r.InFlight), max(most, r.InFlight)
	}
	if len(each) > 8 {
		return fmt.Sprintf("%d: %d-%d", len(each), least, most)
	}
	return strings.Join(each, "+")
}

// reasonOf says why a worker accepts fewer requests than it could.
func reasonOf(h *subjects.Heartbeat) string {
	if h.Reason == "" && h.Capacity != nil {
		return h.Capacity.Why
	}
	return h.Reason
}

// gpuLabels lists the numbers of a worker's GPUs, with the status of those that are not ok.
func gpuLabels(h *subjects.Heartbeat) string {
	if h.NVML == nil {
		return ""
	}
	var labels []string
	for _, g := range h.NVML.GPUs {
		label := g.Label()
		if status, _, _ := fleet.GPUStatus(g); status != "ok" {
			label += " " + status
		}
		labels = append(labels, label)
	}
	return strings.Join(labels, ", ")
}

// contextsOf returns the most tokens of a prompt with its answer that a worker's engine accepts, or the range of several pools.
func contextsOf(h *subjects.Heartbeat) string {
	var low, high int64
	for i := range h.Pools {
		if n := h.Pools[i].Length; n > 0 && n < policy.AnyLength {
			low, high = min(cmp.Or(low, n), n), max(high, n)
		}
	}
	switch {
	case high == 0:
		return ""
	case low == high:
		return fmt.Sprint(low)
	}
	return fmt.Sprintf("%d-%d", low, high)
}

// rungsOf returns the rung of a worker's next bid, or the range of rungs if it serves several pools.
func rungsOf(h *subjects.Heartbeat) string {
	low, high, ok := fleet.Rungs(h)
	switch {
	case !ok:
		return ""
	case low == high:
		return fmt.Sprint(low)
	}
	return fmt.Sprintf("%d-%d", low, high)
}

// setWorker changes the settings of a worker in the policy. The worker must be live, or have settings already.
func setWorker(s *cli.Session, named string, edit func(*policy.Worker)) (name string, v policyChange, err error) {
	h, notFound := fleet.FindWorker(s.Context(), s.NC, named)
	name = h.Name
	v, err = changePolicy(s, func(p *policy.Policy) error {
		if _, known := p.Workers[named]; notFound != nil && known {
			name = named
		} else if notFound != nil {
			return notFound
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

func newWorkerCordonCommand(c *cli.ConnectFlags) *cobra.Command {
	return toggle{noun: "worker", on: true, done: "cordoned", state: "cordoned", edit: setCordoned}.verb(c, &cobra.Command{
		Use: "cordon WORKER", Short: "Stop giving a worker new requests",
		Long: `Stop giving a worker new requests; running requests continue. A worker stays
cordoned until it is uncordoned, also if it restarts under the same name.`,
		Example:           `  pulley worker cordon gpu-3`,
		ValidArgsFunction: cli.Complete(c, 1, liveWorkers),
	})
}

func newWorkerUncordonCommand(c *cli.ConnectFlags) *cobra.Command {
	return toggle{noun: "worker", done: "uncordoned", state: "cordoned", edit: setCordoned}.verb(c, &cobra.Command{
		Use: "uncordon WORKER", Short: "Give a cordoned worker requests again",
		Long:              "Give a cordoned worker requests again.",
		Example:           `  pulley worker uncordon gpu-3`,
		ValidArgsFunction: cli.Complete(c, 1, liveWorkers),
	})
}

func setCordoned(s *cli.Session, named string, cordoned bool) (string, policyChange, error) {
	return setWorker(s, named, func(w *policy.Worker) { w.Cordoned = cordoned })
}

func newWorkerWeightCommand(c *cli.ConnectFlags) *cobra.Command {
	return cli.Action(&cobra.Command{
		Use: "weight WORKER WEIGHT", Short: "Set the weight of a worker",
		Long: `Set the weight of a worker: its price is divided by it. With weight 2 a worker gets
requests as if it were twice as fast. 0 restores the weight it was started with.`,
		Example: `  pulley worker weight gpu-3 0.5
  pulley worker weight gpu-3 0`,
		ValidArgsFunction: cli.Complete(c, 1, liveWorkers),
	}, c, func(s *cli.Session) error {
		weight, err := strconv.ParseFloat(s.Args[1], 64)
		if err != nil {
			return cli.Usagef("weight %q: not a number; use 0 to restore the weight it was started with", s.Args[1])
		}
		name, v, err := setWorker(s, s.Args[0], func(w *policy.Worker) { w.Weight = weight })
		if err != nil {
			return err
		}
		return printChange(s, v, false, "worker", name)
	})
}

func newWorkerDrainCommand(c *cli.ConnectFlags) *cobra.Command {
	var noWait bool
	cmd := &cobra.Command{
		Use: "drain WORKER", Short: "Let a worker finish its requests and exit",
		Long: `Drain a worker: it accepts no new requests, finishes the running ones, and exits.
The command waits until the worker has left; Ctrl-C ends the wait, not the drain.
To use the worker again later without a restart, cordon it instead.`,
		Example: `  pulley worker drain gpu-3
  pulley worker drain gpu-3 --force --no-wait`,
		ValidArgsFunction: cli.Complete(c, 1, liveWorkers),
	}
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "do not wait until the worker has left")
	return cli.Destructive(cmd, c, func(s *cli.Session) error {
		h, err := fleet.FindWorker(s.Context(), s.NC, s.Args[0])
		if err != nil {
			return err
		}
		if err := s.Confirm("drain worker %s, so that it finishes its requests and exits", h.Name); err != nil {
			return err
		}
		beats, err := s.NC.SubscribeSync(subjects.Heartbeats(h.Worker))
		if err != nil {
			return err
		}
		defer beats.Unsubscribe()
		o, err := fleet.Call[subjects.Outcome](s.Context(), s.NC, subjects.WorkerDrain(h.Worker), struct{}{}, fleet.AskTimeout)
		switch {
		case errors.Is(err, nats.ErrNoResponders), errors.Is(err, fleet.ErrNoAnswer):
			return fmt.Errorf("drain worker %s: no answer; it may have just left, see 'pulley worker ls'", h.Name)
		case err != nil:
			return fmt.Errorf("drain worker %s: %w", h.Name, err)
		case o.Error != "":
			return cli.Refusedf("drain worker %s: %s", h.Name, o.Error)
		case noWait:
			s.Printf("worker %s is draining", h.Name)
			return nil
		}
		return awaitLeft(s, h, beats)
	})
}

// awaitLeft shows the progress of a drain until the worker has left.
func awaitLeft(s *cli.Session, h subjects.Heartbeat, beats *nats.Subscription) error {
	began := time.Now()
	t := term.Of(s.Cmd.ErrOrStderr())
	show := func(text string) { fmt.Fprintln(s.Cmd.ErrOrStderr(), text) }
	if t.Width > 0 { // one line that is overwritten
		show = func(text string) { fmt.Fprintf(s.Cmd.ErrOrStderr(), "\r\x1b[K%s", text) }
		defer fmt.Fprint(s.Cmd.ErrOrStderr(), "\r\x1b[K")
	}
	last := ""
	for {
		waiting, cancel := context.WithTimeout(s.Context(), 2*subjects.WorkerDeadline)
		m, err := beats.NextMsgWithContext(waiting)
		cancel()
		if s.Context().Err() != nil {
			return context.Cause(s.Context())
		}
		if err != nil {
			return fmt.Errorf("worker %s stopped sending heartbeats during the drain: its requests run on other workers", h.Name)
		}
		var now subjects.Heartbeat
		if subjects.Unmarshal(m.Data, &now) != nil {
			continue
		}
		if now.State == subjects.Left {
			break
		}
		if text := fmt.Sprintf("worker %s: %s running", h.Name, term.Count(now.InFlight, "request")); text != last {
			show(text)
			last = text
		}
	}
	if t.Width > 0 {
		fmt.Fprint(s.Cmd.ErrOrStderr(), "\r\x1b[K")
	}
	s.Printf("worker %s has left after %s", h.Name, term.Age(time.Since(began)))
	return nil
}
