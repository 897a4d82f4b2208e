package bench_test

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"image/png"
	"io"
	"net/http"
	"os"
	"path/filepath"
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
