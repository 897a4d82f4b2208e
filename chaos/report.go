package chaos

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// Report is what a history shows, by kind of fault.
type Report struct {
	Seed       uint64      `json:"seed"`
	Bug        string      `json:"bug,omitempty"`
	Requests   int         `json:"requests"`
	Outcomes   Outcomes    `json:"outcomes"`
	Runs       int         `json:"runs"`
	Lags       int         `json:"lags"`       // how often the machine had no time for the harness
	LongestLag Seconds     `json:"longestLag"` // the longest of these
	Faults     []Row       `json:"faults"`
	Violations []Violation `json:"violations"`
}

// Outcomes counts requests.
type Outcomes map[Outcome]int

// Row is one kind of faults.
type Row struct {
	Kind       string   `json:"kind"`
	Says       string   `json:"says"`
	Strikes    int      `json:"strikes"`
	Requests   int      `json:"requests"` // that ended during a fault of this kind, or within 5 s after it and before the next one
	Outcomes   Outcomes `json:"outcomes"` // of these
	Gap        Seconds  `json:"gap"`      // the longest time without an answer
	Wait       Seconds  `json:"wait"`     // the longest time that one of them was slower than its tokens take
	Again      int      `json:"again"`    // of them were run more than once
	Recovery   Seconds  `json:"recovery"` // the longest
	Bound      Seconds  `json:"bound"`    // of the recovery
	Violations int      `json:"violations"`
}

// NewReport checks a history and sums it up.
func NewReport(h *History) *Report {
	c := newChecker(h)
	r := &Report{Seed: h.Seed, Bug: h.Bug, Requests: len(h.Requests), Outcomes: make(Outcomes), Runs: len(h.Runs), Violations: Check(h)}
	for i := range h.Requests {
		r.Outcomes[h.Requests[i].Outcome]++
	}
	for _, l := range h.Lags {
		r.Lags++
		r.LongestLag = max(r.LongestLag, l.For)
	}
	rows := make(map[string]*Row)
	for i := range h.Faults {
		f := &h.Faults[i]
		row := rows[f.Kind]
		if row == nil {
			row = &Row{Kind: f.Kind, Says: effects[f.Kind].Says, Outcomes: make(Outcomes)}
			rows[f.Kind] = row
		}
		c.add(row, f)
	}
	for _, v := range r.Violations {
		for _, kind := range v.Faults {
			rows[kind].Violations++
		}
	}
	for _, kind := range Kinds() {
		if row := rows[kind]; row != nil {
			r.Faults = append(r.Faults, *row)
		}
	}
	return r
}

// add adds a fault to the row of its kind.
func (c *checker) add(row *Row, f *Fault) {
	row.Strikes++
	end := f.Healed + faultEcho
	for i := range c.h.Faults {
		if next := c.h.Faults[i].Start; next > f.Start {
			end = min(end, next)
		}
	}
	for i := range c.h.Requests {
		r := &c.h.Requests[i]
		at := r.End
		if r.Outcome == Lost { // its client gave up long after what it was lost by
			at = r.Sent
		}
		if at < f.Start || at >= end {
			continue
		}
		row.Requests++
		row.Outcomes[r.Outcome]++
		if len(c.runs[r.ID]) > 1 {
			row.Again++
		}
		if r.Outcome == Answered {
			row.Wait = max(row.Wait, r.End-r.Sent-Seconds(r.Tokens+1)*c.h.Pace)
		}
	}
	last := f.Start
	for _, at := range c.answers {
		if f.Start <= at && at <= end {
			row.Gap = max(row.Gap, at-last)
			last = at
		}
	}
	took, bound, _ := c.recovery(f)
	row.Recovery, row.Bound = max(row.Recovery, took), bound
}

// WriteText writes the report as a table, with the violations below it.
func (r *Report) WriteText(out io.Writer) error {
	fmt.Fprintf(out, "seed %d: %d requests, %d runs on engines: %s\n", r.Seed, r.Requests, r.Runs, r.Outcomes)
	if r.Bug != "" {
		fmt.Fprintf(out, "with the bug %s\n", r.Bug)
	}
	if r.Lags > 0 {
		fmt.Fprintf(out, "the machine had no time for the harness %d times, for %.1f s at most\n", r.Lags, r.LongestLag)
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "FAULT\tSTRIKES\tREQUESTS\tREFUSED\tBROKEN\tLOST\tRUN AGAIN\tLONGEST WAIT\tLONGEST GAP\tRECOVERY\tVIOLATIONS")
	for _, row := range r.Faults {
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%.1f s\t%.1f s\t%.1f s\t%d\n", row.Says, row.Strikes, row.Requests, row.Outcomes[Refused], row.Outcomes[Broken],
			row.Outcomes.bad(), row.Again, row.Wait, row.Gap, row.Recovery, row.Violations)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	byRule := make(map[Rule]int)
	for _, v := range r.Violations {
		if byRule[v.Rule]++; byRule[v.Rule] <= mostShown {
			fmt.Fprintln(out, v)
		}
	}
	for _, rule := range sorted(byRule) {
		fmt.Fprintf(out, "%d × %s\n", byRule[rule], rule)
	}
	_, err := fmt.Fprintf(out, "%d violations\n", len(r.Violations))
	return err
}

// mostShown is how many violations of a rule are written out.
const mostShown = 10

// bad counts what must never be.
func (o Outcomes) bad() int { return o[Lost] + o[Wrong] + o[Truncated] + o[Repeated] + o[""] }

func (o Outcomes) String() string {
	var parts []string
	for _, outcome := range sorted(o) {
		parts = append(parts, fmt.Sprintf("%d %s", o[outcome], outcome))
	}
	return strings.Join(parts, ", ")
}

func sorted[K ~string, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
