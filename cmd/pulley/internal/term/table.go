package term

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"
)

// Table is rows of text under column headers.
type Table struct {
	Columns []Column
	Rows    [][]string
	Empty   string // printed instead if there are no rows
}

// Row adds a row, with a value for each column. An empty string becomes "-".
func (t *Table) Row(values ...any) {
	row := make([]string, len(values))
	for i, v := range values {
		switch v := v.(type) {
		case string:
			row[i] = Printable(v)
		case time.Duration:
			row[i] = Age(v)
		default:
			row[i] = Printable(fmt.Sprint(v))
		}
		if row[i] == "" {
			row[i] = "-"
		}
	}
	t.Rows = append(t.Rows, row)
}

// Column describes a column of a table.
type Column struct {
	Name       string
	MinWidth   int  // width to which it may be shortened; 0: never shortened
	KeepEnd    bool // a shortened cell keeps its end, not its beginning
	alignRight bool
	wideOnly   bool               // shown with --output wide only
	nonEmpty   bool               // shown only if some row has a value
	style      func(string) Style // of a cell; nil: unstyled
}

// Text is a column of text that may be shortened to 10 characters.
func Text(name string) Column { return Column{Name: name, MinWidth: 10} }

// Fixed is a column of text that is never shortened.
func Fixed(name string) Column { return Column{Name: name} }

// Number is a column of numbers, aligned to the right.
func Number(name string) Column { return Column{Name: name, alignRight: true} }

// Wide shows c with --output wide only.
func Wide(c Column) Column { c.wideOnly = true; return c }

// NonEmpty shows c only if some row has a value in it.
func NonEmpty(c Column) Column { c.nonEmpty = true; return c }

// Styled chooses a style for each cell of c.
func Styled(c Column, paint func(string) Style) Column { c.style = paint; return c }

// Table writes a table. Columns are shortened until it fits the terminal.
func (p *Page) Table(t Table) {
	if len(t.Rows) == 0 {
		p.Line("%s", t.Empty)
		return
	}
	var shown []int
	for i, c := range t.Columns {
		any := !c.nonEmpty || slices.ContainsFunc(t.Rows, func(row []string) bool { return row[i] != "-" })
		if any && (!c.wideOnly || p.Wide) {
			shown = append(shown, i)
		}
	}
	widths := p.widths(t, shown)
	header := make([]string, len(t.Columns))
	for i, c := range t.Columns {
		header[i] = c.Name
	}
	line := func(row []string, paint func(Column, string) Style) {
		var b strings.Builder
		for n, i := range shown {
			c, text := t.Columns[i], row[i]
			if gone := ansi.StringWidth(text) - widths[i]; gone > 0 && c.KeepEnd {
				text = ansi.TruncateLeft(text, gone+1, "…")
			} else if gone > 0 {
				text = ansi.Truncate(text, widths[i], "…")
			}
			pad := strings.Repeat(" ", max(0, widths[i]-ansi.StringWidth(text)))
			text = p.Paint(paint(c, row[i]), text)
			switch {
			case c.alignRight:
				text = pad + text
			case n < len(shown)-1:
				text += pad
			}
			if n > 0 {
				b.WriteString("  ")
			}
			b.WriteString(text)
		}
		text := b.String()
		if p.Width > 0 {
			text = ansi.Truncate(text, p.Width, "…")
		}
		p.Write(text)
	}
	line(header, func(Column, string) Style { return Bold })
	for _, row := range t.Rows {
		line(row, func(c Column, text string) Style {
			if c.style == nil {
				return Unstyled
			}
			return c.style(text)
		})
	}
}

// widths returns the widths of the columns. The widest columns are shortened first, until the table fits the terminal.
func (p *Page) widths(t Table, shown []int) []int {
	widths := make([]int, len(t.Columns))
	sum := -2
	for _, i := range shown {
		widths[i] = ansi.StringWidth(t.Columns[i].Name)
		for _, row := range t.Rows {
			widths[i] = max(widths[i], ansi.StringWidth(row[i]))
		}
		sum += widths[i] + 2
	}
	for ; p.Width > 0 && sum > p.Width; sum-- {
		longest := -1
		for _, i := range shown {
			c := t.Columns[i]
			if c.MinWidth > 0 && widths[i] > max(c.MinWidth, len(c.Name)) && (longest < 0 || widths[i] > widths[longest]) {
				longest = i
			}
		}
		if longest < 0 {
			break
		}
		widths[longest]--
	}
	return widths
}
