package scenarios

import (
	"container/heap"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/pulley-lb/pulley/engine/sim"
)

// The model replays a trace over simulated engines without Pulley: no broker, no HTTP, no
// goroutine, only the arithmetic of sim.Engine from event to event. Pulley is measured against it.
// Times are in seconds.

// traced is one request of a trace.
type traced struct {
	at            float64
	input, output int // tokens
}

// job is a request in the model.
type job struct {
	traced
	due        float64 // the engine's progress at its last token
	first, end float64 // when its first and its last token are ready
}

// byDue orders the decoding jobs by their end.
type byDue []*job

func (h byDue) Len() int           { return len(h) }
func (h byDue) Less(i, j int) bool { return h[i].due < h[j].due }
func (h byDue) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *byDue) Push(x any)        { *h = append(*h, x.(*job)) }
func (h *byDue) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// modelEngine is a sim.Engine in the model; see that package's documentation.
type modelEngine struct {
	sim.Config
	waiting    []*job // pushed to it while its slots were busy
	prefilling []*job // the first one is being prefilled
	prefillEnd float64
	decoding   byDue
	progress   float64 // tokens that a sequence which always decodes would have produced at the time at
	at         float64
	took       int // sequence number, among all requests, of the one that it took last
}

func (e *modelEngine) running() int { return len(e.prefilling) + len(e.decoding) }

// itl is the inter-token time of n requests at once.
func (e *modelEngine) itl(n int) float64 {
	return e.ITLBase.Seconds() + e.ITLPerRequest.Seconds()*float64(n)
}

func (e *modelEngine) prefill(j *job) float64 { return float64(j.input) / e.PrefillRate }

// next is the time of the engine's next event.
func (e *modelEngine) next() float64 {
	t := math.Inf(1)
	if len(e.prefilling) > 0 {
		t = e.prefillEnd
	}
	if len(e.decoding) > 0 {
		t = min(t, e.at+max(0, e.decoding[0].due-e.progress)*e.itl(len(e.decoding)))
	}
	return t
}

// step processes the next event. It returns the job that ends with it; nil if none does.
func (e *modelEngine) step() *job {
	t := e.next()
	prefilled := len(e.prefilling) > 0 && e.prefillEnd <= t
	if len(e.decoding) > 0 {
		e.progress += (t - e.at) / e.itl(len(e.decoding))
	}
	e.at = t
	if prefilled {
		j := e.prefilling[0]
		e.prefilling = e.prefilling[1:]
		j.first = t
		j.due = e.progress + float64(j.output-1)
		heap.Push(&e.decoding, j)
		if len(e.prefilling) > 0 {
			e.prefillEnd = t + e.prefill(e.prefilling[0])
		}
		return nil
	}
	j := heap.Pop(&e.decoding).(*job)
	e.progress = max(e.progress, j.due)
	j.end = t
	if len(e.waiting) > 0 {
		next := e.waiting[0]
		e.waiting = e.waiting[1:]
		e.start(next, t)
	}
	return j
}

// give hands a request to the engine: it starts, or waits for a slot there.
func (e *modelEngine) give(j *job, t float64) {
	if e.running() == e.Slots {
		e.waiting = append(e.waiting, j)
		return
	}
	e.start(j, t)
}

func (e *modelEngine) start(j *job, t float64) {
	e.prefilling = append(e.prefilling, j)
	if len(e.prefilling) == 1 {
		e.prefillEnd = t + e.prefill(j)
	}
}

// A route chooses the engine for the request that has waited longest. Nil leaves it, and all behind
// it, in the central queue.
type route func(engines []*modelEngine, j *job) *modelEngine

// replayModel runs a trace over engines.
func replayModel(trace []traced, engines []sim.Config, pick route) []latency {
	var es []*modelEngine
	for _, cfg := range engines {
		es = append(es, &modelEngine{Config: cfg})
	}
	jobs := make([]job, len(trace))
	var queue []*job
	arrived, taken := 0, 0
	for {
		t, at := math.Inf(1), (*modelEngine)(nil)
		if arrived < len(trace) {
			t = trace[arrived].at
		}
		for _, e := range es {
			if n := e.next(); n < t {
				t, at = n, e
			}
		}
		switch {
		case at != nil:
			at.step()
		case arrived < len(trace):
			jobs[arrived].traced = trace[arrived]
			queue = append(queue, &jobs[arrived])
			arrived++
		default:
			return latencies(jobs)
		}
		for len(queue) > 0 {
			e := pick(es, queue[0])
			if e == nil {
				break
			}
			taken++
			e.took = taken
			e.give(queue[0], t)
			queue = queue[1:]
		}
	}
}

func latencies(jobs []job) []latency {
	ls := make([]latency, len(jobs))
	for i, j := range jobs {
		ls[i] = latency{ttft: j.first - j.at, e2e: j.end - j.at}
	}
	return ls
}

// fifo is a central queue: an engine with a free slot takes the next request; of several, the one
// that has not taken a request for the longest time.
func fifo(engines []*modelEngine, _ *job) *modelEngine {
	var best *modelEngine
	for _, e := range engines {
		if e.running() < e.Slots && (best == nil || e.took < best.took) {
			best = e
		}
	}
	return best
}

// leastConnections pushes to the engine with the fewest requests relative to its weight.
func leastConnections(weights []float64) route {
	turn := 0
	return func(engines []*modelEngine, _ *job) *modelEngine {
		turn++
		var best *modelEngine
		least := math.Inf(1)
		for i := range engines {
			i = (i + turn) % len(engines)
			e := engines[i]
			if load := float64(e.running()+len(e.waiting)+1) / weights[i]; load < least {
				best, least = e, load
			}
		}
		return best
	}
}

// oracle knows the length of every answer and the state of every engine, and pushes each request to
// where it will end first as things stand.
func oracle(meanOutput float64) route {
	return func(engines []*modelEngine, j *job) *modelEngine {
		var best *modelEngine
		first := math.Inf(1)
		for _, e := range engines {
			end := e.prefill(j) + float64(j.output)*e.itl(e.running()+1)
			for _, p := range e.prefilling {
				end += e.prefill(p)
			}
			perToken := e.itl(e.Slots) / float64(e.Slots) // of a full engine
			for _, w := range e.waiting {
				end += float64(w.output) * perToken
			}
			if e.running() == e.Slots {
				end += meanOutput * perToken
			}
			if end < first {
				best, first = e, end
			}
		}
		return best
	}
}

// capacity is how many requests like the trace's a full engine completes per second.
func capacity(cfg sim.Config, trace []traced) float64 {
	input, output := means(trace)
	itl := cfg.ITLBase.Seconds() + cfg.ITLPerRequest.Seconds()*float64(cfg.Slots)
	return min(float64(cfg.Slots)/itl/output, cfg.PrefillRate/input)
}

func means(trace []traced) (input, output float64) {
	for _, r := range trace {
		input += float64(r.input)
		output += float64(r.output)
	}
	return input / float64(len(trace)), output / float64(len(trace))
}

// atLoad stretches a trace so that its load is a part of what the engines can do.
func atLoad(load float64, trace []traced, engines []sim.Config) []traced {
	sum := 0.0
	for _, e := range engines {
		sum += capacity(e, trace)
	}
	first, last := trace[0].at, trace[len(trace)-1].at
	scale := float64(len(trace)) / (last - first) / (sum * load)
	scaled := slices.Clone(trace)
	for i := range scaled {
		// In whole nanoseconds, like the real clock.
		scaled[i].at = time.Duration((scaled[i].at - first) * scale * float64(time.Second)).Seconds()
	}
	return scaled
}

// latency is the client's view of one request.
type latency struct{ ttft, e2e float64 }

// figures are the percentiles 50, 95 and 99.
type figures struct{ ttft, e2e [3]float64 }

func figuresOf(ls []latency) figures {
	var f figures
	of := func(value func(latency) float64) (p [3]float64) {
		vs := make([]float64, len(ls))
		for i, l := range ls {
			vs[i] = value(l)
		}
		slices.Sort(vs)
		for i, q := range []float64{.50, .95, .99} {
			p[i] = vs[int(q*float64(len(vs)-1))]
		}
		return p
	}
	f.ttft = of(func(l latency) float64 { return l.ttft })
	f.e2e = of(func(l latency) float64 { return l.e2e })
	return f
}

func (f figures) String() string {
	return fmt.Sprintf("%7.3f %7.3f %7.3f   %7.2f %7.2f %7.2f", f.ttft[0], f.ttft[1], f.ttft[2], f.e2e[0], f.e2e[1], f.e2e[2])
}
