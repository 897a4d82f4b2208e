package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"
)

// topScreen is what top shows, and what its keys have made of it. Drawing it
// changes nothing.
type topScreen struct {
	terminal
	glyphs glyphs

	latest snapshot
	frozen *snapshot // shown instead while the screen is paused

	pane     int
	states   [4]paneState // of panes
	filter   string
	typing   bool // the filter
	over     overlay
	detailOf string // key
	scroll   int    // of what lies over the pane
}

type paneState struct {
	sorting
	selected string // key; empty: the first
	at       int    // where it was, if it is gone
}

// overlay is what lies over a pane.
type overlay int

const (
	noOverlay overlay = iota
	detailOverlay
	helpOverlay
	wrongOverlay
)

func newTopScreen(t terminal, g glyphs) *topScreen {
	m := &topScreen{terminal: t, glyphs: g}
	for i := range panes {
		m.states[i].column = panes[i].order
	}
	return m
}

const topHelp = `tab, 1 to 4    pools, tiers, workers, requests
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

// now is what is shown.
func (m *topScreen) now() *snapshot {
	if m.frozen != nil {
		return m.frozen
	}
	return &m.latest
}

// rows are the lines of the pane, in order, and which of them is selected.
func (m *topScreen) rows() (rows []paneRow, selected int) {
	pn, st := &panes[m.pane], &m.states[m.pane]
	rows = filterRows(pn.rows(m.now(), m.glyphs), m.filter)
	sortRows(rows, pn.columns, st.sorting)
	if i := slices.IndexFunc(rows, func(r paneRow) bool { return r.key == st.selected }); i >= 0 {
		return rows, i
	}
	return rows, max(0, min(st.at, len(rows)-1))
}

// press does what a key means. It says true when top is to end.
func (m *topScreen) press(key, text string) (quit bool) {
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
		m.move(-m.room())
	case "pgdown":
		m.move(m.room())
	case "home", "g":
		m.move(-1 << 30)
	case "end", "G":
		m.move(1 << 30)
	case "s":
		st.sorting = sorting{column: (st.column + 1) % len(panes[m.pane].columns)}
	case "S":
		st.reverse = !st.reverse
	case "/":
		m.typing, m.over = true, noOverlay
	case "p", "space":
		if m.frozen != nil {
			m.frozen = nil
		} else {
			s := m.latest
			m.frozen = &s
		}
	case "enter":
		if rows, i := m.rows(); m.over == noOverlay && len(rows) > 0 {
			m.over, m.detailOf, m.scroll = detailOverlay, rows[i].key, 0
		}
	case "?":
		m.toggle(helpOverlay)
	case "!":
		m.toggle(wrongOverlay)
	case "esc":
		if m.over == noOverlay {
			m.filter = ""
		}
		m.over = noOverlay
	}
	return false
}

func (m *topScreen) typeFilter(key, text string) {
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

func (m *topScreen) open(pane int) { m.pane, m.over = pane, noOverlay }

func (m *topScreen) toggle(o overlay) {
	if m.over == o {
		o = noOverlay
	}
	m.over, m.scroll = o, 0
}

// move selects another line, or scrolls what lies over the pane.
func (m *topScreen) move(by int) {
	if m.over != noOverlay {
		m.scroll = max(0, min(m.scroll+by, len(m.overLines())-m.room()))
		return
	}
	rows, i := m.rows()
	if len(rows) == 0 {
		return
	}
	i = max(0, min(i+by, len(rows)-1))
	m.states[m.pane].selected, m.states[m.pane].at = rows[i].key, i
}

// headLines and footLines are around the pane: three of state and the tabs; the
// keys.
const (
	headLines = 4
	footLines = 1
)

// eventRoom is how many lines the events take, with the one above them.
func (m *topScreen) eventRoom() int {
	switch {
	case m.height < 16:
		return 0
	case m.height < 32:
		return 4
	}
	return 8
}

// room is how many lines a pane has below the names of its columns.
func (m *topScreen) room() int {
	return max(1, m.height-headLines-footLines-m.eventRoom()-1)
}

// lines are the whole screen, which they fill.
func (m *topScreen) lines() []string {
	p := &page{terminal: m.terminal}
	s := m.now()
	lines := []string{m.between(p, s.headline(p), m.corner(p)), s.rateLine(p), s.wrongLine(p, m.glyphs), m.tabs(p)}
	lines = append(lines, m.paneLines(p)...)
	bottom := m.height - footLines - m.eventRoom()
	for len(lines) < bottom {
		lines = append(lines, "")
	}
	lines = lines[:max(0, min(len(lines), bottom))]
	if n := m.eventRoom(); n > 0 {
		lines = append(lines, m.rule(p, " events "))
		events := s.Events[max(0, len(s.Events)-n+1):]
		for _, e := range events {
			lines = append(lines, eventLine(p, e))
		}
		for range n - 1 - len(events) {
			lines = append(lines, "")
		}
	}
	lines = append(lines, m.footer(p))
	for i, l := range lines {
		lines[i] = ansi.Truncate(l, m.width, m.glyphs.more)
	}
	return lines
}

// corner is at the right of the first line.
func (m *topScreen) corner(p *page) string {
	if m.frozen != nil {
		return p.paint(yellow, "PAUSED "+m.frozen.At.Format("15:04:05"))
	}
	if m.latest.At.IsZero() {
		return ""
	}
	return p.paint(dim, m.latest.At.Format("15:04:05"))
}

// between is a line with a text at each end.
func (m *topScreen) between(p *page, left, right string) string {
	room := m.width - ansi.StringWidth(right) - 1
	left = ansi.Truncate(left, max(0, room), m.glyphs.more)
	return left + strings.Repeat(" ", max(0, room-ansi.StringWidth(left))+1) + right
}

func (m *topScreen) rule(p *page, title string) string {
	return p.paint(dim, strings.Repeat(m.glyphs.rule, 2)+title+strings.Repeat(m.glyphs.rule, max(0, m.width-2-ansi.StringWidth(title))))
}

func (m *topScreen) tabs(p *page) string {
	s := m.now()
	var b strings.Builder
	for i, n := range []int{len(s.Pools), len(s.Tiers), len(s.Workers), len(s.Requests)} {
		name := fmt.Sprintf("%d %s (%d)", i+1, panes[i].name, n)
		if i == m.pane {
			b.WriteString(p.paint(reversed, "["+name+"]"))
		} else {
			b.WriteString(" " + name + " ")
		}
		b.WriteString(" ")
	}
	if m.filter != "" && !m.typing {
		b.WriteString(p.paint(yellow, " only: "+printable(m.filter)))
	}
	return b.String()
}

func (m *topScreen) paneLines(p *page) []string {
	if m.over != noOverlay {
		lines := m.overLines()
		return lines[max(0, min(m.scroll, len(lines)-1)):]
	}
	pn := &panes[m.pane]
	rows, selected := m.rows()
	if len(rows) == 0 && m.filter != "" {
		return []string{"", p.paint(dim, "  none with "+printable(m.filter)+"; esc shows all")}
	}
	if len(rows) == 0 && !m.now().settled() {
		return nil
	}
	if len(rows) == 0 {
		return []string{"", p.paint(dim, "  "+pn.empty)}
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
func (m *topScreen) overview(p *page, lines []string) []string {
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
func (m *topScreen) overLines() []string {
	p := &page{terminal: m.terminal}
	switch s := m.now(); m.over {
	case helpOverlay:
		return append([]string{""}, strings.Split(topHelp, "\n")...)
	case wrongOverlay:
		if len(s.Wrong) == 0 {
			return []string{"", "nothing is wrong"}
		}
		p.b.WriteByte('\n')
		findingsView(s.Wrong).print(p)
	default:
		list := panes[m.pane].detail(s, m.detailOf)
		if list == nil {
			return []string{"", p.paint(dim, "it is gone; esc goes back")}
		}
		p.b.WriteByte('\n')
		p.fields(list...)
	}
	return strings.Split(strings.TrimSuffix(p.b.String(), "\n"), "\n")
}

func (m *topScreen) footer(p *page) string {
	switch {
	case m.typing:
		return "/" + printable(m.filter) + p.paint(reversed, " ")
	case m.over != noOverlay:
		return p.paint(dim, "esc back  up/down scroll  ? help  q quit")
	}
	return p.paint(dim, "tab/1-4 panes  enter details  s sort  / filter  p pause  ! wrong  ? help  q quit")
}

// --- The first lines, which say how it goes

func (s *snapshot) headline(p *page) string {
	t := s.Totals
	return p.paint(bold, "pulley") + fmt.Sprintf("  %s  %s  %s  %d in flight  %d waiting",
		count(len(s.Gateways), "gateway"), count(t.Live, "worker"), count(t.Slots, "slot"), t.InFlight, t.Waiting)
}

func (s *snapshot) rateLine(p *page) string {
	text := perSecond(s.Totals.DonePerSecond) + " req/s  "
	if s.Totals.TokensPerSecond > 0 {
		text += perSecond(s.Totals.TokensPerSecond) + " tok/s  "
	}
	if s.Policy == nil {
		return text + p.paint(dim, "policy not known")
	}
	return text + "policy " + printable(s.Revision.text(s.At))
}

// text is the revision, and how old it is.
func (v policyAt) text(now time.Time) string {
	if v.Revision == 0 {
		return "is the default"
	}
	return fmt.Sprintf("revision %d, %s old: %s", v.Revision, age(max(0, now.Sub(v.At))), v.Why)
}

// wrongLine is the worst that is wrong, and how much there is.
func (s *snapshot) wrongLine(p *page, g glyphs) string {
	if s.At.IsZero() {
		return p.paint(dim, "listening"+g.more)
	}
	if s.Server == "" {
		return p.paint(red, fmt.Sprintf("no connection to NATS for %s: trying again; what is below is old", age(s.At.Sub(s.Since))))
	}
	if len(s.Wrong) == 0 {
		if !s.settled() {
			return p.paint(dim, "listening"+g.more)
		}
		return p.paint(green, "nothing is wrong")
	}
	text := printable(s.Wrong[0].Text)
	if more := len(s.Wrong) - 1; more > 0 {
		text = fmt.Sprintf("(%d more: !) %s", more, text)
	}
	return p.paint(s.Wrong[0].Verdict.style(), text)
}

// text is the whole snapshot for people, at once.
func (s *snapshot) text(p *page, g glyphs) {
	p.write(s.headline(p))
	p.write(s.rateLine(p))
	if len(s.Wrong) == 0 {
		p.write(s.wrongLine(p, g))
	}
	findingsView(s.Wrong).print(p)
	for i := range panes {
		pn := &panes[i]
		p.heading(pn.name)
		rows := pn.rows(s, g)
		by := sorting{column: pn.order}
		if len(rows) == 0 {
			p.write(pn.empty)
			continue
		}
		sortRows(rows, pn.columns, by)
		for _, l := range tableLines(p, g, pn.columns, rows, by, -1, 0, len(rows)) {
			p.write(l)
		}
	}
	if len(s.Events) > 0 {
		p.heading("events")
		for _, e := range s.Events {
			p.write(eventLine(p, e))
		}
	}
}

// --- The terminal

// topModel is a topScreen for Bubble Tea.
type topModel struct{ *topScreen }

func (m topModel) Init() tea.Cmd { return nil }

func (m topModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case snapshot:
		m.latest = msg
	case tea.KeyPressMsg:
		if msg.String() == "ctrl+z" {
			return m, tea.Suspend
		}
		if m.press(msg.String(), msg.Text) {
			return m, tea.Quit
		}
	}
	return m, nil
}

func (m topModel) View() tea.View {
	v := tea.NewView("")
	if m.width > 0 {
		v.SetContent(strings.Join(m.lines(), "\n"))
	}
	v.AltScreen = true
	return v
}
