package bench

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// WriteTable writes the result as a table for people.
func (r *Result) WriteTable(w io.Writer) error {
	t := &table{}
	t.head(r)
	t.counts(r)
	t.latencies(r)
	t.errors(r)
	t.warnings(r.Warnings)
	_, err := io.WriteString(w, t.text.String())
	return err
}

// table collects the text; it has no errors to handle.
type table struct{ text strings.Builder }

func (t *table) line(label, format string, args ...any) {
	fmt.Fprintf(&t.text, "%-12s  %s\n", label, fmt.Sprintf(format, args...))
}

func (t *table) head(r *Result) {
	t.line("target", "%s", describeTarget(r))
	t.line("model", "%s, %s%s", r.Model, r.Endpoint, map[bool]string{true: ", streaming"}[r.Stream])
	t.line("load", "%s (seed %d)", r.Load, r.Seed)
}

// describeTarget is the target's name, with its URL if they differ.
func describeTarget(r *Result) string {
	if r.Name == r.URL {
		return r.URL
	}
	return r.Name + "  " + r.URL
}

func (t *table) counts(r *Result) {
	rounds := ""
	if r.Rounds > 1 {
		rounds = fmt.Sprintf(" in %d rounds", r.Rounds)
	}
	t.line("requests", "%s in %s%s, %s succeeded, %s failed", formatCount(r.Requests),
		formatLatency(r.elapsed), rounds, formatCount(r.Succeeded), formatCount(r.Failed))
	t.line("throughput", "%s requests/s, %s output tokens/s", formatRate(r.RequestsPerSecond), formatRate(r.OutputTokensPerSecond))
	if r.OutputTokens > 0 {
		t.line("tokens", "%s in, %s out", formatCount(r.InputTokens), formatCount(r.OutputTokens))
	}
	if s := r.SLO; s != nil {
		t.line("goodput", "%s requests/s, %.2f %% of all, within%s", formatRate(s.Goodput), s.Share*100, describeSLO(s))
	}
}

func describeSLO(s *SLO) string {
	text := ""
	if s.TTFT > 0 {
		text += " TTFT " + formatLatency(time.Duration(s.TTFT*float64(time.Millisecond)))
	}
	if s.E2E > 0 {
		text += " E2E " + formatLatency(time.Duration(s.E2E*float64(time.Millisecond)))
	}
	return text
}

func (t *table) latencies(r *Result) {
	if r.E2E.IsZero() {
		return
	}
	fmt.Fprintf(&t.text, "\n%-12s", "")
	for _, p := range percentiles {
		fmt.Fprintf(&t.text, " %9s", p.name)
	}
	fmt.Fprintf(&t.text, " %9s %9s\n", "max", "mean")
	for _, row := range r.distributions() {
		if row.IsZero() {
			continue
		}
		fmt.Fprintf(&t.text, "%-12s", row.name)
		for _, p := range percentiles {
			fmt.Fprintf(&t.text, " %9s", formatLatency(row.Percentile(p.percent)))
		}
		fmt.Fprintf(&t.text, " %9s %9s\n", formatLatency(row.Max()), formatLatency(row.Mean()))
	}
}

type namedDistribution struct {
	name string
	Distribution
}

func (r *Result) distributions() []namedDistribution {
	return []namedDistribution{
		{"TTFT", r.TTFT}, {"inter-token", r.InterToken}, {"gap", r.Gap}, {"E2E", r.E2E}, {"queue", r.Queue}, {"lag", r.Lag},
	}
}

func (t *table) errors(r *Result) {
	if len(r.Errors) == 0 {
		return
	}
	fmt.Fprintf(&t.text, "\nerrors\n")
	for _, e := range r.Errors {
		fmt.Fprintf(&t.text, "%8s  %s", formatCount(e.Count), e.Class)
		if e.Example != "" {
			fmt.Fprintf(&t.text, ": %s", e.Example)
		}
		fmt.Fprintln(&t.text)
	}
}

func (t *table) warnings(warnings []string) {
	if len(warnings) > 0 {
		fmt.Fprintln(&t.text)
	}
	for _, warning := range warnings {
		fmt.Fprintf(&t.text, "warning: %s\n", warning)
	}
}
