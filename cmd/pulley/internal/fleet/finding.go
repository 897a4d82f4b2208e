package fleet

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/charmbracelet/x/ansi"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
)

// Finding is the result of a check: what was found, and what to do about it.
type Finding struct {
	Check   string  `json:"check"`
	Verdict Verdict `json:"verdict"`
	Text    string  `json:"text"`
	Remedy  string  `json:"remedy,omitempty"`
}

// NewProblem is a finding that something does not work.
func NewProblem(text, remedy string) Finding {
	return Finding{Verdict: Problem, Text: text, Remedy: remedy}
}

// NewWarning is a finding that someone should look at something.
func NewWarning(text, remedy string) Finding {
	return Finding{Verdict: Warning, Text: text, Remedy: remedy}
}

// Verdict says how bad a finding is.
type Verdict string

// The verdicts, from the best to the worst.
const (
	OK      Verdict = "ok"
	Unknown Verdict = "unknown"
	Warning Verdict = "warning"
	Problem Verdict = "problem"
)

// Style returns the colour of a verdict.
func (v Verdict) Style() term.Style {
	switch v {
	case Problem:
		return term.Red
	case Warning, Unknown:
		return term.Yellow
	}
	return term.Green
}

func (v Verdict) rank() int { return slices.Index([]Verdict{OK, Unknown, Warning, Problem}, v) }

// PrintFindings writes findings, each with its remedy below it.
func PrintFindings(p *term.Page, list []Finding) {
	for _, f := range list {
		prefix := p.Paint(f.Verdict.Style(), fmt.Sprintf("%-7s", f.Verdict)) + "  " + p.Paint(term.Bold, fmt.Sprintf("%-12s", f.Check)) + "  "
		p.Wrapped(prefix, term.Printable(f.Text), term.Unstyled)
		if f.Remedy != "" {
			p.Wrapped(strings.Repeat(" ", ansi.StringWidth(prefix)), "remedy: "+term.Printable(f.Remedy), term.Dim)
		}
	}
}

// findAll returns everything that is wrong with the fleet, the worst first.
func (s *Snapshot) findAll() []Finding {
	var all []Finding
	for _, check := range []struct {
		name string
		find func(*Snapshot) []Finding
	}{
		{"policy", (*Snapshot).FindPolicy}, {"gateways", (*Snapshot).FindGateways}, {"workers", (*Snapshot).FindWorkers},
		{"gpus", (*Snapshot).FindGPUs}, {"headroom", (*Snapshot).FindHeadroom}, {"pools", (*Snapshot).FindPools}, {"tiers", (*Snapshot).FindTiers},
	} {
		for _, f := range check.find(s) {
			f.Check = check.name
			all = append(all, f)
		}
	}
	slices.SortStableFunc(all, func(a, b Finding) int { return cmp.Compare(b.Verdict.rank(), a.Verdict.rank()) })
	return all
}
