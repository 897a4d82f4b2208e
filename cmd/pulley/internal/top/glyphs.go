package top

import (
	"cmp"
	"fmt"
	"strings"
)

// glyphs are what lines, bars and marks are made of.
type glyphs struct {
	full, free, rule, more, rising, falling string
}

// bar is n of most, drawn and in numbers.
func (g glyphs) bar(n, most, width int) string {
	filled := 0
	if most > 0 {
		filled = min((n*width+most-1)/most, width)
	}
	return strings.Repeat(g.full, filled) + strings.Repeat(g.free, width-filled) + fmt.Sprintf(" %d/%d", n, most)
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

const barWidth = 8
