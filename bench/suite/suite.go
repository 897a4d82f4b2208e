package suite

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/pulley-lb/pulley/bench/parts"
)

// model is the model that the simulated engines serve.
const model = "sim"

// Config says what to measure, and how long.
type Config struct {
	// Binary is the pulley to measure. Default the running program.
	Binary string
	// Rounds is how often each measurement is repeated. Default 5, of RunApart 3.
	Rounds int
	// RoundTime is how long each side is measured in a round. Default 4 s, of RunApart 2 s. An engine that batches is measured
	// for one answer of each stream instead.
	RoundTime time.Duration
	// Scenarios to run, by name: those of Scenarios or ApartScenarios. Default all.
	Scenarios []string
	// Workers are the numbers of workers, each with an engine of its own, that RunApart measures. Default 1, 4 and 16.
	Workers []int
	// IdleStreams is how many streams the scenario idle-streams opens. Default 2000.
	IdleStreams int
	// Progress receives a line for each step of the measurement. Default none.
	Progress func(string)
	// Output receives what the processes write. Default none.
	Output io.Writer
}

func (c Config) withDefaults() (Config, error) {
	c.Rounds = cmp.Or(c.Rounds, 5)
	c.RoundTime = cmp.Or(c.RoundTime, 4*time.Second)
	c.IdleStreams = cmp.Or(c.IdleStreams, 2000)
	if len(c.Scenarios) == 0 {
		c.Scenarios = Scenarios()
	}
	return c.complete(Scenarios())
}

// complete fills in what both kinds of measurement have in common, and checks the names of the scenarios.
func (c Config) complete(known []string) (Config, error) {
	if c.Binary == "" {
		binary, err := os.Executable()
		if err != nil {
			return c, fmt.Errorf("find the running program: %w", err)
		}
		c.Binary = binary
	}
	for _, name := range c.Scenarios {
		if !slices.Contains(known, name) {
			return c, fmt.Errorf("scenario %q: must be one of %q", name, known)
		}
	}
	if c.Progress == nil {
		c.Progress = func(string) {}
	}
	if c.Output == nil {
		c.Output = io.Discard
	}
	return c, nil
}

func (c Config) parts() parts.Config {
	return parts.Config{Binary: c.Binary, Progress: c.Progress, Output: c.Output}
}

// engineFlag is the value of --engine for an engine. It gives the worker more slots than any scenario has requests in flight.
func engineFlag(url string) string { return url + ",model=" + model + ",slots=4096" }

func engineFlags(urls []string) []string {
	flags := make([]string, len(urls))
	for i, url := range urls {
		flags[i] = engineFlag(url)
	}
	return flags
}

// Scenarios are the names of all scenarios, in the order in which they run.
func Scenarios() []string {
	var names []string
	for _, s := range loads {
		names = append(names, s.name)
	}
	return append(names, idleStreams)
}

// Run starts the processes, measures, and ends the processes. After an error there is no report.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	report := newReport(cfg)
	if slices.ContainsFunc(loads, func(l load) bool { return slices.Contains(cfg.Scenarios, l.name) }) {
		if err := measureLoads(ctx, cfg, report); err != nil {
			return nil, err
		}
	}
	if slices.Contains(cfg.Scenarios, idleStreams) {
		if err := measureIdleStreams(ctx, cfg, report); err != nil {
			return nil, fmt.Errorf("%s: %w", idleStreams, err)
		}
	}
	return report, nil
}
