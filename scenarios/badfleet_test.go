package scenarios

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/worker"
)

// badFleet is a replay of a trace on a fleet of which some engines are bad.
type badFleet struct {
	trace []traced
	ls    []latency // of the trace
	errs  []error   // of the trace
	begun time.Time

	mu    sync.Mutex
	named map[string]string        // the first state and reason that name a bad engine, by worker
	after map[string]time.Duration // when that was, after turned; of a note, after it first had a request
	first map[string]time.Time     // when each worker first had a request
	kinds map[string][]string      // kinds of events about each worker
	gauge string                   // the metrics that name workers, at the end

	turned time.Time // when the engines turn bad
}

// replayBad replays a trace on four good engines and, if bad is set, on a slow one, a small one, one that hangs and one
// that answers every request with an error as fast as it can. The last two turn bad at turn.
func replayBad(t *testing.T, trace []traced, bad bool, turn time.Duration) *badFleet {
	t.Helper()
	f := &badFleet{
		trace: trace, ls: make([]latency, len(trace)), errs: make([]error, len(trace)),
		named: make(map[string]string), after: make(map[string]time.Duration), first: make(map[string]time.Time), kinds: make(map[string][]string),
	}
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		g.Client.Transport.(*http.Transport).MaxIdleConnsPerHost = 1000
		hung := newFickle(t, a100.sim("hung"))
		hole := &blackHole{Handler: newFickle(t, a100.sim("hole"))}
		small := a100.sim("small")
		small.Slots, small.KVTokens = 2, 8_000
		start := func(name string, h http.Handler) { env.Worker(env.Handler(name, h), worker.Config{Name: name}) }
		for i := range 4 {
			name := fmt.Sprint("good-", i)
			start(name, newFickle(t, a100.sim(name)))
		}
		if bad {
			start("hung", hung)
			start("hole", hole)
			start("small", newFickle(t, small))
			start("slow", newFickle(t, l4.sim("slow")))
		}
		f.listen(t, env)
		g.Serves(t, "m")
		f.begun = time.Now()
		f.mu.Lock()
		f.turned = f.begun.Add(turn)
		f.mu.Unlock()
		time.AfterFunc(turn, func() {
			hung.hang()
			hole.open()
		})
		var wg sync.WaitGroup
		for i, r := range trace {
			time.Sleep(time.Until(f.begun.Add(seconds(r.at))))
			wg.Go(func() { f.ls[i], f.errs[i] = stream(g.Client, "http://gateway", r) })
		}
		wg.Wait()
		f.gauge = metricsOf(t, g)
		hung.mend()
	})
	return f
}

// blackHole answers at once with a status of success and an error, once it is open.
type blackHole struct {
	http.Handler
	mu    sync.Mutex
	opens bool
}

func (h *blackHole) open() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.opens = true
}

func (h *blackHole) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	opens := h.opens
	h.mu.Unlock()
	if r.Method != http.MethodPost || !opens {
		h.Handler.ServeHTTP(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	io.WriteString(w, `{"error":{"message":"CUDA out of memory","type":"server_error","code":500}}`)
}

func metricsOf(t *testing.T, g *Gateway) string {
	t.Helper()
	resp, err := g.Client.Get("http://admin/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// listen records what heartbeats and events say of the workers, as 'pulley worker ls' and 'pulley events' show it.
func (f *badFleet) listen(t *testing.T, env *Env) {
	onHeartbeats(t, env, func(h *subjects.Heartbeat) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if _, had := f.first[h.Name]; !had && h.InFlight > 0 {
			f.first[h.Name] = time.Now()
		}
		if f.named[h.Name] == "" && h.Notes() != "" && !f.begun.IsZero() {
			f.named[h.Name], f.after[h.Name] = "note: "+h.Notes(), 0 // before it had a request
			if at, had := f.first[h.Name]; had {
				f.after[h.Name] = time.Since(at)
			}
		}
		if f.named[h.Name] != "" || h.Reason == "" || f.turned.IsZero() || time.Now().Before(f.turned) || h.State == subjects.Left {
			return
		}
		f.named[h.Name] = string(h.State) + ": " + h.Reason
		f.after[h.Name] = time.Since(f.turned)
	})
	nc, _ := env.Connect("events")
	_, err := nc.Subscribe(subjects.AllEvents, func(m *nats.Msg) {
		var e subjects.Event
		if json.Unmarshal(m.Data, &e) == nil && e.Worker != "" {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.kinds[e.Worker] = append(f.kinds[e.Worker], string(e.Kind))
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// from returns the latencies of what was sent from a time on, and how many of these requests failed.
func (f *badFleet) from(at time.Duration) (ls []latency, failed int) {
	for i, r := range f.trace {
		switch {
		case seconds(r.at) < at:
		case f.errs[i] != nil:
			failed++
		default:
			ls = append(ls, f.ls[i])
		}
	}
	return ls, failed
}

// twice returns a trace that is followed by itself.
func twice(trace []traced) []traced {
	last := trace[len(trace)-1].at
	both := slices.Clone(trace)
	for _, r := range trace {
		r.at += last
		both = append(both, r)
	}
	return both
}

// A fleet with one engine that hangs, one that swallows requests, a slow one and a small one serves as the four good ones do
// alone, from a minute after they turned bad on. Each bad one is named with its reason.
func TestBadEnginesInAFleet(t *testing.T) {
	if raceEnabled {
		t.Skip("slow with the race detector, and what it runs others run too")
	}
	good := []sim.Config{a100.sim("0"), a100.sim("1"), a100.sim("2"), a100.sim("3")}
	for i := range good { // no more at once than the KV cache holds
		good[i].Slots = 60
	}
	for what, c := range map[string]struct {
		file     string
		requests int
		turn     time.Duration
	}{
		"conversations, bad from the start": {"azure_conv_slice.csv", 3000, 0},
		"conversations, bad after a minute": {"azure_conv_slice.csv", 3000, time.Minute},
	} {
		t.Run(what, func(t *testing.T) {
			trace := atLoad(0.6, slice(t, c.file, c.requests), good)
			if c.turn > 0 { // a p99 of the requests of one minute would be that of ten
				trace = twice(trace)
			}
			inMostRuns(t, func() []claim {
				alone, f := replayBad(t, trace, false, 0), replayBad(t, trace, true, c.turn)
				from := c.turn + time.Minute
				want, lost := alone.from(from)
				got, failed := f.from(from)
				a, b := figuresOf(want), figuresOf(got)
				t.Logf("%d requests in %.0f s, %d from %v on\n%s\nthe good ones alone     %v   %d failed\nwith the bad ones       %v   %d failed", len(trace), trace[len(trace)-1].at, len(got), from, figuresHead, a, lost, b, failed)
				for _, name := range []string{"hung", "hole", "small", "slow"} {
					t.Logf("%s: after %v %q; events %q", name, f.after[name].Round(time.Millisecond), f.named[name], f.kinds[name])
				}
				for i, err := range f.errs {
					if err != nil {
						t.Logf("request %d at %.1f s: %v", i, trace[i].at, err)
					}
				}
				claims := []claim{
					atMost("failed requests of 1000", float64(failed)/float64(len(got)+failed)*1000, 1),
					atMost("TTFT p99, relative to the good ones alone", b.ttft[2], 1.3*a.ttft[2]),
				}
				for _, name := range []string{"hung", "hole", "small", "slow"} {
					after := 1e9
					if f.named[name] != "" {
						after = f.after[name].Seconds()
					}
					claims = append(claims, atMost("seconds until "+name+" is named", after, 10))
					if !strings.Contains(f.gauge, fmt.Sprintf("worker=%q", name)) {
						t.Errorf("no metric of worker %s", name)
					}
				}
				host, _ := os.Hostname()
				for name, kind := range map[string]string{"small": policy.NoteSmall, "slow": policy.NoteSlow} {
					if !strings.HasPrefix(f.named[name], "note: m: "+kind) || !slices.Contains(f.kinds[name], string(subjects.EventWorkerNote)) {
						t.Errorf("%s: %q, events %q", name, f.named[name], f.kinds[name])
					}
					if want := fmt.Sprintf(`pulley_worker_note{host=%q,kind=%q,worker=%q} 1`, host, kind, name); !strings.Contains(f.gauge, want) {
						t.Errorf("no metric %s", want)
					}
				}
				for name, reason := range f.named {
					if strings.HasPrefix(name, "good") && strings.HasPrefix(reason, "note") {
						t.Errorf("%s: %q", name, reason)
					}
				}
				return claims
			})
		})
	}
}
