package fleet

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/pulley-lb/pulley/bench"
	"github.com/pulley-lb/pulley/bench/parts"
)

// Report is what Run measured.
type Report struct {
	Started time.Time     `json:"started"`
	Machine parts.Machine `json:"machine"`
	Rows    []*Row        `json:"rows"`
}

// Row is one case. What is by part has the keys broker, gateway and workers; several processes of a part are added up. The
// workers are one process, which also has their engines.
type Row struct {
	Case     string `json:"case"`
	Title    string `json:"title"`
	Workers  int    `json:"workers"`
	Pools    int    `json:"pools"`
	Gateways int    `json:"gateways"`
	Brokers  int    `json:"brokers"`
	Idle     Phase  `json:"idle"`
	Load     Phase  `json:"load"`
	// CPUPerRequest is what each part uses for a request, with what it uses idle; CPUAboveIdle is without that.
	CPUPerRequest map[string]float64 `json:"cpu_us_per_request"`
	CPUAboveIdle  map[string]float64 `json:"cpu_us_per_request_above_idle"`
	// PerGatewayCore is how many requests come to a second of CPU time of the gateways.
	PerGatewayCore float64            `json:"requests_per_gateway_core_second"`
	Pickup         bench.Distribution `json:"pickup,omitzero"` // arrived → claimed
	Result         *bench.Result      `json:"result"`
	Bars           []Bar              `json:"bars,omitempty"`

	kind caseKind
}

// Phase is what the parts use while something goes on. Memory is RSS in MiB: before, the most meanwhile, and after.
type Phase struct {
	Cores        map[string]float64 `json:"cores"`
	MemoryBefore map[string]float64 `json:"memory_mib_before"`
	Memory       map[string]float64 `json:"memory_mib_most"`
	MemoryAfter  map[string]float64 `json:"memory_mib_after"`

	seconds float64
	cpu     map[string]time.Duration
}

// Bar is a bound and the figure that has to meet it.
type Bar struct {
	What  string  `json:"what"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Bar   string  `json:"bar"`
	Met   bool    `json:"met"`
}

func atMost(what string, value, most float64, unit string) Bar {
	return Bar{what, value, unit, fmt.Sprintf("≤ %g %s", most, unit), value <= most}
}

func atLeast(what string, value, least float64, unit string) Bar {
	return Bar{what, value, unit, fmt.Sprintf("≥ %g %s", least, unit), value >= least}
}

func newReport(Config) *Report {
	return &Report{Started: time.Now(), Machine: parts.ThisMachine(), Rows: []*Row{}}
}

func (r *Row) add(load Phase, result *bench.Result, kind caseKind) {
	r.Load, r.Result, r.Pickup, r.kind = load, result, result.Queue, kind
	r.CPUPerRequest, r.CPUAboveIdle = make(map[string]float64), make(map[string]float64)
	requests := float64(max(result.Succeeded+result.Warmup, 1))
	for part, cpu := range load.cpu {
		r.CPUPerRequest[part] = microseconds(cpu) / requests
		idle := time.Duration(r.Idle.Cores[part] * load.seconds * float64(time.Second))
		r.CPUAboveIdle[part] = microseconds(cpu-idle) / requests
	}
	r.PerGatewayCore = requests / max(load.cpu[partGateway].Seconds(), 1e-9)
}

func microseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// judge compares the rows with the project's targets.
func (r *Report) judge() {
	for _, row := range r.Rows {
		switch {
		case row.kind == steady && row.Workers == 1000 && row.Pools == 1:
			row.Bars = append(row.Bars,
				atMost("pickup p50", milliseconds(row.Pickup.Percentile(50)), 1, "ms"),
				atMost("pickup p99", milliseconds(row.Pickup.Percentile(99)), 10, "ms"),
				atMost("idle broker", row.Idle.Cores[partBroker], 0.15, "core"),
				atMost("idle gateway", row.Idle.Cores[partGateway], 0.05, "core"))
			if ten := slices.IndexFunc(r.Rows, func(o *Row) bool {
				return o.kind == steady && o.Workers == 10 && o.Pools == 1 && o.Gateways == row.Gateways
			}); ten >= 0 {
				row.Bars = append(row.Bars, atMost("CPU per request, relative to that of 10 workers", sum(row.CPUPerRequest)/sum(r.Rows[ten].CPUPerRequest), 1.3, "×"))
			}
		case row.kind == streams && row.Gateways == 1:
			row.Bars = append(row.Bars,
				atMost("gateway's memory", row.Load.Memory[partGateway], 400, "MiB"),
				atMost("workers' memory", row.Load.Memory[partWorkers], 300, "MiB"),
				atMost("streams without all their tokens", float64(row.Result.Failed), 0, "streams"))
		case row.kind == bodies:
			row.Bars = append(row.Bars, atLeast("requests for each second of CPU time of the gateway", row.PerGatewayCore, 50, "requests"))
		}
	}
}

// Met reports whether every bar is met and no request failed.
func (r *Report) Met() bool {
	for _, row := range r.Rows {
		if row.Result.Failed > 0 || slices.ContainsFunc(row.Bars, func(b Bar) bool { return !b.Met }) {
			return false
		}
	}
	return true
}

// WriteTable writes the report as a table for people.
func (r *Report) WriteTable(w io.Writer) error {
	var text strings.Builder
	fmt.Fprintf(&text, "%s\n", r.Machine)
	for _, row := range r.Rows {
		row.write(&text)
	}
	_, err := io.WriteString(w, text.String())
	return err
}

func (r *Row) write(text *strings.Builder) {
	fmt.Fprintf(text, "\n%s: %s\n", r.Case, r.Title)
	table := tabwriter.NewWriter(text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "  \tidle cores\tcores\tCPU/request\tabove idle\tidle MiB\tmost MiB\tMiB after")
	line := func(name string, of func(map[string]float64) float64) {
		fmt.Fprintf(table, "  %s\t%.3f\t%.3f\t%.0f µs\t%.0f µs\t%.0f\t%.0f\t%.0f\n", name, of(r.Idle.Cores), of(r.Load.Cores),
			of(r.CPUPerRequest), of(r.CPUAboveIdle), of(r.Load.MemoryBefore), of(r.Load.Memory), of(r.Load.MemoryAfter))
	}
	for _, part := range partNames {
		line(part, func(byPart map[string]float64) float64 { return byPart[part] })
	}
	line("all", sum)
	table.Flush()
	res := r.Result
	fmt.Fprintf(text, "  %d requests, %.0f/s, %d failed", res.Requests, res.RequestsPerSecond, res.Failed)
	latency := func(name string, d bench.Distribution) {
		if !d.IsZero() {
			fmt.Fprintf(text, "; %s p50 %.2f, p99 %.2f ms", name, milliseconds(d.Percentile(50)), milliseconds(d.Percentile(99)))
		}
	}
	latency("pickup", r.Pickup)
	if res.Stream {
		latency("TTFT", res.TTFT)
		latency("gap", res.Gap)
	}
	latency("E2E", res.E2E)
	fmt.Fprintln(text)
	for _, e := range res.Errors {
		fmt.Fprintf(text, "  %d× %s: %s\n", e.Count, e.Class, e.Example)
	}
	for _, b := range r.Bars {
		verdict := "met"
		if !b.Met {
			verdict = "MISSED"
		}
		fmt.Fprintf(text, "  → %s: %.3g %s, bar %s: %s\n", b.What, b.Value, b.Unit, b.Bar, verdict)
	}
}
