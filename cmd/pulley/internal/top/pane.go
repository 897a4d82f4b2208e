package top

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
)

// panes are the lists that top shows with the keys 1 to 4.
var panes = []pane{poolsPane, tiersPane, workersPane, requestsPane}

// pane is a list of pools, tiers, workers or requests.
type pane struct {
	name    string
	columns []paneColumn
	rows    func(*fleet.Snapshot, glyphs) []paneRow
	details func(s *fleet.Snapshot, key string) []term.Field // of a row; nil if it is gone
	empty   string                                           // shown without rows
	gone    string                                           // shown instead of details of a row that is gone
	sortBy  int                                              // initial sort column
}

type paneColumn struct {
	name     string
	right    bool // aligned to the right, and sorted as numbers
	numbers  bool // sorted as numbers
	minWidth int  // width to which it may be shortened; 0: never shortened
	drop     int  // on a narrow screen the column with the highest drop is left out first; 0: never
	nonEmpty bool // shown only if some row has a value
}

func (c *paneColumn) sortsNumbers() bool { return c.right || c.numbers }

// paneRow is a line. Its key identifies the object from one snapshot to the next.
type paneRow struct {
	key   string
	cells []paneCell
}

type paneCell struct {
	text  string
	by    float64 // value to sort by, in a column of numbers
	style term.Style
}

func textCell(s string) paneCell { return paneCell{text: term.Printable(s)} }

func stateCell(s string) paneCell {
	return paneCell{text: term.Printable(s), style: fleet.StateStyle(s)}
}

func numberCell(n int) paneCell { return paneCell{text: strconv.Itoa(n), by: float64(n)} }

// valueCell shows a text and is sorted by a number.
func valueCell(text string, by float64) paneCell { return paneCell{text: text, by: by} }

// rateCell shows a rate per second, and "-" for none.
func rateCell(x float64) paneCell {
	if x < 0.005 {
		return paneCell{text: "-"}
	}
	return paneCell{text: perSecond(x), by: x}
}

func oldestCell(l fleet.Load) paneCell {
	if l.OldestMS == 0 {
		return paneCell{text: "-"}
	}
	return valueCell(term.Age(fleet.Millis(l.OldestMS)), float64(l.OldestMS))
}

// timeCell shows a percentile; nil shows none.
func timeCell(p *fleet.Percentiles, of func(*fleet.Percentiles) int64) paneCell {
	if p == nil {
		return paneCell{text: "-", by: -1}
	}
	return valueCell(latency(of(p)), float64(of(p)))
}

func p50(p *fleet.Percentiles) int64 { return p.P50 }
func p95(p *fleet.Percentiles) int64 { return p.P95 }

// latency formats milliseconds with three digits.
func latency(ms int64) string {
	switch s := float64(ms) / 1000; {
	case ms < 1000:
		return fmt.Sprintf("%dms", ms)
	case s < 9.995:
		return fmt.Sprintf("%.2fs", s)
	case s < 99.95:
		return fmt.Sprintf("%.1fs", s)
	}
	return term.Age(fleet.Millis(ms))
}

// perSecond formats a rate in at most four characters.
func perSecond(x float64) string {
	switch {
	case x < 9.95:
		return fmt.Sprintf("%.1f", x)
	case x < 9999.5:
		return fmt.Sprintf("%.0f", x)
	case x < 999_500:
		return fmt.Sprintf("%.0fk", x/1000)
	}
	return fmt.Sprintf("%.1fM", x/1e6)
}

// sorting is the order of the rows.
type sorting struct {
	column  int
	reverse bool
}

// sortRows sorts rows: numbers from high to low, texts in alphabetical order, or the reverse.
func sortRows(rows []paneRow, columns []paneColumn, by sorting) {
	slices.SortFunc(rows, func(a, b paneRow) int {
		x, y := a.cells[by.column], b.cells[by.column]
		order := strings.Compare(x.text, y.text)
		if columns[by.column].sortsNumbers() {
			order = cmp.Compare(y.by, x.by)
		}
		if by.reverse {
			order = -order
		}
		return cmp.Or(order, strings.Compare(a.key, b.key))
	})
}

// filterRows returns the rows that contain a text in their key or in any cell.
func filterRows(rows []paneRow, text string) []paneRow {
	if text == "" {
		return rows
	}
	text = strings.ToLower(text)
	return slices.DeleteFunc(rows, func(r paneRow) bool {
		return !strings.Contains(strings.ToLower(r.key), text) &&
			!slices.ContainsFunc(r.cells, func(c paneCell) bool { return strings.Contains(strings.ToLower(c.text), text) })
	})
}

// named returns a field name such as "tier batch".
func named(kind, name string) string { return kind + " " + term.Shorten(term.Printable(name), 24) }
