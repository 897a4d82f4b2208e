package ops

import (
	"encoding/csv"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/subjects"
)

// usageColumns are what usage can be summed by, in the order of a row.
var usageColumns = []string{"day", "hour", "tenant", "key", "model", "tier", "pool", "gateway"}

// usageGroup is the values of usageColumns that a row is for; those that are not asked for are empty.
type usageGroup [8]string

// groupOf returns the group of a row.
func groupOf(r *subjects.UsageRecord, row *subjects.UsageRow, by []string) (g usageGroup) {
	start := r.Start.UTC()
	all := usageGroup{start.Format(time.DateOnly), start.Format("2006-01-02T15:00Z"), row.Tenant, row.Key, row.Model, row.Tier, row.Pool, r.Gateway}
	for i, v := range all {
		if slices.Contains(by, usageColumns[i]) {
			g[i] = v
		}
	}
	return g
}

// usageSum is a row that pulley usage prints.
type usageSum struct {
	group usageGroup
	subjects.Usage
}

// sumUsage sums records, ordered by their groups.
func sumUsage(records []subjects.UsageRecord, by []string) (list []usageSum) {
	sums := make(map[usageGroup]*subjects.Usage)
	for i := range records {
		for j := range records[i].Rows {
			g := groupOf(&records[i], &records[i].Rows[j], by)
			if sums[g] == nil {
				sums[g] = new(subjects.Usage)
			}
			sums[g].Add(records[i].Rows[j].Usage)
		}
	}
	groups := slices.SortedFunc(maps.Keys(sums), func(a, b usageGroup) int { return slices.Compare(a[:], b[:]) })
	for _, g := range groups {
		list = append(list, usageSum{g, *sums[g]})
	}
	return list
}

// numbers are the figures of a row, in the order of usageFigures.
func (s *usageSum) numbers() []any {
	return []any{s.Requests(), s.Answered, s.Failed, s.Cancelled, s.Refused, s.InputTokens, s.CachedTokens, s.OutputTokens, float64(s.Millis) / 1000}
}

var usageFigures = []string{"requests", "answered", "failed", "cancelled", "refused", "input_tokens", "cached_tokens", "output_tokens", "seconds"}

// values are what a row is for, without the columns that are not asked for.
func (s *usageSum) values(by []string) (list []string) {
	for i, name := range usageColumns {
		if slices.Contains(by, name) {
			list = append(list, s.group[i])
		}
	}
	return list
}

// usageHeader names the columns of rows by these.
func usageHeader(by []string) []string {
	return slices.DeleteFunc(slices.Clone(usageColumns), func(name string) bool { return !slices.Contains(by, name) })
}

func newUsageCommand() *cobra.Command {
	var by []string
	var since, until string
	cmd := &cobra.Command{
		Use:   "usage",
		Short: "Sum what requests have used, by tenant, model, tier and more",
		Long: `Sum the requests that have ended, by what --by names, from the stream of usage that
gateways write. FAILED are requests that ended with a status of 5xx or broke off,
REFUSED those with any other error of the gateway. Tokens are those that engines
report; CACHED is the part of IN that the engine had in its cache. SECONDS is how long
workers had the requests, the last attempt of each.

A request is counted in the minute in which it ended, and is there a second later.
Records are kept for 35 days and in 256 MiB, the oldest go first. They are exact over
restarts, except that a gateway that is killed loses its last second.`,
		Example: `  pulley usage
  pulley usage --by day,tenant,model --since 720h -o csv > month.csv
  pulley usage --by tenant --since 2026-11-01 --until 2026-12-01 -o json`,
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringSliceVar(&by, "by", []string{"tenant", "model", "tier"}, "`columns` to sum by: "+cli.OneOf(usageColumns))
	fs.StringVar(&since, "since", "24h", "how `long` ago to begin, or a time such as 2026-11-01 or 2026-11-01T12:00:00Z")
	fs.StringVar(&until, "until", "", "how `long` ago to end, or a time (default now)")
	cli.AddOutput(cmd, cli.Table, cli.CSV, cli.JSON, cli.YAML)
	cli.CompleteFixed(cmd, "by", usageColumns...)
	c := cli.AddConnectFlags(fs)
	return cli.Action(cmd, c, func(s *cli.Session) error {
		for _, name := range by {
			if !slices.Contains(usageColumns, name) {
				return cli.Usagef("--by %q: must be %s%s", name, cli.OneOf(usageColumns), cli.DidYouMean(name, usageColumns))
			}
		}
		now := time.Now()
		from, err := usageTime("since", since, now)
		if err != nil {
			return err
		}
		to, err := usageTime("until", until, now.Add(subjects.UsagePeriod))
		if err != nil {
			return err
		}
		records, err := fleet.Usage(s.Context(), s.JS, from.Truncate(subjects.UsagePeriod), to)
		if err != nil {
			return err
		}
		sums := sumUsage(records, by)
		if format := cmd.Flag("output").Value.String(); format != cli.CSV {
			return cli.Show(cmd, usageView(sums, by), format)
		}
		return writeUsage(cmd.OutOrStdout(), sums, by)
	})
}

// usageTime parses how long ago a time was, or the time itself; empty is now.
func usageTime(flag, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return now, nil
	}
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return now.Add(-ago), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04", time.DateOnly} {
		if at, err := time.Parse(layout, text); err == nil {
			return at, nil
		}
	}
	return now, cli.Usagef("--%s %q: must be a duration such as 24h, or a time such as 2026-11-01 or 2026-11-01T12:00:00Z", flag, text)
}

// writeUsage writes rows as CSV.
func writeUsage(out io.Writer, sums []usageSum, by []string) error {
	w := csv.NewWriter(out)
	w.Write(slices.Concat(usageHeader(by), usageFigures))
	for i := range sums {
		row := sums[i].values(by)
		for _, n := range sums[i].numbers() {
			if f, ok := n.(float64); ok {
				row = append(row, strconv.FormatFloat(f, 'f', 3, 64))
			} else {
				row = append(row, fmt.Sprint(n))
			}
		}
		w.Write(row)
	}
	w.Flush()
	return w.Error()
}

func usageView(sums []usageSum, by []string) cli.View {
	list := []map[string]any{}
	for i := range sums {
		row := make(map[string]any)
		for n, name := range usageHeader(by) {
			row[name] = sums[i].values(by)[n]
		}
		for n, v := range sums[i].numbers() {
			row[usageFigures[n]] = v
		}
		list = append(list, row)
	}
	return cli.View{Value: list, Print: func(p *term.Page) {
		t := term.Table{Empty: "no requests recorded in this time"}
		for _, name := range usageHeader(by) {
			t.Columns = append(t.Columns, term.Text(strings.ToUpper(name)))
		}
		for _, name := range []string{"REQUESTS", "ANSWERED", "FAILED", "CANCELLED", "REFUSED", "IN", "CACHED", "OUT", "SECONDS"} {
			t.Columns = append(t.Columns, term.Number(name))
		}
		for i := range sums {
			var cells []any
			for _, v := range sums[i].values(by) {
				cells = append(cells, v)
			}
			numbers := sums[i].numbers()
			numbers[len(numbers)-1] = strconv.FormatFloat(float64(sums[i].Millis)/1000, 'f', 1, 64)
			t.Row(append(cells, numbers...)...)
		}
		p.Table(t)
	}}
}
