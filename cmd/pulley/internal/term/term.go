// Package term writes text for people: tables that fit a terminal, descriptions,
// colour, and sizes, times and counts in a readable form. It knows nothing of
// Pulley.
package term

import (
	"io"
	"os"

	"github.com/charmbracelet/x/term"
)

// Terminal says what an output can show. The zero value is a file or a pipe.
type Terminal struct {
	Width, Height int // 0 if the output is not a terminal
	Color         bool
}

// Of returns the terminal behind an output. A terminal of unknown size
// counts as 80 by 24.
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

// Style is an ANSI graphic rendition: the parameters of an SGR sequence.
type Style string

// The styles that Pulley uses.
const (
	Unstyled Style = ""
	Bold     Style = "1"
	Dim      Style = "2"
	Red      Style = "31"
	Green    Style = "32"
	Yellow   Style = "33"
	Reverse  Style = "7"
)
