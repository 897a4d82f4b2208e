package scenarios

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/worker"
)

// mostPods is the maxReplicas of the fleets that follow a rule.
const mostPods = 12

// modelLoad is how long an engine loads its model before it takes requests.
const modelLoad = time.Minute

// A scalingRule says what the size of a fleet follows.
type scalingRule struct {
	name   string
	fixed  int                                    // so many workers at any time; 0: as many as metric / target asks for
	metric func(t *testing.T, g *Gateway) float64 // of the whole pool
	target float64                                // for each worker
}

// The metrics that rules follow, as a gateway serves them.
func secondsOfWork(t *testing.T, g *Gateway) float64 {
	page := metricsOf(t, g)
	return gaugeOf(page, "pulley_pool_demand_seconds") * gaugeOf(page, "pulley_pool_workers")
}
func requestsThere(t *testing.T, g *Gateway) float64 {
	return gaugeOf(metricsOf(t, g), "pulley_pool_demand_slots")
}
func requestsWaiting(t *testing.T, g *Gateway) float64 {
	return gaugeOf(metricsOf(t, g), "pulley_queue_waiting_requests")
}

// gaugeOf is the sum of a gauge on a page of metrics.
func gaugeOf(page, name string) (sum float64) {
	for line := range strings.Lines(page) {
		if at := strings.LastIndexByte(line, ' '); strings.HasPrefix(line, name+"{") {
			n, _ := strconv.ParseFloat(strings.TrimSpace(line[at:]), 64)
			sum += n
		}
	}
	return sum
}

// autoscaler is the algorithm of Kubernetes' HorizontalPodAutoscaler for an external metric with a target of the type
// AverageValue, as KEDA sets it up, with the defaults of its behavior: at most twice as many pods or four more at each step, and as
// many as the largest number that was wanted within five minutes.
type autoscaler struct {
	least, most int
	wanted      []int // at each step of the last five minutes, the newest last; at first the number of pods that there are
}

const (
	scaleEvery     = 15 * time.Second // --horizontal-pod-autoscaler-sync-period
	scaleTolerance = 0.1              // --horizontal-pod-autoscaler-tolerance
	scaleDownSteps = 20               // stabilizationWindowSeconds 300 of scaleDown, in steps
)

// step returns how many pods there should be, of which there are now so many.
func (a *autoscaler) step(pods int, metric, target float64) int {
	want := pods
	if ratio := metric / (target * float64(pods)); math.Abs(ratio-1) > scaleTolerance {
		want = int(math.Ceil(metric / target))
	}
	a.wanted = append(a.wanted, want)
	a.wanted = a.wanted[max(len(a.wanted)-scaleDownSteps, 0):]
	if want < pods {
		want = min(slices.Max(a.wanted), pods)
	}
	return min(max(min(want, max(2*pods, pods+4)), a.least), a.most)
}

// pod is a worker with its engine.
type pod struct {
	*Worker
	engine  *sim.Engine
	begun   time.Time
	ended   time.Time // zero: it runs
	leaving bool
}

// scaled is what a fleet that follows a rule makes of a trace.
type scaled struct {
	ls                   []latency
	gpuHours             float64
	least, most, changes int // of the number of workers
	log                  []string
}

// withinSLO is the part of the requests whose first token came within 2 s and 1 ms for each token of the prompt.
func (s scaled) withinSLO(trace []traced) float64 {
	n := 0
	for i, l := range s.ls {
		if l.ttft > 0 && l.ttft <= 2+float64(trace[i].input)/1000 {
			n++
		}
	}
	return float64(n) / float64(len(s.ls))
}

// scale replays a trace on a fleet of like workers that follows a rule, and begins with so many.
func scale(t *testing.T, trace []traced, like sim.Config, rule scalingRule, begin int) (s scaled) {
	t.Helper()
	s.ls = make([]latency, len(trace))
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{NoWorkerWait: 5 * time.Minute})
		g.Client.Transport.(*http.Transport).MaxIdleConnsPerHost = 1000
		var pods []*pod
		start := func(load time.Duration) {
			cfg := like
			cfg.Name, cfg.StartTime = fmt.Sprintf("w%d", len(pods)), load
			e := env.Engine(cfg)
			pods = append(pods, &pod{Worker: env.Worker(e, worker.Config{Name: cfg.Name, Slots: cfg.Slots}), engine: e.Engine, begun: time.Now()})
		}
		if rule.fixed > 0 {
			begin = rule.fixed
		}
		for range begin {
			start(0)
		}
		g.Serves(t, "m")
		begun := time.Now()
		for _, p := range pods {
			p.begun = begun
		}
		var ended sync.WaitGroup
		a := autoscaler{1, mostPods, []int{begin}}
		s.least, s.most = begin, begin
		next := begun.Add(scaleEvery)
		var clients sync.WaitGroup
		step := func() {
			var there []*pod
			for _, p := range pods {
				if !p.leaving {
					there = append(there, p)
				}
			}
			m := rule.metric(t, g)
			n := a.step(len(there), m, rule.target)
			s.log = append(s.log, fmt.Sprintf("%4.0f s: %d pods, %.4g of %v each: want %d", time.Since(begun).Seconds(), len(there), m, rule.target, n))
			if n != len(there) {
				s.changes++
			}
			s.least, s.most = min(s.least, n), max(s.most, n)
			for range n - len(there) {
				start(modelLoad)
			}
			if n >= len(there) {
				return
			}
			// Kubernetes removes pods first that are not ready, and then those with the least deletion cost.
			slices.SortStableFunc(there, func(a, b *pod) int {
				if ar, br := time.Since(a.begun) > modelLoad, time.Since(b.begun) > modelLoad; ar != br {
					if br {
						return -1
					}
					return 1
				}
				return a.engine.Stats().Running - b.engine.Stats().Running
			})
			for _, p := range there[:len(there)-n] {
				p.leaving = true
				ended.Go(func() {
					p.Stop()
					p.ended = time.Now()
				})
			}
		}
		for i, r := range trace {
			at := begun.Add(seconds(r.at))
			for rule.fixed == 0 && !next.After(at) {
				time.Sleep(time.Until(next))
				step()
				next = next.Add(scaleEvery)
			}
			time.Sleep(time.Until(at))
			clients.Go(func() {
				var err error
				if s.ls[i], err = stream(g.Client, "http://gateway", r); err != nil {
					t.Errorf("request %d: %v", i, err)
				}
			})
		}
		end := time.Now()
		clients.Wait()
		ended.Wait()
		for _, p := range pods {
			if p.ended.IsZero() || p.ended.After(end) {
				p.ended = end
			}
			s.gpuHours += max(p.ended.Sub(p.begun), 0).Hours()
		}
	})
	return s
}

// tide thins a trace so that its rate rises and falls between a fifth and all of it, as over a day, but with this period.
func tide(rng *rand.Rand, trace []traced, period float64) (thinned []traced) {
	phase := rng.Float64()
	for _, r := range trace {
		if rng.Float64() < 0.6-0.4*math.Cos(2*math.Pi*(r.at/period+phase)) {
			thinned = append(thinned, r)
		}
	}
	return thinned
}

// repeated is a trace that goes on n times as long; it begins in the middle.
func repeated(rng *rand.Rand, trace []traced, n int) (all []traced) {
	length := trace[len(trace)-1].at + 1
	from := rng.Float64() * length
	for k := range n + 1 {
		for _, r := range trace {
			if r.at += float64(k)*length - from; r.at >= 0 && r.at < float64(n)*length {
				all = append(all, r)
			}
		}
	}
	return all
}

// copies are n engines like one.
func copies(like sim.Config, n int) (engines []sim.Config) {
	for i := range n {
		like.Name = fmt.Sprint("engine-", i)
		engines = append(engines, like)
	}
	return engines
}

// likeTraffic is a trace of like requests, as many as a number of workers can do, from one time to another. With a generator they come at
// random, without one evenly.
func likeTraffic(rng *rand.Rand, r traced, like sim.Config, workers, from, to float64) (trace []traced) {
	for every := 1 / (workers * capacity(like, []traced{r})); from < to; {
		r.at = from
		trace = append(trace, r)
		if rng == nil {
			from += every
		} else {
			from += every * rng.ExpFloat64()
		}
	}
	return trace
}

// The seconds of work that a pool has say how many workers its traffic needs, however many it has, whether prompts or answers are
// what takes the time.
func TestSecondsOfWorkAreThoseOfTheTraffic(t *testing.T) {
	if raceEnabled {
		t.Skip("slow with the race detector, and what it runs others run too")
	}
	like := unlike()[3]
	for about, r := range map[string]traced{"answers": {input: 50, output: 150}, "prompts": {input: 4000, output: 10}} {
		t.Run(about, func(t *testing.T) {
			inMostRuns(t, func() (claims []claim) {
				const need, samples = 1.5, 40
				seed := rand.Uint64()
				trace := likeTraffic(rand.New(rand.NewPCG(seed, 0)), r, like, need, 0, 62)
				for _, workers := range []int{2, 5} {
					sum := 0.0
					run(t, func(t *testing.T, env *Env) {
						g, _, _ := pairWith(t, env, func(cfg sim.Config) worker.Config { return worker.Config{Slots: cfg.Slots} }, copies(like, workers)...)
						g.Client.Transport.(*http.Transport).MaxIdleConnsPerHost = 1000
						var measuring sync.WaitGroup
						measuring.Go(func() {
							time.Sleep(20 * time.Second)
							for range samples {
								time.Sleep(time.Second)
								sum += secondsOfWork(t, g) / samples
							}
						})
						replayHTTP(t, trace, g.Client, "http://gateway")
						measuring.Wait()
					})
					what := fmt.Sprintf("workers that are needed, of %d", workers)
					t.Logf("seed %d, %s: %.3g of %.3g", seed, what, sum/policy.DemandAhead, need)
					claims = append(claims, atLeast(what, sum/policy.DemandAhead, 0.65*need), atMost(what, sum/policy.DemandAhead, 1.5*need))
				}
				return claims
			})
		})
	}
}

// A fleet that follows the seconds of work has the size that the traffic needs, two minutes after that has become twice as much,
// and does not grow beyond while models load.
func TestFleetFollowsSecondsOfWork(t *testing.T) {
	if raceEnabled {
		t.Skip("slow with the race detector, and what it runs others run too")
	}
	like := unlike()[3]
	r := traced{input: 300, output: 150}
	trace := append(likeTraffic(nil, r, like, 1.4, 0, 60), likeTraffic(nil, r, like, 2.8, 60, 240)...)
	inMostRuns(t, func() []claim {
		s := scale(t, trace, like, scalingRule{name: "seconds", metric: secondsOfWork, target: 0.75 * policy.DemandAhead}, 2)
		late := 0.0
		for i, l := range s.ls {
			if trace[i].at > 180 {
				late = max(late, l.ttft)
			}
		}
		t.Logf("%d to %d workers, first tokens within %.2f s at last\n%s", s.least, s.most, late, strings.Join(s.log, "\n"))
		return []claim{atLeast("workers", float64(s.most), 4), atMost("workers", float64(s.most), 9), atMost("TTFT at last", late, 2)}
	})
}

// TestScalingTable prints the table of docs/autoscaling.md (make scaling). It takes minutes, and runs only with PULLEY_SCALING=1;
// PULLEY_SCALING=seconds,fixed chooses rules. PULLEY_SCALING_SEED makes the same traffic again, and PULLEY_SCALING_TRACE names
// another trace than testdata/azure_conv_slice.csv, such as that of the whole hour, which is replayed once as it is.
func TestScalingTable(t *testing.T) {
	which := os.Getenv("PULLEY_SCALING")
	if which == "" {
		t.Skip("PULLEY_SCALING=1 asks for it")
	}
	like, seed := unlike()[3], rand.Uint64()
	if s, err := strconv.ParseUint(os.Getenv("PULLEY_SCALING_SEED"), 10, 64); err == nil {
		seed = s
	}
	var trace []traced
	if file := os.Getenv("PULLEY_SCALING_TRACE"); file != "" {
		trace = readTrace(t, file)
	} else {
		rng := rand.New(rand.NewPCG(seed, 0))
		trace = tide(rng, repeated(rng, readTrace(t, "testdata/azure_conv_slice.csv"), 2), 600)
	}
	end := trace[len(trace)-1].at
	mean := float64(len(trace)) / end / capacity(like, trace)
	t.Logf("seed %d: %d requests in %.0f s, work for %.2f workers on average", seed, len(trace), end, mean)
	var table strings.Builder
	table.WriteString("| rule | target of a worker | GPU-hours | TTFT p50 | p95 | p99 | within SLO | workers | changes |\n|---|---|---|---|---|---|---|---|---|\n")
	need := int(math.Ceil(mean))
	for _, r := range []scalingRule{
		{name: "seconds", metric: secondsOfWork, target: 0.75 * policy.DemandAhead},
		{name: "fixed", fixed: need + 1}, {name: "fixed", fixed: need + 3},
		{name: "in flight", metric: requestsThere, target: float64(like.Slots)},
		{name: "queue", metric: requestsWaiting, target: 1},
		{name: "fixed", fixed: need + 2},
		{name: "seconds", metric: secondsOfWork, target: 0.6 * policy.DemandAhead},
		{name: "in flight", metric: requestsThere, target: 0.75 * float64(like.Slots)},
		{name: "queue", metric: requestsWaiting, target: 5},
	} {
		if which != "1" && !slices.Contains(strings.Split(which, ","), r.name) {
			continue
		}
		s := scale(t, trace, like, r, need+1)
		f := figuresOf(s.ls)
		row := fmt.Sprintf("| %s | %.4g | %.3g | %.2f | %.2f | %.2f | %.4f | %d–%d | %d |", r.name, r.target, s.gpuHours,
			f.ttft[0], f.ttft[1], f.ttft[2], s.withinSLO(trace), s.least, s.most, s.changes)
		if r.fixed > 0 {
			row = strings.Replace(row, "| 0 |", "| – |", 1)
		}
		t.Logf("%s\n%s", row, strings.Join(s.log, "\n"))
		table.WriteString(row + "\n")
	}
	t.Logf("\n%s", &table)
}
