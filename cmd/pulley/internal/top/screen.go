package top

import (
	"fmt"
	"slices"
	"strings"

	"github.com/charmbracelet/x/ansi"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
)

// screen is what top shows, and what its keys have made of it. Drawing it
// changes nothing.
type screen struct {
	term.Terminal
	glyphs glyphs

	latest fleet.Snapshot
	frozen *fleet.Snapshot // shown instead while the screen is paused

	pane     int
	states   [4]paneState // of panes
	filter   string
	typing   bool // the filter
	overlay  overlay
	detailOf string // key
	scroll   int    // of what lies over the pane
}

// overlay is what lies over a pane.
type overlay int

const (
	noOverlay overlay = iota
	detailOverlay
	helpOverlay
	wrongOverlay
)

type paneState struct {
	sorting
	selected string // key; empty: the first
	at       int    // where it was, if it is gone
}

func newScreen(t term.Terminal, g glyphs) *screen {
	m := &screen{Terminal: t, glyphs: g}
	for i := range panes {
		m.states[i].column = panes[i].order
	}
	return m
}

const help = `tab, 1 to 4    pools, tiers, workers, requests
up down k j     select a line; pgup, pgdn, home, end
enter           all about the selected line; esc closes it
s  S            sort by the next column; the other way round
/               show only lines with these words; esc clears
!               all that is wrong, and what to do
p               stop the screen, and let it go on
q               leave

SLOTS    requests in flight of a worker's slots
WAITING  requests that wait, in gateways and queues; OLDEST for how long
TAKEN/S  requests that workers take from the queues
BOUND    why a worker may not have more: see 'pulley worker ls --help'
GPU      how hot, busy and full a worker's GPUs are, or what is wrong with them
RUNG     price of the next bid: 0 is the cheapest, 9 the dearest
TOK/S    tokens per second by the worker's own measured pace`

// headLines and footLines are around the pane: three of state and the tabs; the
// keys.
const (
	headLines = 4
	footLines = 1
)

// now is what is shown.
func (m *screen) now() *fleet.Snapshot {
	if m.frozen != nil {
		return m.frozen
	}
	return &m.latest
}

// rows are the lines of the pane, in order, and which of them is selected.
func (m *screen) rows() (rows []paneRow, selected int) {
	pn, st := &panes[m.pane], &m.states[m.pane]
	rows = filterRows(pn.rows(m.now(), m.glyphs), m.filter)
	sortRows(rows, pn.columns, st.sorting)
	if i := slices.IndexFunc(rows, func(r paneRow) bool { return r.key == st.selected }); i >= 0 {
		return rows, i
	}
	return rows, max(0, min(st.at, len(rows)-1))
}

// eventRoom is how many lines the events take, with the one above them.
func (m *screen) eventRoom() int {
	switch {
	case m.Height < 16:
		return 0
	case m.Height < 32:
		return 4
	}
	return 8
}

// room is how many lines a pane has below the names of its columns.
func (m *screen) room() int {
	return max(1, m.Height-headLines-footLines-m.eventRoom()-1)
}

// lines are the whole screen, which they fill.
func (m *screen) lines() []string {
	p := &term.Page{Terminal: m.Terminal}
	s := m.now()
	lines := []string{m.between(p, headline(s, p), m.corner(p)), rateLine(s, p), wrongLine(s, p, m.glyphs), m.tabs(p)}
	lines = append(lines, m.paneLines(p)...)
	bottom := m.Height - footLines - m.eventRoom()
	for len(lines) < bottom {
		lines = append(lines, "")
	}
	lines = lines[:max(0, min(len(lines), bottom))]
	if n := m.eventRoom(); n > 0 {
		lines = append(lines, m.rule(p, " events "))
		events := s.Events[max(0, len(s.Events)-n+1):]
		for _, e := range events {
			lines = append(lines, fleet.EventLine(p, e))
		}
		for range n - 1 - len(events) {
			lines = append(lines, "")
		}
	}
	lines = append(lines, m.footer(p))
	for i, l := range lines {
		lines[i] = ansi.Truncate(l, m.Width, m.glyphs.more)
	}
	return lines
}

// corner is at the right of the first line.
func (m *screen) corner(p *term.Page) string {
	if m.frozen != nil {
		return p.Paint(term.Yellow, "PAUSED "+m.frozen.At.Format("15:04:05"))
	}
	if m.latest.At.IsZero() {
		return ""
	}
	return p.Paint(term.Dim, m.latest.At.Format("15:04:05"))
}

// between is a line with a text at each end.
func (m *screen) between(p *term.Page, left, right string) string {
	room := m.Width - ansi.StringWidth(right) - 1
	left = ansi.Truncate(left, max(0, room), m.glyphs.more)
	return left + strings.Repeat(" ", max(0, room-ansi.StringWidth(left))+1) + right
}

func (m *screen) rule(p *term.Page, title string) string {
	return p.Paint(term.Dim, strings.Repeat(m.glyphs.rule, 2)+title+strings.Repeat(m.glyphs.rule, max(0, m.Width-2-ansi.StringWidth(title))))
}

func (m *screen) tabs(p *term.Page) string {
	s := m.now()
	var b strings.Builder
	for i, n := range []int{len(s.Pools), len(s.Tiers), len(s.Workers), len(s.Requests)} {
		name := fmt.Sprintf("%d %s (%d)", i+1, panes[i].name, n)
		if i == m.pane {
			b.WriteString(p.Paint(term.Reversed, "["+name+"]"))
		} else {
			b.WriteString(" " + name + " ")
		}
		b.WriteString(" ")
	}
	if m.filter != "" && !m.typing {
		b.WriteString(p.Paint(term.Yellow, " only: "+term.Printable(m.filter)))
	}
	return b.String()
}

func (m *screen) paneLines(p *term.Page) []string {
	if m.overlay != noOverlay {
		lines := m.overLines()
		return lines[max(0, min(m.scroll, len(lines)-1)):]
	}
	pn := &panes[m.pane]
	rows, selected := m.rows()
	if len(rows) == 0 && m.filter != "" {
		return []string{"", p.Paint(term.Dim, "  none with "+term.Printable(m.filter)+"; esc shows all")}
	}
	if len(rows) == 0 && !m.now().Settled() {
		return nil
	}
	if len(rows) == 0 {
		return []string{"", p.Paint(term.Dim, "  "+pn.empty)}
	}
	from := max(0, min(selected-m.room()/2, len(rows)-m.room()))
	lines := tableLines(p, m.glyphs, pn.columns, rows, m.states[m.pane].sorting, selected, from, m.room())
	if m.pane != 0 {
		return lines
	}
	return m.overview(p, lines)
}

// overview adds to the pools what else there is room for: the workers, and the
// slowest requests.
func (m *screen) overview(p *term.Page, lines []string) []string {
	for _, i := range []int{2, 3} {
		left := m.room() + 1 - len(lines) - 2 // for the line above and the names
		rows := filterRows(panes[i].rows(m.now(), m.glyphs), m.filter)
		if left < 1 || len(rows) == 0 {
			continue
		}
		sortRows(rows, panes[i].columns, m.states[i].sorting)
		lines = append(lines, m.rule(p, " "+panes[i].name+" "))
		lines = append(lines, tableLines(p, m.glyphs, panes[i].columns, rows, m.states[i].sorting, -1, 0, left)...)
	}
	return lines
}

// overLines are all lines of what lies over the pane.
func (m *screen) overLines() []string {
	p := &term.Page{Terminal: m.Terminal}
	switch s := m.now(); m.overlay {
	case helpOverlay:
		return append([]string{""}, strings.Split(help, "\n")...)
	case wrongOverlay:
		if len(s.Findings) == 0 {
			return []string{"", "nothing is wrong"}
		}
		p.Line("")
		fleet.PrintFindings(p, s.Findings)
	default:
		list := panes[m.pane].detail(s, m.detailOf)
		if list == nil {
			return []string{"", p.Paint(term.Dim, "it is gone; esc goes back")}
		}
		p.Line("")
		p.Fields(list...)
	}
	return strings.Split(strings.TrimSuffix(p.String(), "\n"), "\n")
}

func (m *screen) footer(p *term.Page) string {
	switch {
	case m.typing:
		return "/" + term.Printable(m.filter) + p.Paint(term.Reversed, " ")
	case m.overlay != noOverlay:
		return p.Paint(term.Dim, "esc back  up/down scroll  ? help  q quit")
	}
	return p.Paint(term.Dim, "tab/1-4 panes  enter details  s sort  / filter  p pause  ! wrong  ? help  q quit")
}
