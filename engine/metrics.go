package engine

import (
	"bytes"
	"math"
	"strconv"
	"strings"
)

// A family is the set of metrics that one dialect reads from a page in Prometheus' text format.
type family struct {
	prefix string          // common prefix of their names, followed by a colon, or by an underscore where someone has renamed them
	names  map[string]bool // the names without the prefix
}

func newFamily(prefix string, names ...string) family {
	f := family{prefix: prefix, names: make(map[string]bool, len(names))}
	for _, name := range names {
		f.names[name] = true
	}
	return f
}

// metrics maps the name of a metric, without the family's prefix, to its samples.
type metrics map[string][]sample

type sample struct {
	labels string // the text between the braces
	value  float64
}

// parse reads the family's samples and skips everything else, including invalid lines: a page is never refused. Of a
// line that belongs to another family it looks only at the name, so a page costs little more than its length.
func (f family) parse(page []byte) metrics {
	m := make(metrics)
	for line := range bytes.Lines(page) {
		if rest, ok := f.cut(line); ok {
			f.add(m, rest)
		}
	}
	return m
}

// owns reports whether a page has any sample of the family, known or unknown.
func (f family) owns(page []byte) bool {
	for line := range bytes.Lines(page) {
		if _, ok := f.cut(line); ok {
			return true
		}
	}
	return false
}

// cut removes the family's prefix from a line.
func (f family) cut(line []byte) (rest []byte, ok bool) {
	n := len(f.prefix)
	if len(line) <= n+1 || line[n] != ':' && line[n] != '_' || string(line[:n]) != f.prefix {
		return nil, false
	}
	return line[n+1:], true
}

func (f family) add(m metrics, line []byte) {
	end := 0
	for end < len(line) && line[end] != '{' && line[end] != ' ' && line[end] != '\t' {
		end++
	}
	if !f.names[string(line[:end])] {
		return
	}
	name, line := line[:end], bytes.TrimLeft(line[end:], " \t")
	var labels []byte
	if len(line) > 0 && line[0] == '{' {
		brace := closingBrace(line)
		if brace < 0 {
			return
		}
		labels, line = line[1:brace], line[brace+1:]
	}
	fields := bytes.Fields(line)
	if len(fields) == 0 {
		return
	}
	v, err := strconv.ParseFloat(string(fields[0]), 64)
	if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
		return
	}
	m[string(name)] = append(m[string(name)], sample{string(labels), v})
}

// closingBrace is the index where the labels at the start of line end, or -1.
func closingBrace(line []byte) int {
	quoted := false
	for i := 0; i < len(line); i++ {
		switch line[i] {
		case '\\':
			i++
		case '"':
			quoted = !quoted
		case '}':
			if !quoted {
				return i
			}
		}
	}
	return -1
}

// label is the value of a label, or "" if it is missing: Prometheus does not distinguish the two.
func (s sample) label(name string) string {
	rest := s.labels
	for {
		key, after, ok := strings.Cut(rest, "=")
		after, quoted := strings.CutPrefix(strings.TrimLeft(after, " \t"), `"`)
		if !ok || !quoted {
			return ""
		}
		end := 0
		for end < len(after) && after[end] != '"' {
			if after[end] == '\\' {
				end++
			}
			end++
		}
		if end >= len(after) {
			return ""
		}
		if strings.Trim(key, ", \t") == name {
			return unescape.Replace(after[:end])
		}
		rest = after[end+1:]
	}
}

var unescape = strings.NewReplacer(`\\`, `\`, `\"`, `"`, `\n`, "\n")

// sum adds up a metric, the first of these names that is present. Samples that agree in all labels of ranks are one
// value that is reported more than once, for example by every rank of a tensor-parallel engine or by every process: of
// those the largest counts. Without ranks every sample counts. It returns nil if the metric is missing.
func (m metrics) sum(ranks []string, names ...string) *float64 {
	values := m.values(ranks, names...)
	if values == nil {
		return nil
	}
	total := 0.0
	for _, v := range values {
		total += v
	}
	return &total
}

// mean averages a metric that is a fraction of each rank's own.
func (m metrics) mean(ranks []string, names ...string) *float64 {
	values := m.values(ranks, names...)
	if values == nil {
		return nil
	}
	return new(*m.sum(ranks, names...) / float64(len(values)))
}

func (m metrics) values(ranks []string, names ...string) []float64 {
	var values []float64
	for _, name := range names {
		if len(m[name]) == 0 {
			continue
		}
		rank := make(map[string]int)
		for _, s := range m[name] {
			if ranks == nil {
				values = append(values, s.value)
				continue
			}
			key := s.key(ranks)
			if i, ok := rank[key]; ok {
				values[i] = max(values[i], s.value)
				continue
			}
			rank[key] = len(values)
			values = append(values, s.value)
		}
		return values
	}
	return nil
}

// byLabel returns a metric, the first of these names that is present, by the value of a label. Of several samples with the same
// value the largest counts. It returns nil if the metric is missing.
func (m metrics) byLabel(label string, names ...string) map[string]*float64 {
	for _, name := range names {
		if len(m[name]) == 0 {
			continue
		}
		by := make(map[string]*float64)
		for _, s := range m[name] {
			if at := by[s.label(label)]; at == nil || *at < s.value {
				by[s.label(label)] = new(s.value)
			}
		}
		return by
	}
	return nil
}

func (s sample) key(ranks []string) string {
	var b strings.Builder
	for _, r := range ranks {
		b.WriteString(s.label(r))
		b.WriteByte(0)
	}
	return b.String()
}

// where returns the samples of a metric whose label has the value, as metrics that can be summed.
func (m metrics) where(name, label, value string) metrics {
	some := make(metrics)
	for _, s := range m[name] {
		if s.label(label) == value {
			some[name] = append(some[name], s)
		}
	}
	return some
}
