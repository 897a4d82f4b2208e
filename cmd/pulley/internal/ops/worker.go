package ops

import (
	"fmt"
	"math"
	"strconv"
	"strings"

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
		Columns: []term.Column{term.Text("NAME"), term.Painted(term.Word("STATE"), fleet.StateStyle), term.Word("ENGINE"), term.Number("IN USE"), term.IfAny(term.Word("BOUND")), term.Number("RUNG"),
			term.Number("DONE"), term.Number("FAILED"), term.Text("POOLS"), term.Wide(term.IfAny(term.Number("HEADROOM"))), term.Wide(term.IfAny(term.Word("PROFILE"))), term.Wide(term.IfAny(term.Number("LIMIT"))), term.Wide(term.IfAny(term.Word("KV"))),
			term.Wide(term.IfAny(term.Word("GPUS"))), term.Wide(term.Number("SLOTS")), term.Wide(term.Number("WEIGHT")), term.Wide(term.Number("UP")), term.Wide(term.Text("HOST")), term.Wide(term.Text("URL")), term.Wide(term.Text("VERSION")), term.Wide(term.Word("ID")), term.IfAny(term.Column{Name: "REASON", Cut: 12})},
		Empty: "no workers; start one with 'pulley worker --engine URL'",
	}
	for i := range list {
		h := &list[i]
		var pools []string
		for _, p := range h.Pools {
			pools = append(pools, p.Pool)
		}
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
		t.Row(h.Name, h.State, h.Engine, inFlightText(h), fleet.Bound(h), rungsOf(*h), h.Done, h.Failed, term.Join(pools), headroom, profile, limit, kv,
			gpuLabels(h), h.Slots, term.Float(h.Weight), term.Ago(h.Started), h.Host, h.URL, h.Version, h.Worker, reasonOf(h))
	}
	p.Table(t)
}

// inFlightText is how many requests a worker has of how many it may have.
func inFlightText(h *subjects.Heartbeat) string {
	most := h.Slots
	if h.Capacity != nil {
		most = h.Capacity.Total
	}
	return fmt.Sprintf("%d/%d", h.InFlight, most)
}

// reasonOf is why a worker does not take all that it might.
func reasonOf(h *subjects.Heartbeat) string {
	if h.Reason == "" && h.Capacity != nil {
		return h.Capacity.Why
	}
	return h.Reason
}

// gpuLabels are the numbers of a worker's GPUs, with how those are that are not
// well.
func gpuLabels(h *subjects.Heartbeat) string {
	if h.NVML == nil {
		return ""
	}
	var words []string
	for _, g := range h.NVML.GPUs {
		word := g.Label()
		if status, _, _ := fleet.GPUStatus(g); status != "ok" {
			word += " " + status
		}
		words = append(words, word)
	}
	return strings.Join(words, ", ")
}

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

// setWorker changes what the policy says of a worker. Only one that lives, or
// of which the policy says something, can be named.
func setWorker(s *cli.Session, named string, edit func(*policy.Worker)) (name string, v policyChange, err error) {
	h, missing := fleet.FindWorker(s.Context(), s.NC, named)
	name = h.Name
	v, err = changePolicy(s, func(p *policy.Policy) error {
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

func newWorkerCordonCommand(c *cli.ConnectFlags) *cobra.Command {
	return toggle{noun: "worker", on: true, done: "cordoned", state: "cordoned", edit: setCordoned}.verb(c, &cobra.Command{
		Use: "cordon WORKER", Short: "Let a worker take nothing new",
		Long: `Let a worker take nothing new: what it has goes on. It stays so, also after a
restart under the same name, until it is uncordoned.`,
		Example:           `  pulley worker cordon gpu-3`,
		ValidArgsFunction: cli.Complete(c, 1, liveWorkers),
	})
}

func newWorkerUncordonCommand(c *cli.ConnectFlags) *cobra.Command {
	return toggle{noun: "worker", done: "uncordoned", state: "cordoned", edit: setCordoned}.verb(c, &cobra.Command{
		Use: "uncordon WORKER", Short: "Let a cordoned worker take requests again",
		Long:              "Let a cordoned worker take requests again.",
		Example:           `  pulley worker uncordon gpu-3`,
		ValidArgsFunction: cli.Complete(c, 1, liveWorkers),
	})
}

func setCordoned(s *cli.Session, named string, cordoned bool) (string, policyChange, error) {
	return setWorker(s, named, func(w *policy.Worker) { w.Cordoned = cordoned })
}

func newWorkerWeightCommand(c *cli.ConnectFlags) *cobra.Command {
	return cli.Action(&cobra.Command{
		Use: "weight WORKER WEIGHT", Short: "Set how much a worker is preferred",
		Long: `Set how much a worker is preferred: its price is divided by the weight. With 2 it
takes requests as if it were twice as fast. 0 is as it was started.`,
		Example: `  pulley worker weight gpu-3 0.5
  pulley worker weight gpu-3 0`,
		Args:              cli.ExactArgs("WORKER", "WEIGHT"),
		ValidArgsFunction: cli.Complete(c, 1, liveWorkers),
	}, c, func(s *cli.Session) error {
		weight, err := strconv.ParseFloat(s.Args[1], 64)
		if err != nil {
			return cli.Usagef("weight %q: want a number, 0 for as it was started", s.Args[1])
		}
		name, v, err := setWorker(s, s.Args[0], func(w *policy.Worker) { w.Weight = weight })
		if err != nil {
			return err
		}
		return printChange(s, v, false, "worker", name)
	})
}
