package docs

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var (
	apartFile = flag.String("apart", "", "output `file` of 'pulley bench suite --apart -o json': write its tables into performance.md")
	fleetFile = flag.String("fleet", "", "output `file` of 'pulley bench fleet -o json': write its tables into performance.md")
)

// apartReport and fleetReport are what the tables need of the reports.
type (
	spread struct{ Median, Min, Max float64 }

	machine struct {
		CPUs    int
		CPU, Go string
	}

	apartCost struct {
		Name       string
		PerRequest spread `json:"cpu_us_per_request"`
		PerToken   spread `json:"cpu_us_per_token"`
		Switches   spread `json:"switches_per_request"`
	}

	apartReport struct {
		Machine machine
		Rounds  int
		Idle    []struct {
			Workers int
			Engine  string
			Cores   map[string]float64
		}
		Rows []struct {
			Scenario, Title, Engine string
			Workers                 int
			Stream                  bool
			Sides                   []struct {
				Name     string
				Rate     spread `json:"requests_per_second"`
				OfDirect spread `json:"share_of_direct"`
				AddedP50 spread `json:"added_p50_ms"`
				AddedP99 spread `json:"added_p99_ms"`
				GapP99   spread `json:"gap_p99_ms"`
				Cost     apartCost
				Parts    []apartCost
			}
		}
	}

	latencies struct {
		P50 float64 `json:"p50_ms"`
		P99 float64 `json:"p99_ms"`
	}

	fleetReport struct {
		Machine machine
		Rows    []struct {
			Case, Title string
			Idle, Load  struct {
				Cores  map[string]float64
				Memory map[string]float64 `json:"memory_mib_most"`
			}
			PerRequest map[string]float64 `json:"cpu_us_per_request"`
			AboveIdle  map[string]float64 `json:"cpu_us_per_request_above_idle"`
			Pickup     latencies
			Result     struct {
				Failed int
				E2E    latencies
			}
		}
	}
)

// Tables of measurements in performance.md are written from the output of the commands that measure, and never by hand:
//
//	go test ./docs -run TestTablesOfPerformance -apart apart.json -fleet fleet.json
func TestTablesOfPerformance(t *testing.T) {
	file := "performance.md"
	page, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := string(page)
	for name, source := range map[string]struct {
		file  string
		table func([]byte) (string, error)
	}{"apart": {*apartFile, apartTable}, "fleet": {*fleetFile, fleetTable}} {
		opening, closing := fmt.Sprintf("<!-- %s: go test ./docs -run TestTablesOfPerformance -%s FILE -->\n", name, name), fmt.Sprintf("<!-- %s end -->\n", name)
		before, rest, found := strings.Cut(text, opening)
		_, after, closed := strings.Cut(rest, closing)
		if !found || !closed {
			t.Errorf("%s has no %q … %q", file, opening, closing)
			continue
		}
		if source.file == "" {
			continue
		}
		if !filepath.IsAbs(source.file) {
			source.file = filepath.Join("..", source.file)
		}
		output, err := os.ReadFile(source.file)
		if err != nil {
			t.Fatal(err)
		}
		table, err := source.table(output)
		if err != nil {
			t.Fatalf("%s: %v", source.file, err)
		}
		text = before + opening + "\n" + table + "\n" + closing + after
	}
	if text != string(page) {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTableOfAReport(t *testing.T) {
	apart, err := apartTable([]byte(`{"machine":{"cpus":2,"cpu":"X","go":"go1"},"rounds":3,"idle":[{"workers":4,"engine":"instant","cores":{"broker":0.0123,"pulley":0.02}}],
		"rows":[{"scenario":"s","title":"small","workers":1,"sides":[{"name":"engine","requests_per_second":{"median":10}},
		{"name":"apart","cost":{"cpu_us_per_request":{"median":100,"min":90,"max":110}},"parts":[{"name":"broker","cpu_us_per_request":{"median":40}}]}]},
		{"scenario":"b","title":"streams","workers":4,"stream":true,"sides":[{"name":"yardstick","cost":{"cpu_us_per_token":{"median":5,"min":5,"max":5}}}]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"2 × X, go1, medians of 3 rounds", "| small, 1 worker | engine alone |", "100 µs (90–110)", "broker 40", "| streams, 4 workers | bare proxy |", "5.0 µs |", "broker 0.012"} {
		if !strings.Contains(apart, want) {
			t.Errorf("the table lacks %q:\n%s", want, apart)
		}
	}
	fleet, err := fleetTable([]byte(`{"machine":{"cpus":2,"cpu":"X","go":"go1"},"rows":[{"case":"c","title":"10 workers","idle":{"cores":{"broker":0.5}},
		"load":{"memory_mib_most":{"gateway":77}},"cpu_us_per_request":{"gateway":123.4},"pickup":{"p50_ms":0.5,"p99_ms":9},"result":{"failed":2,"e2e":{"p50_ms":50}}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if want := "| 10 workers | 0.500 / 0.000 / 0.000 | 0 / 123 / 0 | 0 / 77 / 0 | 0.50 / 9.00 | 50 / 0 | 2 |"; !strings.Contains(fleet, want) {
		t.Errorf("the table lacks %q:\n%s", want, fleet)
	}
}

func (m machine) String() string { return fmt.Sprintf("%d × %s, %s", m.CPUs, m.CPU, m.Go) }

func (s spread) text(format string) string {
	median := fmt.Sprintf(format, s.Median)
	if s.Min == s.Max {
		return median
	}
	number, _, _ := strings.Cut(format, " ")
	return fmt.Sprintf("%s (%s–%s)", median, fmt.Sprintf(number, s.Min), fmt.Sprintf(number, s.Max))
}

func workersText(n int) string {
	if n == 1 {
		return "1 worker"
	}
	return fmt.Sprintf("%d workers", n)
}

func apartTable(output []byte) (string, error) {
	var r apartReport
	if err := json.Unmarshal(output, &r); err != nil {
		return "", err
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s, medians of %d rounds, with the least and the most.\n\n", r.Machine, r.Rounds)
	text.WriteString("| load | through | requests/s | of direct | added p50 | added p99 | gap p99 | CPU for each request or token | of it, µs | switches a request |\n|---|---|---|---|---|---|---|---|---|---|\n")
	names := map[string]string{"engine": "engine alone", "yardstick": "bare proxy", "pulley": "pulley up", "apart": "apart"}
	for _, row := range r.Rows {
		for i, s := range row.Sides {
			load := ""
			if i == 0 {
				load = row.Title + ", " + workersText(row.Workers)
			}
			cells := []string{load, names[s.Name], s.Rate.text("%.0f"), fmt.Sprintf("%.2f", s.OfDirect.Median), s.AddedP50.text("%.2f ms"), s.AddedP99.text("%.1f ms"), "", "", "", ""}
			if s.Name == "engine" {
				cells[4], cells[5] = "", ""
			}
			if row.Stream {
				cells[6] = s.GapP99.text("%.1f ms")
			}
			per := func(c apartCost) spread {
				if row.Stream {
					return c.PerToken
				}
				return c.PerRequest
			}
			if cost := per(s.Cost); cost.Median > 0 && row.Stream {
				cells[7] = cost.text("%.1f µs")
			} else if cost.Median > 0 {
				cells[7] = cost.text("%.0f µs")
			}
			var parts []string
			for _, p := range s.Parts {
				parts = append(parts, fmt.Sprintf("%s %.3g", p.Name, per(p).Median))
			}
			cells[8] = strings.Join(parts, ", ")
			if s.Cost.Switches.Median > 0 {
				cells[9] = fmt.Sprintf("%.1f", s.Cost.Switches.Median)
			}
			fmt.Fprintf(&text, "| %s |\n", strings.Join(cells, " | "))
		}
	}
	text.WriteString("\nIdle, in cores:\n\n")
	for _, idle := range r.Idle {
		var parts []string
		for _, part := range []string{"proxy", "pulley", "broker", "gateway", "workers"} {
			parts = append(parts, fmt.Sprintf("%s %.3f", part, idle.Cores[part]))
		}
		fmt.Fprintf(&text, "- %s, %s engines: %s\n", workersText(idle.Workers), idle.Engine, strings.Join(parts, ", "))
	}
	return text.String(), nil
}

func fleetTable(output []byte) (string, error) {
	var r fleetReport
	if err := json.Unmarshal(output, &r); err != nil {
		return "", err
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s. Figures of parts are those of broker / gateway / workers.\n\n", r.Machine)
	text.WriteString("| fleet and load | idle cores | CPU for each request, µs | memory, MiB | pickup p50 / p99, ms | E2E p50 / p99, ms | failed |\n|---|---|---|---|---|---|---|\n")
	for _, row := range r.Rows {
		of := func(format string, byPart map[string]float64) string {
			var figures []string
			for part := range slices.Values([]string{"broker", "gateway", "workers"}) {
				figures = append(figures, fmt.Sprintf(format, byPart[part]))
			}
			return strings.Join(figures, " / ")
		}
		fmt.Fprintf(&text, "| %s | %s | %s | %s | %.2f / %.2f | %.0f / %.0f | %d |\n", row.Title, of("%.3f", row.Idle.Cores), of("%.0f", row.PerRequest),
			of("%.0f", row.Load.Memory), row.Pickup.P50, row.Pickup.P99, row.Result.E2E.P50, row.Result.E2E.P99, row.Result.Failed)
	}
	return text.String(), nil
}
