package top

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/charmbracelet/x/ansi"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
)

const columnGap = "  "

// cellWidth returns the width of a text on a terminal. It is quick for ASCII.
func cellWidth(s string) int {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return ansi.StringWidth(s)
		}
	}
	return len(s)
}

// fitColumns returns the columns that a width has space for, and their widths. It shortens columns, the widest first;
// if that is not enough, it leaves columns out.
func fitColumns(columns []paneColumn, rows []paneRow, sorted, width int) (visible, widths []int) {
	if width == 0 {
		width = math.MaxInt
	}
	widths = make([]int, len(columns))
	for i, c := range columns {
		if c.nonEmpty && !slices.ContainsFunc(rows, func(r paneRow) bool { return r.cells[i].text != "-" && r.cells[i].text != "" }) {
			continue
		}
		visible = append(visible, i)
		widths[i] = ansi.StringWidth(c.name)
		if i == sorted {
			widths[i]++ // for the arrow
		}
		for _, r := range rows {
			widths[i] = max(widths[i], cellWidth(r.cells[i].text))
		}
	}
	for {
		sum := -len(columnGap)
		for _, i := range visible {
			sum += widths[i] + len(columnGap)
		}
		if sum <= width {
			return visible, widths
		}
		widest := -1
		for _, i := range visible {
			if m := columns[i].minWidth; m > 0 && widths[i] > m && (widest < 0 || widths[i] > widths[widest]) {
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

// tableLines returns the header and n rows beginning with the row from.
func tableLines(p *term.Page, g glyphs, columns []paneColumn, rows []paneRow, by sorting, selected int, from, n int) []string {
	visible, widths := fitColumns(columns, rows, by.column, p.Width)
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
				text = columnGap + text
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
	for i := from; i < min(len(rows), from+n); i++ {
		base := term.Unstyled
		if i == selected {
			base = term.Reverse
		}
		lines = append(lines, line(func(c int) (string, term.Style) { return rows[i].cells[c].text, rows[i].cells[c].style }, base))
	}
	return lines
}

// glyphs are the characters of lines, bars and arrows.
type glyphs struct {
	full, free, rule, more, rising, falling string
}

// bar draws n of total as a bar of a width, followed by the numbers.
func (g glyphs) bar(n, total, width int) string {
	filled := 0
	if total > 0 {
		filled = min((n*width+total-1)/total, width)
	}
	return strings.Repeat(g.full, filled) + strings.Repeat(g.free, width-filled) + fmt.Sprintf(" %d/%d", n, total)
}

var (
	unicodeGlyphs = glyphs{"█", "░", "─", "…", "▴", "▾"}
	asciiGlyphs   = glyphs{"#", ".", "-", "~", "^", "v"}
)

// glyphsFor returns the glyphs that a terminal with this environment can show.
func glyphsFor(env func(string) string) glyphs {
	locale := strings.ToLower(cmp.Or(env("LC_ALL"), env("LC_CTYPE"), env("LANG")))
	if strings.Contains(locale, "utf-8") || strings.Contains(locale, "utf8") {
		return unicodeGlyphs
	}
	return asciiGlyphs
}

// barWidth is the width of a bar without its numbers. With 7 the pools of a usual fleet fit 80 columns.
const barWidth = 7
