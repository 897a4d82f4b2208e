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

// Printable returns s with control characters escaped, so that a terminal does not obey them: models, tenants and
// reasons come from clients and engines.
func Printable(s string) string {
	if utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return s
	}
	quoted := strconv.Quote(s)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

// PrintableLines is Printable for text of several lines.
func PrintableLines(s string) string {
	lines := strings.Split(strings.ReplaceAll(s, "\t", "    "), "\n")
	for i, l := range lines {
		lines[i] = Printable(strings.TrimSuffix(l, "\r"))
	}
	return strings.Join(lines, "\n")
}

// Age formats a duration with one or two units, such as 9.5s, 1m30s or 2d.
func Age(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + Age(d.Abs())
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

// Ago formats the time that has passed since t.
func Ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return Age(max(0, time.Since(t)))
}

// Clock formats t as a local date and time.
func Clock(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

// Bytes formats a size, such as 512 B or 64 KiB.
func Bytes(n int64) string {
	switch {
	case n < 10<<10:
		return fmt.Sprintf("%d B", n)
	case n < 10<<20:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

// Percent formats a percentage.
func Percent(x float64) string { return strconv.FormatFloat(x, 'g', 3, 64) + "%" }

// Share formats a fraction of 1 as a whole percentage.
func Share(x float64) string { return strconv.FormatFloat(100*x, 'f', 0, 64) + "%" }

// Seconds formats a number of seconds, such as 18 ms or 1.1 s.
func Seconds(s float64) string {
	switch {
	case s < 0.01:
		return fmt.Sprintf("%.2g ms", 1000*s)
	case s < 1:
		return fmt.Sprintf("%.0f ms", 1000*s)
	}
	return fmt.Sprintf("%.1f s", s)
}

// Millis formats a number of milliseconds; it returns "" for 0, which means unknown.
func Millis(ms float64) string {
	switch {
	case ms <= 0:
		return ""
	case ms < 10:
		return strconv.FormatFloat(ms, 'f', 1, 64) + " ms"
	}
	return strconv.FormatFloat(ms, 'f', 0, 64) + " ms"
}

// Count formats a number of things, such as "1 request" or "3 requests".
func Count[N int | int64 | uint64](n N, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprint(n) + " " + thing + "s"
}

// Join joins words with commas; it returns "-" for none.
func Join(words []string) string {
	if len(words) == 0 {
		return "-"
	}
	return strings.Join(words, ", ")
}

// Shorten cuts s to at most n characters.
func Shorten(s string, n int) string { return ansi.Truncate(s, n, "…") }

// WithUnit formats a value with its unit; it returns "" for nil.
func WithUnit[T int | float64](v *T, unit string) string {
	if v == nil {
		return ""
	}
	return strconv.FormatFloat(float64(*v), 'f', 0, 64) + unit
}

// GiB formats a number of bytes in GiB.
func GiB(bytes uint64) string {
	return strconv.FormatFloat(float64(bytes)/(1<<30), 'f', 1, 64) + " GiB"
}

// Float formats a number with at most two decimal places.
func Float(x float64) string { return strconv.FormatFloat(math.Round(100*x)/100, 'f', -1, 64) }

// NonZero formats a number; it returns "" for 0.
func NonZero(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}
