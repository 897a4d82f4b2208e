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

// reasonOf says why a worker accepts fewer requests than it could, or else how it differs from the others of its pool.
func reasonOf(h *subjects.Heartbeat) string {
	why := ""
	if h.Capacity != nil {
		why = h.Capacity.Why
	}
	return cmp.Or(h.Reason, why, h.Notes())
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

// setWorkers changes the settings of workers in the policy, in one revision. Each must be live, or have settings already.
func setWorkers(s *cli.Session, named []string, edit func(*policy.Worker)) (list []toggled, v policyChange, err error) {
	live := make([]subjects.Heartbeat, len(named))
	notFound := make([]error, len(named))
	for i, n := range named {
		live[i], notFound[i] = fleet.FindWorker(s.Context(), s.NC, n)
	}
	v, err = changePolicy(s, func(p *policy.Policy) error {
		list = nil
		for i, n := range named {
			name := live[i].Name
			if _, known := p.Workers[n]; notFound[i] != nil && known {
				name = n
			} else if notFound[i] != nil {
				return notFound[i]
			}
			before := p.Workers[name]
			p.EditWorker(name, edit)
			list = append(list, toggled{name, p.Workers[name] == before})
		}
		return nil
	})
	return list, v, err
}

func newWorkerCordonCommand(c *cli.ConnectFlags) *cobra.Command {
	return toggle{noun: "worker", on: true, done: "cordoned", state: "cordoned", edit: setCordoned}.verb(c, &cobra.Command{
		Use: "cordon WORKER...", Short: "Stop giving workers new requests",
		Long: `Stop giving workers new requests; running requests continue. A worker stays
cordoned until it is uncordoned, also if it restarts under the same name.`,
		Example:           `  pulley worker cordon gpu-3 gpu-4`,
		ValidArgsFunction: cli.Complete(c, 0, liveWorkers),
	})
}

func newWorkerUncordonCommand(c *cli.ConnectFlags) *cobra.Command {
	return toggle{noun: "worker", done: "uncordoned", state: "cordoned", edit: setCordoned}.verb(c, &cobra.Command{
		Use: "uncordon WORKER...", Short: "Give cordoned workers requests again",
		Long:              "Give cordoned workers requests again.",
		Example:           `  pulley worker uncordon gpu-3`,
		ValidArgsFunction: cli.Complete(c, 0, liveWorkers),
	})
}

func setCordoned(s *cli.Session, cordoned bool) ([]toggled, policyChange, error) {
	return setWorkers(s, s.Args, func(w *policy.Worker) { w.Cordoned = cordoned })
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
		list, v, err := setWorkers(s, s.Args[:1], func(w *policy.Worker) { w.Weight = weight })
		if err != nil {
			return err
		}
		return printChange(s, v, false, "worker", list[0].name)
	})
}

func newWorkerDrainCommand(c *cli.ConnectFlags) *cobra.Command {
	var noWait bool
	cmd := &cobra.Command{
		Use: "drain WORKER...", Short: "Let workers finish their requests and exit",
		Long: `Drain workers: each accepts no new requests, finishes the running ones, and exits.
The command waits until all have left; Ctrl-C ends the wait, not the drain. To use a
worker again later without a restart, cordon it instead.`,
		Example: `  pulley worker drain gpu-3 gpu-4
  pulley worker drain gpu-3 --force --no-wait`,
		ValidArgsFunction: cli.Complete(c, 0, liveWorkers),
	}
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "do not wait until the worker has left")
	return cli.Destructive(cmd, c, func(s *cli.Session) error {
		var list []subjects.Heartbeat
		for _, named := range s.Args {
			h, err := fleet.FindWorker(s.Context(), s.NC, named)
			if err != nil {
				return err
			}
			list = append(list, h)
		}
		names := fleet.NamesOf(list, func(h subjects.Heartbeat) string { return h.Name })
		question := "drain %s, so that it finishes its requests and exits"
		if len(list) > 1 {
			question = "drain %s, so that they finish their requests and exit"
		}
		if err := s.Confirm(question, counted("worker", names)); err != nil {
			return err
		}
		var draining []*drain
		var errs []error
		for _, h := range list {
			d, err := beginDrain(s, h)
			switch {
			case err != nil:
				errs = append(errs, err)
			case noWait:
				s.Printf("worker %s is draining", h.Name)
				d.beats.Unsubscribe()
			default:
				defer d.beats.Unsubscribe()
				draining = append(draining, d)
			}
		}
		for _, d := range draining {
			errs = append(errs, d.await(s))
		}
		return errors.Join(errs...)
	})
}

// drain is a worker that was told to drain, with its heartbeats since.
type drain struct {
	worker subjects.Heartbeat
	began  time.Time
	beats  *nats.Subscription
}

// beginDrain tells a worker to drain.
func beginDrain(s *cli.Session, h subjects.Heartbeat) (*drain, error) {
	beats, err := s.NC.SubscribeSync(subjects.Heartbeats(h.Worker))
	if err != nil {
		return nil, err
	}
	o, err := fleet.Call[subjects.Outcome](s.Context(), s.NC, subjects.WorkerDrain(h.Worker), struct{}{}, fleet.AskTimeout)
	switch {
	case errors.Is(err, nats.ErrNoResponders), errors.Is(err, fleet.ErrNoAnswer):
		err = fmt.Errorf("drain worker %s: no answer; it may have just left, see 'pulley worker ls'", h.Name)
	case err != nil:
		err = fmt.Errorf("drain worker %s: %w", h.Name, err)
	case o.Error != "":
		err = cli.Refusedf("drain worker %s: %s", h.Name, o.Error)
	}
	if err != nil {
		beats.Unsubscribe()
		return nil, err
	}
	return &drain{h, time.Now(), beats}, nil
}

// await shows the progress of a drain until the worker has left.
func (d *drain) await(s *cli.Session) error {
	h := d.worker
	t := term.Of(s.Cmd.ErrOrStderr())
	show := func(text string) { fmt.Fprintln(s.Cmd.ErrOrStderr(), text) }
	if t.Width > 0 { // one line that is overwritten
		show = func(text string) { fmt.Fprintf(s.Cmd.ErrOrStderr(), "\r\x1b[K%s", text) }
		defer fmt.Fprint(s.Cmd.ErrOrStderr(), "\r\x1b[K")
	}
	last := ""
	for {
		waiting, cancel := context.WithTimeout(s.Context(), 2*subjects.WorkerDeadline)
		m, err := d.beats.NextMsgWithContext(waiting)
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
	s.Printf("worker %s has left after %s", h.Name, term.Age(time.Since(d.began)))
	return nil
}
