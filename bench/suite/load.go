package suite

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/pulley-lb/pulley/bench"
	"github.com/pulley-lb/pulley/bench/parts"
)

// load is a scenario that puts the same load on several sides and compares them.
type load struct {
	name        string
	title       string
	concurrency int
	stream      bool
	tokens      int
	engine      bool // measure the engine alone as well
	bar         bar
}

// loads are the scenarios of the project's performance targets.
var loads = []load{
	{name: "added", title: "small requests, concurrency 1", concurrency: 1, tokens: 1, engine: true,
		bar: bar{figure: figureAdded, most: 0.7, unit: "ms"}},
	{name: "small-16", title: "small requests, concurrency 16", concurrency: 16, tokens: 1,
		bar: bar{figure: figureRatio, least: 0.6, unit: "×"}},
	{name: "small-64", title: "small requests, concurrency 64", concurrency: 64, tokens: 1,
		bar: bar{figure: figureRatio, least: 0.85, unit: "×"}},
	{name: "stream-16", title: "100-token streams, concurrency 16", concurrency: 16, stream: true, tokens: 100,
		bar: bar{figure: figureRatio, least: 0.75, unit: "×"}},
	{name: "stream-64", title: "100-token streams, concurrency 64", concurrency: 64, stream: true, tokens: 100,
		bar: bar{figure: figureRatio, least: 0.75, unit: "×"}},
}

// side is one of the targets of a load.
type side struct {
	name    string
	url     string
	process *parts.Process // nil for the engine, whose two processes serve all sides
}

func measureLoads(ctx context.Context, cfg Config, report *Report) error {
	return parts.With(cfg.parts(), func(set *parts.Set) error {
		sides, err := startSides(ctx, set)
		if err != nil {
			return err
		}
		for _, l := range loads {
			if !slices.Contains(cfg.Scenarios, l.name) {
				continue
			}
			row, err := l.measure(ctx, cfg, sides)
			if err != nil {
				return fmt.Errorf("%s: %w", l.name, err)
			}
			report.Rows = append(report.Rows, row)
		}
		return nil
	})
}

func startSides(ctx context.Context, set *parts.Set) ([]side, error) {
	var engines []string
	for _, name := range []string{"engine 1", "engine 2"} {
		url, err := set.Engine(ctx, name, model)
		if err != nil {
			return nil, err
		}
		engines = append(engines, url)
	}
	proxy, proxyURL, err := set.Yardstick(ctx, engines...)
	if err != nil {
		return nil, err
	}
	pulley, pulleyURL, err := set.Up(ctx, engineFlags(engines)...)
	if err != nil {
		return nil, err
	}
	sides := []side{{sideEngine, engines[0], nil}, {sideYardstick, proxyURL, proxy}, {sidePulley, pulleyURL, pulley}}
	for _, s := range sides {
		if err := parts.Ready(ctx, s.url, model); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return sides, nil
}

// turns is how often the sides alternate within a round, in alternating order. A machine that is slowed down for a
// second then slows all sides alike.
const turns = 4

// measure puts the load on the sides in turn, round after round.
func (l load) measure(ctx context.Context, cfg Config, sides []side) (*Row, error) {
	row := &Row{Scenario: l.name, Title: l.title, Bar: l.bar.String()}
	if !l.engine {
		sides = slices.DeleteFunc(slices.Clone(sides), func(s side) bool { return s.name == sideEngine })
	}
	for round := range cfg.Rounds {
		cfg.Progress(fmt.Sprintf("%s: round %d of %d", l.name, round+1, cfg.Rounds))
		runs := make(map[string]sideRun)
		order := slices.Clone(sides)
		for turn := range turns {
			for _, s := range order {
				run, err := l.run(ctx, cfg, s, round*turns+turn)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", s.name, err)
				}
				runs[s.name] = runs[s.name].and(run)
			}
			slices.Reverse(order)
		}
		for _, s := range sides {
			row.side(s.name).add(runs[s.name])
		}
	}
	row.judge(l.bar)
	return row, nil
}

// run measures one side once.
func (l load) run(ctx context.Context, cfg Config, s side, number int) (sideRun, error) {
	before := s.cpuTime()
	result, err := bench.Run(ctx, bench.Config{
		URL:          s.url,
		Name:         s.name,
		Model:        model,
		Stream:       l.stream,
		Concurrency:  l.concurrency,
		Duration:     cfg.RoundTime / turns,
		Warmup:       bench.Warmup{Duration: cfg.RoundTime / turns / 5},
		Timeout:      30 * time.Second,
		InputTokens:  16,
		OutputTokens: l.tokens,
		ExactTokens:  true,
		Seed:         uint64(number + 1),
	})
	if err != nil {
		return sideRun{}, err
	}
	if result.Interrupted {
		return sideRun{}, context.Cause(ctx)
	}
	if result.Succeeded == 0 {
		return sideRun{}, fmt.Errorf("no request succeeded: %+v", result.Errors)
	}
	return sideRun{result: result, cpu: s.cpuTime() - before}, nil
}

func (s side) cpuTime() time.Duration {
	if s.process == nil {
		return 0
	}
	return s.process.Usage().CPU
}
