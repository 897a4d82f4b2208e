package top

import (
	"fmt"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
)

// headline is the first line: the size and the load of the fleet.
func headline(s *fleet.Snapshot, p *term.Page) string {
	t := s.Totals
	return p.Paint(term.Bold, "pulley") + fmt.Sprintf("  %s  %s  %s  %d in flight  %d waiting",
		term.Count(len(s.Gateways), "gateway"), term.Count(t.Live, "worker"), term.Count(t.Slots, "slot"), t.InFlight, t.Waiting)
}

// rateLine is the second line: throughput, and the revision of the policy.
func rateLine(s *fleet.Snapshot, p *term.Page) string {
	text := perSecond(s.Totals.DonePerSecond) + " req/s  "
	if s.Totals.TokensPerSecond > 0 {
		text += perSecond(s.Totals.TokensPerSecond) + " tok/s  "
	}
	if s.Policy == nil {
		return text + p.Paint(term.Dim, "policy unknown")
	}
	return text + "policy " + term.Printable(s.Revision.Text(s.At))
}

// findingLine is the third line: the worst finding, and how many more there are.
func findingLine(s *fleet.Snapshot, p *term.Page, g glyphs) string {
	if s.At.IsZero() {
		return p.Paint(term.Dim, "listening"+g.more)
	}
	if s.Server == "" {
		return p.Paint(term.Red, fmt.Sprintf("no connection to NATS for %s: reconnecting; the data below is old", term.Age(s.At.Sub(s.Since))))
	}
	if len(s.Findings) == 0 {
		if !s.Settled() {
			return p.Paint(term.Dim, "listening"+g.more)
		}
		return p.Paint(term.Green, "no problems")
	}
	text := term.Printable(s.Findings[0].Text)
	if more := len(s.Findings) - 1; more > 0 {
		text = fmt.Sprintf("(%d more: press !) %s", more, text)
	}
	return p.Paint(s.Findings[0].Verdict.Style(), text)
}

func printSnapshot(p *term.Page, s *fleet.Snapshot, g glyphs) {
	p.Write(headline(s, p))
	p.Write(rateLine(s, p))
	if len(s.Findings) == 0 {
		p.Write(findingLine(s, p, g))
	}
	fleet.PrintFindings(p, s.Findings)
	for _, pn := range panes {
		p.Heading(pn.name)
		rows := pn.rows(s, g)
		by := sorting{column: pn.sortBy}
		if len(rows) == 0 {
			p.Write(pn.empty)
			continue
		}
		sortRows(rows, pn.columns, by)
		for _, l := range tableLines(p, g, pn.columns, rows, by, -1, 0, len(rows)) {
			p.Write(l)
		}
	}
	if len(s.Events) > 0 {
		p.Heading("events")
		for _, e := range s.Events {
			p.Write(fleet.EventLine(p, e))
		}
	}
}
