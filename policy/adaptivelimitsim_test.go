package policy_test

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/policy"
)

// The simulation puts a worker's capacity and limit in front of an engine with continuous batching,
// in virtual time, without a clock or a goroutine. The engine is a model, not a GPU: a step costs
// something for each sequence, each token of KV cache and each token of prompt that is prefilled in
// it; prefills share steps with decoding, up to 8192 tokens; a full KV cache preempts the latest
// request.

// batching is the speed and size of an engine, in seconds, tokens and slots.
type batching struct {
	step, perSequence, perCached, perPrefill float64
	cache                                    float64 // tokens
	slots                                    int
	maxQueue                                 int // requests beside the slots that the engine does not refuse; 0: any number
	slowFrom, slowTo                         float64
	prompt, output                           func(r *rand.Rand) int
}

// Two GPUs with an 8B model, and requests like those of a chat.
var (
	h100 = batching{step: .0065, perSequence: .00004, perCached: 3.9e-8, perPrefill: 5e-5, cache: 450e3, slots: 256, prompt: chatPrompt, output: chatOutput}
	l4   = batching{step: .055, perSequence: .0003, perCached: 4.4e-7, perPrefill: 4e-4, cache: 30e3, slots: 256, prompt: chatPrompt, output: chatOutput}
)

func chatPrompt(r *rand.Rand) int { return min(int(math.Exp(r.NormFloat64()*.8+math.Log(600))), 6000) }
func chatOutput(r *rand.Rand) int { return 1 + int(math.Exp(r.NormFloat64()*.7+math.Log(200))) }

// chatTokens is the mean size of a request in the KV cache: 600·e^.32 + 200·e^.245.
const chatTokens = 1080

type simRequest struct {
	prompt, output, made int
	at                   float64
	first                bool // has had its first token
	foreign              bool // belongs to another worker
}

type simEngine struct {
	batching
	now       float64
	running   []*simRequest
	waiting   []*simRequest
	cached    float64
	preempted int
	ended     []*simRequest // since the worker last looked
	firsts    []float64     // first tokens of the last step: seconds since the start of their requests
	decoded   int           // tokens of the last step that are not first ones
}

func (e *simEngine) give(q *simRequest) bool {
	if e.maxQueue > 0 && len(e.running)+len(e.waiting) >= e.slots+e.maxQueue {
		return false
	}
	e.waiting = append(e.waiting, q)
	return true
}

// once makes one step and returns how long it took.
func (e *simEngine) once() float64 {
	prefill := 0
	for len(e.waiting) > 0 && len(e.running) < e.slots {
		q := e.waiting[0]
		if e.cached+float64(q.prompt+q.made) > e.cache || prefill > 0 && prefill+q.prompt > 8192 {
			break
		}
		e.waiting = e.waiting[1:]
		e.running = append(e.running, q)
		e.cached += float64(q.prompt + q.made)
		prefill += q.prompt + q.made
	}
	e.firsts, e.decoded = e.firsts[:0], 0
	if len(e.running) == 0 {
		e.now += .005
		return .005
	}
	took := e.step + e.perSequence*float64(len(e.running)) + e.perCached*e.cached + e.perPrefill*float64(prefill)
	if e.now >= e.slowFrom && e.now < e.slowTo {
		took *= 2
	}
	e.now += took
	keep := e.running[:0]
	for _, q := range e.running {
		q.made++
		e.cached++
		switch {
		case q.foreign:
		case q.first:
			e.decoded++
		default:
			q.first = true
			e.firsts = append(e.firsts, e.now-q.at)
		}
		if q.made >= q.output {
			e.cached -= float64(q.prompt + q.made)
			e.ended = append(e.ended, q)
			continue
		}
		keep = append(keep, q)
	}
	e.running = keep
	for e.cached > e.cache && len(e.running) > 1 {
		last := e.running[len(e.running)-1]
		e.running = e.running[:len(e.running)-1]
		e.cached -= float64(last.prompt + last.made)
		e.waiting = slices.Insert(e.waiting, 0, last)
		e.preempted++
	}
	return took
}

// trial is an hour of a worker and its engine.
type trial struct {
	batching
	profile  policy.Profile
	static   int           // fixed number of slots, and nothing adaptive
	scrape   time.Duration // interval between scrapes; 0: at every look
	blind    bool          // the engine has no metrics, and its slots are unknown
	slots    int           // configured. Default 256
	tokens   float64       // assumed size of a request. Default: as the worker learns it
	rate     float64       // requests per second. Default 0: an endless queue
	burst    int           // requests that arrive together. Default 1
	seconds  float64       // Default 3600
	stream   func(i int) bool
	gpu      func(now float64) []policy.GPU
	foreign  func(now float64) int // requests that other clients keep at the engine
	baseline time.Duration
	limit    *policy.AdaptiveLimit // for the test to inspect
	seed     uint64
}

// figures are measured over the last three quarters of a trial.
type figures struct {
	tokens    float64 // per second
	inFlight  float64 // mean over the whole trial
	ttft      float64 // p95, seconds
	itl       float64 // p50, seconds
	preempted int     // over the whole trial
	refused   int
	wait      float64 // p95, in the worker's own queue
	limits    []float64
	most      int // most requests in flight
	bounds    map[policy.Bound]int
}

func (f figures) String() string {
	return fmt.Sprintf("%5.0f tok/s %5.1f in flight, TTFT p95 %7.2f s, ITL p50 %3.0f ms, %3d preempted, %3d refused, wait p95 %4.0f ms",
		f.tokens, f.inFlight, f.ttft, 1e3*f.itl, f.preempted, f.refused, 1e3*f.wait)
}

// limit is the range of the limit from one second to another.
func (f figures) limit(from, to int) (low, mean, high float64) {
	part := f.limits[from:min(to, len(f.limits))]
	for _, l := range part {
		mean += l / float64(len(part))
	}
	return slices.Min(part), mean, slices.Max(part)
}

type simWorker struct {
	trial trial
	*simEngine
	r          *rand.Rand
	adaptive   policy.AdaptiveLimit
	window     policy.LimitWindow
	mean       policy.Mean
	scrape     policy.Scrape
	scraped    float64
	inFlight   int
	prefilling int
	queued     bool
	credit     policy.Capacity
	arrived    []float64 // arrival times of the waiting requests
	refused    int
	started    int
	waits      []float64
	most       int
	warm       float64
}

func clock(s float64) time.Time { return noon.Add(time.Duration(s * float64(time.Second))) }

// look reads the engine's metrics.
func (w *simWorker) look() {
	w.scraped = w.now
	w.scrape = policy.Scrape{
		Taken: true, InFlight: w.inFlight,
		Running: policy.Known(float64(len(w.running))), Waiting: policy.Known(float64(len(w.waiting))),
		KVUsed: policy.Known(w.cached / w.cache), Preempted: policy.Known(float64(w.preempted)),
		Prefilling: w.prefilling, Prefill: time.Duration(w.perPrefill * w.mean.Input * float64(time.Second)),
	}
	w.window.Scraped(w.scrape)
}

func (w *simWorker) signals() policy.Signals {
	s := policy.Signals{InFlight: w.inFlight, Slots: cmp.Or(w.trial.slots, 256), Limit: w.adaptive.Value(), QueueFull: w.queued}
	if s.Tokens = w.trial.tokens; s.Tokens == 0 && w.mean.Samples > 0 {
		s.Tokens = w.mean.Input + w.mean.Output
	}
	if !w.trial.blind {
		s.EngineSlots, s.KVTokens = w.batching.slots, w.cache
		s.Scrape = w.scrape
		s.Scrape.Age = time.Duration((w.now - w.scraped) * float64(time.Second))
	}
	if w.trial.gpu != nil {
		s.GPUs = w.trial.gpu(w.now)
	}
	return s
}

// start sends the engine what the capacity allows.
func (w *simWorker) start() {
	for {
		if w.trial.scrape == 0 && !w.trial.blind {
			w.look()
		}
		more := w.trial.static - w.inFlight
		if w.trial.static == 0 {
			w.credit = w.signals().Capacity()
			w.queued, more = w.credit.QueueFull, w.credit.More
		}
		if more <= 0 || w.trial.rate > 0 && len(w.arrived) == 0 {
			return
		}
		for range more {
			if w.trial.rate > 0 && len(w.arrived) == 0 {
				break
			}
			q := &simRequest{prompt: w.prompt(w.r), output: w.output(w.r), at: w.now}
			if !w.give(q) {
				w.refused++
				w.window.Refused()
				return
			}
			if w.trial.rate > 0 {
				if w.now > w.warm {
					w.waits = append(w.waits, w.now-w.arrived[0])
				}
				w.arrived = w.arrived[1:]
			}
			w.inFlight++
			w.started++
			w.most = max(w.most, w.inFlight)
			w.window.Started(w.inFlight)
			w.prefilling++
			w.window.Prefilling(w.prefilling)
		}
	}
}

// run runs the trial.
func (c trial) run() figures {
	c.seconds = cmp.Or(c.seconds, 3600)
	w := &simWorker{trial: c, simEngine: &simEngine{batching: c.batching}, r: rand.New(rand.NewPCG(7, c.seed)), warm: c.seconds / 4, scraped: -1}
	w.adaptive = policy.NewAdaptiveLimit(c.profile, .5, c.baseline)
	f := figures{bounds: make(map[policy.Bound]int)}
	var ttft []float64
	gaps := make(map[int]int) // tokens by tenths of a millisecond
	next, looked, steps, foreigners := 0.0, 0.0, 0, 0
	for w.now < c.seconds {
		for ; c.rate > 0 && next <= w.now; next += w.r.ExpFloat64() / c.rate {
			w.arrived = append(w.arrived, slices.Repeat([]float64{next}, max(c.burst, 1))...)
		}
		if c.foreign != nil {
			for ; foreigners < c.foreign(w.now); foreigners++ {
				w.waiting = append(w.waiting, &simRequest{prompt: w.prompt(w.r), output: w.output(w.r), at: w.now, foreign: true})
			}
		}
		if !c.blind && w.now-w.scraped >= c.scrape.Seconds() {
			w.look()
		}
		w.start()
		took := w.once()
		for _, q := range w.ended {
			if q.foreign {
				foreigners--
				continue
			}
			w.inFlight--
			w.mean.Add(float64(q.prompt), float64(q.output))
			w.window.Ended()
		}
		w.ended = w.ended[:0]
		w.prefilling -= len(w.firsts)
		w.window.Prefilling(w.prefilling)
		if c.stream == nil || c.stream(w.started) {
			for range w.decoded {
				w.window.Gap(time.Duration(took*float64(time.Second)), 1)
			}
			for _, d := range w.firsts {
				w.window.FirstToken(time.Duration(d * float64(time.Second)))
			}
		}
		f.inFlight += float64(w.inFlight)
		steps++
		if w.now > w.warm {
			f.tokens += float64(w.decoded+len(w.firsts)) / (c.seconds - w.warm)
			gaps[int(took*1e4)] += w.decoded
			ttft = append(ttft, w.firsts...)
		}
		if w.now-looked >= 1 {
			looked = w.now
			w.adaptive.Update(&w.window, w.signals(), clock(w.now))
			for len(f.limits) < int(w.now) {
				f.limits = append(f.limits, w.adaptive.Value())
			}
			f.bounds[w.credit.Bound]++
		}
	}
	f.inFlight /= float64(steps)
	f.ttft, f.wait, f.itl = part(ttft, .95), part(w.waits, .95), median(gaps)
	f.preempted, f.refused, f.most = w.preempted, w.refused, w.most
	if c.limit != nil {
		*c.limit = w.adaptive
	}
	return f
}

func part(x []float64, q float64) float64 {
	if len(x) == 0 {
		return 0
	}
	slices.Sort(x)
	return x[int(q*float64(len(x)-1))]
}

func median(tenths map[int]int) float64 {
	var keys []int
	n := 0
	for k, c := range tenths {
		keys = append(keys, k)
		n += c
	}
	slices.Sort(keys)
	for i, seen := 0, 0; i < len(keys); i++ {
		if seen += tenths[keys[i]]; 2*seen >= n {
			return float64(keys[i]) / 1e4
		}
	}
	return 0
}

func stretch(tau float64) policy.Profile { return policy.Profile{Name: "test", Stretch: tau} }

// often is how often a worker scrapes its engine.
const often = 500 * time.Millisecond

// The reference is what the rules reached where they were developed: another implementation,
// another random sequence, an engine that is looked at between any two of its steps.
func TestControllerComesToTheReference(t *testing.T) {
	objective := policy.Profile{Stretch: 4, ITL: 50 * time.Millisecond}
	for _, c := range []struct {
		name    string
		engine  batching
		static  int
		profile policy.Profile
		want    figures
	}{
		{"H100, static 256", h100, 256, policy.Profile{}, figures{tokens: 3778, inFlight: 255, ttft: .24, itl: .048}},
		{"H100, stretch 1.5", h100, 0, policy.Latency, figures{tokens: 1624, inFlight: 16.8, ttft: .127, itl: .008}},
		{"H100, stretch 2", h100, 0, stretch(2), figures{tokens: 2239, inFlight: 30.6, ttft: .135, itl: .009}},
		{"H100, stretch 3", h100, 0, policy.Balanced, figures{tokens: 2886, inFlight: 58.2, ttft: .152, itl: .011}},
		{"H100, stretch 4", h100, 0, stretch(4), figures{tokens: 3195, inFlight: 85.1, ttft: .175, itl: .014}},
		{"H100, stretch 4, objective 50 ms", h100, 0, objective, figures{tokens: 3195, inFlight: 85.1, ttft: .175, itl: .014}},
		{"L4, static 256", l4, 256, policy.Profile{}, figures{tokens: 226, inFlight: 256, ttft: 313, itl: .077, preempted: 880}},
		{"L4, stretch 1.5", l4, 0, policy.Latency, figures{tokens: 168, inFlight: 14.0, ttft: 1.06, itl: .067}},
		{"L4, stretch 2", l4, 0, stretch(2), figures{tokens: 206, inFlight: 19.4, ttft: 1.36, itl: .071, preempted: 5}},
		{"L4, stretch 3", l4, 0, policy.Balanced, figures{tokens: 226, inFlight: 23.4, ttft: 1.64, itl: .074, preempted: 13}},
		{"L4, stretch 4", l4, 0, stretch(4), figures{tokens: 234, inFlight: 24.9, ttft: 1.77, itl: .075, preempted: 19}},
		{"L4, stretch 4, objective 50 ms", l4, 0, objective, figures{tokens: 126, inFlight: 9.2, ttft: 1.01, itl: .062}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			t.Logf("reference   %v", c.want)
			lasts := 3600.
			if c.engine.step == h100.step { // it has done as much in a tenth of the time
				lasts = 1200
			}
			for _, scrape := range []time.Duration{0, often} {
				got := trial{batching: c.engine, static: c.static, profile: c.profile, scrape: scrape, seconds: lasts}.run()
				t.Logf("scrape %5v %v", scrape, got)
				if off := got.tokens/c.want.tokens - 1; math.Abs(off) > .15 {
					t.Errorf("tokens per second off by %.0f %%", 100*off)
				}
				if off := got.itl/c.want.itl - 1; math.Abs(off) > .15 {
					t.Errorf("inter-token time off by %.0f %%", 100*off)
				}
				if off := got.inFlight/c.want.inFlight - 1; math.Abs(off) > .15 {
					t.Errorf("in flight off by %.0f %%", 100*off)
				}
				if got.ttft > c.want.ttft*1.15 {
					t.Errorf("first tokens later than the reference: %.2f s, want %.2f s", got.ttft, c.want.ttft)
				}
				if most := float64(c.want.preempted); float64(got.preempted) > most+3*math.Sqrt(most)+1 {
					t.Errorf("%d preempted, want about %d", got.preempted, c.want.preempted)
				}
			}
		})
	}
}

func TestControllerDoesNotDrift(t *testing.T) {
	for name, engine := range map[string]batching{"H100": h100, "L4": l4} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, profile := range policy.Profiles[:3] {
				var l policy.AdaptiveLimit
				f := trial{batching: engine, profile: profile, scrape: often, limit: &l, seconds: 7200}.run()
				// An L4's limit goes up and down within minutes: two quarters of an hour differ by
				// as much as 24 % without any drift.
				_, early, _ := f.limit(600, 3600)
				low, late, high := f.limit(4200, 7200)
				t.Logf("%s: limit %.1f in the first hour, %.1f (%.0f to %.0f) in the second; baseline %v", profile.Name, early, late, low, high, l.Baseline())
				if off := late/early - 1; math.Abs(off) > .15 {
					t.Errorf("%s: drifts by %.0f %% from one hour to the next", profile.Name, 100*off)
				}
				if alone := engine.step + engine.perSequence; l.Baseline().Seconds() > 1.15*alone || l.Baseline().Seconds() < .98*alone {
					t.Errorf("%s: baseline %v, one alone takes %.1f ms", profile.Name, l.Baseline(), 1e3*alone)
				}
			}
		})
	}
}

func TestControllerRecoversFromHalvedClocks(t *testing.T) {
	t.Parallel()
	engine := h100
	engine.slowFrom, engine.slowTo = 1500, 2500
	f := trial{batching: engine, profile: policy.Balanced, scrape: often}.run()
	_, before, _ := f.limit(1000, 1500)
	low, slow, _ := f.limit(1700, 2500)
	_, after, high := f.limit(2600, 3600)
	t.Logf("reference: 2104 tok/s, TTFT p95 0.17 s, limit down to 12 and back at 71")
	t.Logf("%.0f tok/s, TTFT p95 %.2f s, limit %.0f, with half the clocks %.0f (least %.0f), from 100 s after %.0f (most %.0f)",
		f.tokens, f.ttft, before, slow, low, after, high)
	if math.Abs(after/before-1) > .1 {
		t.Errorf("the limit was %.1f, and is %.1f", before, after)
	}
	if slow > before/2 || low < 5 {
		t.Errorf("with half the clocks the limit was %.1f, at least %.1f", slow, low)
	}
	if math.Abs(f.tokens/2104-1) > .15 || f.ttft > .17*1.15 {
		t.Errorf("%v", f)
	}
}

func TestControllerWithAWrongGuess(t *testing.T) {
	t.Parallel()
	f := trial{batching: l4, profile: policy.Balanced, scrape: often, tokens: chatTokens / 3}.run()
	t.Logf("reference: 221 tok/s, 67 preempted; %v", f)
	if f.tokens < 221*.85 || f.preempted > 77 {
		t.Error("requests three times as large as the worker takes them for")
	}
}

func TestControllerUnderLightLoad(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name       string
		engine     batching
		rate, want float64
	}{{"H100", h100, 5, .059}, {"L4", l4, .4, .460}} {
		f := trial{batching: c.engine, profile: policy.Balanced, scrape: often, rate: c.rate, seconds: 1200}.run()
		t.Logf("%s at %v per second: reference wait p95 %.0f ms; %v", c.name, c.rate, 1e3*c.want, f)
		if f.wait > c.want*1.15 {
			t.Errorf("%s: requests wait %.0f ms for a worker with room", c.name, 1e3*f.wait)
		}
	}
}

// Requests that arrive together wait for each other's prefill: that is no reason to shrink.
func TestControllerUnderBursts(t *testing.T) {
	t.Parallel()
	for _, blind := range []bool{false, true} {
		f := trial{batching: h100, profile: policy.Balanced, scrape: often, rate: .15, burst: 40, blind: blind, seconds: 1800}.run()
		low, mean, _ := f.limit(600, 1800)
		t.Logf("blind %t: limit %.0f (least %.0f); %v", blind, mean, low, f)
		if mean < 30 || f.preempted > 0 {
			t.Errorf("bursts of 40 every 7 s: limit %.0f, %v", mean, f)
		}
	}
}

func TestControllerWithoutEngineMetrics(t *testing.T) {
	refusing := l4
	refusing.slots, refusing.maxQueue = 16, 4
	small := h100
	small.slots = 8
	whole := func(int) bool { return false }
	for _, c := range []struct {
		name             string
		trial            trial
		least, ttft      float64
		refused, allowed int
	}{
		{"H100", trial{batching: h100}, 2500, .2, 0, 256},
		{"H100, throughput", trial{batching: h100, profile: policy.Throughput}, 3300, .3, 0, 256},
		{"H100, few slots", trial{batching: h100, slots: 12}, 1000, .2, 0, 12},
		{"H100 that runs 8 and queues the rest", trial{batching: small}, 850, 5, 0, 256},
		{"L4", trial{batching: l4}, 200, 12, 0, 256},
		{"L4, throughput", trial{batching: l4, profile: policy.Throughput}, 200, 20, 0, 256},
		{"L4 that refuses above 20", trial{batching: refusing}, 150, 12, 250, 256},
		{"L4 that refuses above 20, answers in one piece", trial{batching: refusing, stream: whole}, 140, 8, 100, 256},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.trial.blind = true
			c.trial.profile = cmp.Or(c.trial.profile, policy.Balanced)
			if c.trial.step == h100.step {
				c.trial.seconds = 1200
			}
			f := c.trial.run()
			low, mean, high := f.limit(600, len(f.limits))
			t.Logf("limit %.0f (%.0f to %.0f), at most %d in flight; %v", mean, low, high, f.most, f)
			switch {
			case f.tokens < c.least:
				t.Errorf("%.0f tokens per second, want %.0f", f.tokens, c.least)
			case f.ttft > c.ttft:
				t.Errorf("TTFT p95 %.2f s, want %.1f s", f.ttft, c.ttft)
			case f.refused > c.refused:
				t.Errorf("%d refused, want %d at most", f.refused, c.refused)
			case f.most > c.allowed:
				t.Errorf("%d in flight, of %d slots", f.most, c.allowed)
			}
		})
	}
}

// Half the time the GPU is hot: it gets half the requests, and as many as before when it has cooled
// down, without learning again.
func TestControllerOnAHotGPU(t *testing.T) {
	t.Parallel()
	var w policy.StrainWatch
	f := trial{batching: h100, profile: policy.Balanced, scrape: often, gpu: func(now float64) []policy.GPU {
		s := policy.GPUSample{}
		if now > 1500 && now < 2500 {
			s.Reasons = 0x40
		}
		return []policy.GPU{{Sampled: true, Sample: s, Strain: w.Add(s, true, clock(now))}}
	}}.run()
	_, before, _ := f.limit(1000, 1500)
	_, hot, _ := f.limit(1700, 2500)
	_, after, _ := f.limit(2600, 3600)
	t.Logf("limit %.0f, hot %.0f, after %.0f; bound by %v; %v", before, hot, after, f.bounds, f)
	if n := f.bounds[policy.BoundThrottle]; n < 900 || n > 1100 {
		t.Errorf("throttled for %d s, want 1000 to 1030", n)
	}
	if math.Abs(after/before-1) > .1 || hot < .8*before {
		t.Error("the limit forgot what the GPU does when it is cool")
	}
}

// Another client keeps half of the engine's slots busy for a while.
func TestControllerBesideOthers(t *testing.T) {
	t.Parallel()
	engine := h100
	engine.slots = 40
	f := trial{batching: engine, profile: policy.Throughput, scrape: often, foreign: func(now float64) int {
		if now > 1500 && now < 2500 {
			return 20
		}
		return 0
	}}.run()
	t.Logf("bound by %v; %v", f.bounds, f)
	if f.ttft > 1 {
		t.Errorf("requests wait in an engine that others fill: TTFT p95 %.2f s", f.ttft)
	}
}

// GPU samples that have stopped keep the limit from growing, and do not matter after 30 s.
func TestControllerWhenGPUSamplesStop(t *testing.T) {
	t.Parallel()
	f := trial{batching: h100, profile: policy.Balanced, scrape: often, seconds: 120, gpu: func(now float64) []policy.GPU {
		return []policy.GPU{{Sampled: true, Age: time.Duration(now * float64(time.Second))}}
	}}.run()
	t.Logf("limit at 3 s %.0f, at 29 s %.0f, at 60 s %.0f", f.limits[2], f.limits[28], f.limits[59])
	if f.limits[28] > f.limits[4] || f.limits[59] < 2*f.limits[28] {
		t.Errorf("limits %.0f", f.limits)
	}
}
