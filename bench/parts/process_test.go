package parts

import (
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
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
		if got := AnyAddress(line); got != want.any {
			t.Errorf("AnyAddress(%q) = %q, want %q", line, got, want.any)
		}
		if got := GatewayAddress(line); got != want.gateway {
			t.Errorf("GatewayAddress(%q) = %q, want %q", line, got, want.gateway)
		}
	}
}

func TestProcessIsReadAndEnded(t *testing.T) {
	var output strings.Builder
	p, err := start(&output, "part", "/bin/sh", "-c", "echo starting; echo at 127.0.0.1:4711; sleep 60 & wait")
	if err != nil {
		t.Skipf("no shell: %v", err)
	}
	address, err := p.Address(t.Context(), AnyAddress)
	if err != nil || address != "127.0.0.1:4711" {
		t.Errorf("address %q, %v", address, err)
	}
	if rss, err := p.ResidentBytes(); runtime.GOOS == "linux" && (err != nil || rss < 1<<10) {
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
	if _, err := p.Address(t.Context(), AnyAddress); err == nil || !strings.Contains(err.Error(), "bad flag") {
		t.Errorf("address: %v, want what it printed", err)
	}
	if err := p.stop(); err == nil || err.Error() != "exit status 3" {
		t.Errorf("ended with %v, want exit status 3", err)
	}
}

func TestNothingOutlivesAProcess(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the group of processes is killed on Linux only")
	}
	p, err := start(&strings.Builder{}, "part", "/bin/sh", "-c", "sleep 300 & echo child $!; wait")
	if err != nil {
		t.Skipf("no shell: %v", err)
	}
	child, err := p.Address(t.Context(), func(line string) string {
		_, pid, _ := strings.Cut(line, "child ")
		return pid
	})
	if err != nil {
		t.Fatal(err)
	}
	p.stop()
	for t.Context().Err() == nil { // until the kernel has done it
		if state, err := os.ReadFile("/proc/" + child + "/stat"); err != nil || strings.Contains(string(state), ") Z ") {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func TestUsageGrowsWithWork(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("not known on this system")
	}
	p, err := start(&strings.Builder{}, "part", "/bin/sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo at 127.0.0.1:1; sleep 60")
	if err != nil {
		t.Skipf("no shell: %v", err)
	}
	defer p.stop()
	before := p.Usage()
	if _, err := p.Address(t.Context(), AnyAddress); err != nil {
		t.Fatal(err)
	}
	after := p.Usage()
	if used := after.Sub(before); used.CPU <= 0 || after.Switches < 1 {
		t.Errorf("used %+v after counting, %+v before", after, before)
	}
}

func TestWorkersThatAreReadyAreCounted(t *testing.T) {
	tests := map[string]struct {
		page string
		want int
	}{
		"none":       {"# TYPE pulley_worker_state gauge\n", 0},
		"two of 3":   {"pulley_worker_state{host=\"h\",state=\"ready\",worker=\"a\"} 1\npulley_worker_state{host=\"h\",state=\"ready\",worker=\"b\"} 1\npulley_worker_state{host=\"h\",state=\"ready\",worker=\"c\"} 0\n", 2},
		"one fenced": {"pulley_worker_state{host=\"h\",state=\"fenced\",worker=\"a\"} 1\n", 0},
	}
	for name, tt := range tests {
		if got := countLive(tt.page); got != tt.want {
			t.Errorf("%s: %d, want %d", name, got, tt.want)
		}
	}
}
