package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// Comparison is several targets under the same load in the same run.
type Comparison struct {
	Rounds  int       `json:"rounds"`
	Targets []*Target `json:"targets"`
}

// Target is one of the targets compared.
type Target struct {
	Total *Result   `json:"total"` // all rounds combined
	Runs  []*Result `json:"runs"`  // one per round
	// Ratios are to the first target: for each metric the median, over the rounds, of the ratio within the round.
	Ratios map[string]float64 `json:"ratio_to_first"`
}

// Compare runs each config in turn, for a number of rounds (A B A B …), so that a disturbance of the machine affects
// all of them. Configs with the same seed have the same arrivals; no two runs have the same prompts. When ctx ends, the
// comparison contains what was done until then.
func Compare(ctx context.Context, rounds int, cfgs ...Config) (*Comparison, error) {
	if len(cfgs) == 0 {
		return nil, errors.New("nothing to compare")
	}
	c := &Comparison{Rounds: rounds}
	for range cfgs {
		c.Targets = append(c.Targets, &Target{})
	}
	for round := range rounds {
		for i, cfg := range cfgs {
			if ctx.Err() != nil && len(c.Targets[i].Runs) > 0 {
				continue
			}
			cfg.run = round*len(cfgs) + i
			result, err := Run(ctx, cfg)
			if err != nil {
				return nil, err
			}
			c.Targets[i].Runs = append(c.Targets[i].Runs, result)
		}
	}
	c.finish()
	return c, nil
}

func (c *Comparison) finish() {
	first := c.Targets[0].Runs
	for _, target := range c.Targets {
		target.Total = Merge(target.Runs...)
		target.Ratios = make(map[string]float64)
		for _, m := range metrics {
			var ratios []float64
			for i := range min(len(first), len(target.Runs)) {
				if base, value := m.of(first[i]), m.of(target.Runs[i]); base > 0 && value > 0 {
					ratios = append(ratios, value/base)
				}
			}
			if len(ratios) > 0 {
				target.Ratios[m.name] = Median(ratios)
			}
		}
	}
}

// metric is a figure that targets are compared by.
type metric struct {
	name   string
	of     func(*Result) float64
	format func(float64) string
}

var metrics = []metric{
	{"requests/s", func(r *Result) float64 { return r.RequestsPerSecond }, formatRate},
	{"output tokens/s", func(r *Result) float64 { return r.OutputTokensPerSecond }, formatRate},
	latencyMetric("TTFT p50", 50, func(r *Result) Distribution { return r.TTFT }),
	latencyMetric("TTFT p99", 99, func(r *Result) Distribution { return r.TTFT }),
	latencyMetric("inter-token p50", 50, func(r *Result) Distribution { return r.InterToken }),
	latencyMetric("gap p99", 99, func(r *Result) Distribution { return r.Gap }),
	latencyMetric("E2E p50", 50, func(r *Result) Distribution { return r.E2E }),
	latencyMetric("E2E p90", 90, func(r *Result) Distribution { return r.E2E }),
	latencyMetric("E2E p99", 99, func(r *Result) Distribution { return r.E2E }),
	latencyMetric("E2E max", 100, func(r *Result) Distribution { return r.E2E }),
}

func latencyMetric(name string, percent float64, of func(*Result) Distribution) metric {
	return metric{
		name:   name,
		of:     func(r *Result) float64 { return float64(of(r).Percentile(percent)) },
		format: func(x float64) string { return formatLatency(time.Duration(x)) },
	}
}

// Median is the middle value, or the mean of the two middle ones; 0 without values.
func Median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// Totals are the results of the targets, all rounds together.
func (c *Comparison) Totals() []*Result {
	totals := make([]*Result, len(c.Targets))
	for i, target := range c.Targets {
		totals[i] = target.Total
	}
	return totals
}

// MarshalJSON writes the comparison; for a single target and round, only its result.
func (c *Comparison) MarshalJSON() ([]byte, error) {
	if len(c.Targets) == 1 && len(c.Targets[0].Runs) == 1 {
		return json.Marshal(c.Targets[0].Total)
	}
	type plain Comparison
	return json.Marshal((*plain)(c))
}

// WriteTable writes the comparison for a person to read: medians over the rounds, and ratios to the first target.
func (c *Comparison) WriteTable(w io.Writer) error {
	if len(c.Targets) == 1 {
		return c.Targets[0].Total.WriteTable(w)
	}
	first := c.Targets[0].Total
	t := &table{}
	for i, total := range c.Totals() {
		t.line(fmt.Sprintf("target %c", 'A'+i), "%s", describeTarget(total))
	}
	t.line("model", "%s, %s%s", first.Model, first.Endpoint, map[bool]string{true: ", streaming"}[first.Stream])
	t.line("load", "%s (seed %d), %d rounds interleaved", first.Load, first.Seed, c.Rounds)
	c.columns(t)
	for i, total := range c.Totals() {
		if len(total.Errors) > 0 {
			fmt.Fprintf(&t.text, "\n%c", 'A'+i)
			t.errors(total)
		}
	}
	var warnings []string
	for i, total := range c.Totals() {
		for _, warning := range total.Warnings {
			warnings = append(warnings, fmt.Sprintf("%c: %s", 'A'+i, warning))
		}
	}
	t.warnings(warnings)
	_, err := io.WriteString(w, t.text.String())
	return err
}

func (c *Comparison) columns(t *table) {
	fmt.Fprintf(&t.text, "\n%-16s", "median of rounds")
	for i := range c.Targets {
		fmt.Fprintf(&t.text, "  %11c%7s", 'A'+i, "")
	}
	fmt.Fprintln(&t.text)
	for _, m := range metrics {
		if m.of(c.Targets[0].Total) == 0 {
			continue
		}
		fmt.Fprintf(&t.text, "%-16s", m.name)
		for i, target := range c.Targets {
			fmt.Fprintf(&t.text, "  %11s%7s", m.format(target.median(m)), c.ratio(i, m))
		}
		fmt.Fprintln(&t.text)
	}
	fmt.Fprintf(&t.text, "%-16s", "failed")
	for _, target := range c.Targets {
		fmt.Fprintf(&t.text, "  %11s%7s", formatCount(target.Total.Failed), "")
	}
	fmt.Fprintln(&t.text)
}

func (c *Comparison) ratio(i int, m metric) string {
	ratio, ok := c.Targets[i].Ratios[m.name]
	if i == 0 || !ok {
		return ""
	}
	return fmt.Sprintf("×%.2f", ratio)
}

func (t *Target) median(m metric) float64 {
	values := make([]float64, len(t.Runs))
	for i, run := range t.Runs {
		values[i] = m.of(run)
	}
	return Median(values)
}
