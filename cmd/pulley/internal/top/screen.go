package top

import (
	"fmt"
	"slices"
	"strings"

	"github.com/charmbracelet/x/ansi"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
)

// screen is what top shows, and the state that keys change. Drawing does not change it.
type screen struct {
	term.Terminal
	glyphs glyphs

	latest fleet.Snapshot
	frozen *fleet.Snapshot // shown instead of latest while the display is paused

	pane     int          // index in panes
	states   [4]paneState // of the panes
	filter   string       // shows only rows that contain it
	typing   bool         // keys edit the filter
	overlay  overlay
	detailOf string // key of the row that detailOverlay describes
	scroll   int    // lines by which the overlay is scrolled
}

// overlay is what covers the pane.
type overlay int

const (
	noOverlay overlay = iota
	detailOverlay
	helpOverlay
	findingsOverlay
)

// paneState is the order and the selection of a pane.
type paneState struct {
	sorting
	selected string // key of the selected row; "" is the first
	at       int    // its last position, to be used if the row is gone
}

func newScreen(t term.Terminal, g glyphs) *screen {
	m := &screen{Terminal: t, glyphs: g}
	for i := range panes {
		m.states[i].column = panes[i].sortBy
	}
	return m
}

const help = `tab, 1 to 4     pools, tiers, workers, requests
up down k j     select a line; also pgup, pgdn, home, end
enter           details of the selected line; esc closes them
s  S            sort by the next column; reverse the order
/               show only lines that contain a text; esc clears it
!               all problems, with remedies
p               pause or resume the display
q               quit

BUSY       slots in use of the slots of the pool's workers
IN FLIGHT  requests on workers; for a worker, out of its slots
WAITING    requests waiting in gateways and queues; OLDEST: for how long
TAKEN/S    requests taken from the queues per second
BOUND      what limits the worker's capacity, see 'pulley worker ls --help'
GPU        temperature, use and memory of the GPUs, or what is wrong
TTFT, E2E  time to the first and the last byte, of the last 5 minutes
RUNG       price of the next bid, from 0 (lowest) to 9 (highest)
TOK/S      tokens per second, from the measured inter-token time

Terms: docs/concepts.md`

// headLines is the number of lines above the pane: three for the state, and the tabs. footLines is the number below it:
// the keys.
const (
	headLines = 4
	footLines = 1
)

// shown is the snapshot on display.
func (m *screen) shown() *fleet.Snapshot {
	if m.frozen != nil {
		return m.frozen
	}
	return &m.latest
}

// rows returns the rows of the pane in order, and the index of the selected one.
func (m *screen) rows() (rows []paneRow, selected int) {
	pn, st := &panes[m.pane], &m.states[m.pane]
	rows = filterRows(pn.rows(m.shown(), m.glyphs), m.filter)
	sortRows(rows, pn.columns, st.sorting)
	if i := slices.IndexFunc(rows, func(r paneRow) bool { return r.key == st.selected }); i >= 0 {
		return rows, i
	}
	return rows, max(0, min(st.at, len(rows)-1))
}

// eventHeight is the number of lines for the events, with their title.
func (m *screen) eventHeight() int {
	switch {
	case m.Height < 16:
		return 0
	case m.Height < 32:
		return 4
	}
	return 8
}

// rowHeight is the number of lines for rows: the pane without its header.
func (m *screen) rowHeight() int {
	return max(1, m.Height-headLines-footLines-m.eventHeight()-1)
}

// lines returns the lines of the whole screen.
func (m *screen) lines() []string {
	p := &term.Page{Terminal: m.Terminal}
	s := m.shown()
	lines := []string{m.between(p, headline(s, p), m.corner(p)), rateLine(s, p), findingLine(s, p, m.glyphs), m.tabs(p)}
	lines = append(lines, m.paneLines(p)...)
	bottom := m.Height - footLines - m.eventHeight()
	for len(lines) < bottom {
		lines = append(lines, "")
	}
	lines = lines[:max(0, min(len(lines), bottom))]
	if n := m.eventHeight(); n > 0 {
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

// corner returns the text at the right of the first line: the time of the snapshot.
func (m *screen) corner(p *term.Page) string {
	if m.frozen != nil {
		return p.Paint(term.Yellow, "PAUSED "+m.frozen.At.Format("15:04:05"))
	}
	if m.latest.At.IsZero() {
		return ""
	}
	return p.Paint(term.Dim, m.latest.At.Format("15:04:05"))
}

// between returns a line with a text at each end.
func (m *screen) between(p *term.Page, left, right string) string {
	width := m.Width - ansi.StringWidth(right) - 1
	left = ansi.Truncate(left, max(0, width), m.glyphs.more)
	return left + strings.Repeat(" ", max(0, width-ansi.StringWidth(left))+1) + right
}

// rule returns a horizontal line with a title.
func (m *screen) rule(p *term.Page, title string) string {
	return p.Paint(term.Dim, strings.Repeat(m.glyphs.rule, 2)+title+strings.Repeat(m.glyphs.rule, max(0, m.Width-2-ansi.StringWidth(title))))
}

// tabs returns the line that names the panes.
func (m *screen) tabs(p *term.Page) string {
	s := m.shown()
	var b strings.Builder
	for i, n := range []int{len(s.Pools), len(s.Tiers), len(s.Workers), len(s.Requests)} {
		name := fmt.Sprintf("%d %s (%d)", i+1, panes[i].name, n)
		if i == m.pane {
			b.WriteString(p.Paint(term.Reverse, "["+name+"]"))
		} else {
			b.WriteString(" " + name + " ")
		}
		b.WriteString(" ")
	}
	if m.filter != "" && !m.typing {
		b.WriteString(p.Paint(term.Yellow, " filter: "+term.Printable(m.filter)))
	}
	return b.String()
}

// paneLines returns the lines between the tabs and the events.
func (m *screen) paneLines(p *term.Page) []string {
	if m.overlay != noOverlay {
		lines := m.overlayLines()
		return lines[max(0, min(m.scroll, len(lines)-1)):]
	}
	pn := &panes[m.pane]
	rows, selected := m.rows()
	if len(rows) == 0 && m.filter != "" {
		return []string{"", p.Paint(term.Dim, "  nothing contains "+term.Printable(m.filter)+"; esc clears the filter")}
	}
	if len(rows) == 0 && !m.shown().Settled() {
		return nil
	}
	if len(rows) == 0 {
		return []string{"", p.Paint(term.Dim, "  "+pn.empty)}
	}
	from := max(0, min(selected-m.rowHeight()/2, len(rows)-m.rowHeight()))
	lines := tableLines(p, m.glyphs, pn.columns, rows, m.states[m.pane].sorting, selected, from, m.rowHeight())
	if m.pane != 0 {
		return lines
	}
	return m.overview(p, lines)
}

// overview adds the workers and the slowest requests below the pools, as far as they fit.
func (m *screen) overview(p *term.Page, lines []string) []string {
	for _, i := range []int{2, 3} {
		left := m.rowHeight() + 1 - len(lines) - 2 // the title and the header
		rows := filterRows(panes[i].rows(m.shown(), m.glyphs), m.filter)
		if left < 1 || len(rows) == 0 {
			continue
		}
		sortRows(rows, panes[i].columns, m.states[i].sorting)
		lines = append(lines, m.rule(p, " "+panes[i].name+" "))
		lines = append(lines, tableLines(p, m.glyphs, panes[i].columns, rows, m.states[i].sorting, -1, 0, left)...)
	}
	return lines
}

// overlayLines returns all lines of the overlay.
func (m *screen) overlayLines() []string {
	p := &term.Page{Terminal: m.Terminal}
	switch s := m.shown(); m.overlay {
	case helpOverlay:
		return append([]string{""}, strings.Split(help, "\n")...)
	case findingsOverlay:
		if len(s.Findings) == 0 {
			return []string{"", "no problems"}
		}
		p.Line("")
		fleet.PrintFindings(p, s.Findings)
	default:
		list := panes[m.pane].details(s, m.detailOf)
		if list == nil {
			return []string{"", p.Paint(term.Dim, panes[m.pane].gone)}
		}
		p.Line("")
		p.Fields(list...)
	}
	return strings.Split(strings.TrimSuffix(p.String(), "\n"), "\n")
}

func (m *screen) footer(p *term.Page) string {
	switch {
	case m.typing:
		return "/" + term.Printable(m.filter) + p.Paint(term.Reverse, " ")
	case m.overlay != noOverlay:
		return p.Paint(term.Dim, "esc back  up/down scroll  ? help  q quit")
	}
	return p.Paint(term.Dim, "tab/1-4 panes  enter info  s sort  / filter  p pause  ! problems  ? help  q quit")
}

// press handles a key. It returns true when the user quits.
func (m *screen) press(key, text string) (quit bool) {
	if key == "ctrl+c" {
		return true
	}
	if m.typing {
		m.typeFilter(key, text)
		return false
	}
	st := &m.states[m.pane]
	switch key {
	case "q":
		return true
	case "tab", "right", "l":
		m.open((m.pane + 1) % len(panes))
	case "shift+tab", "left", "h":
		m.open((m.pane + len(panes) - 1) % len(panes))
	case "1", "2", "3", "4":
		m.open(int(key[0] - '1'))
	case "up", "k":
		m.move(-1)
	case "down", "j":
		m.move(1)
	case "pgup":
		m.move(-m.rowHeight())
	case "pgdown":
		m.move(m.rowHeight())
	case "home", "g":
		m.move(-1 << 30)
	case "end", "G":
		m.move(1 << 30)
	case "s":
		st.sorting = sorting{column: (st.column + 1) % len(panes[m.pane].columns)}
	case "S":
		st.reverse = !st.reverse
	case "/":
		m.typing, m.overlay = true, noOverlay
	case "p", "space":
		if m.frozen != nil {
			m.frozen = nil
		} else {
			s := m.latest
			m.frozen = &s
		}
	case "enter":
		if rows, i := m.rows(); m.overlay == noOverlay && len(rows) > 0 {
			m.overlay, m.detailOf, m.scroll = detailOverlay, rows[i].key, 0
		}
	case "?":
		m.toggle(helpOverlay)
	case "!":
		m.toggle(findingsOverlay)
	case "esc":
		if m.overlay == noOverlay {
			m.filter = ""
		}
		m.overlay = noOverlay
	}
	return false
}

// typeFilter handles a key while the user types the filter.
func (m *screen) typeFilter(key, text string) {
	switch key {
	case "enter":
		m.typing = false
	case "esc":
		m.typing, m.filter = false, ""
	case "backspace":
		if r := []rune(m.filter); len(r) > 0 {
			m.filter = string(r[:len(r)-1])
		}
	case "ctrl+u":
		m.filter = ""
	default:
		m.filter += text
	}
}

func (m *screen) open(pane int) { m.pane, m.overlay = pane, noOverlay }

// toggle shows an overlay, or closes it if it is shown.
func (m *screen) toggle(o overlay) {
	if m.overlay == o {
		o = noOverlay
	}
	m.overlay, m.scroll = o, 0
}

// move selects another row, or scrolls the overlay.
func (m *screen) move(by int) {
	if m.overlay != noOverlay {
		m.scroll = max(0, min(m.scroll+by, len(m.overlayLines())-m.rowHeight()))
		return
	}
	rows, i := m.rows()
	if len(rows) == 0 {
		return
	}
	i = max(0, min(i+by, len(rows)-1))
	m.states[m.pane].selected, m.states[m.pane].at = rows[i].key, i
}
