package metric

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Page returns the table as Markdown: a part of docs/metrics.md.
func Page() string {
	var b strings.Builder
	section := ""
	for _, m := range all {
		if m.section != section {
			section = m.section
			fmt.Fprintf(&b, "\n### %s\n\n| name | type | unit | labels | meaning | at | present |\n|---|---|---|---|---|---|---|\n", section)
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s | %s |\n",
			m.Name, m.Kind, orDash(m.Unit), orDash(m.labelText()), cell(m.Help), partText(m.Parts), cell(orAlways(m.When)))
	}
	b.WriteString("\n### Buckets\n\n| of | seconds |\n|---|---|\n")
	for _, m := range []*Metric{QueueTime, InterToken, Duration} {
		var names []string
		for _, o := range all {
			if o.Kind == Histogram && slices.Equal(o.buckets, m.buckets) {
				names = append(names, "`"+o.Name+"`")
			}
		}
		var bounds []string
		for _, v := range m.buckets {
			bounds = append(bounds, strconv.FormatFloat(v, 'f', -1, 64))
		}
		fmt.Fprintf(&b, "| %s | %s |\n", strings.Join(names, ", "), strings.Join(bounds, ", "))
	}
	return b.String()
}

// labelText lists the labels, with the values of those that are fixed words.
func (m *Metric) labelText() string {
	var list []string
	for _, l := range m.Labels {
		text := "`" + l + "`"
		if v := m.Values[l]; len(v) > 0 {
			text += ": " + strings.Join(v, ", ")
		}
		list = append(list, text)
	}
	return strings.Join(list, "; ")
}

func partText(parts []Part) string {
	var list []string
	for _, p := range parts {
		list = append(list, string(p))
	}
	return strings.Join(list, ", ")
}

func cell(s string) string { return strings.ReplaceAll(s, "|", `\|`) }

func orDash(s string) string {
	if s == "" {
		return "–"
	}
	return s
}

func orAlways(s string) string {
	if s == "" {
		return "always"
	}
	return s
}
