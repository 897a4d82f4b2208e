package term

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/charmbracelet/x/ansi"
)

// Page is text for people.
type Page struct {
	Terminal
	Wide bool
	b    bytes.Buffer
}

// Wrapped writes text after begin, on as many lines as it takes.
func (p *Page) Wrapped(begin, text string, s Style) {
	indent := ansi.StringWidth(begin)
	if p.Width > 0 {
		text = ansi.Wrap(text, max(p.Width-indent, 20), "")
	}
	for line := range strings.SplitSeq(text, "\n") {
		p.Write(begin + p.Paint(s, line))
		begin = strings.Repeat(" ", indent)
	}
}

func (p *Page) Paint(s Style, text string) string {
	if !p.Color || s == Unstyled || text == "" {
		return text
	}
	return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
}

// Line writes a line.
func (p *Page) Line(format string, args ...any) {
	p.Write(fmt.Sprintf(format, args...))
}

func (p *Page) Write(line string) {
	p.b.WriteString(strings.TrimRight(line, " "))
	p.b.WriteByte('\n')
}

// Raw writes text as it is.
func (p *Page) Raw(text string) { p.b.WriteString(text) }

// String is what was written.
func (p *Page) String() string { return p.b.String() }

// Bytes is what was written.
func (p *Page) Bytes() []byte { return p.b.Bytes() }

// KV is a field; its value may be styled.
func KV(name, value string, style ...Style) Field {
	f := Field{Name: name, Value: value}
	if len(style) > 0 {
		f.Style = style[0]
	}
	return f
}

// Fields writes descriptions below each other, those that have a value.
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

// Heading begins a part of a description.
func (p *Page) Heading(text string) {
	p.Line("")
	p.Write(p.Paint(Bold, text))
}

// Field is a line of a description.
type Field struct {
	Name, Value string
	Style       Style
}
