package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/subjects"
)

// askWait bounds how long a verb waits for the gateways' answers.
const askWait = 1500 * time.Millisecond

// waitForModels asks a gateway for its models until it has some.
func waitForModels(ctx context.Context, url string, within time.Duration) []string {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for ctx.Err() == nil {
		if models := askModels(ctx, url); len(models) > 0 {
			return models
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

func askModels(ctx context.Context, url string) (models []string) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/v1/models", nil)
	if err != nil {
		return nil
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	var list struct{ Data []struct{ ID string } }
	if json.NewDecoder(resp.Body).Decode(&list) != nil {
		return nil
	}
	for _, m := range list.Data {
		models = append(models, m.ID)
	}
	return models
}

// ask collects the lists that gateways answer a question with. With all it
// waits for every gateway, else for the first.
func ask[T any](ctx context.Context, nc *nats.Conn, subject string, all bool) ([]T, error) {
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	inbox := nc.NewInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		return nil, err
	}
	defer sub.Unsubscribe()
	if err := nc.PublishRequest(subject, inbox, nil); err != nil {
		return nil, err
	}
	list, answered := []T{}, false
	for {
		m, err := sub.NextMsgWithContext(ctx)
		switch {
		case errors.Is(err, nats.ErrNoResponders):
			return nil, err
		case errors.Is(err, context.DeadlineExceeded) && answered:
			return list, nil
		case err != nil:
			return nil, err
		}
		if len(m.Data) == 0 { // the end of one gateway's list
			if answered = true; !all {
				return list, nil
			}
			// The others are as quick, or gone.
			var quick context.CancelFunc
			ctx, quick = context.WithTimeout(ctx, 200*time.Millisecond)
			defer quick()
			continue
		}
		var some []T
		if err := json.Unmarshal(m.Data, &some); err != nil {
			return nil, fmt.Errorf("answer of a gateway: %w", err)
		}
		list = append(list, some...)
	}
}

// listCommand is a verb that prints a list.
func listCommand(short, long, example string, run func(cmd *cobra.Command, nc *nats.Conn, show func(list any, table func(w io.Writer)) error) error) *cobra.Command {
	var output string
	cmd := &cobra.Command{Use: "ls", Aliases: []string{"list"}, Short: short, Long: long, Example: example}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVarP(&output, "output", "o", "table", "how to print: table or json")
	cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
	c := addConnectFlags(fs)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if output != "table" && output != "json" {
			return usagef("--output %q: want table or json", output)
		}
		nc, err := c.connect(cmd.Context(), "pulley "+cmd.Parent().Name()+" ls")
		if err != nil {
			return err
		}
		defer nc.Close()
		return run(cmd, nc, func(list any, table func(w io.Writer)) error {
			out := cmd.OutOrStdout()
			if output == "json" {
				e := json.NewEncoder(out)
				e.SetIndent("", "  ")
				return e.Encode(list)
			}
			w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
			table(w)
			return w.Flush()
		})
	}
	return cmd
}

func newWorkerListCommand() *cobra.Command {
	return listCommand("List the workers", `List the workers that live: what they serve, how loaded they are, and the rung of
their next bid (0 is the cheapest, 9 the dearest).`, `  pulley worker ls
  pulley worker ls -o json | jq '.[] | select(.state != "ready")'`,
		func(cmd *cobra.Command, nc *nats.Conn, show func(any, func(io.Writer)) error) error {
			list, err := ask[subjects.Heartbeat](cmd.Context(), nc, subjects.AskWorkers, false)
			if err != nil {
				if list, err = membersInBucket(cmd.Context(), nc); err != nil {
					return err
				}
			}
			return show(list, func(w io.Writer) {
				fmt.Fprintln(w, "NAME\tSTATE\tENGINE\tIN FLIGHT\tSLOTS\tRUNG\tDONE\tFAILED\tMODELS")
				for _, h := range list {
					var models []string
					rung := "-"
					for _, p := range h.Pools {
						models = append(models, p.Pool)
						rung = fmt.Sprint(p.Rung)
					}
					state := string(h.State)
					if h.Reason != "" {
						state += " (" + shorten(h.Reason, 40) + ")"
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%s\t%d\t%d\t%s\n", h.Name, state, h.Engine, h.InFlight, h.Slots, rung, h.Done, h.Failed, shorten(strings.Join(models, " "), 60))
				}
				if len(list) == 0 {
					fmt.Fprintln(w, "no workers; start one with: pulley worker --engine URL")
				}
			})
		})
}

func shorten(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

// membersInBucket reads who serves what while there is no gateway to ask.
func membersInBucket(ctx context.Context, nc *nats.Conn) ([]subjects.Heartbeat, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	kv, err := js.KeyValue(ctx, subjects.WorkersBucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil, notFoundError{errors.New("nothing of Pulley on this broker yet: start a gateway")}
	}
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", subjects.WorkersBucket, err)
	}
	keys, err := kv.Keys(ctx)
	if err != nil && !errors.Is(err, jetstream.ErrNoKeysFound) {
		return nil, fmt.Errorf("bucket %s: %w", subjects.WorkersBucket, err)
	}
	list := []subjects.Heartbeat{}
	for _, k := range keys {
		v, err := kv.Get(ctx, k)
		if err != nil {
			continue // it left meanwhile
		}
		var h subjects.Heartbeat
		if json.Unmarshal(v.Value(), &h) == nil {
			list = append(list, h)
		}
	}
	slices.SortFunc(list, func(a, b subjects.Heartbeat) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// queueLine is one line of pulley queue ls.
type queueLine struct {
	Pool     string `json:"pool"`
	Tier     string `json:"tier"`
	Lane     string `json:"lane"`
	Waiting  uint64 `json:"waiting"`
	InFlight int    `json:"in_flight"`
	Bids     int    `json:"bids"` // parked
}

func newQueueCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "queue", Short: "Look at the queues"}
	cmd.AddCommand(listCommand("List the queues", `List the queues, one for each pool and tier: how many requests wait, how many are
with a worker, and how many bids of workers are parked.`, `  pulley queue ls
  pulley queue ls -o json`,
		func(cmd *cobra.Command, nc *nats.Conn, show func(any, func(io.Writer)) error) error {
			list, err := queues(cmd.Context(), nc)
			if err != nil {
				return err
			}
			return show(list, func(w io.Writer) {
				fmt.Fprintln(w, "POOL\tTIER\tWAITING\tIN FLIGHT\tBIDS")
				for _, q := range list {
					fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\n", q.Pool, q.Tier, q.Waiting, q.InFlight, q.Bids)
				}
				if len(list) == 0 {
					fmt.Fprintln(w, "no queues; they appear with the first worker")
				}
			})
		}))
	return cmd
}

// queues reads the consumers of every tier's stream.
func queues(ctx context.Context, nc *nats.Conn) ([]queueLine, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	list := []queueLine{}
	streams := js.StreamNames(ctx, jetstream.WithStreamListSubject("pulley.req.>"))
	for name := range streams.Name() {
		s, err := js.Stream(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("stream %s: %w", name, err)
		}
		consumers := s.ListConsumers(ctx)
		for c := range consumers.Info() {
			if pool, ok := c.Config.Metadata["pulley-pool"]; ok {
				list = append(list, queueLine{
					Pool: pool, Tier: subjects.TierOf(name), Lane: c.Config.Metadata["pulley-lane"],
					Waiting: c.NumPending, InFlight: c.NumAckPending, Bids: c.NumWaiting,
				})
			}
		}
		if err := consumers.Err(); err != nil && !errors.Is(err, jetstream.ErrEndOfData) {
			return nil, fmt.Errorf("consumers of %s: %w", name, err)
		}
	}
	if err := streams.Err(); err != nil && !errors.Is(err, jetstream.ErrEndOfData) {
		return nil, fmt.Errorf("list streams: %w", err)
	}
	slices.SortFunc(list, func(a, b queueLine) int {
		return cmp.Or(strings.Compare(a.Pool, b.Pool), strings.Compare(a.Tier, b.Tier), strings.Compare(a.Lane, b.Lane))
	})
	return list, nil
}

func newRequestCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "request", Short: "Look at the requests under way"}
	cmd.AddCommand(listCommand("List the requests under way", `List the requests that gateways hold now: queued, running on a worker, or already
answering.`, `  pulley request ls
  pulley request ls -o json`,
		func(cmd *cobra.Command, nc *nats.Conn, show func(any, func(io.Writer)) error) error {
			list, err := ask[subjects.RequestInfo](cmd.Context(), nc, subjects.AskRequests, true)
			if errors.Is(err, nats.ErrNoResponders) {
				return notFoundError{errors.New("no gateway on this broker: start one with 'pulley gateway' or 'pulley up'")}
			}
			if err != nil {
				return fmt.Errorf("ask the gateways: %w", err)
			}
			slices.SortFunc(list, func(a, b subjects.RequestInfo) int { return strings.Compare(a.ID, b.ID) })
			return show(list, func(w io.Writer) {
				fmt.Fprintln(w, "ID\tPOOL\tTIER\tSTATE\tWORKER\tATTEMPT\tQUEUED\tAGE\tOUT")
				for _, r := range list {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%v\t%v\t%d B\n", r.ID, shorten(r.Pool, 30), r.Tier, r.State, cmp.Or(r.Worker, "-"), r.Attempt,
						time.Duration(r.QueueMS)*time.Millisecond, (time.Duration(r.AgeMS) * time.Millisecond).Round(10*time.Millisecond), r.BytesOut)
				}
				if len(list) == 0 {
					fmt.Fprintln(w, "no requests")
				}
			})
		}))
	return cmd
}
