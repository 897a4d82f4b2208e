// Package term writes text for people: tables that fit a terminal, descriptions, colour, and sizes, times and counts in
// a readable form. It knows nothing of Pulley.
package term

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"
	"github.com/charmbracelet/x/term"
)

// Page collects text for people. The zero value is ready; without a terminal it has no colour, and nothing is
// shortened.
type Page struct {
	Terminal
	Wide bool // --output wide: all columns, at full width
	b    bytes.Buffer
}

// String returns what was written.
func (p *Page) String() string { return p.b.String() }

// Bytes returns what was written.
func (p *Page) Bytes() []byte { return p.b.Bytes() }

// Raw writes text unchanged.
func (p *Page) Raw(text string) { p.b.WriteString(text) }

// Line writes a formatted line.
func (p *Page) Line(format string, args ...any) {
	p.Write(fmt.Sprintf(format, args...))
}

// Write writes a line, without trailing blanks.
func (p *Page) Write(line string) {
	p.b.WriteString(strings.TrimRight(line, " "))
	p.b.WriteByte('\n')
}

// Wrapped writes a prefix and a text. The text is wrapped at the width of the terminal, and its further lines are
// indented below the first.
func (p *Page) Wrapped(prefix, text string, s Style) {
	indent := ansi.StringWidth(prefix)
	if p.Width > 0 {
		text = ansi.Wrap(text, max(p.Width-indent, 20), "")
	}
	for line := range strings.SplitSeq(text, "\n") {
		p.Write(prefix + p.Paint(s, line))
		prefix = strings.Repeat(" ", indent)
	}
}

// Paint returns text in a style, if the terminal has colour.
func (p *Page) Paint(s Style, text string) string {
	if !p.Color || s == Unstyled || text == "" {
		return text
	}
	return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
}

// Heading writes the title of a section, after an empty line.
func (p *Page) Heading(text string) {
	p.Line("")
	p.Write(p.Paint(Bold, text))
}

// Field is a line of a description: a name and a value.
type Field struct {
	Name, Value string
	Style       Style // of the value
}

// KV makes a field. A style for the value may follow.
func KV(name, value string, style ...Style) Field {
	f := Field{Name: name, Value: value}
	if len(style) > 0 {
		f.Style = style[0]
	}
	return f
}

// Fields writes the fields that have a value, with the values aligned.
func (p *Page) Fields(list ...Field) {
	longest := 0
	for _, f := range list {
		if f.Value != "" {
			longest = max(longest, ansi.StringWidth(f.Name))
		}
	}
	for _, f := range list {
		if f.Value != "" {
			p.Write(p.Paint(Dim, fmt.Sprintf("%-*s", longest, f.Name)) + "  " + p.Paint(f.Style, Printable(f.Value)))
		}
	}
}

// Terminal says what an output can show. The zero value is a file or a pipe.
type Terminal struct {
	Width, Height int // 0 if the output is not a terminal
	Color         bool
}

// Of returns the terminal behind an output. A terminal of unknown size counts as 80 by 24.
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

// Frame returns text as a whole screen with a title and the time. Written to a terminal it replaces the frame before.
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
	// Move home, clear each line to its end, and clear what is below: clearing the screen first would flicker.
	return []byte("\x1b[H" + strings.Join(lines, "\x1b[K\n") + "\x1b[K\n\x1b[J")
}
