package suite

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/bench"
	"github.com/pulley-lb/pulley/bench/parts"
)

func TestRatiosAreTakenWithinARound(t *testing.T) {
	row := &Row{}
	for _, rate := range []struct{ yardstick, pulley float64 }{{1000, 700}, {100, 90}, {500, 250}} { // a disturbed machine
		row.side(sideYardstick).add(sideRun{result: &bench.Result{RequestsPerSecond: rate.yardstick}})
		row.side(sidePulley).add(sideRun{result: &bench.Result{RequestsPerSecond: rate.pulley}, cpu: time.Second})
	}
	row.judge(bar{figure: figureRatio, least: 0.6, unit: "×"})
	if row.Value != 0.7 || !row.Met || row.side(sidePulley).RequestsPerSecond != 250 {
		t.Errorf("value %v, met %v, %+v, want 0.7, true, a median of 250/s", row.Value, row.Met, row.Sides)
	}
	row.judge(bar{figure: figureRatio, least: 0.85, unit: "×"})
	if row.Met {
		t.Error("0.7 met a bar of 0.85")
	}
}

func TestUnknownScenario(t *testing.T) {
	if _, err := Run(t.Context(), Config{Scenarios: []string{"nope"}}); err == nil || !strings.Contains(err.Error(), "small-16") {
		t.Errorf("Run: %v, want an error that names the scenarios", err)
	}
}

func TestSpreadOfRounds(t *testing.T) {
	nan := math.NaN()
	tests := []struct {
		values []float64
		want   Spread
	}{
		{nil, Spread{}},
		{[]float64{nan, math.Inf(1)}, Spread{}},
		{[]float64{2}, Spread{2, 2, 2}},
		{[]float64{9, 1, 4}, Spread{4, 1, 9}},
		{[]float64{9, nan, 1, 4}, Spread{4, 1, 9}},
	}
	for _, tt := range tests {
		if got := spreadOf(slices.Clone(tt.values)); got != tt.want {
			t.Errorf("spread of %v: %v, want %v", tt.values, got, tt.want)
		}
	}
}

// A row divides what the parts have used by the requests and tokens that they had, those of the warm-up included, in each
// round, and compares sides within a round.
func TestCostsOfPartsAreOfEachToken(t *testing.T) {
	used := func(ms int64, switches int64) parts.Usage {
		return parts.Usage{CPU: time.Duration(ms) * time.Millisecond, Switches: switches}
	}
	round := func(slow int64) apartRound { // the machine is slower by this factor
		run := func(used map[string]parts.Usage) apartRun {
			return apartRun{result: &bench.Result{}, measured: 90, requests: 100, tokens: 1000, took: time.Duration(slow) * time.Second, used: used}
		}
		return apartRound{
			sideEngine:    run(nil),
			sideYardstick: run(map[string]parts.Usage{"proxy": used(50*slow, 100)}),
			sideApart:     run(map[string]parts.Usage{"broker": used(20*slow, 300), "gateway": used(30*slow, 500), "workers": used(50*slow, 1200)}),
		}
	}
	sides := []apartSide{
		{name: sideEngine}, {name: sideYardstick, parts: []apartPart{{name: "proxy"}}},
		{name: sideApart, parts: []apartPart{{name: "broker"}, {name: "gateway"}, {name: "workers"}}},
	}
	l := apartLoad{name: "x", stream: true, bars: []apartBar{
		{what: "CPU", of: costs(sideApart, sideYardstick), unit: "×", most: 2},
		{what: "rate", of: rates(sideApart, sideEngine), unit: "×", least: 1.1},
	}}
	row := newApartRow(l, 3, sides, []apartRound{round(1), round(5), round(2)})
	broker := row.Sides[2].Parts[0]
	if want := (Spread{40, 20, 100}); broker.Name != "broker" || broker.CPUPerToken != want {
		t.Errorf("%s: %v µs a token, want %v of the broker", broker.Name, broker.CPUPerToken, want)
	}
	if want := (Spread{3, 3, 3}); broker.SwitchesPerRequest != want {
		t.Errorf("%v switches a request, want %v", broker.SwitchesPerRequest, want)
	}
	if want := (Spread{2000, 1000, 5000}); row.Sides[2].Cost.CPUPerRequest != want {
		t.Errorf("all parts: %v µs a request, want %v", row.Sides[2].Cost.CPUPerRequest, want)
	}
	if row.Bars[0].Value.Median != 2 || !row.Bars[0].Met || row.Bars[1].Value.Median != 1 || row.Bars[1].Met {
		t.Errorf("bars %+v: want 2 met and 1 missed", row.Bars)
	}
	report := &ApartReport{Rows: []*ApartRow{row}}
	var table strings.Builder
	if err := report.WriteTable(&table); err != nil || report.Met() {
		t.Errorf("table: %v, met %v", err, report.Met())
	}
	for _, want := range []string{"3 workers", "bare proxy", "broker", "40.0 µs (20.0–100.0)", "MISSED"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, &table)
		}
	}
}

func TestUnknownScenarioApart(t *testing.T) {
	if _, err := RunApart(t.Context(), Config{Scenarios: []string{"idle-streams"}}); err == nil || !strings.Contains(err.Error(), "batch-64") {
		t.Errorf("RunApart: %v, want an error that names the scenarios", err)
	}
	if _, err := RunApart(t.Context(), Config{Workers: []int{4, 0}}); err == nil || !strings.Contains(err.Error(), "at least 1") {
		t.Errorf("RunApart with 0 workers: %v, want an error", err)
	}
}
