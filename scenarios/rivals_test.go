package scenarios

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"iter"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/testenv/traffic"
)

// The rivals are routers of others in the model of affinitymodel_test.go. Each knows at any time what
// the real one hears late or estimates: queues, caches, and how fast each engine is.

// backend is an engine as a router sees it that pushes: with the turns that it was given and that
// find no slot yet, the oldest first.
type backend struct {
	*cachingEngine
	weight float64 // requests per second that it can do
	queued []*turn
}

// requests is how many it has.
func (b *backend) requests() int { return b.running() + len(b.queued) }

// waiting is how many of them wait for a slot or behind another prompt.
func (b *backend) waiting() int { return max(len(b.line)-1, 0) + len(b.queued) }

// ahead is how many seconds of prompts are before a new one.
func (b *backend) ahead(now float64) float64 {
	s := b.backlog(now)
	for _, t := range b.queued {
		s += b.takes(t)
	}
	return s
}

// ttft is the expected time to the first token of a turn.
func (b *backend) ttft(t *turn, now float64) float64 {
	s := b.ahead(now) + b.takes(t)
	if n := b.requests() - b.Slots; n >= 0 { // it also waits until so many have ended
		s += float64(n+1) / b.weight
	}
	return s
}

// A pushRoute chooses the backend for a turn at once.
type pushRoute func(bs []*backend, t *turn, now float64) *backend

// pushing makes a turnRoute of a router that pushes each turn when it comes.
func pushing(turns []turn, pick pushRoute) turnRoute {
	var bs []*backend
	to := make(map[*turn]*backend)
	plain := make([]traced, len(turns))
	for i := range turns {
		plain[i] = turns[i].traced
	}
	return func(es []*cachingEngine, t *turn, now float64) *cachingEngine {
		if bs == nil {
			for _, e := range es {
				bs = append(bs, &backend{cachingEngine: e, weight: capacity(e.Config, plain)})
			}
		}
		b := to[t]
		if b == nil {
			b = pick(bs, t, now)
			to[t] = b
			b.queued = append(b.queued, t)
		}
		if b.queued[0] != t || b.running() == b.Slots {
			return nil
		}
		b.queued = b.queued[1:]
		return b.cachingEngine
	}
}

// least pushes to the backend of the lowest score, and of equal ones to the one that has waited longest.
func least(score func(b *backend, t *turn, now float64) float64) pushRoute {
	return func(bs []*backend, t *turn, now float64) *backend {
		return slices.MinFunc(bs, func(a, b *backend) int {
			return cmp.Or(cmp.Compare(score(a, t, now), score(b, t, now)), cmp.Compare(a.took, b.took))
		})
	}
}

// weightedConnections is nginx's and HAProxy's weighted least connections, with true weights.
var weightedConnections = least(func(b *backend, _ *turn, _ float64) float64 { return float64(b.requests()+1) / b.weight })

// shortestQueue joins the shortest queue, with true weights: by the seconds of work that each engine
// has, its prompts as long as they are and its answers as long as the mean.
var shortestQueue = least(func(b *backend, _ *turn, now float64) float64 {
	return b.ahead(now) + float64(b.requests()+1)/b.weight
})

// lmetric multiplies the prompt tokens to compute by the number of requests (LMetric: Simple is Better,
// Multiplication May Be All You Need for LLM Request Scheduling, 2026). Here each factor is relative
// to the engine's speed, which the paper's like engines do not need.
var lmetric = least(func(b *backend, t *turn, now float64) float64 {
	return (b.ahead(now) + b.takes(t)) * float64(b.requests()+1) / b.weight
})

// dualMap maps each conversation to two engines by two hashes. It takes the one that has more of the
// prompt cached as long as that is expected to meet the SLO, else the one with the earlier first token
// (DualMap: Enabling Both Cache Affinity and Load Balancing for Distributed LLM Serving, 2026).
func dualMap(bs []*backend, t *turn, now float64) *backend {
	first := hashedTo(bs, t.session, 1)
	second := hashedTo(slices.DeleteFunc(slices.Clone(bs), func(b *backend) bool { return b == first }), t.session, 2)
	if second.knows(t) > first.knows(t) {
		first, second = second, first
	}
	if first.ttft(t, now) > sloOf(t).ttft && second.ttft(t, now) < first.ttft(t, now) {
		return second
	}
	return first
}

// hashedTo is rendezvous hashing with the engines' weights.
func hashedTo(bs []*backend, session, salt int) *backend {
	return slices.MaxFunc(bs, func(a, b *backend) int {
		return cmp.Compare(a.weight*hashOf(session, salt, a.Name), b.weight*hashOf(session, salt, b.Name))
	})
}

// hashOf is from an exponential distribution, so that the greatest of weight times it is by weight.
func hashOf(session, salt int, name string) float64 {
	h := fnv.New64a()
	fmt.Fprint(h, session, " ", salt, " ", name)
	x := h.Sum64()
	x = (x ^ x>>32) * 0xd6e8feb86659fd93
	x ^= x >> 29
	return -1 / math.Log((float64(x>>11)+0.5)/(1<<53))
}

// boundedLoads is consistent hashing with bounded loads: the first engine in the conversation's order
// that has at most 1.25 times its share of all requests (Mirrokni, Thorup, Zadimoghaddam: Consistent
// Hashing with Bounded Loads, 2016; KubeAI's PrefixHash has the same bound).
func boundedLoads(bs []*backend, t *turn, _ float64) *backend {
	total, weights := 1.0, 0.0
	for _, b := range bs {
		total += float64(b.requests())
		weights += b.weight
	}
	order := slices.SortedFunc(slices.Values(bs), func(a, b *backend) int {
		return cmp.Compare(b.weight*hashOf(t.session, 0, b.Name), a.weight*hashOf(t.session, 0, a.Name))
	})
	for _, b := range order {
		if float64(b.requests()+1) <= math.Ceil(1.25*total*b.weight/weights) {
			return b
		}
	}
	return order[0]
}

// llmd adds the scores of llm-d's default profile: twice the part of the prompt that is cached, the
// queue relative to the shortest and the longest, and the free part of the KV cache, for which the
// free slots stand here (llm-d-inference-scheduler: prefix-cache-scorer 2, queue-scorer 1,
// kv-cache-utilization-scorer 1).
func llmd(bs []*backend, t *turn, now float64) *backend {
	shortest, longest := math.MaxInt, 0
	for _, b := range bs {
		shortest, longest = min(shortest, b.waiting()), max(longest, b.waiting())
	}
	return least(func(b *backend, t *turn, _ float64) float64 {
		queue := 1.0
		if longest > shortest {
			queue = float64(longest-b.waiting()) / float64(longest-shortest)
		}
		return -2*float64(b.knows(t))/float64(max(t.input/block, 1)) - queue - (1 - min(float64(b.running())/float64(b.Slots), 1))
	})(bs, t, now)
}

// selective pushes only to engines on which nothing waits, of these to the one that has most of the
// prompt cached; else the turn waits in the router (SkyWalker: A Locality-Aware Cross-Region Load
// Balancer for LLM Inference, 2025).
func selective(es []*cachingEngine, t *turn, _ float64) *cachingEngine {
	var best *cachingEngine
	for _, e := range es {
		if e.running() == e.Slots || len(e.line) > 1 {
			continue
		}
		if best == nil || e.knows(t) > best.knows(t) || e.knows(t) == best.knows(t) && e.took < best.took {
			best = e
		}
	}
	return best
}

// centralQueue is one FIFO queue: an engine with a free slot takes the next turn, the one that has
// waited longest first.
func centralQueue(es []*cachingEngine, _ *turn, _ float64) *cachingEngine {
	var best *cachingEngine
	for _, e := range es {
		if e.running() < e.Slots && (best == nil || e.took < best.took) {
			best = e
		}
	}
	return best
}

// slo is how late a first and a last token may be.
type slo struct{ ttft, e2e float64 }

// sloOf is 2 s and 1 ms for each token of the prompt, and 75 ms for each of the answer.
func sloOf(t *turn) slo {
	first := 2 + 0.001*float64(t.input*coarse)
	return slo{first, first + 0.075*float64(t.output)}
}

// rivalFigures are those of one router for one run.
type rivalFigures struct {
	name string
	f    affinityFigures
}

// rivalsIn returns the figures of all rivals for traffic, the first quarter of which does not count:
// caches are empty then.
func rivalsIn(turns []turn, engines []sim.Config) (all []rivalFigures) {
	for _, r := range []struct {
		name string
		pick turnRoute
	}{
		{"homes in theory", byPrice(turns, engines, policy.HomePenalty)},
		{"no affinity", byPrice(turns, engines, 0)},
		{"central FIFO", centralQueue},
		{"weighted least connections", pushing(turns, weightedConnections)},
		{"shortest queue", pushing(turns, shortestQueue)},
		{"hashed sessions", hashed},
		{"bounded loads", pushing(turns, boundedLoads)},
		{"DualMap", pushing(turns, dualMap)},
		{"LMetric", pushing(turns, lmetric)},
		{"llm-d weights", pushing(turns, llmd)},
		{"selective pushing", selective},
		{"central router", central(turns)},
	} {
		as := replayTurns(turns, engines, r.pick)
		all = append(all, rivalFigures{r.name, affinityFiguresOf(turns[len(turns)/4:], as[len(as)/4:])})
	}
	return all
}

// asked is what the environment asks tables to show.
type asked struct{ which string }

func newAsked(t *testing.T) asked {
	a := asked{os.Getenv("PULLEY_BALANCE")}
	if a.which == "" {
		t.Skip("PULLEY_BALANCE=1 asks for it")
	}
	return a
}

func (a asked) number(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv("PULLEY_BALANCE_" + name)); err == nil {
		return n
	}
	return otherwise
}

func (a asked) words(name, otherwise string) iter.Seq[string] {
	return strings.SplitSeq(cmp.Or(os.Getenv("PULLEY_BALANCE_"+name), otherwise), ",")
}

func (a asked) families() iter.Seq[traffic.Family] {
	return func(yield func(traffic.Family) bool) {
		for _, f := range traffic.Families() {
			if (a.which == "1" || slices.Contains(strings.Split(a.which, ","), f.Name)) && !yield(f) {
				return
			}
		}
	}
}

func (a asked) seeds() iter.Seq[uint64] {
	return func(yield func(uint64) bool) {
		for i := range a.number("SEEDS", 5) {
			seed := rand.Uint64()
			if first := a.number("SEED", 0); first > 0 {
				seed = uint64(first + i)
			}
			if !yield(seed) {
				return
			}
		}
	}
}

// medians are cells of a table: the median of each figure over the runs, with its range.
func medians[R any](runs []R, figures ...func(R) float64) string {
	var b strings.Builder
	for _, figure := range figures {
		var vs []float64
		for _, r := range runs {
			vs = append(vs, figure(r))
		}
		slices.Sort(vs)
		fmt.Fprintf(&b, "| %.3g (%.3g–%.3g) ", vs[len(vs)/2], vs[0], vs[len(vs)-1])
	}
	return b.String()
}

func TestRivalsServeEachTurnOnce(t *testing.T) {
	for _, f := range []traffic.Family{traffic.Chat(), traffic.LongPrompts()} {
		seed := rand.Uint64()
		engines := unlikeCaching()
		turns := trafficAtLoad(f, seed, 1.2, 150, engines)
		for name, pick := range map[string]turnRoute{
			"wlc": pushing(turns, weightedConnections), "jsq": pushing(turns, shortestQueue), "lmetric": pushing(turns, lmetric),
			"dualmap": pushing(turns, dualMap), "bounded": pushing(turns, boundedLoads), "llm-d": pushing(turns, llmd),
			"selective": selective, "fifo": centralQueue,
		} {
			for i, a := range replayTurns(turns, engines, pick) {
				if a.ttft <= 0 || a.e2e < a.ttft || a.from == "" || a.cached > turns[i].input {
					t.Fatalf("%s, seed %d, %s: turn %d of %d tokens: %+v", f.Name, seed, name, i, turns[i].input, a)
				}
			}
		}
	}
}
