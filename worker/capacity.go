package worker

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	// capacityTick is how often the GPUs are checked and the adaptive limit is updated. A worker stops bidding within
	// 1.5 s of what fences it: NVML is read once a second.
	capacityTick = 250 * time.Millisecond

	// blindSlots is how many requests an engine gets at first that reports nothing about its load, if no slots are configured.
	blindSlots = 8
	// ollamaSlots is the same for Ollama: its default of OLLAMA_NUM_PARALLEL, which it does not report.
	ollamaSlots = 1

	// startSlots is the same for an engine that reports its load, which shows half a second later whether it runs more.
	startSlots = 4

	// mostPrompt is the part of the time for a prompt that has to pass between the end of a stream and the first token of
	// another one for the second to have waited for the first.
	mostPrompt = 0.7

	// onlyStreams is how long after the last request for an answer in one piece all answers count as streamed.
	onlyStreams = time.Minute

	// scarce is the free part of KV cache, memory or degrees below which the price
	// rises, up to twice as much with nothing left.
	scarce = 0.25

	keptDecisions = 8

	// reportFresh is how old the engine's report of its queue may be: four scrapes.
	reportFresh = 2 * time.Second

	// otherEvents is how many events of a stream carry no token: the first and the
	// last in most APIs. Streams of at most fewEvents are not measured.
	otherEvents = 2
	fewEvents   = 4

	// kvShort is the used part of the KV cache from which on engines preempt requests, or let them wait.
	kvShort = 0.9

	// severalTokens is the mean number of tokens per event above which events count as carrying several.
	severalTokens = 1.5
)

// capacity decides how many requests the engine may have, and whether any may start: by the configured slots, by what
// the engine and NVML report, by the time between tokens, and by the models that are loaded.
type capacity struct {
	cfg     Config
	warmUps chan struct{} // signals that a model is to be loaded without a request: see warmingUp; capacity 1

	mu       sync.Mutex
	inFlight int
	limit    policy.AdaptiveLimit
	window   policy.LimitWindow
	parallel policy.Parallel // what the engine runs at once, as seen; unused if slots are configured
	signals  policy.Signals  // inFlight in it is updated by fitLocked
	current  policy.Capacity // as of the last fitLocked
	slots    int             // requests that may be in flight while none waits in the engine

	status    engine.Status // the engine's last report
	startedAt time.Time     // when the engine was last seen to start
	downAt    time.Time     // when it last went down
	lastToken time.Time
	turned    time.Time     // when a request last began or ended
	pieceAt   time.Time     // when a request last began whose answer comes in one piece
	waiting   int           // requests for streams without a first token
	streaming int           // streams that have had it
	order     []*slot       // those in flight, in the order in which they began; only of an engine that reports nothing
	endAt     time.Time     // when a request last ended
	firstAt   time.Time     // when a stream last had its first token
	prompt    time.Duration // shortest time to a first token since the engine started; 0: none was seen
	perEvent  float64       // mean number of tokens in an event of a stream; 0: unknown

	gpus      gpuWatch
	models    models
	ranks     ranks
	fence     fence
	decisions decisions
}

// fence is up while no request may start.
type fence struct {
	reason string // empty: the fence is down
	class  gpu.FenceClass
	since  time.Time // when it last went up

	suspect   string // what happened to a GPU, until the engine has answered after that
	suspected time.Time
}

// decisions are the last decisions about the capacity, for people.
type decisions struct {
	list     []subjects.Decision // the newest last
	grewFrom float64             // the limit before it began to grow, if the last decision is that it grew; else 0
}

// slot is the part of an attempt that capacity owns. Its fields are guarded by capacity.mu.
type slot struct {
	model   *model
	load    coldLoad
	waiting bool // it counts in capacity.waiting
	streams bool // it counts in capacity.streaming
}

// newCapacity returns the capacity of an engine of which nothing is known yet.
// Configured slots are where the adaptive limit starts.
func newCapacity(cfg Config) *capacity {
	weight := cmp.Or(cfg.Weight, 1)
	if cfg.Slots > 0 {
		weight = float64(cfg.Slots) / policy.SlotsPerWeight
	}
	c := &capacity{cfg: cfg, warmUps: make(chan struct{}, 1), limit: policy.NewAdaptiveLimit(cfg.Profile, weight, cfg.Baseline)}
	c.signals = policy.Signals{Fixed: cfg.Profile.Fixed, NVMLRequired: cfg.NVMLRequired, Limit: c.limit.Value()}
	c.boundLocked()
	c.models.preload.names = cfg.Preload
	c.ranks = newRanks(cfg.Ranks)
	c.current = c.signals.Capacity()
	c.slots = c.current.Total
	return c
}

// boundLocked updates the bounds by the engine's slots: those that are configured, that it reports, or that were found.
func (c *capacity) boundLocked() {
	s, st := &c.signals, &c.status
	s.Slots, s.EngineSlots, s.Found, s.Reach = c.cfg.Slots, 0, 0, 0
	if st.Slots != nil {
		s.EngineSlots = *st.Slots
	}
	switch {
	case c.cfg.Slots > 0:
	case c.silentLocked():
		if s.Slots = c.parallel.Bound(); s.Slots == 0 {
			s.Reach = c.parallel.Reach(c.startLocked())
			s.Slots = s.Reach
			if c.turned.Sub(c.pieceAt) > onlyStreams { // answers in one piece show late, or not at all, that there are too many
				s.Slots = c.parallel.ReachWithReserve(c.startLocked())
			}
		}
	default:
		s.Found = c.parallel.Bound()
		// What TGI reports is how many requests it accepts.
		if s.Found == 0 && (st.Slots == nil || st.Dialect == engine.DialectTGI) {
			s.Reach = c.parallel.Reach(c.startLocked())
		}
	}
}

// silentLocked reports whether the engine reports nothing about its load, or no longer does.
func (c *capacity) silentLocked() bool {
	return c.status.Slots == nil && c.signals.Scrape.Freshness() == policy.Missing
}

// startLocked returns how many requests the engine gets before it has shown how many it runs at once.
func (c *capacity) startLocked() int {
	switch {
	case c.status.Dialect == engine.DialectOllama:
		return ollamaSlots
	case c.silentLocked():
		return blindSlots
	}
	return startSlots
}

func (c *capacity) serve(pools []servedPool, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.models.serve(pools)
	c.models.onStatus(c.status, now)
}

// load returns what bids depend on, as far as capacity knows it: without the prefills, and without what an operator set.
func (c *capacity) load() load {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fitLocked()
	return load{
		open: c.fence.reason == "", inFlight: c.inFlight, free: c.current.More, behind: c.current.Behind, total: c.current.Total, extra: c.extraLocked(), whole: c.parallel.Whole(), slots: c.slots,
		models: c.models.states(), assumed: c.gpus.weight, speed: c.speedLocked(),
	}
}

// extraLocked returns how many of the requests that may be in flight are more than the engine runs at once, as far as that is
// known.
func (c *capacity) extraLocked() int {
	runs := cmp.Or(c.parallel.Found(), c.signals.EngineSlots)
	if runs == 0 || c.cfg.Slots > 0 {
		return 0
	}
	return max(c.current.Total-runs, 0)
}

func (c *capacity) fitLocked() {
	c.signals.InFlight, c.signals.QueueFull = c.inFlight, c.current.QueueFull
	c.current = c.signals.Capacity()
}

// speedLocked returns what the price is divided by. It is below 1 if a GPU is throttled or the KV cache is nearly full,
// so that the worker gets fewer requests before it has to stop.
func (c *capacity) speedLocked() float64 {
	return max(c.current.Factor, 0.1) / (2 - min(c.current.Ease/scarce, 1))
}

// chooseModels decides for which models requests may be accepted now, and returns the states of all.
func (c *capacity) chooseModels(d demand, now time.Time) map[string]modelState {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.models.swaps { // all have been loaded meanwhile
		return nil
	}
	warming := c.models.warming
	if text := c.models.choose(d, c.cfg.SwapAfter, now); text != "" {
		c.decisions.add(now, text)
	}
	if c.models.warming != warming {
		signal(c.warmUps)
	}
	return c.models.states()
}

// warmingUp returns the model that is to be loaded without a request, as the engine calls it; false if there is none.
func (c *capacity) warmingUp() (model string, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.models.warming == nil {
		return "", false
	}
	return c.models.warming.name, true
}

// onWarmedUp handles the end of a load without a request; err is why it failed. took is 0 if the load time is unknown.
func (c *capacity) onWarmedUp(err error, now time.Time) (took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, took := c.models.onWarmedUp(err != nil, now)
	if err != nil {
		c.decisions.add(now, fmt.Sprintf("%v; trying again in %v at the earliest", err, m.rests.Sub(now)))
	}
	return took
}

// loadTimes returns the measured load times of the served models, by pool.
func (c *capacity) loadTimes() map[string]time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	byPool := make(map[string]time.Duration, len(c.models.served))
	for _, m := range c.models.served {
		byPool[m.pool] = m.load
	}
	return byPool
}

// learned returns what was measured of the engine, with the load times of all models that were ever seen.
func (c *capacity) learned() learned {
	c.mu.Lock()
	defer c.mu.Unlock()
	return learned{loads: maps.Clone(c.models.learned), parallel: c.parallel.Found()}
}

// recall takes in what was measured before the worker started.
func (c *capacity) recall(was learned, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.models.recall(was.loads)
	if c.cfg.Slots == 0 {
		c.parallel.Recall(was.parallel, now)
		c.boundLocked()
	}
}

// begin adds a request in flight for the model of a pool. beside is how many others are in flight.
func (c *capacity) begin(s *slot, pool string, streams bool, now time.Time) (load coldLoad, beside int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	beside = c.inFlight
	c.inFlight++
	c.turned = now
	if !streams {
		c.pieceAt = now
	}
	s.model, s.load = c.models.begin(pool, now)
	s.load.unseen = len(c.models.served) > 1 && (c.status.Dialect == engine.DialectOpenAI || c.status.Dialect == "")
	c.waitsLocked(s, streams)
	c.window.Started(c.inFlight)
	if c.cfg.Slots == 0 && c.silentLocked() {
		c.order = append(c.order, s)
	}
	return s.load, beside
}

func (c *capacity) end(s *slot, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waitsLocked(s, false)
	c.inFlight--
	if s.streams {
		s.streams = false
		c.streaming--
	}
	c.endAt = now
	if i := slices.Index(c.order, s); i >= 0 {
		c.order = slices.Delete(c.order, i, i+1)
	}
	c.turned = now
	s.model.end(now)
}

func (c *capacity) waitsLocked(s *slot, waits bool) {
	if s.waiting == waits {
		return
	}
	s.waiting = waits
	if waits {
		c.waiting++
	} else {
		c.waiting--
	}
	c.window.Prefilling(c.waiting)
}

func (c *capacity) onFirstByte(s *slot, began, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	streams := s.waiting
	c.waitsLocked(s, false)
	if !streams {
		return
	}
	s.streams = true
	c.streaming++
	if !s.load.waits && !c.disturbedLocked(began) {
		c.window.FirstToken(now.Sub(began))
		c.findLocked(began, now)
	}
	c.firstAt = now
}

// findLocked takes in a first token for how many requests the engine runs at once, if it does not report its load.
func (c *capacity) findLocked(began, now time.Time) {
	took := now.Sub(later(began, c.firstAt))
	if c.prompt == 0 || took < c.prompt {
		c.prompt = took
	}
	if c.cfg.Slots > 0 || !c.silentLocked() {
		return
	}
	waiting := c.waiting
	if c.streaming+c.waiting < c.inFlight { // which of the others run cannot be seen
		waiting = 0
	}
	afterEnd := c.endAt.After(began) && now.Sub(c.endAt) >= time.Duration(mostPrompt*float64(c.prompt))
	was := c.parallel.Found()
	c.parallel.FirstToken(c.streaming, waiting, afterEnd, now)
	c.decidedLocked(was, now)
	c.boundLocked()
}

// onAnswer handles the end of a good answer.
func (c *capacity) onAnswer(s *slot, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if older := slices.Index(c.order, s); older >= 0 && !c.models.swaps && !c.models.loading() && c.silentLocked() {
		was := c.parallel.Found()
		c.parallel.Answered(older, c.inFlight-1, now)
		c.decidedLocked(was, now)
		c.boundLocked()
	}
}

// onLoaded handles the first byte of an answer whose model had to be loaded: see models.onAnswer.
func (c *capacity) onLoaded(s *slot, answer time.Duration, exact bool, now time.Time) (afterLoad bool, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.models.onAnswer(s.model, answer, exact, now)
}

// pace measures the time between the tokens of one stream. It is owned by the goroutine that reads the stream.
type pace struct {
	events int         // until at
	at     time.Time   // of the last read with an event; zero: the time since does not count
	mark   prefillMark // as of at
	took   time.Duration
}

// onTokens handles a read of a stream, which has brought so many events until now.
// ended reports whether the last event of the stream is among them.
func (c *capacity) onTokens(p *pace, events int, ended bool, mark prefillMark, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastToken = now
	more := events - p.events
	if c.disturbedLocked(p.at) {
		p.at = time.Time{}
	}
	if more == 0 && !p.at.IsZero() {
		return
	}
	if !p.at.IsZero() {
		gap := now.Sub(p.at)
		p.took += gap
		switch {
		case c.perEvent == 0 || c.perEvent >= severalTokens || ended: // the last read has events without a token
		case mark.quiet && p.mark == mark:
			c.window.GapWithoutPrefill(gap, more)
		default:
			c.window.Gap(gap, more)
		}
	}
	p.events, p.at, p.mark = events, now, mark
}

func (c *capacity) onBytes(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastToken = now
}

// onEnd handles the end of a whole answer, with its events and the tokens that the engine reported if it is a stream.
// If events carry several tokens, the time between two tokens is known only as the mean of the whole stream.
func (c *capacity) onEnd(p *pace, stream bool, events, tokens int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.window.Ended()
	if !stream || events <= fewEvents {
		return
	}
	if tokens == 0 { // the engine does not report them
		c.perEvent = cmp.Or(c.perEvent, 1)
		return
	}
	per := float64(tokens) / float64(events-otherEvents)
	c.perEvent = cmp.Or(c.perEvent, per)
	c.perEvent += (per - c.perEvent) / 20
	if c.perEvent >= severalTokens && tokens > 1 && p.took > 0 {
		c.window.Gap(p.took, tokens-1)
	}
}

func (c *capacity) onRefusal() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.window.Refused()
}

func (c *capacity) onDown(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.downAt = now
}

// onUp records that the engine is up again. It may be another one, so the adaptive limit starts again.
func (c *capacity) onUp(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.restartLocked(now)
}

func (c *capacity) restartLocked(now time.Time) {
	c.startedAt = now
	c.limit.Restart()
	c.parallel.Restart(now)
	c.prompt = 0
	c.emptyWindowLocked()
	c.gpus.restart()
}

func (c *capacity) emptyWindowLocked() {
	c.window = policy.LimitWindow{}
	c.window.Prefilling(c.waiting)
}

// disturbed reports whether the worker was fenced or the engine down at some time
// after since. What was measured in that time is not typical.
func (c *capacity) disturbed(since time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.disturbedLocked(since)
}

func (c *capacity) disturbedLocked(since time.Time) bool {
	return c.fence.reason != "" || c.fence.since.After(since) || c.downAt.After(since)
}

// illSince returns since when the engine is down, or the engine or a GPU fenced; zero if none is. A fence because NVML
// reports nothing does not count: nothing is known to be wrong. Nor does one because the engine hangs: the gateways move
// its requests as others have room for them.
func (c *capacity) illSince(down bool) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case down:
		return c.downAt
	case c.fence.reason != "" && !c.blindLocked() && c.fence.class != subjects.FenceHung && c.fence.class != subjects.FenceFrozen:
		return c.fence.since
	}
	return time.Time{}
}

// signs returns what is known of the engine's progress.
func (c *capacity) signs(now time.Time) engineSigns {
	c.mu.Lock()
	defer c.mu.Unlock()
	return engineSigns{
		progress: later(c.lastToken, c.startedAt), started: c.startedAt, late: c.status.Late, checked: c.status.Checked, took: c.status.Took,
		queue: queueOf(c.status, now), inFlight: c.inFlight, served: len(c.models.served), short: c.shortLocked(now),
	}
}

// explainsWaits reports whether the engine works on other requests, which explains that some wait long for their first
// byte: something came from it lately, and it reports that others wait in its queue or that its KV cache is nearly full. One
// that reports neither may have a queue if it has more requests than it was ever seen to run at once (parallel).
func (c *capacity) explainsWaits(parallel int, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Sub(c.lastToken) > reportFresh {
		return false
	}
	if c.shortLocked(now) {
		return true
	}
	queue := queueOf(c.status, now)
	return queue == queueFull || queue == queueUnknown && c.inFlight > parallel
}

// shortLocked reports whether the engine's KV cache is nearly full.
func (c *capacity) shortLocked(now time.Time) bool {
	return c.status.Age(now) <= reportFresh && c.status.KVUsage != nil && *c.status.KVUsage >= kvShort
}

// queueOf says by the engine's last report whether another request would wait inside it.
func queueOf(st engine.Status, now time.Time) queueSign {
	waiting, slots := st.Waiting, st.Slots
	switch full := slots != nil && st.Running != nil && *st.Running >= *slots; {
	case st.Age(now) > reportFresh || waiting == nil && (slots == nil || st.Running == nil):
		return queueUnknown
	case full, waiting != nil && *waiting > 0:
		return queueFull
	}
	return queueEmpty
}

// blindLocked reports whether NVML is required and does not report every GPU.
func (c *capacity) blindLocked() bool {
	return c.cfg.NVMLRequired && c.signals.GPUFreshness() == policy.Missing
}

func (c *capacity) onStatus(st engine.Status, work workload, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.status
	c.status = st
	c.ranks.onStatus(st)
	if fell(was.Preemptions, st.Preemptions) || fell(was.Generated, st.Generated) { // it has restarted
		c.restartLocked(now)
	}
	if c.progressedLocked(was, st) {
		c.lastToken = now
	}
	s := &c.signals
	s.KVTokens = 0
	if st.KVTotal != nil {
		s.KVTokens = float64(*st.KVTotal)
	}
	s.OnDemand = st.Dialect == engine.DialectOllama || st.Dialect == engine.DialectLlamaCpp || st.Dialect == engine.DialectTriton
	if st.At.After(was.At) {
		s.Scrape = policy.Scrape{
			Taken: true, InFlight: c.inFlight,
			Running: maybe(st.Running), Waiting: maybe(c.ranks.waiting(st)),
			KVUsed: maybe(st.KVUsage), Preempted: maybe(st.Preemptions),
			Prefilling: work.prefills, Prefill: work.prompt,
		}
		if s.KVTokens > 0 {
			s.Scrape.Request = work.tokens / s.KVTokens
		}
		c.window.Scraped(s.Scrape)
		if c.cfg.Slots == 0 {
			c.foundLocked(s.Scrape, now)
		}
	}
	c.boundLocked()
	c.ageLocked(work, now)
	c.models.onStatus(st, now)
	if m := c.models.nextPreload(st, c.inFlight); m != nil {
		c.models.warmUp(m, now)
		c.decisions.add(now, fmt.Sprintf("load model %q at the start", m.name))
		signal(c.warmUps)
	}
}

// ageLocked updates the signals that change without a report.
func (c *capacity) ageLocked(work workload, now time.Time) {
	c.signals.Scrape.Age = c.status.Age(now)
	c.signals.Tokens = work.tokens
}

// foundLocked takes in a scrape for how many requests the engine runs at once.
func (c *capacity) foundLocked(s policy.Scrape, now time.Time) {
	was := c.parallel.Found()
	if c.models.loading() { // what waits for a load does not show it
		return
	}
	c.parallel.Scraped(s, now)
	c.decidedLocked(was, now)
}

// decidedLocked records a change of the number of requests that the engine was found to run at once.
func (c *capacity) decidedLocked(was int, now time.Time) {
	switch is := c.parallel.Found(); {
	case is == was:
	case is == 0:
		c.decisions.add(now, fmt.Sprintf("the engine runs more than %d requests at once", was))
	default:
		c.decisions.add(now, fmt.Sprintf("the engine runs %d requests at once: others were seen waiting", is))
	}
}

// progressedLocked reports whether the counters of the engine show that it has worked between two reports. Tokens and
// preemptions do. Its KV cache and its queue do unless a request began or ended here meanwhile, which changes them too.
func (c *capacity) progressedLocked(was, st engine.Status) bool {
	if rose(was.Generated, st.Generated) || rose(was.Preemptions, st.Preemptions) {
		return true
	}
	if !c.turned.Before(was.At) || !st.At.After(was.At) {
		return false
	}
	admitted := was.Waiting != nil && st.Waiting != nil && *st.Waiting < *was.Waiting
	return admitted || was.KVUsage != nil && st.KVUsage != nil && *was.KVUsage != *st.KVUsage
}

func rose(was, now *int64) bool { return was != nil && now != nil && *now > *was }

func fell(was, now *int64) bool { return was != nil && now != nil && *now < *was }

// maybe converts a number that an engine or a GPU may not report.
func maybe[T int | int64 | float64](v *T) policy.Maybe {
	if v == nil {
		return policy.Maybe{}
	}
	return policy.Known(float64(*v))
}

// runningAttempts is what a stall of the engine is recognised by.
type runningAttempts struct {
	oldest    time.Time // when the oldest began; zero: none runs
	streaming bool      // some stream has had its first byte
	parallel  int       // most streams so far that had theirs at once

	pools map[string]*poolAttempts // by the pool whose model answers them

	hangs fenceCause // why the engine counts as one that hangs; the zero value: it does not
}

// poolAttempts is what vitals needs to know of the attempts of a pool.
type poolAttempts struct {
	waiting       int            // those whose answer has not begun
	going         int            // streams that have begun a while ago and go on
	stuck         int            // those that do not, though their clients take what comes
	stuckFor      time.Duration  // the longest silence of these
	head          *attempt       // the oldest of those that wait; if none does, a stream
	oldestWaiting time.Time      // when that began
	awaited       policy.Awaited // of all that wait
	lastByte      time.Time      // of the answers that have begun
	due           policy.Due     // the same; zero: one of them is like none that was measured, or began beside far fewer

	parallel int             // see runningAttempts
	others   *policy.Awaited // of all that wait for other pools; nil: none does
}

// of returns the attempts of a pool. What the other pools wait for counts too: the engine may work on that first.
func (r *runningAttempts) of(pool string) (p poolAttempts) {
	if own := r.pools[pool]; own != nil {
		p = *own
	}
	p.parallel = r.parallel
	for name, other := range r.pools {
		if name == pool || other.waiting == 0 {
			continue
		}
		awaited := other.awaited
		if p.others != nil {
			awaited = p.others.With(awaited)
		}
		p.others = &awaited
	}
	if p.waiting > 0 && p.others != nil {
		p.awaited = p.awaited.With(*p.others)
	}
	return p
}

// fenceChange is a change of the fence. The zero value is no change.
type fenceChange struct {
	changed  bool
	reason   string // of the fence that is up now; empty: it is down
	inFlight int
	lasted   time.Duration // how long the fence was up that is down now
}

// tell logs the change, and reports whether there is one: other parts should know of it then.
func (f fenceChange) tell(log *slog.Logger) bool {
	switch {
	case !f.changed:
		return false
	case f.reason == "":
		log.Info("worker no longer fenced", "fenced_for", f.lasted)
	default:
		log.Warn("worker fenced; it takes no new requests", "reason", f.reason, "in_flight", f.inFlight)
	}
	return true
}

// look checks the last sample of the GPUs (nil: without NVML), updates the adaptive
// limit, and decides whether the fence is up. weight is the one that an operator set;
// reserved is what of the capacity is left free for higher tiers.
func (c *capacity) look(gpus *gpu.Reading, work workload, running runningAttempts, weight float64, reserved int, now time.Time) (gpuNews, fenceChange) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var news gpuNews
	if gpus != nil {
		news = c.lookAtGPUsLocked(*gpus, weight, now)
	}
	c.ageLocked(work, now)
	c.signals.Reserved = reserved
	c.parallel.Reserve(reserved, now)
	c.boundLocked()
	before := math.Floor(c.limit.Value())
	if c.models.loading() { // requests that wait for a load do not show how many the engine can run
		c.emptyWindowLocked()
	}
	change := c.limit.Update(&c.window, c.signals, now)
	c.signals.Limit = c.limit.Value()
	if after := math.Floor(c.limit.Value()); after != before {
		c.decisions.addLimit(now, before, after, change)
	}
	fence := c.fenceLocked(running, now)
	c.fitLocked()
	c.slots = c.slotsLocked()
	return news, fence
}

func (c *capacity) lookAtGPUsLocked(all gpu.Reading, weight float64, now time.Time) gpuNews {
	news := c.gpus.look(all, c.cfg.GPUs, c.inFlight, !c.signals.OnDemand, c.startedAt, now)
	if news.suspect != "" {
		c.fence.suspect, c.fence.suspected = news.suspect, now
	}
	for _, text := range news.strains {
		c.decisions.add(now, text)
	}
	c.signals.GPUs = c.gpus.signals(now)
	if c.gpus.weigh() && c.cfg.Slots == 0 && c.limit.Baseline() == c.cfg.Baseline { // nothing is measured yet
		c.limit = policy.NewAdaptiveLimit(c.cfg.Profile, cmp.Or(weight, c.gpus.weight), c.cfg.Baseline)
	}
	return news
}

// onListing handles the engine's answer to a question that was sent at asked. A good
// answer clears a GPU that was suspected before.
func (c *capacity) onListing(good bool, asked time.Time, running runningAttempts, now time.Time) fenceChange {
	c.mu.Lock()
	defer c.mu.Unlock()
	if good && !asked.Before(c.fence.suspected) {
		c.fence.suspect = ""
	}
	return c.fenceLocked(running, now)
}

// onVitals handles a judgement of the engine: running says whether it hangs.
func (c *capacity) onVitals(running runningAttempts, now time.Time) fenceChange {
	c.mu.Lock()
	defer c.mu.Unlock()
	fence := c.fenceLocked(running, now)
	if fence.changed {
		c.fitLocked()
		c.slots = c.slotsLocked()
	}
	return fence
}

// fenceLocked decides whether the fence is up. While it is, attempts without a first byte fail sooner, so that another
// worker can have their requests: see attempt.silent.
func (c *capacity) fenceLocked(running runningAttempts, now time.Time) fenceChange {
	class, why := c.fenceReasonLocked(running, now)
	was := c.fence.reason
	if was == why {
		return fenceChange{}
	}
	c.fence.reason, c.fence.class, c.signals.Fence = why, class, why
	change := fenceChange{changed: true, reason: why, inFlight: c.inFlight}
	if why == "" {
		change.lasted = now.Sub(c.fence.since).Round(time.Millisecond)
		c.decisions.add(now, "fence lifted")
		return change
	}
	if was == "" {
		c.fence.since = now
	}
	c.decisions.add(now, "fenced: "+why)
	return change
}

// fenceReasonLocked returns why the fence must be up; empty if it must not.
func (c *capacity) fenceReasonLocked(running runningAttempts, now time.Time) (class gpu.FenceClass, why string) {
	if class, why := c.gpus.fenced(); why != "" {
		return class, why
	}
	if c.blindLocked() {
		if f := c.gpus.nvml.Failure; f != nil {
			return subjects.FenceNVML, "NVML is required but fails: " + f.Error()
		}
		return subjects.FenceNVML, "NVML is required but reports nothing about the engine's GPUs"
	}
	if c.fence.suspect != "" {
		return gpu.FenceXID, c.fence.suspect
	}
	if running.hangs.reason != "" {
		return running.hangs.class, running.hangs.reason
	}
	return subjects.FenceStalled, c.stallLocked(running, now)
}

// stallLocked returns a reason if the engine has stalled: it has requests, and for some
// time neither produced a token nor used a GPU. The reason is gone when none of those
// requests is left. An idle GPU means nothing if the engine was never seen to use it.
func (c *capacity) stallLocked(running runningAttempts, now time.Time) string {
	if c.inFlight == 0 || c.gpus.idleSince.IsZero() || !c.gpus.worked {
		return ""
	}
	patience := stalledFirst
	if running.streaming {
		patience = stalledAfter
	}
	if c.models.swap.To != "" { // reading a model from disk does not use the GPU
		patience = max(patience, c.cfg.StallTimeout)
	}
	since := later(later(c.gpus.idleSince, running.oldest), later(c.lastToken, c.startedAt))
	if now.Sub(since) < patience {
		return ""
	}
	return fmt.Sprintf("the engine has stalled: for %v it had requests but produced no token, and its GPU was idle", patience)
}

func (c *capacity) slotsLocked() int {
	if c.current.Bound == policy.BoundFence {
		return 0
	}
	most := math.Inf(1)
	for _, t := range c.signals.Terms() {
		if t.Bound != policy.BoundQueue && t.Bound != policy.BoundStale && t.Bound != policy.BoundKV {
			most = min(most, t.Max)
		}
	}
	if math.IsInf(most, 1) {
		return max(c.current.Total, 1)
	}
	return max(int(most*c.current.Factor), 1)
}

func (d *decisions) add(now time.Time, text string) {
	if len(d.list) >= keptDecisions {
		d.list = slices.Delete(d.list, 0, len(d.list)-keptDecisions+1)
	}
	d.list = append(d.list, subjects.Decision{At: now, Text: text})
	d.grewFrom = 0
}

// addLimit adds a change of the limit. While the limit goes on growing, all changes are one decision.
func (d *decisions) addLimit(now time.Time, from, to float64, change policy.Change) {
	grows := change == policy.Grew || change == policy.GrewBlind
	if since := d.grewFrom; grows && since > 0 {
		d.list = d.list[:len(d.list)-1]
		from = since
	}
	if change == policy.Unchanged {
		change = "set to the number of slots"
	}
	d.add(now, fmt.Sprintf("limit %.0f → %.0f: %s", from, to, change))
	if grows {
		d.grewFrom = from
	}
}

// report adds to a heartbeat what only capacity knows.
func (c *capacity) report(h *subjects.Heartbeat) (fence string, dialect engine.Dialect, contexts contexts) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fit := c.current
	h.Capacity = &subjects.Capacity{
		Profile: c.cfg.Profile.Name, Total: fit.Total, Bound: fit.Bound, Why: fit.Why, Headroom: fit.Headroom, Factor: fit.Factor,
		Engine: fit.Engine.String(), GPU: fit.GPU.String(), Terms: make(map[policy.Bound]float64),
		Limit: c.limit.Value(), AloneMS: ms(c.limit.Baseline()), PaceMS: ms(c.limit.Pace()), TargetMS: ms(c.limit.Target()),
		Infeasible: c.limit.Infeasible(), Decisions: slices.Clone(c.decisions.list),
	}
	for _, t := range c.signals.Terms() {
		if !math.IsInf(t.Max, 1) {
			h.Capacity.Terms[t.Bound] = t.Max
		}
	}
	h.EngineStatus, h.FenceClass = engineReport(c.status), c.fence.class
	h.Ranks = c.ranks.report()
	if c.cfg.NVML != nil {
		h.NVML = c.gpus.report(c.cfg.NVMLRequired)
	}
	if n := c.status.Context; n != nil {
		contexts.only = *n
	}
	contexts.models = c.status.Models
	return c.fence.reason, c.status.Dialect, contexts
}

// contexts are the lengths of an engine's contexts, as far as it reports them.
type contexts struct {
	only   int64          // if it has one model; 0: not reported
	models []engine.Model // they are never changed
}

// of returns the length of a model's context; 0 if that is unknown.
func (c contexts) of(model string) int64 {
	if i := slices.IndexFunc(c.models, func(m engine.Model) bool { return m.Name == model }); i >= 0 && c.models[i].Context > 0 {
		return c.models[i].Context
	}
	return c.only
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func engineReport(st engine.Status) *subjects.EngineStatus {
	if st.Dialect == "" {
		return nil
	}
	r := &subjects.EngineStatus{
		Dialect: string(st.Dialect), At: st.At, Slots: st.Slots, Running: st.Running, Waiting: st.Waiting,
		KVTokens: st.KVTotal, KVUsage: st.KVUsage, Preemptions: st.Preemptions,
	}
	if st.Dialect == engine.DialectOllama || st.Dialect == engine.DialectLlamaSwap {
		r.Loaded = st.Loaded()
	}
	return r
}

// lookAtCapacity checks the GPUs, the adaptive limit and the fence. It runs every capacityTick.
func (w *Worker) lookAtCapacity(now time.Time) {
	var gpus *gpu.Reading
	if w.cfg.NVML != nil {
		all, _ := w.cfg.NVML.Latest()
		gpus = &all
	}
	_, weight := w.presence.open(now)
	running := w.attempts.summary(0, now)
	running.hangs = w.vitals.hangs()
	news, fence := w.capacity.look(gpus, w.estimates.workload(now), running, weight, w.bidder.reserved(now), now)
	if f := news.unwatched; f != nil {
		w.log.Warn("GPUs are not monitored", "reason", f.Error(), "remedy", f.Remedy())
	}
	if news.suspect != "" {
		w.scraper.Look()
	}
	if fence.tell(w.log) {
		w.presence.beat()
	}
	w.bid()
}
