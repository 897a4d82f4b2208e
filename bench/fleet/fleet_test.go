package fleet

import (
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/bench"
	"github.com/pulley-lb/pulley/bench/parts"
)

func TestTargetsShareTheLoad(t *testing.T) {
	for _, tt := range []struct {
		pools, gateways int
		want            string // gateway and pool
	}{
		{1, 1, "a/m0"},
		{1, 2, "a/m0 b/m0"},
		{3, 2, "a/m0 b/m1 a/m2"},
		{2, 2, "a/m0 b/m1"},
	} {
		r := &running{of: fleetCase{pools: tt.pools}}
		for _, url := range []string{"a", "b"}[:tt.gateways] {
			r.gateways = append(r.gateways, &parts.Gateway{URL: url})
		}
		var got []string
		for _, to := range r.targets() {
			got = append(got, to.url+"/"+to.model)
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%d pools, %d gateways: %q, want %q", tt.pools, tt.gateways, got, tt.want)
		}
	}
}

func TestBurstIsTenTimesTheRate(t *testing.T) {
	for _, rate := range []float64{20, 50, 200} {
		trace := burstTrace(rate, 9*time.Second, 1)
		n := [2]int{}
		for i, a := range trace {
			if i > 0 && a.At < trace[i-1].At {
				t.Fatalf("arrivals run backwards at %d", i)
			}
			if a.At >= 3*time.Second && a.At < 4*time.Second {
				n[1]++
			} else {
				n[0]++
			}
		}
		if got := float64(n[0]) / 8; got < 0.7*rate || got > 1.3*rate {
			t.Errorf("%g/s before and after the burst, want %g", got, rate)
		}
		if got := float64(n[1]); got < 8*rate || got > 12*rate {
			t.Errorf("%g/s in the burst, want ten times %g", got, rate)
		}
	}
}

// A row says what a part uses for a request, with and without what it uses anyway.
func TestCostAboveIdle(t *testing.T) {
	cpu := func(broker, gateway time.Duration) map[string]time.Duration {
		return map[string]time.Duration{partBroker: broker, partGateway: gateway}
	}
	row := &Row{Workers: 1000, Pools: 1, Gateways: 1, Idle: Phase{Cores: map[string]float64{partBroker: 0.1, partGateway: 0}}}
	row.add(Phase{seconds: 10, cpu: cpu(3*time.Second, time.Second)}, &bench.Result{Succeeded: 900, Warmup: 100}, steady)
	if row.CPUPerRequest[partBroker] != 3000 || row.CPUAboveIdle[partBroker] != 2000 || row.CPUAboveIdle[partGateway] != 1000 {
		t.Errorf("%v, above idle %v", row.CPUPerRequest, row.CPUAboveIdle)
	}
	ten := &Row{Workers: 10, Pools: 1, Gateways: 1}
	ten.add(Phase{seconds: 10, cpu: cpu(time.Second, time.Second)}, &bench.Result{Succeeded: 1000}, steady)
	report := &Report{Rows: []*Row{ten, row}}
	report.judge()
	missed := map[string]float64{}
	for _, b := range row.Bars {
		if !b.Met {
			missed[b.What] = b.Value
		}
	}
	if len(missed) != 1 || missed["CPU per request, relative to that of 10 workers"] != 2 || report.Met() {
		t.Errorf("missed %v, want CPU per request alone, at 2 ×", missed)
	}
}

func TestConfigIsChecked(t *testing.T) {
	for name, cfg := range map[string]Config{
		"case":    {Cases: []string{"workers-10", "nope"}},
		"number":  {Workers: -1},
		"brokers": {Brokers: 2},
	} {
		if _, err := Run(t.Context(), cfg); err == nil {
			t.Errorf("wrong %s: no error", name)
		}
	}
	all, err := Config{Cases: []string{All}}.withDefaults()
	if err != nil || len(all.Cases) != len(fleetCases) {
		t.Errorf("all: %q, %v", all.Cases, err)
	}
}
