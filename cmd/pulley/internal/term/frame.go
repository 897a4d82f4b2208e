package term

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"
)

// Frame is a frame that replaces the one before on a terminal.
func Frame(frame []byte, title string, t Terminal) []byte {
	p := Page{Terminal: t}
	title = fmt.Sprintf("%s  %s", title, time.Now().Format("15:04:05"))
	lines := strings.Split(strings.TrimSuffix(string(frame), "\n"), "\n")
	if most := t.Height - 2; len(lines) > most && most > 1 {
		lines = append(lines[:most-1:most-1], fmt.Sprintf("… and %d lines more", len(lines)-most+1))
	}
	lines = slices.Insert(lines, 0, p.Paint(Dim, title))
	for i := range lines {
		lines[i] = ansi.Truncate(lines[i], t.Width, "…")
	}
	// Home, each line to its end, and what is below: nothing flickers.
	return []byte("\x1b[H" + strings.Join(lines, "\x1b[K\n") + "\x1b[K\n\x1b[J")
}
