package worker

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	// roomTick is how often the GPUs are looked at, and the adaptive limit is asked
	// whether its window is long enough. A fenced worker stops within 1.5 s of the
	// event: the driver is asked every second at worst.
	roomTick = 250 * time.Millisecond

	// blindSlots are those of an engine that says nothing of its load, if nobody has
	// configured any.
	blindSlots = 8
	// ollamaSlots is Ollama's default of OLLAMA_NUM_PARALLEL, which it does not tell.
	ollamaSlots = 1

	// scarce is the part of KV cache, memory or degrees left from which on a worker
	// becomes dearer, up to twice as dear with nothing left.
	scarce = 0.25

	keptDecisions = 8
)

// room is how many requests the engine may have now, and what that follows from.
// Guarded by Worker.mu.
type room struct {
	limit   policy.Limit
	window  policy.LimitWindow
	signals policy.Signals  // but for what changes from one request to the next
	credit  policy.Capacity // as of the last fit
	slots   int             // that may be filled while nothing waits in the engine

	tells     engine.Status // as last read
	unwell    string        // why the engine says that it is not well
	started   time.Time     // when the engine was last seen to start
	lastToken time.Time
	firsts    int     // streamed requests that wait for their first token
	perEvent  float64 // tokens that an event of a stream has; 0: unknown
	prefills  uint64  // requests that began to wait for their first token so far

	gpus      []*watchedGPU
	nvml      subjects.NVML
	prior     float64   // weight, by the bandwidth of the GPUs; 0: unknown
	worked    bool      // the GPUs were seen at work beside requests: the engine runs on them
	idleSince time.Time // since when all GPUs have had nothing to do; zero: they have, or nobody knows
	suspect   string    // what happened to a GPU, until the engine has answered
	suspected time.Time

	fence      string // why nothing may start; empty: it may
	fenceClass gpu.FenceClass
	fencedAt   time.Time
	decisions  []subjects.Decision
	grewFrom   float64 // limit, if the last decision is that it grew; else 0
}

// newRoom is that of an engine of which nothing is known yet. Configured slots
// are where the limit starts: whoever names them knows something.
func newRoom(cfg Config, weight float64) room {
	if cfg.Slots > 0 {
		weight = float64(cfg.Slots) / policy.SlotsPerWeight
	}
	r := room{limit: policy.NewLimit(cfg.Profile, weight, cfg.Baseline)}
	r.signals = policy.Signals{Fixed: cfg.Profile.Fixed, NVMLRequired: cfg.NVMLRequired, Limit: r.limit.Value()}
	r.signals.Slots = slotsOf(cfg, r.tells)
	r.credit = r.signals.Capacity()
	r.slots = r.credit.Total
	return r
}

// slotsOf are the slots that bind by configuration, or because nothing else does.
func slotsOf(cfg Config, tells engine.Status) int {
	silent := tells.Slots == nil && tells.Running == nil && tells.Waiting == nil && tells.KVUsage == nil
	switch {
	case cfg.Slots > 0 || !silent:
		return cfg.Slots
	case tells.Dialect == engine.DialectOllama:
		return ollamaSlots
	}
	return blindSlots
}

// fitLocked is how many more requests may start now.
func (w *Worker) fitLocked() int {
	r := &w.room
	was := r.credit.Total
	r.signals.InFlight, r.signals.Queued = w.inFlight, r.credit.Queued
	r.credit = r.signals.Capacity()
	if r.credit.Total != was {
		w.ceilLocked()
	}
	return r.credit.More
}

// ceilLocked works out what each tier may fill of the room.
func (w *Worker) ceilLocked() {
	loads := make([]float64, len(w.tiers))
	for i, t := range w.tiers {
		loads[i] = t.load.mean
	}
	for i := range w.tiers {
		w.tiers[i].ceiling = policy.Ceiling(w.policy.Tiers, loads, i, w.room.credit.Total)
	}
}

// speedLocked divides the price, beside the weight: a GPU that is held back, or
// nearly, and a KV cache that is nearly full, make the worker dearer before
// anything has to stop.
func (w *Worker) speedLocked() float64 {
	c := w.room.credit
	return max(c.Factor, 0.1) / (2 - min(c.Ease/scarce, 1))
}

// weightLocked is the worker's weight: as the policy says, else as configured,
// else by the bandwidth of its GPUs.
func (w *Worker) weightLocked() float64 {
	switch {
	case w.weight > 0:
		return w.weight
	case w.room.prior > 0:
		return w.room.prior
	}
	return 1
}

// roomLoop follows the GPUs, the limit, and whether anything moves.
func (w *Worker) roomLoop(ctx context.Context) {
	tick := time.NewTicker(roomTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			w.lookAround(time.Now())
		}
	}
}

// lookAround takes in what there is to know, and acts on it.
func (w *Worker) lookAround(now time.Time) {
	w.mu.Lock()
	r := &w.room
	w.lookAtGPUsLocked(now)
	w.ageLocked(now)
	before := math.Floor(r.limit.Value())
	if w.loadsModelLocked() { // what waits for that says nothing of how many are too many
		r.window = policy.LimitWindow{}
		r.window.Prefilling(r.firsts)
	}
	change := r.limit.Update(&r.window, r.signals, now)
	r.signals.Limit = r.limit.Value()
	if after := math.Floor(r.limit.Value()); after != before {
		w.limitedLocked(now, before, after, change)
	}
	changed := w.fenceLocked(now)
	w.fitLocked()
	r.slots = w.slotsLocked()
	w.bidLocked()
	w.mu.Unlock()
	if changed {
		w.beat()
	}
}

// slotsLocked are those that may be filled while nothing waits in the engine.
func (w *Worker) slotsLocked() int {
	r := &w.room
	if r.credit.Bound == policy.BoundFence {
		return 0
	}
	most := math.Inf(1)
	for _, t := range r.signals.Terms() {
		if t.Bound != policy.BoundQueue && t.Bound != policy.BoundStale && t.Bound != policy.BoundKV {
			most = min(most, t.Max)
		}
	}
	if math.IsInf(most, 1) {
		return max(r.credit.Total, 1)
	}
	return max(int(most*r.credit.Factor), 1)
}

// decideLocked notes a decision for people.
func (w *Worker) decideLocked(now time.Time, text string) {
	r := &w.room
	if len(r.decisions) >= keptDecisions {
		r.decisions = slices.Delete(r.decisions, 0, len(r.decisions)-keptDecisions+1)
	}
	r.decisions = append(r.decisions, subjects.Decision{At: now, Text: text})
	r.grewFrom = 0
}

// limitedLocked notes what the limit came to. While it goes on growing, that is
// one decision.
func (w *Worker) limitedLocked(now time.Time, from, to float64, change policy.Change) {
	r := &w.room
	grows := change == policy.Grew || change == policy.GrewBlind
	since := r.grewFrom
	if grows && since > 0 {
		r.decisions = r.decisions[:len(r.decisions)-1]
		from = since
	}
	if change == policy.Unchanged {
		change = "as many as there are slots"
	}
	w.decideLocked(now, fmt.Sprintf("limit %.0f → %.0f: %s", from, to, change))
	if grows {
		r.grewFrom = from
	}
}

// hearEngine takes in what the engine says of itself.
func (w *Worker) hearEngine(tells engine.Status) {
	w.mu.Lock()
	now := time.Now()
	r := &w.room
	was := r.tells
	r.tells = tells
	r.unwell = ""
	if !tells.Healthy {
		r.unwell = tells.Reason
	}
	changed := w.judgeEngineLocked(now)
	if fell(was.Preemptions, tells.Preemptions) || fell(was.Generated, tells.Generated) {
		w.engineStartedLocked(now) // its counters began anew
	}
	if tells.Generated != nil && was.Generated != nil && *tells.Generated > *was.Generated {
		r.lastToken = now
	}
	s := &r.signals
	s.Slots, s.EngineSlots, s.KVTokens = slotsOf(w.cfg, tells), number(tells.Slots), 0
	if tells.KVTotal != nil {
		s.KVTokens = float64(*tells.KVTotal)
	}
	s.OnDemand = tells.Dialect == engine.DialectOllama || tells.Dialect == engine.DialectLlamaCpp || tells.Dialect == engine.DialectTriton
	if tells.At.After(was.At) {
		s.Scrape = policy.Scrape{
			Taken: true, InFlight: w.inFlight,
			Running: reading(tells.Running), Waiting: reading(tells.Waiting),
			KVUsed: reading(tells.KVUsage), Preempted: reading(tells.Preemptions),
			Prefilling: w.prefillsLocked(now).n, Prefill: w.promptLocked(now),
		}
		r.window.Scraped(s.Scrape)
	}
	w.ageLocked(now)
	w.hearLoadedLocked(tells, now)
	w.bidLocked()
	w.mu.Unlock()
	if changed {
		w.beat()
	}
}

func fell(was, now *int64) bool { return was != nil && now != nil && *now < *was }

func number(v *int) int {
	if v == nil {
		return 0
	}
	return *v
}

func reading[T int | int64 | float64](v *T) policy.Maybe {
	if v == nil {
		return policy.Maybe{}
	}
	return policy.Known(float64(*v))
}

// ageLocked brings up to date what time alone changes in the signals.
func (w *Worker) ageLocked(now time.Time) {
	r := &w.room
	r.signals.Scrape.Age = r.tells.Age(now)
	means := make([]policy.Mean, 0, len(w.serves))
	for _, p := range w.servedLocked() {
		means = append(means, p.mean)
	}
	mean := policy.MeanOf(means)
	r.signals.Tokens = mean.Input + mean.Output
}

// promptLocked is how long the engine takes for the prompt of a mean request; 0
// while that is not measured.
func (w *Worker) promptLocked(now time.Time) time.Duration {
	var took, samples float64
	for _, p := range w.servedLocked() {
		if c := p.curve(now); c != nil && c.Prefill != nil {
			took += p.mean.Samples * c.Prefill.At(p.mean.Input)
			samples += p.mean.Samples
		}
	}
	return time.Duration(took / max(samples, 1) * float64(time.Second))
}

// engineStartedLocked forgets what was measured of an engine that is another one
// now.
func (w *Worker) engineStartedLocked(now time.Time) {
	r := &w.room
	r.started = now
	r.limit.Restart()
	r.window = policy.LimitWindow{}
	r.window.Prefilling(r.firsts)
	for _, g := range r.gpus {
		g.strains = policy.StrainWatch{}
	}
}

// tellRoomLocked is the worker's room in words, for the heartbeat.
func (w *Worker) tellRoomLocked() *subjects.Capacity {
	r := &w.room
	c := r.credit
	room := &subjects.Capacity{
		Profile: w.cfg.Profile.Name, Total: c.Total, Bound: c.Bound, Why: c.Why, Headroom: c.Headroom, Factor: c.Factor,
		Engine: c.Engine.String(), GPU: c.GPU.String(), Terms: make(map[policy.Bound]float64),
		Limit: r.limit.Value(), AloneMS: ms(r.limit.Baseline()), PaceMS: ms(r.limit.Pace()), TargetMS: ms(r.limit.Target()),
		Infeasible: r.limit.Infeasible(), Decisions: slices.Clone(r.decisions),
	}
	for _, t := range r.signals.Terms() {
		if !math.IsInf(t.Max, 1) {
			room.Terms[t.Bound] = t.Max
		}
	}
	return room
}

// tellEngineLocked is what the engine says of itself.
func (w *Worker) tellEngineLocked() *subjects.EngineStatus {
	t := &w.room.tells
	if t.Dialect == "" {
		return nil
	}
	tells := &subjects.EngineStatus{
		Dialect: string(t.Dialect), At: t.At, Slots: t.Slots, Running: t.Running, Waiting: t.Waiting,
		KVTokens: t.KVTotal, KVUsage: t.KVUsage, Preemptions: t.Preemptions,
	}
	if t.Dialect == engine.DialectOllama || t.Dialect == engine.DialectLlamaSwap {
		tells.Loaded = t.Loaded()
	}
	return tells
}
