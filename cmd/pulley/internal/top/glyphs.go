package top

import (
	"cmp"
	"fmt"
	"strings"
)

// glyphs are the characters of lines, bars and arrows.
type glyphs struct {
	full, free, rule, more, rising, falling string
}

// bar draws n of total as a bar, followed by the numbers.
func (g glyphs) bar(n, total int) string { return g.barOf(n, total, barWidth) }

func (g glyphs) barOf(n, total, width int) string {
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

// barWidth is the width of a bar without its numbers. With 7 the pools of a usual fleet
// fit 80 columns.
const barWidth = 7
