package suite

import (
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"

	"github.com/pulley-lb/pulley/bench"
)

// The sides of a measurement.
const (
	sideEngine    = "engine"
	sideYardstick = "yardstick"
	sidePulley    = "pulley"
)

// figure is the quantity that a bar bounds.
type figure int

const (
	figureRatio  figure = iota // throughput, Pulley / yardstick
	figureAdded                // p50 of E2E, Pulley - engine
	figureMemory               // memory used by the scenario
)

// bar is a bound that a figure must meet.
type bar struct {
	figure      figure
	least, most float64 // only one of them is set
	unit        string
}

func (b bar) String() string {
	if b.most > 0 {
		return fmt.Sprintf("≤ %g %s", b.most, b.unit)
	}
	return fmt.Sprintf("≥ %g %s", b.least, b.unit)
}

func (b bar) met(value float64) bool {
	if b.most > 0 {
		return value <= b.most
	}
	return value >= b.least
}

// Report is what the suite measured.
type Report struct {
	Started   time.Time `json:"started"`
	CPUs      int       `json:"cpus"`
	Go        string    `json:"go"`
	Rounds    int       `json:"rounds"`
	RoundTime float64   `json:"round_seconds"`
	Rows      []*Row    `json:"rows"`
}

// Row is the result of one scenario. Value is the figure of its bar: in ms, as a ratio, or in MiB, according to Unit.
type Row struct {
	Scenario string    `json:"scenario"`
	Title    string    `json:"title"`
	Value    float64   `json:"value"`
	Unit     string    `json:"unit"`
	Bar      string    `json:"bar"`
	Met      bool      `json:"met"`
	Rounds   []float64 `json:"rounds"` // the value of each round
	Sides    []*Side   `json:"sides,omitempty"`
	Note     string    `json:"note,omitempty"`
}

// Side is one target of a scenario, with medians over the rounds.
type Side struct {
	Name              string  `json:"name"`
	RequestsPerSecond float64 `json:"requests_per_second"`
	P50               float64 `json:"e2e_p50_ms"`
	P99               float64 `json:"e2e_p99_ms"`
	TTFT              float64 `json:"ttft_p50_ms"`
	CPU               float64 `json:"cpu_ms_per_request"` // of its process; 0 where unknown
	Failed            int64   `json:"failed"`             // over all rounds

	Total *bench.Result `json:"total"`

	runs []sideRun
}

// sideRun is one side in one round.
type sideRun struct {
	result *bench.Result
	cpu    time.Duration
}

// and combines two runs of a side.
func (r sideRun) and(other sideRun) sideRun {
	if r.result == nil {
		return other
	}
	return sideRun{result: bench.Merge(r.result, other.result), cpu: r.cpu + other.cpu}
}

func newReport(cfg Config) *Report {
	return &Report{
		Started:   time.Now(),
		CPUs:      runtime.NumCPU(),
		Go:        runtime.Version(),
		Rounds:    cfg.Rounds,
		RoundTime: cfg.RoundTime.Seconds(),
	}
}

// Met reports whether every bar is met and no request of Pulley's failed.
func (r *Report) Met() bool {
	for _, row := range r.Rows {
		if !row.Met {
			return false
		}
	}
	return true
}

func (r *Row) side(name string) *Side {
	for _, s := range r.Sides {
		if s.Name == name {
			return s
		}
	}
	s := &Side{Name: name}
	r.Sides = append(r.Sides, s)
	return s
}

func (s *Side) add(run sideRun) { s.runs = append(s.runs, run) }

// judge computes the medians and the row's value.
func (r *Row) judge(b bar) {
	for _, s := range r.Sides {
		s.finish()
	}
	pulley := r.side(sidePulley)
	r.Rounds = nil
	for round, run := range pulley.runs {
		switch b.figure {
		case figureAdded:
			alone := r.side(sideEngine).runs[round].result
			r.Rounds = append(r.Rounds, inMS(run.result.E2E.Percentile(50)-alone.E2E.Percentile(50)))
		case figureRatio:
			proxy := r.side(sideYardstick).runs[round].result
			if proxy.RequestsPerSecond > 0 {
				r.Rounds = append(r.Rounds, run.result.RequestsPerSecond/proxy.RequestsPerSecond)
			}
		}
	}
	r.Value, r.Unit = bench.Median(r.Rounds), b.unit
	r.Met = b.met(r.Value) && pulley.Failed == 0
}

func (s *Side) finish() {
	s.RequestsPerSecond = s.median(func(r sideRun) float64 { return r.result.RequestsPerSecond })
	s.P50 = s.median(func(r sideRun) float64 { return inMS(r.result.E2E.Percentile(50)) })
	s.P99 = s.median(func(r sideRun) float64 { return inMS(r.result.E2E.Percentile(99)) })
	s.TTFT = s.median(func(r sideRun) float64 { return inMS(r.result.TTFT.Percentile(50)) })
	s.CPU = s.median(func(r sideRun) float64 {
		return inMS(r.cpu) / float64(max(r.result.Requests+r.result.Warmup, 1))
	})
	results := make([]*bench.Result, len(s.runs))
	for i, run := range s.runs {
		results[i] = run.result
	}
	s.Total = bench.Merge(results...)
	s.Failed = s.Total.Failed
}

func (s *Side) median(of func(sideRun) float64) float64 {
	values := make([]float64, len(s.runs))
	for i, run := range s.runs {
		values[i] = of(run)
	}
	return bench.Median(values)
}

func inMS(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// WriteTable writes the report as a table for people.
func (r *Report) WriteTable(w io.Writer) error {
	var text strings.Builder
	fmt.Fprintf(&text, "%d CPUs, %s, medians of %d interleaved rounds of %gs\n", r.CPUs, r.Go, r.Rounds, r.RoundTime)
	for _, row := range r.Rows {
		row.write(&text)
	}
	_, err := io.WriteString(w, text.String())
	return err
}

func (r *Row) write(text *strings.Builder) {
	verdict := "met"
	if !r.Met {
		verdict = "MISSED"
	}
	fmt.Fprintf(text, "\n%s: %s\n", r.Scenario, r.Title)
	if len(r.Sides) > 0 {
		fmt.Fprintf(text, "  %-10s %11s %10s %10s %10s %12s %7s\n", "", "requests/s", "TTFT p50", "E2E p50", "E2E p99", "CPU/request", "failed")
	}
	for _, s := range r.Sides {
		cpu := "-"
		if s.CPU > 0 {
			cpu = fmt.Sprintf("%.3f ms", s.CPU)
		}
		fmt.Fprintf(text, "  %-10s %11.0f %7.2f ms %7.2f ms %7.2f ms %12s %7d\n",
			s.Name, s.RequestsPerSecond, s.TTFT, s.P50, s.P99, cpu, s.Failed)
		for _, e := range s.Total.Errors {
			fmt.Fprintf(text, "  %21d× %s: %s\n", e.Count, e.Class, e.Example)
		}
	}
	fmt.Fprintf(text, "  → %.3g %s, bar %s: %s", r.Value, r.Unit, r.Bar, verdict)
	if len(r.Rounds) > 1 {
		fmt.Fprintf(text, "   (rounds %.3g)", r.Rounds)
	}
	if r.Note != "" {
		fmt.Fprintf(text, "   %s", r.Note)
	}
	fmt.Fprintln(text)
}
