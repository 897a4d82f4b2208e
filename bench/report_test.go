package bench_test

import (
	"encoding/csv"
	"encoding/json"
	"encoding/xml"
	"errors"
	"image/png"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/bench"
)

// compared runs a slow and a fast target against each other.
func compared(t *testing.T, rounds int) (c *bench.Comparison, order string) {
	t.Helper()
	inBubble(t, func(t *testing.T) {
		target := func(name string, pace time.Duration) bench.Config {
			transport := serve(t, func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(pace)
				script(w, role, token, "@"+pace.String(), token, "@"+pace.String(), token, last, count, done)
			})
			progress := func(p bench.Progress) {
				if p.Final {
					order += name
				}
			}
			return bench.Config{
				Name: name, URL: "http://" + name, Model: "m", Transport: transport, Progress: progress,
				Concurrency: 2, Requests: 20, Stream: true, OutputTokens: 3,
			}
		}
		var err error
		c, err = bench.Compare(t.Context(), rounds, target("a", 10*time.Millisecond), target("b", 20*time.Millisecond))
		if err != nil {
			t.Fatal(err)
		}
	})
	return c, order
}

func TestCompareInterleavesItsTargets(t *testing.T) {
	c, order := compared(t, 3)
	if order != "ababab" {
		t.Errorf("ran %s, want ababab", order)
	}
	total := c.Targets[1].Total
	if total.Rounds != 3 || total.Succeeded != 60 || total.E2E.Count() != 60 || len(c.Targets[1].Runs) != 3 {
		t.Errorf("total %+v, want 60 requests in 3 rounds", total)
	}
	for metric, want := range map[string]float64{"requests/s": 0.5, "TTFT p50": 2, "E2E p99": 2} {
		if got := c.Targets[1].Ratios[metric]; got < want*0.99 || got > want*1.01 {
			t.Errorf("ratio of %s is %v, want %v", metric, got, want)
		}
	}
	var table strings.Builder
	if err := c.WriteTable(&table); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"target A", "closed loop, concurrency 2", "×2.00", "×0.50", "E2E p99"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, table.String())
		}
	}
}

func TestResultAsJSON(t *testing.T) {
	c, _ := compared(t, 1)
	text, err := json.Marshal(c.Targets[0].Total)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Requests          int
		RequestsPerSecond float64 `json:"requests_per_second"`
		TTFT, E2E         struct {
			Count int
			P50   float64 `json:"p50_ms"`
		}
		Queue  *struct{}
		Errors []bench.ErrorCount
	}
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if got.Requests != 20 || got.TTFT.P50 < 10 || got.TTFT.P50 > 10.01 || got.E2E.P50 < 30 || got.E2E.P50 > 30.03 {
		t.Errorf("%+v of %s", got, text)
	}
	if got.Queue != nil || got.Errors == nil {
		t.Errorf("want no queue and an empty list of errors: %s", text)
	}
}

// The tail can be read off whatever the number of requests.
func TestPlotReachesTheTail(t *testing.T) {
	c, _ := compared(t, 1)
	file := filepath.Join(t.TempDir(), "latency.svg")
	if err := bench.Plot(file, c.Totals()...); err != nil {
		t.Fatal(err)
	}
	svg, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"p50", "p99", "p99.9"} {
		if !strings.Contains(string(svg), ">"+want+"<") {
			t.Errorf("the plot of %d requests has no %s", c.Totals()[0].Requests, want)
		}
	}
}

func TestReportAsCSV(t *testing.T) {
	c, _ := compared(t, 2)
	var b strings.Builder
	if err := c.WriteCSV(&b); err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(strings.NewReader(b.String())).ReadAll()
	if err != nil || len(rows) != 1+2*len(c.Targets) {
		t.Fatalf("%v, %d rows, want a header and one for each round of %d targets:\n%s", err, len(rows), len(c.Targets), &b)
	}
	cell := func(row int, column string) string {
		i := slices.Index(rows[0], column)
		if i < 0 {
			t.Fatalf("no column %s in %q", column, rows[0])
		}
		return rows[row][i]
	}
	if cell(1, "target") != "a" || cell(2, "round") != "2" || cell(1, "requests") != "20" {
		t.Errorf("rows %q", rows)
	}
	if ms, err := strconv.ParseFloat(cell(1, "ttft_p50_ms"), 64); err != nil || ms < 10 || ms > 10.01 {
		t.Errorf("ttft_p50_ms %q", cell(1, "ttft_p50_ms"))
	}
	if got := cell(1, "queue_p99_ms"); got != "" {
		t.Errorf("queue_p99_ms %q, want nothing", got)
	}
	for _, column := range []string{"inter_token_p99.9_ms", "e2e_max_ms", "gap_mean_ms"} {
		if cell(1, column) == "" {
			t.Errorf("%s is empty", column)
		}
	}
}

func TestReportAsHTML(t *testing.T) {
	c, _ := compared(t, 1)
	c.Targets[0].Total.Model = "<script>alert(1)</script>"
	var b strings.Builder
	if err := c.WriteHTML(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"<!doctype html>", "<svg", "p99.9", "&lt;script&gt;", "requests/s"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, no := range []string{"<script", "src=", "<link", "<?xml"} {
		if strings.Contains(b.String(), no) {
			t.Errorf("the page has %q", no)
		}
	}
}

func TestThresholds(t *testing.T) {
	c, _ := compared(t, 1)
	r := c.Totals()[0] // TTFT 10 ms, E2E 30 ms, no queue
	for text, missed := range map[string]string{
		"p99_ttft>500ms": "", "p99_ttft>5ms": "a: p99_ttft>5ms: it is 10.0 ms", "p50_e2e < 1s": "a: p50_e2e < 1s: it is 30.0 ms", "max_e2e>1s": "", "mean_itl<1us": "",
		"error_rate>0%": "", "error_rate<1%": "a: error_rate<1%: it is 0.00 %", "rps<1": "", "rps>1": "a: rps>1: it is ", "tps<1": "",
		"p99.9_gap>1h": "", "p95_queue>1s": "a: p95_queue>1s was not measured", "goodput<99%": "a: goodput<99% was not measured",
	} {
		threshold, err := bench.ParseThreshold(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
		} else if got := threshold.Missed(r); !strings.HasPrefix(got, missed) || missed == "" && got != "" {
			t.Errorf("%s: %q, want %q", text, got, missed)
		}
	}
	if threshold, err := bench.ParseThreshold("p99_ttft>1h"); err != nil || threshold.Missed(&bench.Result{Name: "a"}) == "" {
		t.Errorf("a run without an answer passes: %v", err)
	}
	for _, bad := range []string{"", "ttft", "p99_ttft", "p99_ttft>", "p99_ttft>5", "p99_ttft>-5ms", "p98_ttft>5ms", "p99_latency>5ms", "error_rate>1", "rps<x", "goodput<99", ">5ms"} {
		if _, err := bench.ParseThreshold(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestPlotIsAFileOfItsKind(t *testing.T) {
	c, _ := compared(t, 1)
	dir := t.TempDir()
	pngFile, svgFile := filepath.Join(dir, "latency.png"), filepath.Join(dir, "latency.svg")
	for _, file := range []string{pngFile, svgFile} {
		if err := bench.Plot(file, c.Totals()...); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(pngFile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if picture, err := png.Decode(f); err != nil || picture.Bounds().Dx() < 400 {
		t.Errorf("%s: %v", pngFile, err)
	}
	svg, err := os.ReadFile(svgFile)
	if err != nil {
		t.Fatal(err)
	}
	for decoder := xml.NewDecoder(strings.NewReader(string(svg))); ; {
		if _, err := decoder.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%s: %v", svgFile, err)
		}
	}
	for _, want := range []string{"a TTFT", "b E2E", "p90", "10 ms"} {
		if !strings.Contains(string(svg), want) {
			t.Errorf("%s lacks %q", svgFile, want)
		}
	}
	if err := bench.Plot(filepath.Join(dir, "empty.svg"), &bench.Result{}); err != nil {
		t.Errorf("plot of nothing: %v", err)
	}
	if err := bench.Plot(filepath.Join(dir, "latency.gif")); err == nil {
		t.Error("a GIF was accepted")
	}
}
