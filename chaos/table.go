package chaos

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// A Summary is the rows of one or more histories: one for each kind of faults and size of the cluster.
type Summary []SizedRow

// SizedRow is a row of fleets with that many brokers.
type SizedRow struct {
	Row
	Brokers int
}

// Summarize sums histories up.
func Summarize(histories []*History) (s Summary) {
	for _, h := range histories {
		for _, row := range NewReport(h).Faults {
			i := slices.IndexFunc(s, func(r SizedRow) bool { return r.Kind == row.Kind && r.Brokers == h.Brokers })
			if i < 0 {
				i = len(s)
				s = append(s, SizedRow{Row{Kind: row.Kind, Says: row.Says, Outcomes: make(Outcomes)}, h.Brokers})
			}
			s[i].merge(row)
		}
	}
	slices.SortFunc(s, func(a, b SizedRow) int { return cmp.Or(strings.Compare(a.Kind, b.Kind), a.Brokers-b.Brokers) })
	return s
}

// Figures is the table of what was counted and measured.
func (s Summary) Figures() string {
	var b strings.Builder
	b.WriteString("| what fails | brokers | strikes | requests | broken | refused | lost or wrong | longest wait | recovery | violations |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|---|---|\n")
	for _, r := range s {
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d | %d | %d | %.1f s | %.1f s | %d |\n", r.Says, r.Brokers,
			r.Strikes, r.Requests, r.Outcomes[Broken], r.Outcomes[Refused], r.Outcomes.bad(), r.Wait, r.Recovery, r.Violations)
	}
	return b.String()
}

// Promises is the table of what happens, with what was seen in a few words.
func (s Summary) Promises() string {
	var b strings.Builder
	b.WriteString("| what fails | what happens | seen |\n|---|---|---|\n")
	for _, kind := range Kinds() {
		var seen []string
		for _, r := range s {
			if r.Kind == kind {
				seen = append(seen, fmt.Sprintf("%d broken, %d refused of %d with %d broker%s", r.Outcomes[Broken], r.Outcomes[Refused], r.Requests, r.Brokers, strings.Repeat("s", min(r.Brokers-1, 1))))
			}
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", effects[kind].Says, effects[kind].Promise, cmp.Or(strings.Join(seen, "; "), "–"))
	}
	return b.String()
}

// merge adds another row of the same kind.
func (r *Row) merge(o Row) {
	r.Strikes += o.Strikes
	r.Requests += o.Requests
	r.Again += o.Again
	r.Violations += o.Violations
	for outcome, n := range o.Outcomes {
		r.Outcomes[outcome] += n
	}
	r.Gap, r.Wait, r.Recovery = max(r.Gap, o.Gap), max(r.Wait, o.Wait), max(r.Recovery, o.Recovery)
	r.Bound = o.Bound
}

// SplitPage splits a page around the text between its two marks of that name, which are HTML comments.
func SplitPage(text, name string) (before, between, after string, err error) {
	opening, closing := "<!-- "+name+" -->\n", "<!-- "+name+" end -->"
	before, rest, found := strings.Cut(text, opening)
	between, after, closed := strings.Cut(rest, closing)
	if !found || !closed {
		return "", "", "", fmt.Errorf("no %q … %q", opening, closing)
	}
	return before + opening, between, closing + after, nil
}
