package suite

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/pulley-lb/pulley/bench"
	"github.com/pulley-lb/pulley/bench/parts"
)

// sideApart is Pulley with each of its parts as a process of its own.
const sideApart = "apart"

// ApartReport is what RunApart measured. Latencies are in ms, CPU times in µs.
type ApartReport struct {
	Started time.Time     `json:"started"`
	Machine parts.Machine `json:"machine"`
	Rounds  int           `json:"rounds"`
	Idle    []ApartIdle   `json:"idle"`
	Rows    []*ApartRow   `json:"rows"`
}

// ApartIdle is what each part costs without a request, in cores.
type ApartIdle struct {
	Workers int                `json:"workers"`
	Engine  string             `json:"engine"`
	Cores   map[string]float64 `json:"cores"` // by part
}

// ApartRow is one load on one number of workers.
type ApartRow struct {
	Scenario string       `json:"scenario"`
	Title    string       `json:"title"`
	Workers  int          `json:"workers"`
	Engine   string       `json:"engine"`
	Stream   bool         `json:"stream"`
	Sides    []*ApartSide `json:"sides"`
	Bars     []ApartBar   `json:"bars,omitempty"`
}

// ApartSide is one way to the engines. A Spread of zeros was not measured.
type ApartSide struct {
	Name              string      `json:"name"`
	RequestsPerSecond Spread      `json:"requests_per_second"`
	OfDirect          Spread      `json:"share_of_direct"`
	P50               Spread      `json:"e2e_p50_ms"`
	P99               Spread      `json:"e2e_p99_ms"`
	AddedP50          Spread      `json:"added_p50_ms"`
	AddedP99          Spread      `json:"added_p99_ms"`
	GapP99            Spread      `json:"gap_p99_ms,omitzero"` // of streams
	Cost              ApartCost   `json:"cost"`                // of all parts
	Parts             []ApartCost `json:"parts,omitempty"`
	Failed            int64       `json:"failed"` // over all rounds

	Errors []bench.ErrorCount `json:"errors,omitempty"`
}

// ApartCost is what a part uses, with what it would use idle.
type ApartCost struct {
	Name               string `json:"name,omitempty"`
	CPUPerRequest      Spread `json:"cpu_us_per_request"`
	CPUPerToken        Spread `json:"cpu_us_per_token"`
	SwitchesPerRequest Spread `json:"switches_per_request"`
	SwitchesPerToken   Spread `json:"switches_per_token"`
}

// ApartBar is a bound and the figure that has to meet it.
type ApartBar struct {
	What  string `json:"what"`
	Value Spread `json:"value"`
	Unit  string `json:"unit"`
	Bar   string `json:"bar"`
	Met   bool   `json:"met"` // by the median
}

// Spread is a figure's median over the rounds, and the least and the most of it.
type Spread struct {
	Median float64 `json:"median"`
	Least  float64 `json:"min"`
	Most   float64 `json:"max"`
}

func spreadOf(values []float64) Spread {
	values = slices.DeleteFunc(values, func(v float64) bool { return math.IsNaN(v) || math.IsInf(v, 0) })
	if len(values) == 0 {
		return Spread{}
	}
	return Spread{bench.Median(values), slices.Min(values), slices.Max(values)}
}

func newApartReport(cfg Config) *ApartReport {
	return &ApartReport{Started: time.Now(), Machine: parts.ThisMachine(), Rounds: cfg.Rounds, Idle: []ApartIdle{}, Rows: []*ApartRow{}}
}

func engineKind(batching bool) string {
	if batching {
		return "batching"
	}
	return "instant"
}

func newApartRow(l apartLoad, workers int, sides []apartSide, rounds []apartRound) *ApartRow {
	row := &ApartRow{Scenario: l.name, Title: l.title, Workers: workers, Engine: engineKind(l.batching), Stream: l.stream}
	over := func(of func(apartRound) float64) Spread {
		values := make([]float64, len(rounds))
		for i, r := range rounds {
			values[i] = of(r)
		}
		return spreadOf(values)
	}
	for _, s := range sides {
		percentile := func(p float64) Spread {
			return over(func(r apartRound) float64 { return inMS(r[s.name].result.E2E.Percentile(p)) })
		}
		side := &ApartSide{
			Name:              s.name,
			RequestsPerSecond: over(func(r apartRound) float64 { return r[s.name].rate() }),
			OfDirect:          over(rates(s.name, sideEngine)),
			P50:               percentile(50), P99: percentile(99),
			AddedP50: over(added(s.name, 50)), AddedP99: over(added(s.name, 99)),
		}
		if l.stream {
			side.GapP99 = over(func(r apartRound) float64 { return inMS(r[s.name].result.Gap.Percentile(99)) })
		}
		cost := func(name string, of func(apartRun) parts.Usage) ApartCost {
			per := func(amount func(parts.Usage) float64, count func(apartRun) int64) Spread {
				return over(func(r apartRound) float64 { return amount(of(r[s.name])) / float64(max(count(r[s.name]), 1)) })
			}
			cpu := func(u parts.Usage) float64 { return inMicroseconds(u.CPU) }
			switches := func(u parts.Usage) float64 { return float64(u.Switches) }
			requests := func(r apartRun) int64 { return r.requests }
			tokens := func(r apartRun) int64 { return r.tokens }
			return ApartCost{name, per(cpu, requests), per(cpu, tokens), per(switches, requests), per(switches, tokens)}
		}
		if len(s.parts) > 0 {
			side.Cost = cost("", apartRun.all)
		}
		if len(s.parts) > 1 {
			for _, p := range s.parts {
				side.Parts = append(side.Parts, cost(p.name, func(r apartRun) parts.Usage { return r.used[p.name] }))
			}
		}
		var results []*bench.Result
		for _, r := range rounds {
			results = append(results, r[s.name].result)
		}
		total := bench.Merge(results...)
		side.Failed, side.Errors = total.Failed, total.Errors
		row.Sides = append(row.Sides, side)
	}
	for _, b := range l.bars {
		limit, value := bar{least: b.least, most: b.most, unit: b.unit}, over(b.of)
		row.Bars = append(row.Bars, ApartBar{b.what, value, b.unit, limit.String(), limit.met(value.Median)})
	}
	return row
}

// Met reports whether every bar is met and no request to Pulley failed.
func (r *ApartReport) Met() bool {
	for _, row := range r.Rows {
		if slices.ContainsFunc(row.Bars, func(b ApartBar) bool { return !b.Met }) ||
			slices.ContainsFunc(row.Sides, func(s *ApartSide) bool { return s.Failed > 0 && (s.Name == sidePulley || s.Name == sideApart) }) {
			return false
		}
	}
	return true
}

// WriteTable writes the report as a table for people.
func (r *ApartReport) WriteTable(w io.Writer) error {
	var text strings.Builder
	fmt.Fprintf(&text, "%s; medians of %d interleaved rounds, with the least and the most\n", r.Machine, r.Rounds)
	for _, idle := range r.Idle {
		fmt.Fprintf(&text, "\nidle, %s, %s engines: cores of", workersText(idle.Workers), idle.Engine)
		for _, part := range []string{"proxy", "pulley", "broker", "gateway", "workers"} {
			fmt.Fprintf(&text, "  %s %.3f", part, idle.Cores[part])
		}
		fmt.Fprintln(&text)
	}
	for _, row := range r.Rows {
		row.write(&text)
	}
	_, err := io.WriteString(w, text.String())
	return err
}

func workersText(n int) string {
	if n == 1 {
		return "1 worker"
	}
	return fmt.Sprintf("%d workers", n)
}

// sideNames are what tables call the sides.
var sideNames = map[string]string{sideEngine: "direct", sideYardstick: "bare proxy", sidePulley: "pulley up", sideApart: "apart"}

func (r *ApartRow) write(text *strings.Builder) {
	fmt.Fprintf(text, "\n%s: %s, %s\n", r.Scenario, r.Title, workersText(r.Workers))
	table := tabwriter.NewWriter(text, 0, 0, 2, ' ', 0)
	header := []string{"", "requests/s", "of direct", "added p50", "added p99"}
	if r.Stream {
		header = append(header, "gap p99", "CPU/token", "switches/token")
	} else {
		header = append(header, "CPU/request", "switches/request")
	}
	fmt.Fprintln(table, "  "+strings.Join(header, "\t"))
	costs := func(c ApartCost) []string {
		switch {
		case c == ApartCost{Name: c.Name}: // not measured
			return nil
		case r.Stream:
			return []string{c.CPUPerToken.text("%.1f", " µs"), c.SwitchesPerToken.text("%.2f", "")}
		}
		return []string{c.CPUPerRequest.text("%.0f", " µs"), c.SwitchesPerRequest.text("%.1f", "")}
	}
	for _, s := range r.Sides {
		cells := []string{"  " + sideNames[s.Name], s.RequestsPerSecond.text("%.0f", ""), s.OfDirect.text("%.2f", ""), "", ""}
		if s.Name != sideEngine {
			cells[3], cells[4] = s.AddedP50.text("%.2f", " ms"), s.AddedP99.text("%.1f", " ms")
		}
		if r.Stream {
			cells = append(cells, s.GapP99.text("%.1f", " ms"))
		}
		fmt.Fprintln(table, strings.Join(append(cells, costs(s.Cost)...), "\t"))
		for _, p := range s.Parts {
			cells := make([]string, len(header)-2)
			cells[0] = "    " + p.Name
			fmt.Fprintln(table, strings.Join(append(cells, costs(p)...), "\t"))
		}
	}
	table.Flush()
	for _, s := range r.Sides {
		for _, e := range s.Errors {
			fmt.Fprintf(text, "  %s: %d× %s: %s\n", sideNames[s.Name], e.Count, e.Class, e.Example)
		}
	}
	for _, b := range r.Bars {
		verdict := "met"
		if !b.Met {
			verdict = "MISSED"
		}
		fmt.Fprintf(text, "  → %s: %s, bar %s: %s\n", b.What, b.Value.text("%.3g", " "+b.Unit), b.Bar, verdict)
	}
}

// text is the median with a unit, and the range if there is one.
func (s Spread) text(format, unit string) string {
	median, least, most := fmt.Sprintf(format, s.Median), fmt.Sprintf(format, s.Least), fmt.Sprintf(format, s.Most)
	if least == most {
		return median + unit
	}
	return median + unit + " (" + least + "–" + most + ")"
}
