package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/charmbracelet/x/ansi"
)

// pane is one of top's lists.
type pane struct {
	name    string
	columns []paneColumn
	rows    func(*snapshot, glyphs) []paneRow
	detail  func(s *snapshot, key string) []field // nil: it is gone
	empty   string
	order   int // column that it is sorted by at first
}

type paneColumn struct {
	name    string
	right   bool // it is of numbers, the ends of which are below each other
	numbers bool // it is sorted by the cells' numbers, as right ones are
	least   int  // width to which it may be cut; 0: not at all
	drop    int  // the highest go first where the screen is narrow; 0: never
	ifAny   bool // it is there if any row has something in it
}

func (c *paneColumn) sortsNumbers() bool { return c.right || c.numbers }

// paneRow is a line about one thing, which key names for good.
type paneRow struct {
	key   string
	cells []paneCell
}

type paneCell struct {
	text  string
	by    float64 // what a column of numbers is sorted by
	style style
}

func textCell(s string) paneCell  { return paneCell{text: printable(s)} }
func stateCell(s string) paneCell { return paneCell{text: printable(s), style: paintState(s)} }
func numberCell(n int) paneCell   { return paneCell{text: strconv.Itoa(n), by: float64(n)} }

// shown is a number as text.
func shown(text string, by float64) paneCell { return paneCell{text: text, by: by} }

// rateCell is a number per second; nothing where there is none.
func rateCell(x float64) paneCell {
	if x < 0.005 {
		return paneCell{text: "-"}
	}
	return paneCell{text: perSecond(x), by: x}
}

// perSecond is a rate in at most four characters.
func perSecond(x float64) string {
	switch {
	case x < 9.95:
		return fmt.Sprintf("%.1f", x)
	case x < 9999.5:
		return fmt.Sprintf("%.0f", x)
	case x < 999_500:
		return fmt.Sprintf("%.0fk", x/1000)
	}
	return fmt.Sprintf("%.1fM", x/1e6)
}

// sorting is by which column, and whether from the end.
type sorting struct {
	column  int
	reverse bool
}

// sortRows orders rows: numbers from the highest, texts from the first, unless
// reversed.
func sortRows(rows []paneRow, columns []paneColumn, by sorting) {
	slices.SortFunc(rows, func(a, b paneRow) int {
		x, y := a.cells[by.column], b.cells[by.column]
		order := strings.Compare(x.text, y.text)
		if columns[by.column].sortsNumbers() {
			order = cmp.Compare(y.by, x.by)
		}
		if by.reverse {
			order = -order
		}
		return cmp.Or(order, strings.Compare(a.key, b.key))
	})
}

// filterRows are the rows that have the words in any of their cells.
func filterRows(rows []paneRow, words string) []paneRow {
	if words == "" {
		return rows
	}
	words = strings.ToLower(words)
	return slices.DeleteFunc(rows, func(r paneRow) bool {
		return !strings.Contains(strings.ToLower(r.key), words) &&
			!slices.ContainsFunc(r.cells, func(c paneCell) bool { return strings.Contains(strings.ToLower(c.text), words) })
	})
}

const between = "  " // columns

// cellWidth is how many columns of a terminal a text takes. Most are plain, and
// quickly told.
func cellWidth(s string) int {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return ansi.StringWidth(s)
		}
	}
	return len(s)
}

// fit is which columns a screen shows and how wide: those that may be cut are,
// the widest first, and where that does not do, whole columns go.
func fit(columns []paneColumn, rows []paneRow, sorted, width int) (visible, widths []int) {
	if width == 0 {
		width = math.MaxInt
	}
	widths = make([]int, len(columns))
	for i, c := range columns {
		if c.ifAny && !slices.ContainsFunc(rows, func(r paneRow) bool { return r.cells[i].text != "-" && r.cells[i].text != "" }) {
			continue
		}
		visible = append(visible, i)
		widths[i] = ansi.StringWidth(c.name)
		if i == sorted {
			widths[i]++ // for the mark of the order
		}
		for _, r := range rows {
			widths[i] = max(widths[i], cellWidth(r.cells[i].text))
		}
	}
	for {
		sum := -len(between)
		for _, i := range visible {
			sum += widths[i] + len(between)
		}
		if sum <= width {
			return visible, widths
		}
		widest := -1
		for _, i := range visible {
			if least := columns[i].least; least > 0 && widths[i] > least && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest >= 0 {
			widths[widest]--
			continue
		}
		last := slices.MaxFunc(visible, func(a, b int) int { return cmp.Compare(columns[a].drop, columns[b].drop) })
		if columns[last].drop == 0 {
			return visible, widths
		}
		visible = slices.DeleteFunc(visible, func(i int) bool { return i == last })
	}
}

// tableLines are the header and the rows from the first to fit on the screen.
func tableLines(p *page, g glyphs, columns []paneColumn, rows []paneRow, by sorting, selected int, from, most int) []string {
	visible, widths := fit(columns, rows, by.column, p.width)
	line := func(cell func(i int) (string, style), base style) string {
		var b strings.Builder
		for n, i := range visible {
			text, s := cell(i)
			text = ansi.Truncate(text, widths[i], g.more)
			pad := strings.Repeat(" ", max(0, widths[i]-ansi.StringWidth(text)))
			if base == unstyled {
				text = p.paint(s, text)
			}
			if columns[i].right {
				text = pad + text
			} else {
				text += pad
			}
			if n > 0 {
				text = between + text
			}
			b.WriteString(text)
		}
		text := b.String()
		if p.width > 0 {
			text = ansi.Truncate(text, p.width, "")
		}
		return p.paint(base, text)
	}
	lines := []string{line(func(i int) (string, style) {
		if i != by.column {
			return columns[i].name, unstyled
		}
		if columns[i].sortsNumbers() != by.reverse {
			return columns[i].name + g.falling, unstyled
		}
		return columns[i].name + g.rising, unstyled
	}, bold)}
	for n := from; n < min(len(rows), from+most); n++ {
		base := unstyled
		if n == selected {
			base = reversed
		}
		lines = append(lines, line(func(i int) (string, style) { return rows[n].cells[i].text, rows[n].cells[i].style }, base))
	}
	return lines
}

// reversed is the selected line's.
const reversed style = "7"

// glyphs are what lines, bars and marks are made of.
type glyphs struct {
	full, free, rule, more, rising, falling string
}

var (
	unicodeGlyphs = glyphs{"█", "░", "─", "…", "▴", "▾"}
	asciiGlyphs   = glyphs{"#", ".", "-", "~", "^", "v"}
)

// glyphsFor are those that a terminal with this environment can be trusted to
// show.
func glyphsFor(env func(string) string) glyphs {
	locale := strings.ToLower(cmp.Or(env("LC_ALL"), env("LC_CTYPE"), env("LANG")))
	if strings.Contains(locale, "utf-8") || strings.Contains(locale, "utf8") {
		return unicodeGlyphs
	}
	return asciiGlyphs
}

// bar is n of most, drawn and in numbers.
func (g glyphs) bar(n, most, width int) string {
	filled := 0
	if most > 0 {
		filled = min((n*width+most-1)/most, width)
	}
	return strings.Repeat(g.full, filled) + strings.Repeat(g.free, width-filled) + fmt.Sprintf(" %d/%d", n, most)
}
