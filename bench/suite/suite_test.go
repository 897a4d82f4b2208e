package suite

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/bench"
)

func TestAddressesInBanners(t *testing.T) {
	tests := map[string]struct{ any, gateway string }{
		"  gateway  http://127.0.0.1:41013      OpenAI-compatible API": {"127.0.0.1:41013", "127.0.0.1:41013"},
		"Gateway listening on http://localhost:8080":                   {"localhost:8080", "localhost:8080"},
		"  admin    http://127.0.0.1:8081  /readyz /metrics":           {"127.0.0.1:8081", ""},
		`time=x level=INFO msg="gateway started" nats=127.0.0.1:4222`:  {"127.0.0.1:4222", ""},
		"pulley broker ready: nats://127.0.0.1:40001, store /tmp/x":    {"127.0.0.1:40001", ""},
		"gateway http://127.0.0.1:0":                                   {"", ""},
		"":                                                             {"", ""},
	}
	for line, want := range tests {
		if got := anyAddress(line); got != want.any {
			t.Errorf("anyAddress(%q) = %q, want %q", line, got, want.any)
		}
		if got := gatewayAddress(line); got != want.gateway {
			t.Errorf("gatewayAddress(%q) = %q, want %q", line, got, want.gateway)
		}
	}
}

func TestProcessIsReadAndEnded(t *testing.T) {
	var output strings.Builder
	p, err := start(&output, "part", "/bin/sh", "-c", "echo starting; echo at 127.0.0.1:4711; sleep 60 & wait")
	if err != nil {
		t.Skipf("no shell: %v", err)
	}
	address, err := p.address(t.Context(), anyAddress)
	if err != nil || address != "127.0.0.1:4711" {
		t.Errorf("address %q, %v", address, err)
	}
	if rss, err := p.residentBytes(); runtime.GOOS == "linux" && (err != nil || rss < 1<<10) {
		t.Errorf("memory %d, %v", rss, err)
	}
	if err := p.stop(); err == nil || err.Error() != "signal: terminated" {
		t.Errorf("ended with %v, want SIGTERM", err)
	}
	if !strings.Contains(output.String(), "part: starting\n") {
		t.Errorf("output %q", output.String())
	}
}

func TestProcessWithoutAddress(t *testing.T) {
	p, err := start(&strings.Builder{}, "part", "/bin/sh", "-c", "echo bad flag; exit 3")
	if err != nil {
		t.Skipf("no shell: %v", err)
	}
	if _, err := p.address(t.Context(), anyAddress); err == nil || !strings.Contains(err.Error(), "bad flag") {
		t.Errorf("address: %v, want what it printed", err)
	}
	if err := p.stop(); err == nil || err.Error() != "exit status 3" {
		t.Errorf("ended with %v, want exit status 3", err)
	}
}

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
