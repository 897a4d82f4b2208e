package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/charmbracelet/x/ansi"
	"github.com/charmbracelet/x/term"
	"go.yaml.in/yaml/v3"
)

// view is what a verb shows: a value for programs, and the same for people.
type view struct {
	value any
	print func(*page)
}

// outputs are the values of --output.
var outputs = []string{"table", "wide", "json", "yaml"}

// render is the view in the format that --output asks for.
func (v view) render(format string, t terminal) ([]byte, error) {
	switch format {
	case "json":
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		err := e.Encode(v.value)
		return b.Bytes(), err
	case "yaml":
		return yamlOf(v.value)
	}
	p := page{terminal: t, wide: format == "wide"}
	if p.wide {
		p.width = 0 // all of it is asked for
	}
	v.print(&p)
	return p.b.Bytes(), nil
}

// yamlOf is a value as YAML, with the names and the order of its JSON.
func yamlOf(value any) ([]byte, error) {
	b, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil { // JSON is YAML
		return nil, err
	}
	var blockStyle func(n *yaml.Node)
	blockStyle = func(n *yaml.Node) {
		n.Style = 0
		for _, c := range n.Content {
			blockStyle(c)
		}
	}
	blockStyle(&doc)
	return encodeYAML(&doc)
}

func encodeYAML(value any) ([]byte, error) {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(value); err != nil {
		return nil, err
	}
	return b.Bytes(), e.Close()
}

// terminal is what an output can show. The zero value is a file or a pipe.
type terminal struct {
	width, height int // 0: no terminal
	color         bool
}

// terminalOf looks at an output.
func terminalOf(w io.Writer) terminal {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(f.Fd()) {
		return terminal{}
	}
	width, height, err := term.GetSize(f.Fd())
	if err != nil || width <= 0 || height <= 0 {
		width, height = 80, 24
	}
	return terminal{width: width, height: height, color: os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

// page is text for people.
type page struct {
	terminal
	wide bool
	b    bytes.Buffer
}

// style is what ANSI calls a graphic rendition.
type style string

const (
	unstyled style = ""
	bold     style = "1"
	dim      style = "2"
	red      style = "31"
	green    style = "32"
	yellow   style = "33"
)

func (p *page) paint(s style, text string) string {
	if !p.color || s == unstyled || text == "" {
		return text
	}
	return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
}

// line writes a line.
func (p *page) line(format string, args ...any) {
	p.write(fmt.Sprintf(format, args...))
}

func (p *page) write(line string) {
	p.b.WriteString(strings.TrimRight(line, " "))
	p.b.WriteByte('\n')
}

// field is a line of a description.
type field struct {
	name, value string
	style       style
}

// fields writes descriptions below each other, those that have a value.
func (p *page) fields(list ...field) {
	longest := 0
	for _, f := range list {
		if f.value != "" {
			longest = max(longest, ansi.StringWidth(f.name))
		}
	}
	for _, f := range list {
		if f.value != "" {
			p.write(p.paint(dim, fmt.Sprintf("%-*s", longest, f.name)) + "  " + p.paint(f.style, printable(f.value)))
		}
	}
}

// heading begins a part of a description.
func (p *page) heading(text string) {
	p.b.WriteByte('\n')
	p.write(p.paint(bold, text))
}

// table is rows of text below the names of their columns.
type table struct {
	columns []column
	rows    [][]string
	empty   string // what to say instead if there are no rows
}

// column is one of a table's.
type column struct {
	name  string
	right bool               // its text ends, rather than begins, below each other
	wide  bool               // it is there with --output wide only
	ifAny bool               // it is there if any row has something in it
	cut   int                // to how many characters it may be shortened; 0: not at all
	tail  bool               // what stays of it then is its end
	paint func(string) style // nil: unstyled
}

// text is a column that may be shortened.
func text(name string) column { return column{name: name, cut: 10} }

// word is a column that is shown whole.
func word(name string) column { return column{name: name} }

// number is a column of numbers.
func number(name string) column { return column{name: name, right: true} }

// wide is c for --output wide.
func wide(c column) column { c.wide = true; return c }

// ifAny is c, left out if it is empty.
func ifAny(c column) column { c.ifAny = true; return c }

// painted is c in colour.
func painted(c column, paint func(string) style) column { c.paint = paint; return c }

// row adds a row: a value for each column. Zero times and empty strings are "-".
func (t *table) row(values ...any) {
	row := make([]string, len(values))
	for i, v := range values {
		switch v := v.(type) {
		case string:
			row[i] = printable(v)
		case time.Duration:
			row[i] = age(v)
		default:
			row[i] = printable(fmt.Sprint(v))
		}
		if row[i] == "" {
			row[i] = "-"
		}
	}
	t.rows = append(t.rows, row)
}

// table writes t so that it fits.
func (p *page) table(t table) {
	if len(t.rows) == 0 {
		p.line("%s", t.empty)
		return
	}
	var shown []int
	for i, c := range t.columns {
		any := !c.ifAny || slices.ContainsFunc(t.rows, func(row []string) bool { return row[i] != "-" })
		if any && (!c.wide || p.wide) {
			shown = append(shown, i)
		}
	}
	widths := p.widths(t, shown)
	header := make([]string, len(t.columns))
	for i, c := range t.columns {
		header[i] = c.name
	}
	line := func(row []string, paint func(column, string) style) {
		var b strings.Builder
		for n, i := range shown {
			c, text := t.columns[i], row[i]
			if gone := ansi.StringWidth(text) - widths[i]; gone > 0 && c.tail {
				text = ansi.TruncateLeft(text, gone+1, "…")
			} else if gone > 0 {
				text = ansi.Truncate(text, widths[i], "…")
			}
			pad := strings.Repeat(" ", max(0, widths[i]-ansi.StringWidth(text)))
			text = p.paint(paint(c, row[i]), text)
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
		if p.width > 0 {
			text = ansi.Truncate(text, p.width, "…")
		}
		p.write(text)
	}
	line(header, func(column, string) style { return bold })
	for _, row := range t.rows {
		line(row, func(c column, text string) style {
			if c.paint == nil {
				return unstyled
			}
			return c.paint(text)
		})
	}
}

// widths are those of the columns, the longest of which are shortened until
// all fit into the terminal.
func (p *page) widths(t table, shown []int) []int {
	widths := make([]int, len(t.columns))
	sum := -2
	for _, i := range shown {
		widths[i] = ansi.StringWidth(t.columns[i].name)
		for _, row := range t.rows {
			widths[i] = max(widths[i], ansi.StringWidth(row[i]))
		}
		sum += widths[i] + 2
	}
	for ; p.width > 0 && sum > p.width; sum-- {
		longest := -1
		for _, i := range shown {
			c := t.columns[i]
			if c.cut > 0 && widths[i] > max(c.cut, len(c.name)) && (longest < 0 || widths[i] > widths[longest]) {
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

// printable is s without what a terminal would obey: models, tenants and
// reasons are strangers' words.
func printable(s string) string {
	if utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return s
	}
	quoted := strconv.Quote(s)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

// printableLines is printable for text of several lines.
func printableLines(s string) string {
	lines := strings.Split(strings.ReplaceAll(s, "\t", "    "), "\n")
	for i, l := range lines {
		lines[i] = printable(strings.TrimSuffix(l, "\r"))
	}
	return strings.Join(lines, "\n")
}

// age is a duration to two places, or one where more would be noise.
func age(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + age(-d)
	case d < 10*time.Second:
		return strconv.FormatFloat(d.Seconds(), 'f', 1, 64) + "s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// ago is the age of a time.
func ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return age(max(0, time.Since(t)))
}

// clock is a time for people.
func clock(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

// byteCount is a size for people.
func byteCount(n int64) string {
	switch {
	case n < 10<<10:
		return fmt.Sprintf("%d B", n)
	case n < 10<<20:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

// percent is a share for people.
func percent(x float64) string { return strconv.FormatFloat(x, 'g', 3, 64) + "%" }

// count is a number of things, such as "1 request" or "3 requests".
func count[N int | int64 | uint64](n N, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprint(n) + " " + thing + "s"
}

// joined is words in order, separated by commas; "-" if there are none.
func joined(words []string) string {
	if len(words) == 0 {
		return "-"
	}
	return strings.Join(words, ", ")
}

// shorten is s in at most n characters.
func shorten(s string, n int) string { return ansi.Truncate(s, n, "…") }

// paintState is the colour of a worker's, pool's or request's state.
func paintState(s string) style {
	switch state, _, _ := strings.Cut(s, " "); state {
	case "ready", "answering", "running", "done", "active":
		return green
	case "paused", "draining", "cordoned", "queued", "rotating":
		return yellow
	case "down", "left", "fenced", "aborted", "expired", "no":
		return red
	}
	return unstyled
}

// watchEvery is how often --watch looks again.
const watchEvery = time.Second

// watch shows a view anew every second until ctx ends, which is no error. What
// goes wrong after the first time is shown too: it may pass.
func watch(ctx context.Context, out io.Writer, title, format string, read func() (view, error)) error {
	v, err := read()
	if err != nil {
		return err
	}
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		t := terminalOf(out)
		var frame []byte
		if err == nil {
			frame, err = v.render(format, t)
		}
		if err != nil {
			frame = fmt.Appendf(nil, "%s\n", printable(err.Error()))
		}
		if t.width > 0 {
			frame = screen(frame, title, t)
		}
		if _, err := out.Write(frame); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if v, err = read(); ctx.Err() != nil {
			return nil
		}
		if t.width == 0 && (format == "table" || format == "wide") {
			io.WriteString(out, "\n")
		}
	}
}

// screen is a frame that replaces the one before on a terminal.
func screen(frame []byte, title string, t terminal) []byte {
	p := page{terminal: t}
	title = fmt.Sprintf("%s  %s", title, time.Now().Format("15:04:05"))
	lines := strings.Split(strings.TrimSuffix(string(frame), "\n"), "\n")
	if most := t.height - 2; len(lines) > most && most > 1 {
		lines = append(lines[:most-1:most-1], fmt.Sprintf("… and %d lines more", len(lines)-most+1))
	}
	lines = slices.Insert(lines, 0, p.paint(dim, title))
	for i := range lines {
		lines[i] = ansi.Truncate(lines[i], t.width, "…")
	}
	// Home, each line to its end, and what is below: nothing flickers.
	return []byte("\x1b[H" + strings.Join(lines, "\x1b[K\n") + "\x1b[K\n\x1b[J")
}
