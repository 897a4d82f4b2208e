package scenarios

import (
	"cmp"
	"container/heap"
	"container/list"
	"encoding/csv"
	"fmt"
	"hash/fnv"
	"math"
	"os"
	"slices"
	"sort"
	"strconv"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/testenv/traffic"
)

// The model of model_test.go with a prefix cache in each engine, and a trace of conversations for
// it.

// coarse is how many tokens of the trace one token of a prompt stands for, so that prompts of 40
// 000 tokens are quick to send. Prefill rates and caches are smaller by the same factor, so all
// times stay the same. Answers are not scaled.
const coarse = 8

// block is the size of a block of sim.Engine's prefix cache, in tokens.
const block = 16

// turn is one request of a conversation. Its prompt starts with the whole prompt of the previous
// turn.
type turn struct {
	traced
	session  int
	tenant   int
	after    int     // index of the turn whose answer it follows; -1: of none, so that it comes at its time
	think    float64 // seconds from that answer
	messages []traffic.Message
	blocks   []uint64 // names of the blocks of its prompt
	before   int      // tokens that an earlier prompt began with too; 0: none
}

// cacheable is how much of the prompt is cached on an engine that served the previous turn and has
// evicted nothing.
func (t *turn) cacheable() int { return min(t.before/block, (t.input-1)/block) * block }

// newTurn makes a turn of its messages. A block has the name of the message in which it ends, and
// its number: that message has come after the same ones before.
func newTurn(at float64, output, session int, messages []traffic.Message) turn {
	t := turn{traced: traced{at: at, output: output}, session: session, after: -1, messages: messages}
	for _, m := range messages {
		t.input += m.Tokens
		for n := len(t.blocks); n < t.input/block; n++ {
			t.blocks = append(t.blocks, m.ID<<20|uint64(n))
		}
	}
	return t
}

// readTurns makes conversations of a trace with the columns arrival_seconds, input_tokens,
// output_tokens, session and reused_prefix_blocks. A first turn is as long as in the trace. A later
// one adds what had to be computed in the trace: part of it is the assistant's answer, the rest is
// the user's message.
func readTurns(t testing.TB, file string) []turn {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	const reusedBlock = 512 // tokens
	last := make(map[int]*turn)
	var turns []turn
	for i, row := range rows[1:] {
		at, err := strconv.ParseFloat(row[0], 64)
		var n [4]int // input, output, session, reused
		for k := range n {
			var err2 error
			n[k], err2 = strconv.Atoi(row[1+k])
			err = cmp.Or(err, err2)
		}
		if err != nil {
			t.Fatalf("%s: line %d: %v", file, i+2, err)
		}
		var messages []traffic.Message
		add := func(of traffic.Role, tokens int) {
			messages = append(messages, traffic.Message{ID: uint64(n[2])<<16 | uint64(len(messages)), Tokens: tokens, Role: of})
		}
		before := 0
		if l := last[n[2]]; l == nil {
			add(traffic.User, max(n[0]/coarse, 1))
		} else {
			fresh := max((n[0]-n[3]*reusedBlock)/coarse, 2)
			answer := min(max(l.output/coarse, 1), fresh-1)
			messages, before = slices.Clone(l.messages), l.input
			add(traffic.Assistant, answer)
			add(traffic.User, fresh-answer)
		}
		tn := newTurn(at, max(n[1], 1), n[2], messages)
		tn.before = before
		last[tn.session] = &tn
		turns = append(turns, tn)
	}
	return turns
}

// turnsAtLoad stretches the trace so that its load is a part of what engines without a cache can
// do.
func turnsAtLoad(load float64, turns []turn, engines []sim.Config) []turn {
	plain := make([]traced, len(turns))
	for i, t := range turns {
		plain[i] = t.traced
	}
	scaled := slices.Clone(turns)
	for i, p := range atLoad(load, plain, engines) {
		scaled[i].at = p.at
	}
	return scaled
}

// alike are eight engines of one kind with a prefix cache; mixed are eight of which half are
// slower.
func alike() (engines []sim.Config) {
	for i := range 8 {
		engines = append(engines, sim.Config{
			Name: fmt.Sprint("fast-", i), Models: []string{"m"}, Slots: 64, PrefillRate: 20000. / coarse,
			ITLBase: 10 * time.Millisecond, ITLPerRequest: 200 * time.Microsecond, TokensPerEvent: 128,
			PrefixCache: 1 << 20 / coarse,
		})
	}
	return engines
}

func mixed() []sim.Config {
	engines := alike()
	for i := range engines {
		if e := &engines[i]; i%2 == 1 {
			e.Name = fmt.Sprint("slow-", i)
			e.Slots, e.PrefillRate = 32, 8000./coarse
			e.ITLBase, e.ITLPerRequest = 20*time.Millisecond, 500*time.Microsecond
			e.PrefixCache /= 2
		}
	}
	return engines
}

// turnJob is a turn in the model. Its input is what is left to compute, once its prefill has
// started.
type turnJob struct {
	job
	turn   *turn
	takes  float64 // expected seconds of prefill
	cached int     // tokens; known when its prefill starts
	engine string
}

// cachingEngine is an engine with a prefix cache in the model.
type cachingEngine struct {
	modelEngine
	line    []*turnJob               // jobs whose prefill waits or runs
	cache   map[uint64]*list.Element // the blocks in the cache, by name
	used    *list.List               // their names, the most recently used first
	prefill float64                  // recent mean seconds of a prefill
}

// hits is how many blocks of a turn's prompt are cached. No block is without those before it.
func (e *cachingEngine) hits(t *turn) int {
	return sort.Search(len(t.blocks), func(i int) bool { return e.cache[t.blocks[i]] == nil })
}

// knows is how many blocks of a turn's prompt will be cached when the jobs in line are done.
func (e *cachingEngine) knows(t *turn) int {
	n := e.hits(t)
	for _, j := range e.line {
		same := j.turn.blocks
		n = max(n, sort.Search(min(len(same), len(t.blocks)), func(i int) bool { return same[i] != t.blocks[i] }))
	}
	return min(n, (t.input-1)/block)
}

// takes is the expected duration of a turn's prefill.
func (e *cachingEngine) takes(t *turn) float64 {
	return float64(t.input-block*e.knows(t)) / e.PrefillRate
}

// backlog is the time until a new prefill can start.
func (e *cachingEngine) backlog(now float64) float64 {
	if len(e.line) == 0 {
		return 0
	}
	s := e.prefillEnd - now
	for _, j := range e.line[1:] {
		s += j.takes
	}
	return s
}

func (e *cachingEngine) give(j *turnJob, t float64) {
	j.takes, j.engine = e.takes(j.turn), e.Name
	e.prefill += (j.takes - e.prefill) / 50
	e.line = append(e.line, j)
	if len(e.line) == 1 {
		e.look(j)
	}
	e.start(&j.job, t)
}

func (e *cachingEngine) step() *job {
	if len(e.line) > 0 && e.prefillEnd <= e.next() {
		e.keep(e.line[0].turn)
		e.line = e.line[1:]
		if len(e.line) > 0 {
			e.look(e.line[0])
		}
	}
	return e.modelEngine.step()
}

// look determines what part of a prompt is cached when its prefill starts.
func (e *cachingEngine) look(j *turnJob) {
	t := j.turn
	j.cached = block * min(e.hits(t), (t.input-1)/block)
	j.input = t.input - j.cached
}

// keep caches a prompt. The last blocks of the least recently used prompt are evicted first.
func (e *cachingEngine) keep(t *turn) {
	room := e.PrefixCache / block
	for _, name := range slices.Backward(t.blocks[:min(len(t.blocks), room)]) {
		if at := e.cache[name]; at != nil {
			e.used.MoveToFront(at)
		} else {
			e.cache[name] = e.used.PushFront(name)
		}
	}
	for e.used.Len() > room {
		delete(e.cache, e.used.Remove(e.used.Back()).(uint64))
	}
}

// A turnRoute chooses the engine for a turn, or nil while it has to wait.
type turnRoute func(engines []*cachingEngine, t *turn, now float64) *cachingEngine

// answered is the client's view of one turn.
type answered struct {
	latency
	cached int    // tokens of the prompt
	from   string // name of the engine
}

// replayTurns runs a trace of conversations over engines.
func replayTurns(turns []turn, engines []sim.Config, pick turnRoute) []answered {
	var es []*cachingEngine
	input := 0.0
	for _, t := range turns {
		input += float64(t.input) / float64(len(turns))
	}
	for _, cfg := range engines {
		es = append(es, &cachingEngine{modelEngine: modelEngine{Config: cfg}, cache: make(map[uint64]*list.Element), used: list.New(), prefill: input / cfg.PrefillRate})
	}
	jobs := make([]turnJob, len(turns))
	index := make(map[*job]int, len(turns))
	follow := make(map[int][]int)
	var coming arrivals
	for i := range turns {
		jobs[i].turn, jobs[i].traced = &turns[i], turns[i].traced
		index[&jobs[i].job] = i
		if after := turns[i].after; after >= 0 {
			follow[after] = append(follow[after], i)
		} else {
			coming = append(coming, arrival{turns[i].at, i})
		}
	}
	heap.Init(&coming)
	var queue []*turnJob
	taken := 0
	for {
		now, at := math.Inf(1), (*cachingEngine)(nil)
		if len(coming) > 0 {
			now = coming[0].at
		}
		for _, e := range es {
			if n := e.next(); n < now {
				now, at = n, e
			}
		}
		switch {
		case at != nil:
			if ended := at.step(); ended != nil {
				for _, i := range follow[index[ended]] {
					jobs[i].at = now + turns[i].think
					heap.Push(&coming, arrival{jobs[i].at, i})
				}
			}
		case len(coming) > 0:
			queue = append(queue, &jobs[heap.Pop(&coming).(arrival).turn])
		default:
			return answersOf(jobs)
		}
		queue = slices.DeleteFunc(queue, func(j *turnJob) bool {
			e := pick(es, j.turn, now)
			if e == nil {
				return false
			}
			taken++
			e.took = taken
			e.give(j, now)
			return true
		})
	}
}

// arrivals are turns that will come, the next one first.
type arrivals []arrival

type arrival struct {
	at   float64
	turn int
}

func (h arrivals) Len() int { return len(h) }
func (h arrivals) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].turn < h[j].turn
}
func (h arrivals) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *arrivals) Push(x any)   { *h = append(*h, x.(arrival)) }
func (h *arrivals) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

func answersOf(jobs []turnJob) []answered {
	as := make([]answered, len(jobs))
	for i, j := range jobs {
		as[i] = answered{latency{ttft: j.first - j.at, e2e: j.end - j.at}, j.cached, j.engine}
	}
	return as
}

// turnPrice is a worker's price for the next request, as in package policy, with an exactly known
// backlog.
func turnPrice(meanOutput float64) func(*cachingEngine, float64) float64 {
	return func(e *cachingEngine, now float64) float64 {
		return e.backlog(now) + e.prefill + meanOutput*e.itl(e.running()+1)
	}
}

// byPrice gives a turn to the cheapest engine, and on equal rungs to the one that has not taken a
// turn for the longest time. Learned affinity is the same with a penalty: a follow-up costs so many
// rungs more on every engine except the one that took the previous turn.
func byPrice(turns []turn, engines []sim.Config, penalty int) turnRoute {
	input, output := 0.0, 0.0
	for _, t := range turns {
		input += float64(t.input) / float64(len(turns))
		output += float64(t.output) / float64(len(turns))
	}
	price := turnPrice(output)
	reference := math.Inf(1)
	for _, e := range engines {
		reference = min(reference, input/e.PrefillRate+output*e.ITLBase.Seconds())
	}
	homes := make(map[int]*cachingEngine)
	return func(es []*cachingEngine, t *turn, now float64) *cachingEngine {
		var best *cachingEngine
		least := math.MaxInt
		for _, e := range es {
			if e.running() == e.Slots {
				continue
			}
			rung := policy.Rung(price(e, now), reference)
			if home := homes[t.session]; penalty > 0 && home != nil && home != e {
				rung = min(rung+penalty, policy.Rungs-1)
			}
			if rung < least || rung == least && e.took < best.took {
				best, least = e, rung
			}
		}
		if best != nil {
			homes[t.session] = best
		}
		return best
	}
}

// hashed sends all turns of a session to one engine, by the session's hash and the engines' prefill
// rates.
func hashed(es []*cachingEngine, t *turn, _ float64) *cachingEngine {
	var best *cachingEngine
	most := math.Inf(-1)
	for _, e := range es {
		h := fnv.New64a()
		fmt.Fprint(h, t.session, e.Name)
		x := h.Sum64()
		x = (x ^ x>>32) * 0xd6e8feb86659fd93
		u := (float64(x>>11) + 0.5) / (1 << 53)
		if score := -e.PrefillRate / math.Log(u); score > most {
			best, most = e, score
		}
	}
	if best.running() == best.Slots {
		return nil
	}
	return best
}

// central is a router that sees every cache and every queue, and sends each turn to where it should
// end first.
func central(turns []turn) turnRoute {
	output := 0.0
	for _, t := range turns {
		output += float64(t.output) / float64(len(turns))
	}
	return func(es []*cachingEngine, t *turn, now float64) *cachingEngine {
		var best *cachingEngine
		first := math.Inf(1)
		for _, e := range es {
			if e.running() == e.Slots {
				continue
			}
			if end := e.backlog(now) + e.takes(t) + output*e.itl(e.running()+1); end < first {
				best, first = e, end
			}
		}
		return best
	}
}

// affinityFigures are the share of cacheable tokens that were cached, percentiles of the latencies,
// the part of the requests that met their SLO, and Jain's index of that over tenants.
type affinityFigures struct {
	hit  float64
	ttft [3]float64 // p50, p90, p99
	e2e  [2]float64 // p50, p99
	good float64
	jain float64
}

func affinityFiguresOf(turns []turn, as []answered) (f affinityFigures) {
	cached, cacheable := 0, 0
	var ttft, e2e []float64
	good := make(map[int][2]float64) // by tenant: requests, and those that met their SLO
	for i, a := range as {
		g := good[turns[i].tenant]
		g[0]++
		if bound := sloOf(&turns[i]); a.ttft <= bound.ttft && a.e2e <= bound.e2e {
			g[1]++
			f.good += 1 / float64(len(as))
		}
		good[turns[i].tenant] = g
		cached += a.cached
		cacheable += turns[i].cacheable()
		ttft = append(ttft, a.ttft)
		e2e = append(e2e, a.e2e)
	}
	f.hit = float64(cached) / float64(cacheable)
	of := func(vs []float64, q float64) float64 {
		slices.Sort(vs)
		return vs[int(q*float64(len(vs)-1))]
	}
	f.ttft = [3]float64{of(ttft, .5), of(ttft, .9), of(ttft, .99)}
	f.e2e = [2]float64{of(e2e, .5), of(e2e, .99)}
	f.jain = jain(good)
	return f
}

// jain is (Σx)²/(n·Σx²) of the parts of their requests that met the SLO, over tenants with at least
// ten requests; 1 is equal parts.
func jain(good map[int][2]float64) float64 {
	var sum, squares, n float64
	for _, g := range good {
		if g[0] >= 10 {
			x := g[1] / g[0]
			sum, squares, n = sum+x, squares+x*x, n+1
		}
	}
	if squares == 0 {
		return 0
	}
	return sum * sum / (n * squares)
}

func (f affinityFigures) String() string {
	return fmt.Sprintf("%5.3f   %7.3f %7.3f %7.3f   %7.2f %7.2f", f.hit, f.ttft[0], f.ttft[1], f.ttft[2], f.e2e[0], f.e2e[1])
}
