package fleet

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/charmbracelet/x/ansi"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
)

// Verdict says how bad something is.
type Verdict string

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

const (
	OK      Verdict = "ok"
	Unknown Verdict = "unknown"
	Warning Verdict = "warning"
	Problem Verdict = "problem"
)

// Finding is one thing that was found.
type Finding struct {
	Check   string  `json:"check"`
	Verdict Verdict `json:"verdict"`
	Text    string  `json:"text"`
	Remedy  string  `json:"remedy,omitempty"`
}

// PrintFindings writes findings, each with its remedy below it.
func PrintFindings(p *term.Page, found []Finding) {
	for _, d := range found {
		begin := p.Paint(d.Verdict.Style(), fmt.Sprintf("%-7s", d.Verdict)) + "  " + p.Paint(term.Bold, fmt.Sprintf("%-12s", d.Check)) + "  "
		p.Wrapped(begin, term.Printable(d.Text), term.Unstyled)
		if d.Remedy != "" {
			p.Wrapped(strings.Repeat(" ", ansi.StringWidth(begin)), "remedy: "+term.Printable(d.Remedy), term.Dim)
		}
	}
}

// findAll is what is wrong with the fleet, the worst first.
func (s *Snapshot) findAll() []Finding {
	var all []Finding
	for _, ask := range []struct {
		name string
		find func(*Snapshot) []Finding
	}{
		{"policy", (*Snapshot).FindPolicy}, {"gateways", (*Snapshot).FindGateways}, {"workers", (*Snapshot).FindWorkers},
		{"gpus", (*Snapshot).FindGPUs}, {"headroom", (*Snapshot).FindHeadroom}, {"pools", (*Snapshot).FindPools}, {"tiers", (*Snapshot).FindTiers},
	} {
		for _, d := range ask.find(s) {
			d.Check = ask.name
			all = append(all, d)
		}
	}
	slices.SortStableFunc(all, func(a, b Finding) int { return cmp.Compare(b.Verdict.rank(), a.Verdict.rank()) })
	return all
}
