package suite

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pulley-lb/pulley/bench"
	"github.com/pulley-lb/pulley/bench/parts"
)

// apartLoad is a load that shows what it costs to run broker, gateway and workers as processes of their own.
type apartLoad struct {
	name        string
	title       string
	concurrency int
	stream      bool
	tokens      int
	batching    bool // the engine batches as a GPU does; else it takes no time
	bars        []apartBar
}

// batchingEngine are the flags of an engine with the timing of a GPU: 20 ms + 0.1 ms·n a step.
var batchingEngine = []string{"--itl", "20ms,100us"}

// instantEngine are those of one whose answers take no time.
var instantEngine = []string{"--itl", "0,0"}

// apartBar is a bound of one figure of a load.
type apartBar struct {
	what        string
	of          func(apartRound) float64 // from one round; NaN where it is not known
	unit        string
	least, most float64 // only one of them is set
}

var apartLoads = []apartLoad{
	{name: "small-1", title: "small requests, concurrency 1", concurrency: 1, tokens: 1, bars: []apartBar{
		{what: "added p50, apart", of: addedP50(sideApart), unit: "ms", most: 0.9},
		{what: "added p50, pulley up", of: addedP50(sidePulley), unit: "ms", most: 0.45},
	}},
	{name: "small-16", title: "small requests, concurrency 16", concurrency: 16, tokens: 1, bars: []apartBar{
		{what: "requests/s, apart / proxy", of: rates(sideApart, sideYardstick), unit: "×", least: 0.6},
	}},
	{name: "small-64", title: "small requests, concurrency 64", concurrency: 64, tokens: 1, bars: []apartBar{
		{what: "requests/s, apart / proxy", of: rates(sideApart, sideYardstick), unit: "×", least: 0.6},
		{what: "requests/s, pulley up / proxy", of: rates(sidePulley, sideYardstick), unit: "×", least: 0.9},
	}},
	{name: "stream-64", title: "100-token streams, concurrency 64", concurrency: 64, stream: true, tokens: 100, bars: []apartBar{
		{what: "requests/s, apart / proxy", of: rates(sideApart, sideYardstick), unit: "×", least: 0.85},
		{what: "E2E p99, apart / proxy", of: slowest(sideApart, sideYardstick), unit: "×", most: 2},
		{what: "requests/s, pulley up / proxy", of: rates(sidePulley, sideYardstick), unit: "×", least: 0.9},
	}},
	{name: "batch-4", title: "4 streams of 200 tokens, engine with 20 ms + 0.1 ms·n a step", concurrency: 4, stream: true, tokens: 200, batching: true, bars: []apartBar{
		{what: "CPU per token, apart / proxy", of: costs(sideApart, sideYardstick), unit: "×", most: 3},
	}},
	{name: "batch-32", title: "32 streams of 200 tokens, engine with 20 ms + 0.1 ms·n a step", concurrency: 32, stream: true, tokens: 200, batching: true},
	{name: "batch-64", title: "64 streams of 200 tokens, engine with 20 ms + 0.1 ms·n a step", concurrency: 64, stream: true, tokens: 200, batching: true, bars: []apartBar{
		{what: "CPU per token, apart / proxy", of: costs(sideApart, sideYardstick), unit: "×", most: 1.3},
		{what: "CPU per token, pulley up / proxy", of: costs(sidePulley, sideYardstick), unit: "×", most: 1.1},
		{what: "CPU per token, broker", of: func(r apartRound) float64 { return r[sideApart].perToken("broker") }, unit: "µs", most: 10},
		{what: "gap p99, apart beyond the engine's", of: func(r apartRound) float64 {
			return inMS(r[sideApart].result.Gap.Percentile(99) - r[sideEngine].result.Gap.Percentile(99))
		}, unit: "ms", most: 5},
	}},
}

// ApartScenarios are the names of the scenarios of RunApart, in the order in which they run.
func ApartScenarios() []string {
	var names []string
	for _, l := range apartLoads {
		names = append(names, l.name)
	}
	return names
}

// RunApart measures what broker, gateway and workers cost as processes of their own, beside the yardstick and pulley up on
// the same engines, for each number of workers in cfg. After an error there is no report.
func RunApart(ctx context.Context, cfg Config) (*ApartReport, error) {
	if len(cfg.Scenarios) == 0 {
		cfg.Scenarios = ApartScenarios()
	}
	if len(cfg.Workers) == 0 {
		cfg.Workers = []int{1, 4, 16}
	}
	for _, n := range cfg.Workers {
		if n < 1 {
			return nil, fmt.Errorf("workers %d: must be at least 1", n)
		}
	}
	cfg.Rounds = cmp.Or(cfg.Rounds, 3)
	cfg.RoundTime = cmp.Or(cfg.RoundTime, 2*time.Second)
	cfg, err := cfg.complete(ApartScenarios())
	if err != nil {
		return nil, err
	}
	report := newApartReport(cfg)
	for _, workers := range cfg.Workers {
		for _, batching := range []bool{false, true} {
			if err := measureApart(ctx, cfg, workers, batching, report); err != nil {
				return nil, fmt.Errorf("%d workers: %w", workers, err)
			}
		}
	}
	return report, nil
}

// measureApart puts the loads for one kind of engine on fleets of so many workers.
func measureApart(ctx context.Context, cfg Config, workers int, batching bool, report *ApartReport) error {
	loads := slices.DeleteFunc(slices.Clone(apartLoads), func(l apartLoad) bool {
		return l.batching != batching || !slices.Contains(cfg.Scenarios, l.name) || batching && workers > l.concurrency
	})
	if len(loads) == 0 {
		return nil
	}
	return parts.With(cfg.parts(), func(set *parts.Set) error {
		sides, err := startApartSides(ctx, set, workers, batching)
		if err != nil {
			return err
		}
		idle, err := measureIdle(ctx, cfg, sides)
		if err != nil {
			return err
		}
		report.Idle = append(report.Idle, ApartIdle{Workers: workers, Engine: engineKind(batching), Cores: idle})
		for _, l := range loads {
			row, err := l.measure(ctx, cfg, workers, sides)
			if err != nil {
				return fmt.Errorf("%s: %w", l.name, err)
			}
			report.Rows = append(report.Rows, row)
		}
		return nil
	})
}

// apartSide is one of the ways to the engines, with the processes that make it up.
type apartSide struct {
	name  string
	urls  []string // the clients are divided among them
	parts []apartPart
}

// apartPart is the processes of one kind.
type apartPart struct {
	name  string
	procs []*parts.Process
}

func (p apartPart) usage() (sum parts.Usage) {
	for _, proc := range p.procs {
		sum = sum.Add(proc.Usage())
	}
	return sum
}

// startApartSides starts as many engines as there are workers, and the ways to them: straight, through the yardstick,
// through pulley up, and through broker, gateway and workers.
func startApartSides(ctx context.Context, set *parts.Set, workers int, batching bool) ([]apartSide, error) {
	timing := instantEngine
	if batching {
		timing = batchingEngine
	}
	engines := make([]string, workers)
	for i := range engines {
		var err error
		if engines[i], err = set.Engine(ctx, "engine "+strconv.Itoa(i+1), model, timing...); err != nil {
			return nil, err
		}
	}
	proxy, proxyURL, err := set.Yardstick(ctx, engines...)
	if err != nil {
		return nil, err
	}
	up, upURL, err := set.Up(ctx, engineFlags(engines)...)
	if err != nil {
		return nil, err
	}
	apart, err := startParts(ctx, set, engines...)
	if err != nil {
		return nil, err
	}
	if err := apart.gateway.Serves(ctx, workers); err != nil {
		return nil, err
	}
	sides := []apartSide{
		{sideEngine, engines, nil},
		{sideYardstick, []string{proxyURL}, []apartPart{{"proxy", []*parts.Process{proxy}}}},
		{sidePulley, []string{upURL}, []apartPart{{"pulley", []*parts.Process{up}}}},
		{sideApart, []string{apart.gateway.URL}, []apartPart{
			{"broker", []*parts.Process{apart.broker}},
			{"gateway", []*parts.Process{apart.gateway.Process}},
			{"workers", apart.workers},
		}},
	}
	for _, s := range sides {
		for _, url := range s.urls {
			if err := parts.Ready(ctx, url, model); err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
		}
	}
	return sides, nil
}

// apart is Pulley's parts, each a process of its own.
type apart struct {
	broker  *parts.Process
	gateway *parts.Gateway
	workers []*parts.Process
}

func startParts(ctx context.Context, set *parts.Set, engines ...string) (a apart, err error) {
	broker, nats, err := set.Broker(ctx, "broker")
	if err != nil {
		return a, err
	}
	a.broker = broker
	if a.gateway, err = set.Gateway(ctx, "gateway", nats); err != nil {
		return a, err
	}
	for i, engine := range engines {
		w, err := set.Worker("worker "+strconv.Itoa(i+1), nats, engineFlag(engine))
		if err != nil {
			return a, err
		}
		a.workers = append(a.workers, w)
	}
	return a, nil
}

// measureIdle returns how many cores each part uses while there are no requests. It first lets the parts settle.
func measureIdle(ctx context.Context, cfg Config, sides []apartSide) (map[string]float64, error) {
	settleFor, idleFor := cfg.RoundTime, 2*cfg.RoundTime
	cfg.Progress(fmt.Sprintf("idle: %s", settleFor+idleFor))
	if err := pause(ctx, settleFor); err != nil {
		return nil, err
	}
	before, at := usages(sides), time.Now()
	if err := pause(ctx, idleFor); err != nil {
		return nil, err
	}
	took, cores := time.Since(at), make(map[string]float64)
	for part, used := range usages(sides) {
		cores[part] = (used.CPU - before[part].CPU).Seconds() / took.Seconds()
	}
	return cores, nil
}

// usages returns what each part of all sides has used, by its name.
func usages(sides []apartSide) map[string]parts.Usage {
	all := make(map[string]parts.Usage)
	for _, s := range sides {
		for _, p := range s.parts {
			all[p.name] = p.usage()
		}
	}
	return all
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// apartRound is the runs of one round, by side.
type apartRound map[string]apartRun

// apartRun is one side in one round.
type apartRun struct {
	result   *bench.Result
	measured int64         // requests that succeeded, without the warm-up
	took     time.Duration // for these
	requests int64         // with those of the warm-up
	tokens   int64
	used     map[string]parts.Usage // by part
}

func (r apartRun) and(other apartRun) apartRun {
	if r.result == nil {
		return other
	}
	sum := apartRun{
		result: bench.Merge(r.result, other.result), measured: r.measured + other.measured, took: r.took + other.took,
		requests: r.requests + other.requests, tokens: r.tokens + other.tokens, used: make(map[string]parts.Usage),
	}
	for part, used := range r.used {
		sum.used[part] = used.Add(other.used[part])
	}
	return sum
}

// rate is in requests per second.
func (r apartRun) rate() float64 { return float64(r.measured) / max(r.took.Seconds(), 1e-9) }

// all is what all parts together have used.
func (r apartRun) all() (sum parts.Usage) {
	for _, used := range r.used {
		sum = sum.Add(used)
	}
	return sum
}

// perToken is the CPU time of a part for each token, in µs.
func (r apartRun) perToken(part string) float64 {
	return inMicroseconds(r.used[part].CPU) / float64(max(r.tokens, 1))
}

func inMicroseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func addedP50(side string) func(apartRound) float64 { return added(side, 50) }

// added is by how much a percentile of E2E is above that of the engine alone, in ms.
func added(side string, percent float64) func(apartRound) float64 {
	return func(r apartRound) float64 {
		return inMS(r[side].result.E2E.Percentile(percent) - r[sideEngine].result.E2E.Percentile(percent))
	}
}

func rates(side, to string) func(apartRound) float64 {
	return func(r apartRound) float64 { return r[side].rate() / r[to].rate() }
}

func slowest(side, to string) func(apartRound) float64 {
	return func(r apartRound) float64 {
		return float64(r[side].result.E2E.Percentile(99)) / float64(r[to].result.E2E.Percentile(99))
	}
}

// costs is how the CPU time of all parts of a side compares with that of another one, for each token.
func costs(side, to string) func(apartRound) float64 {
	return func(r apartRound) float64 {
		per := func(side string) float64 { return float64(r[side].all().CPU) / float64(max(r[side].tokens, 1)) }
		return per(side) / per(to)
	}
}

// measure puts the load on the sides in turn, round after round.
func (l apartLoad) measure(ctx context.Context, cfg Config, workers int, sides []apartSide) (*ApartRow, error) {
	order, turns := slices.Clone(sides), turns
	if l.batching { // one turn is one answer of each stream
		turns = 1
	}
	var rounds []apartRound
	for round := range cfg.Rounds {
		cfg.Progress(fmt.Sprintf("%s, %d workers: round %d of %d", l.name, workers, round+1, cfg.Rounds))
		runs := make(apartRound)
		for turn := range turns {
			for _, s := range order {
				run, err := l.run(ctx, cfg, s, round*turns+turn, turns)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", s.name, err)
				}
				runs[s.name] = runs[s.name].and(run)
			}
			slices.Reverse(order)
		}
		rounds = append(rounds, runs)
	}
	return newApartRow(l, workers, sides, rounds), nil
}

// run measures one side once.
func (l apartLoad) run(ctx context.Context, cfg Config, s apartSide, number, turns int) (apartRun, error) {
	load := bench.Config{
		Name:         s.name,
		Model:        model,
		Stream:       l.stream,
		Timeout:      time.Minute,
		InputTokens:  16,
		OutputTokens: l.tokens,
		ExactTokens:  true,
		Seed:         uint64(number + 1),
	}
	before := usages([]apartSide{s})
	var clients errgroup.Group
	results := make([]*bench.Result, min(len(s.urls), l.concurrency))
	for i := range results {
		load := load
		load.URL = s.urls[i]
		load.Concurrency = (l.concurrency + i) / len(results)
		if l.batching {
			load.Requests = load.Concurrency
		} else {
			load.Duration = cfg.RoundTime / time.Duration(turns)
			load.Warmup = bench.Warmup{Duration: load.Duration / 5}
		}
		clients.Go(func() (err error) {
			results[i], err = bench.Run(ctx, load)
			return err
		})
	}
	if err := clients.Wait(); err != nil {
		return apartRun{}, err
	}
	run := apartRun{result: bench.Merge(results...), used: make(map[string]parts.Usage)}
	if run.result.Interrupted {
		return apartRun{}, context.Cause(ctx)
	}
	if run.result.Succeeded == 0 {
		return apartRun{}, fmt.Errorf("no request succeeded: %+v", run.result.Errors)
	}
	for _, r := range results {
		run.took = max(run.took, time.Duration(r.Elapsed*float64(time.Second)))
	}
	run.measured, run.requests = run.result.Succeeded, run.result.Succeeded+run.result.Warmup
	run.tokens = run.requests * int64(l.tokens)
	for part, used := range usages([]apartSide{s}) {
		run.used[part] = used.Sub(before[part])
	}
	return run, nil
}
