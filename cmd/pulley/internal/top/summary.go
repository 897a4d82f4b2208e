package top

import (
	"fmt"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
)

func headline(s *fleet.Snapshot, p *term.Page) string {
	t := s.Totals
	return p.Paint(term.Bold, "pulley") + fmt.Sprintf("  %s  %s  %s  %d in flight  %d waiting",
		term.Count(len(s.Gateways), "gateway"), term.Count(t.Live, "worker"), term.Count(t.Slots, "slot"), t.InFlight, t.Waiting)
}

func rateLine(s *fleet.Snapshot, p *term.Page) string {
	text := perSecond(s.Totals.DonePerSecond) + " req/s  "
	if s.Totals.TokensPerSecond > 0 {
		text += perSecond(s.Totals.TokensPerSecond) + " tok/s  "
	}
	if s.Policy == nil {
		return text + p.Paint(term.Dim, "policy not known")
	}
	return text + "policy " + term.Printable(s.Revision.Text(s.At))
}

// wrongLine is the worst that is wrong, and how much there is.
func wrongLine(s *fleet.Snapshot, p *term.Page, g glyphs) string {
	if s.At.IsZero() {
		return p.Paint(term.Dim, "listening"+g.more)
	}
	if s.Server == "" {
		return p.Paint(term.Red, fmt.Sprintf("no connection to NATS for %s: trying again; what is below is old", term.Age(s.At.Sub(s.Since))))
	}
	if len(s.Findings) == 0 {
		if !s.Settled() {
			return p.Paint(term.Dim, "listening"+g.more)
		}
		return p.Paint(term.Green, "nothing is wrong")
	}
	text := term.Printable(s.Findings[0].Text)
	if more := len(s.Findings) - 1; more > 0 {
		text = fmt.Sprintf("(%d more: !) %s", more, text)
	}
	return p.Paint(s.Findings[0].Verdict.Style(), text)
}

// printSnapshot is the whole snapshot for people, at once.
func printSnapshot(p *term.Page, s *fleet.Snapshot, g glyphs) {
	p.Write(headline(s, p))
	p.Write(rateLine(s, p))
	if len(s.Findings) == 0 {
		p.Write(wrongLine(s, p, g))
	}
	fleet.PrintFindings(p, s.Findings)
	for i := range panes {
		pn := &panes[i]
		p.Heading(pn.name)
		rows := pn.rows(s, g)
		by := sorting{column: pn.order}
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
