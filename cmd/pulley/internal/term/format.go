package term

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/charmbracelet/x/ansi"
)

// Printable is s without what a terminal would obey: models, tenants and
// reasons are strangers' words.
func Printable(s string) string {
	if utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return s
	}
	quoted := strconv.Quote(s)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

// PrintableLines is printable for text of several lines.
func PrintableLines(s string) string {
	lines := strings.Split(strings.ReplaceAll(s, "\t", "    "), "\n")
	for i, l := range lines {
		lines[i] = Printable(strings.TrimSuffix(l, "\r"))
	}
	return strings.Join(lines, "\n")
}

// Age is a duration to two places, or one where more would be noise.
func Age(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + Age(-d)
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

// Ago is the age of a time.
func Ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return Age(max(0, time.Since(t)))
}

// Clock is a time for people.
func Clock(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

// Bytes is a size for people.
func Bytes(n int64) string {
	switch {
	case n < 10<<10:
		return fmt.Sprintf("%d B", n)
	case n < 10<<20:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

// Percent is a share for people.
func Percent(x float64) string { return strconv.FormatFloat(x, 'g', 3, 64) + "%" }

// Share is a part of 1 as a percentage.
func Share(x float64) string { return strconv.FormatFloat(100*x, 'f', 0, 64) + "%" }

// Seconds is a short time for people.
func Seconds(s float64) string {
	switch {
	case s < 0.01:
		return fmt.Sprintf("%.2g ms", 1000*s)
	case s < 1:
		return fmt.Sprintf("%.0f ms", 1000*s)
	}
	return fmt.Sprintf("%.1f s", s)
}

// Millis is a time that is told in milliseconds, nothing if it is not known.
func Millis(ms float64) string {
	switch {
	case ms <= 0:
		return ""
	case ms < 10:
		return strconv.FormatFloat(ms, 'f', 1, 64) + " ms"
	}
	return strconv.FormatFloat(ms, 'f', 0, 64) + " ms"
}

// Count is a number of things, such as "1 request" or "3 requests".
func Count[N int | int64 | uint64](n N, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprint(n) + " " + thing + "s"
}

// Join is words in order, separated by commas; "-" if there are none.
func Join(words []string) string {
	if len(words) == 0 {
		return "-"
	}
	return strings.Join(words, ", ")
}

// Shorten is s in at most n characters.
func Shorten(s string, n int) string { return ansi.Truncate(s, n, "…") }

// WithUnit is a value with its unit, nothing if it is not there.
func WithUnit[T int | float64](v *T, unit string) string {
	if v == nil {
		return ""
	}
	return strconv.FormatFloat(float64(*v), 'f', 0, 64) + unit
}

func GiB(bytes uint64) string {
	return strconv.FormatFloat(float64(bytes)/(1<<30), 'f', 1, 64) + " GiB"
}

// Float is a number to at most two places.
func Float(x float64) string { return strconv.FormatFloat(math.Round(100*x)/100, 'f', -1, 64) }

// NonZero is a limit, or nothing for 0.
func NonZero(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}
