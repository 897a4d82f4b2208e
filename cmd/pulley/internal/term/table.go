package term

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"
)

// Table is rows of text below the names of their columns.
type Table struct {
	Columns []Column
	Rows    [][]string
	Empty   string // what to say instead if there are no rows
}

// Row adds a row: a value for each column. Zero times and empty strings are "-".
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

// Column is one of a table's.
type Column struct {
	Name  string
	right bool               // its text ends, rather than begins, below each other
	wide  bool               // it is there with --output wide only
	ifAny bool               // it is there if any row has something in it
	Cut   int                // to how many characters it may be shortened; 0: not at all
	Tail  bool               // what stays of it then is its end
	paint func(string) Style // nil: unstyled
}

// Text is a column that may be shortened.
func Text(name string) Column { return Column{Name: name, Cut: 10} }

// Word is a column that is shown whole.
func Word(name string) Column { return Column{Name: name} }

// Number is a column of numbers.
func Number(name string) Column { return Column{Name: name, right: true} }

// Wide is c for --output wide.
func Wide(c Column) Column { c.wide = true; return c }

// IfAny is c, left out if it is empty.
func IfAny(c Column) Column { c.ifAny = true; return c }

// Painted is c in colour.
func Painted(c Column, paint func(string) Style) Column { c.paint = paint; return c }

// Table writes t so that it fits.
func (p *Page) Table(t Table) {
	if len(t.Rows) == 0 {
		p.Line("%s", t.Empty)
		return
	}
	var shown []int
	for i, c := range t.Columns {
		any := !c.ifAny || slices.ContainsFunc(t.Rows, func(row []string) bool { return row[i] != "-" })
		if any && (!c.wide || p.Wide) {
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
			if gone := ansi.StringWidth(text) - widths[i]; gone > 0 && c.Tail {
				text = ansi.TruncateLeft(text, gone+1, "…")
			} else if gone > 0 {
				text = ansi.Truncate(text, widths[i], "…")
			}
			pad := strings.Repeat(" ", max(0, widths[i]-ansi.StringWidth(text)))
			text = p.Paint(paint(c, row[i]), text)
			switch {
			case c.right:
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
			if c.paint == nil {
				return Unstyled
			}
			return c.paint(text)
		})
	}
}

// widths are those of the columns, the longest of which are shortened until
// all fit into the terminal.
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
			if c.Cut > 0 && widths[i] > max(c.Cut, len(c.Name)) && (longest < 0 || widths[i] > widths[longest]) {
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
