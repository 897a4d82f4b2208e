package top

import (
	"cmp"
	"math"
	"slices"
	"strings"

	"github.com/charmbracelet/x/ansi"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
)

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
func tableLines(p *term.Page, g glyphs, columns []paneColumn, rows []paneRow, by sorting, selected int, from, most int) []string {
	visible, widths := fit(columns, rows, by.column, p.Width)
	line := func(cell func(i int) (string, term.Style), base term.Style) string {
		var b strings.Builder
		for n, i := range visible {
			text, s := cell(i)
			text = ansi.Truncate(text, widths[i], g.more)
			pad := strings.Repeat(" ", max(0, widths[i]-ansi.StringWidth(text)))
			if base == term.Unstyled {
				text = p.Paint(s, text)
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
		if p.Width > 0 {
			text = ansi.Truncate(text, p.Width, "")
		}
		return p.Paint(base, text)
	}
	lines := []string{line(func(i int) (string, term.Style) {
		if i != by.column {
			return columns[i].name, term.Unstyled
		}
		if columns[i].sortsNumbers() != by.reverse {
			return columns[i].name + g.falling, term.Unstyled
		}
		return columns[i].name + g.rising, term.Unstyled
	}, term.Bold)}
	for n := from; n < min(len(rows), from+most); n++ {
		base := term.Unstyled
		if n == selected {
			base = term.Reversed
		}
		lines = append(lines, line(func(i int) (string, term.Style) { return rows[n].cells[i].text, rows[n].cells[i].style }, base))
	}
	return lines
}
