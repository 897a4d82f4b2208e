package term

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"
)

// Frame returns text as a whole screen with a title and the time. Written to a
// terminal it replaces the frame before.
func Frame(text []byte, title string, t Terminal) []byte {
	p := Page{Terminal: t}
	title = fmt.Sprintf("%s  %s", title, time.Now().Format("15:04:05"))
	lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	if most := t.Height - 2; len(lines) > most && most > 1 {
		lines = append(lines[:most-1:most-1], fmt.Sprintf("… %d more lines", len(lines)-most+1))
	}
	lines = slices.Insert(lines, 0, p.Paint(Dim, title))
	for i := range lines {
		lines[i] = ansi.Truncate(lines[i], t.Width, "…")
	}
	// Move home, clear each line to its end, and clear what is below: clearing the
	// screen first would flicker.
	return []byte("\x1b[H" + strings.Join(lines, "\x1b[K\n") + "\x1b[K\n\x1b[J")
}
