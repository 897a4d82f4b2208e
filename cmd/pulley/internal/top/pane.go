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

// panes are what top can show, by the keys 1 to 4.
var panes = []pane{poolsPane, tiersPane, workersPane, requestsPane}

// pane is one of top's lists.
type pane struct {
	name    string
	columns []paneColumn
	rows    func(*fleet.Snapshot, glyphs) []paneRow
	detail  func(s *fleet.Snapshot, key string) []term.Field // nil: it is gone
	empty   string
	order   int // column that it is sorted by at first
}

type paneColumn struct {
	name    string
	right   bool // it is of numbers, the ends of which are below each other
	numbers bool // it is sorted by the cells' numbers, as right ones are
	least   int  // width to which it may be cut; 0: not at all
	drop    int  // the highest go first where the screen is narrow; 0: never
	ifAny   bool // it is there if any row has something in it
}

func (c *paneColumn) sortsNumbers() bool { return c.right || c.numbers }

// paneRow is a line about one thing, which key names for good.
type paneRow struct {
	key   string
	cells []paneCell
}

type paneCell struct {
	text  string
	by    float64 // what a column of numbers is sorted by
	style term.Style
}

func textCell(s string) paneCell { return paneCell{text: term.Printable(s)} }

func stateCell(s string) paneCell {
	return paneCell{text: term.Printable(s), style: fleet.StateStyle(s)}
}

func numberCell(n int) paneCell { return paneCell{text: strconv.Itoa(n), by: float64(n)} }

// valueCell is a number as text.
func valueCell(text string, by float64) paneCell { return paneCell{text: text, by: by} }

// rateCell is a number per second; nothing where there is none.
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

// perSecond is a rate in at most four characters.
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

// sorting is by which column, and whether from the end.
type sorting struct {
	column  int
	reverse bool
}

// sortRows orders rows: numbers from the highest, texts from the first, unless
// reversed.
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

// filterRows are the rows that have the words in any of their cells.
func filterRows(rows []paneRow, words string) []paneRow {
	if words == "" {
		return rows
	}
	words = strings.ToLower(words)
	return slices.DeleteFunc(rows, func(r paneRow) bool {
		return !strings.Contains(strings.ToLower(r.key), words) &&
			!slices.ContainsFunc(r.cells, func(c paneCell) bool { return strings.Contains(strings.ToLower(c.text), words) })
	})
}

// named is a field's name with that of a thing.
func named(kind, name string) string { return kind + " " + term.Shorten(term.Printable(name), 24) }
