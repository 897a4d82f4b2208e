package scenarios

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// A card is a kind of GPU with an engine on it that serves an 8B model.
type card struct {
	name      string
	prefill   float64 // tokens per second
	base, per time.Duration
	kv        int     // tokens of KV cache
	bandwidth float64 // bytes per second
}

var (
	h100 = card{"h100", 20000, 6500 * time.Microsecond, 80 * time.Microsecond, 450_000, 3350e9}
	a100 = card{"a100", 8000, 12 * time.Millisecond, 160 * time.Microsecond, 140_000, 1555e9}
	l4   = card{"l4", 2500, 55 * time.Millisecond, 740 * time.Microsecond, 30_000, 300e9}
)

const maxNumSeqs = 256 // vLLM's default for concurrent requests

func (c card) sim(name string) sim.Config {
	return sim.Config{Name: name, Models: []string{"m"}, Slots: maxNumSeqs, PrefillRate: c.prefill,
		ITLBase: c.base, ITLPerRequest: c.per, KVTokens: c.kv, TokensPerEvent: 4}
}

// A board is a GPU as NVML reports it, once per second.
type board struct {
	mu     sync.Mutex
	now    gpu.Snapshot // what the next sample shows
	shown  gpu.Snapshot
	seq    uint64
	silent bool
}

const sampled = time.Second

// board starts a board, which samples until the test ends.
func (c card) board(t testing.TB) *board {
	b := &board{}
	b.now = gpu.Snapshot{
		Device: gpu.Device{UUID: "GPU-" + c.name, Name: c.name, Bandwidth: &c.bandwidth},
		Load:   "1", Memory: &gpu.Memory{Total: 80 << 30, Used: 72 << 30, Free: 8 << 30},
		Utilization: &gpu.Utilization{GPU: 100, Memory: 50}, Margin: new(40), Throttle: new(gpu.ThrottlePowerCap), WatchesXIDs: true,
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() { // ends with the test
		defer close(stopped)
		for tick := time.NewTicker(sampled); ; {
			b.sample()
			select {
			case <-tick.C:
			case <-stop:
				tick.Stop()
				return
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-stopped })
	return b
}

func (b *board) sample() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.silent {
		b.shown = b.now
		b.shown.At = time.Now()
	}
}

// set changes what the next sample shows.
func (b *board) set(change func(*gpu.Snapshot)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change(&b.now)
}

// xid reports an error of the driver.
func (b *board) xid(code int) {
	b.set(func(s *gpu.Snapshot) {
		b.seq++
		s.XIDs = append(s.XIDs[:len(s.XIDs):len(s.XIDs)], gpu.XID{Seq: b.seq, At: time.Now(), Code: code})
	})
}

func (b *board) silence() { b.mu.Lock(); defer b.mu.Unlock(); b.silent = true }

// Latest is what a sampler returns.
func (b *board) Latest() (gpu.Reading, time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, age := b.shown, time.Since(b.shown.At)
	switch {
	case s.At.IsZero():
		return gpu.Reading{State: gpu.Unknown}, age
	case age > 30*time.Second:
		s.State = gpu.Unknown
	case age > 3*sampled:
		s.State = gpu.Stale
	default:
		s.State = gpu.Fresh
	}
	return gpu.Reading{At: s.At, State: s.State, Driver: "580.65", GPUs: []gpu.Snapshot{s}}, age
}

// A host is a GPU with its engine and its worker.
type host struct {
	*testenv.Engine
	*Worker
	*board
	name string

	mu       sync.Mutex
	sim      *sim.Engine
	broken   map[string]bool // paths that answer 500
	arrivals []time.Time     // of inference requests
	open     int
	most     int // most that were open at once
}

func (h *host) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	infers := r.Method == http.MethodPost && r.Header.Get("X-Request-Id") != "" // a client's request, and not the worker's probe
	h.mu.Lock()
	eng, broken := h.sim, h.broken[r.URL.Path]
	if infers {
		h.arrivals = append(h.arrivals, time.Now())
		h.open++
		h.most = max(h.most, h.open)
	}
	h.mu.Unlock()
	if broken {
		http.Error(w, "CUDA error", http.StatusInternalServerError)
		return
	}
	if infers {
		defer func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.open--
		}()
	}
	eng.ServeHTTP(w, r)
}

func (h *host) breaks(paths ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.broken = make(map[string]bool)
	for _, p := range paths {
		h.broken[p] = true
	}
}

// restart replaces the running engine by a new one.
func (h *host) restart(t testing.TB, cfg sim.Config) {
	t.Helper()
	eng, err := sim.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sim = eng
}

// took is how many requests arrived within a period.
func (h *host) took(from, to time.Time) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, at := range h.arrivals {
		if !at.Before(from) && at.Before(to) {
			n++
		}
	}
	return n
}

func (h *host) stats() sim.Stats {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sim.Stats()
}

func newHost(t *testing.T, env *Env, cfg sim.Config, b *board, wc worker.Config) *host {
	t.Helper()
	eng, err := sim.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	h := &host{board: b, name: cfg.Name, sim: eng}
	h.Engine = env.Handler(cfg.Name, h)
	wc.Name = cfg.Name
	if b != nil {
		wc.NVML = b
	}
	h.Worker = env.Worker(h.Engine, wc)
	return h
}

// mixedCards are the GPUs of a pool whose fastest is eight times as fast as the slowest.
func mixedCards() []card { return []card{h100, a100, a100, l4, l4} }

func named(cards []card) (engines []sim.Config) {
	for i, c := range cards {
		engines = append(engines, c.sim(fmt.Sprint(c.name, "-", i)))
	}
	return engines
}

// atLoadOfCards is atLoad for engines that run no more at once than the KV cache holds.
func atLoadOfCards(load float64, trace []traced, cards []card) []traced {
	input, output := means(trace)
	engines := named(cards)
	for i := range engines {
		engines[i].Slots = min(maxNumSeqs, int(float64(engines[i].KVTokens)/(input+output)))
	}
	return atLoad(load, trace, engines)
}

// replayed is the result of a trace on a pool.
type replayed struct {
	ls    []latency
	hosts []*host
	begun time.Time
}

func (r replayed) preempted() (n int64) {
	for _, h := range r.hosts {
		n += h.stats().Preempted
	}
	return n
}

// replayCards replays a trace on a pool whose workers have the same configuration; during runs at
// the same time.
func replayCards(t *testing.T, trace []traced, cards []card, wc worker.Config, during func(r *replayed)) (r replayed) {
	t.Helper()
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		g.Client.Transport.(*http.Transport).MaxIdleConnsPerHost = 1000
		for i, cfg := range named(cards) {
			r.hosts = append(r.hosts, newHost(t, env, cfg, cards[i].board(t), wc))
		}
		g.Serves(t, "m")
		r.begun = time.Now()
		var wg sync.WaitGroup
		if during != nil {
			wg.Go(func() { during(&r) })
		}
		r.ls = replayHTTP(t, trace, g.Client, "http://gateway")
		wg.Wait()
		for _, h := range r.hosts {
			s := h.stats()
			t.Logf("%-7s %4d requests, at most %3d with it and %3d at once, %3d preempted", h.name, len(h.arrivals), h.most, s.MaxRunning, s.Preempted)
		}
	})
	return r
}

const figuresHead = "seconds                TTFT p50     p95     p99   E2E p50     p95     p99   preempted"

// slice is the start of a trace.
func slice(t *testing.T, file string, n int) []traced {
	t.Helper()
	if testing.Short() {
		t.Skip("replays minutes of a trace")
	}
	if raceEnabled {
		n = 100 // the race detector looks for races; the figures mean little
	}
	return readTrace(t, "testdata/"+file)[:n]
}

// TestAdaptiveAgainstFixedSlots replays production traces, once with the engines' own limit as
// slots, and once without configured slots. Prompts of code are long and come in bursts, which
// tests where requests wait: with fixed slots inside the engines, where prices alone keep them
// off the slow ones. Conversations fill the memory of small GPUs, and take four times as long
// there as it takes to wait for a fast one.
func TestAdaptiveAgainstFixedSlots(t *testing.T) {
	for _, c := range []struct {
		name, file string
		requests   int
		cards      []card
		ttft, e2e  float64 // upper bounds for p95 and p99, relative to fixed slots
		preempts   bool    // with fixed slots there are preemptions
	}{
		{"code on unlike GPUs", "azure_code_slice.csv", 600, mixedCards(), 1.15, 1.2, false},
		{"conversations on unlike GPUs", "azure_conv_slice.csv", 1000, mixedCards(), 1.25, 1.25, false},
		{"conversations on L4s", "azure_conv_slice.csv", 450, []card{l4, l4, l4, l4}, 1.15, 1.1, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			trace := atLoadOfCards(0.8, slice(t, c.file, c.requests), c.cards)
			inMostRuns(t, func() []claim {
				fixed := replayCards(t, trace, c.cards, worker.Config{Slots: maxNumSeqs, Profile: policy.FixedSlots}, nil)
				adaptive := replayCards(t, trace, c.cards, worker.Config{Profile: policy.Balanced}, nil)
				f, a := figuresOf(fixed.ls), figuresOf(adaptive.ls)
				t.Logf("%d requests at 80 %% of capacity\n%s\nfixed, %d slots       %v   %9d\nadaptive               %v   %9d",
					len(trace), figuresHead, maxNumSeqs, f, fixed.preempted(), a, adaptive.preempted())
				if raceEnabled {
					return nil
				}
				const p95, p99 = 1, 2
				claims := []claim{
					atMost("TTFT p95, relative to fixed slots", a.ttft[p95], c.ttft*f.ttft[p95]),
					atMost("E2E p99, relative to fixed slots", a.e2e[p99], c.e2e*f.e2e[p99]),
					atMost("three times the preemptions, relative to fixed slots", float64(3*adaptive.preempted()), float64(fixed.preempted())),
				}
				if c.preempts {
					claims = append(claims, atLeast("preemptions with fixed slots", float64(fixed.preempted()), 1))
				}
				return claims
			})
		})
	}
}

// TestHotGPU has one of the GPUs run at half its clocks from the middle of a trace on.
func TestHotGPU(t *testing.T) {
	cards := mixedCards()
	trace := atLoadOfCards(0.8, slice(t, "azure_code_slice.csv", 600), cards)
	half := seconds(trace[len(trace)/2].at)
	const hot = 1 // an A100
	share := func(r replayed) (before, after float64) {
		all := func(from, to time.Time) (n int) {
			for _, h := range r.hosts {
				n += h.took(from, to)
			}
			return n
		}
		middle, end := r.begun.Add(half), r.begun.Add(time.Hour)
		return float64(r.hosts[hot].took(r.begun, middle)) / float64(all(r.begun, middle)),
			float64(r.hosts[hot].took(middle, end)) / float64(all(middle, end))
	}
	inMostRuns(t, func() []claim {
		cool := replayCards(t, trace, cards, worker.Config{}, nil)
		heated := replayCards(t, trace, cards, worker.Config{}, func(r *replayed) {
			time.Sleep(half)
			h := r.hosts[hot]
			if err := h.sim.SetClock(0.5); err != nil {
				t.Error(err)
			}
			h.set(func(s *gpu.Snapshot) {
				s.Throttle = new(gpu.ThrottleHardware | gpu.ThrottleHardwareHeat)
			})
		})
		c, h := figuresOf(cool.ls), figuresOf(heated.ls)
		coolBefore, coolAfter := share(cool)
		before, after := share(heated)
		const p99 = 2
		t.Logf("%d requests at 80 %% of capacity; an A100 at half its clocks from the middle on\n%s\ncool                   %v   %9d\nhot                    %v   %9d\n"+
			"its share of requests: %.1f %% then %.1f %% cool, %.1f %% then %.1f %% hot; E2E p99 × %.2f",
			len(trace), figuresHead, c, cool.preempted(), h, heated.preempted(), 100*coolBefore, 100*coolAfter, 100*before, 100*after, h.e2e[p99]/c.e2e[p99])
		if raceEnabled {
			return nil
		}
		return []claim{
			atMost("the hot GPU's share of the requests, relative to a cool one", after, 0.85*coolAfter),
			atMost("E2E p99, relative to a cool GPU", h.e2e[p99], 1.3*c.e2e[p99]),
		}
	})
}

// steady is an engine of which a few make a pool that underload keeps busy.
func steady(name string) sim.Config {
	return sim.Config{Name: name, Models: []string{"m"}, Slots: 64, PrefillRate: 1000,
		ITLBase: 70 * time.Millisecond, ITLPerRequest: 2 * time.Millisecond, KVTokens: 100_000}
}

// TestSignalsThatFail has a worker lose its signals about its engine and its GPU while it serves.
func TestSignalsThatFail(t *testing.T) {
	const slots = 6
	for name, c := range map[string]struct {
		dialect engine.Dialect
		nvml    bool
		fail    func(h *host)
		// what the heartbeat reports of both, at the end
		engine, gpu string
	}{
		"the metrics page breaks": {nvml: true, engine: "missing", gpu: "fresh", fail: func(h *host) { h.breaks("/metrics") }},
		"NVML falls silent":       {nvml: true, engine: "fresh", gpu: "missing", fail: func(h *host) { h.silence() }},
		"both":                    {nvml: true, engine: "missing", gpu: "missing", fail: func(h *host) { h.breaks("/metrics"); h.silence() }},
		"there never were any":    {dialect: engine.DialectOpenAI, engine: "missing", gpu: "missing", fail: func(*host) {}},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g := env.Gateway(gateway.Config{})
				last := recordBeats(t, env)
				cfg := steady("a")
				cfg.Dialect = c.dialect
				var b *board
				if c.nvml {
					b = a100.board(t)
				}
				h := newHost(t, env, cfg, b, worker.Config{Slots: slots})
				g.Serves(t, "m")
				l := underLoad(t, g, 12, "standard")
				time.Sleep(20 * time.Second)
				broke := time.Now()
				c.fail(h)
				time.Sleep(40 * time.Second)
				end := time.Now()
				beat := last.of("a")
				l.end(t, 150)
				if h.most > slots {
					t.Errorf("%d requests were with the engine at once, want at most %d", h.most, slots)
				}
				before, after := h.took(broke.Add(-20*time.Second), broke), h.took(end.Add(-20*time.Second), end)
				t.Logf("%d requests in the 20 s before, %d in the last 20 s; at most %d at once", before, after, h.most)
				if during := h.took(broke, broke.Add(20*time.Second)); 10*after < 9*before || 10*during < 9*before {
					t.Errorf("it took %d requests in 20 s, then %d, at last %d", before, during, after)
				}
				if r := beat.Capacity; r == nil || r.Engine != c.engine || r.GPU != c.gpu || beat.State != subjects.Ready {
					t.Errorf("the heartbeat says %s %q, %+v, want engine %s and GPU %s", beat.State, beat.Reason, r, c.engine, c.gpu)
				}
			})
		})
	}
}

// fenceWithin is how long after an event a fenced worker may still take requests.
const fenceWithin = 1500 * time.Millisecond

// TestFences has something happen to a GPU or to its engine under load.
func TestFences(t *testing.T) {
	type fence struct {
		event  func(h *host)
		late   time.Duration // time until it can be known
		reason string        // part of the heartbeat's reason
		state  subjects.State
		// The tries do not bring it back; heal does, within back.
		tries []func(h *host)
		heal  func(h *host)
		back  time.Duration
	}
	cfg := steady("a")
	for name, f := range map[string]fence{
		"GPU lost": {
			event: func(h *host) { h.set(func(s *gpu.Snapshot) { s.Lost = "is lost" }) }, reason: "is lost", state: subjects.Fenced,
			tries: []func(*host){
				func(h *host) { h.set(func(s *gpu.Snapshot) { s.Lost = "" }) },
				func(h *host) { h.restart(t, cfg) },
			},
			heal: func(h *host) { h.set(func(s *gpu.Snapshot) { s.Load = "2" }) }, back: 3 * time.Second,
		},
		"XID 79": {
			event: func(h *host) { h.xid(79) }, reason: "XID 79", state: subjects.Fenced,
			tries: []func(*host){func(*host) { time.Sleep(time.Minute) }},
			heal:  func(h *host) { h.restart(t, cfg) }, back: 6 * time.Second,
		},
		"XID 79, engine restarted at once": {
			event: func(h *host) { h.xid(79) }, reason: "XID 79", state: subjects.Fenced,
			tries: []func(*host){func(h *host) { h.restart(t, cfg) }, func(*host) { time.Sleep(30 * time.Second) }},
			heal:  func(*host) { time.Sleep(15 * time.Second) }, back: 6 * time.Second,
		},
		"XID 31, the engine does not answer": {
			event: func(h *host) { h.xid(31); h.breaks("/v1/models", "/health") }, state: subjects.Down,
			tries: []func(*host){func(*host) { time.Sleep(10 * time.Second) }},
			heal:  func(h *host) { h.breaks() }, back: 3 * time.Second,
		},
		"the engine stalls": {
			event: func(h *host) {
				h.sim.SetClock(1e-6)
				h.set(func(s *gpu.Snapshot) { s.Utilization = &gpu.Utilization{} })
			},
			late:   31 * time.Second, // 11 s if a stream had started
			reason: "stalled", state: subjects.Fenced,
			heal: func(h *host) {
				h.sim.SetClock(1)
				h.set(func(s *gpu.Snapshot) { s.Utilization = &gpu.Utilization{GPU: 100} })
			}, back: 3 * time.Second,
		},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g := env.Gateway(gateway.Config{})
				last := recordBeats(t, env)
				var hs []*host
				for _, name := range []string{"a", "b", "c"} { // the load needs all three
					hs = append(hs, newHost(t, env, steady(name), a100.board(t), worker.Config{Slots: 4}))
				}
				g.Serves(t, "m")
				l := underLoad(t, g, 9, "standard")
				time.Sleep(10*time.Second + time.Millisecond) // just after a sample
				a := hs[0]
				event := time.Now()
				f.event(a)
				time.Sleep(f.late + fenceWithin)
				fenced := time.Now()
				time.Sleep(4 * time.Second)
				beat := last.of("a")
				if beat.State != f.state || !strings.Contains(beat.Reason, f.reason) || beat.Live() {
					t.Errorf("it says %s, %q; want %s, and in it %q", beat.State, beat.Reason, f.state, f.reason)
				}
				if took := a.took(event.Add(-5*time.Second), event); took == 0 {
					t.Error("it took nothing before")
				}
				for i, try := range f.tries {
					try(a)
					time.Sleep(5 * time.Second)
					if beat := last.of("a"); beat.State != f.state {
						t.Errorf("after try %d to bring it back it says %s, %q", i, beat.State, beat.Reason)
					}
				}
				healed := time.Now()
				if took := a.took(fenced, healed); took != 0 {
					t.Errorf("fenced, it took %d requests; the first %v after the event", took, a.firstAfter(fenced).Sub(event))
				}
				f.heal(a)
				testenv.Eventually(t, "it comes back", f.back, func() bool { return last.of("a").State == subjects.Ready })
				time.Sleep(5 * time.Second)
				if took := a.took(healed, time.Now()); took == 0 {
					t.Error("back, it took nothing")
				}
				l.end(t, 80)
				t.Logf("the last request started %v after the event, %d went to others; fenced for %q",
					a.lastBefore(healed).Sub(event), a.stats().Aborted, beat.Reason)
			})
		})
	}
}

// TestSuspectGPU has the driver report the fault of a program while the engine is healthy: the
// worker continues after a health check.
func TestSuspectGPU(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		a := newHost(t, env, steady("a"), a100.board(t), worker.Config{Slots: 8})
		g.Serves(t, "m")
		l := underLoad(t, g, 12, "standard")
		time.Sleep(10 * time.Second)
		event := time.Now()
		a.xid(31)
		time.Sleep(10 * time.Second)
		if took := a.took(event.Add(3*time.Second), time.Now()); took == 0 {
			t.Error("it took nothing more though its engine answers")
		}
		l.end(t, 50)
	})
}

// firstAfter and lastBefore return when a request arrived.
func (h *host) firstAfter(t time.Time) time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, at := range h.arrivals {
		if at.After(t) {
			return at
		}
	}
	return time.Time{}
}

func (h *host) lastBefore(t time.Time) (last time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, at := range h.arrivals {
		if at.Before(t) {
			last = at
		}
	}
	return last
}
