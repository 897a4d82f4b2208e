// Package term writes text for people: tables that fit a terminal, descriptions,
// colour, and sizes, times and counts in a readable form. It knows nothing of
// Pulley.
package term

import (
	"io"
	"os"

	"github.com/charmbracelet/x/term"
)

// Terminal is what an output can show. The zero value is a file or a pipe.
type Terminal struct {
	Width, Height int // 0: no terminal
	Color         bool
}

// Of looks at an output.
func Of(w io.Writer) Terminal {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(f.Fd()) {
		return Terminal{}
	}
	width, height, err := term.GetSize(f.Fd())
	if err != nil || width <= 0 || height <= 0 {
		width, height = 80, 24
	}
	return Terminal{Width: width, Height: height, Color: os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

// Style is what ANSI calls a graphic rendition.
type Style string

const (
	Unstyled Style = ""
	Bold     Style = "1"
	Dim      Style = "2"
	Red      Style = "31"
	Green    Style = "32"
	Yellow   Style = "33"
)

// Reversed is the selected line's.
const Reversed Style = "7"
