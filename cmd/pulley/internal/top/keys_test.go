package top

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/charmbracelet/x/ansi"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
)

// selectedLine returns the line that is shown in reverse below the tabs.
func selectedLine(m *screen) string {
	for _, l := range m.lines()[headLines:] {
		if strings.HasPrefix(l, "\x1b[7m") {
			return strings.TrimSpace(ansi.Strip(l))
		}
	}
	return ""
}

func TestSelectionStaysWithItsLine(t *testing.T) {
	m := screenAtNoon(80, 24).keys("3", "j", "down", "k")
	if got := selectedLine(m); !strings.HasPrefix(got, "gone") {
		t.Fatalf("selected %q, want the second by name", got)
	}
	m.keys("s", "s", "s") // by slots
	if got := selectedLine(m); !strings.HasPrefix(got, "gone") {
		t.Errorf("sorted otherwise, selected %q", got)
	}
	m.keys("end")
	last := selectedLine(m)
	if m.keys("home"); selectedLine(m) == last {
		t.Errorf("home and end both select %q", last)
	}
	m.keys("end", "1", "3") // elsewhere and back
	if got := selectedLine(m); got != last {
		t.Errorf("came back to %q, want %q", got, last)
	}
	name, _, _ := strings.Cut(last, " ")
	m.latest.Workers = slices.DeleteFunc(slices.Clone(m.latest.Workers), func(w fleet.WorkerStatus) bool { return w.Name == name })
	if got := selectedLine(m); got == "" || got == last {
		t.Errorf("the selected line is gone, and selected is %q", got)
	}
}

func TestSortKeys(t *testing.T) {
	m := screenAtNoon(120, 40).keys("3")
	first := func() string {
		line := strings.Split(m.seen(), "\n")[headLines+1]
		name, _, _ := strings.Cut(line, " ")
		return name
	}
	if first() != "fast" {
		t.Errorf("by name: %s first", first())
	}
	if m.keys("S"); first() != "slow" {
		t.Errorf("by name, from the end: %s first", first())
	}
	m.keys("S", "s", "s", "s")
	if header := strings.Split(m.seen(), "\n")[headLines]; !strings.Contains(header, "IN FLIGHT▾") {
		t.Errorf("header %q, want SLOTS marked", header)
	}
	if first() != "fast" {
		t.Errorf("by slots in flight: %s first, want the one with most", first())
	}
	m.keys("S")
	if first() == "fast" {
		t.Error("by slots in flight, from the end: the one with most is first")
	}
	for range len(workersPane.columns) - 3 {
		m.keys("s")
	}
	if first() != "fast" {
		t.Errorf("all columns later: %s first", first())
	}
}

func TestFilterKeys(t *testing.T) {
	m := screenAtNoon(80, 24).keys("3", "/", "S", "l", "o", "x", "backspace")
	if got := m.seen(); !strings.Contains(got, "/Slo") || !strings.Contains(got, "slow") || strings.Contains(got, "idle") {
		t.Errorf("while typing:\n%s", got)
	}
	m.keys("enter", "j")
	if got := m.seen(); !strings.Contains(got, "filter: Slo") || strings.Contains(got, "idle") {
		t.Errorf("after enter:\n%s", got)
	}
	if got := m.keys("/", "z").seen(); !strings.Contains(got, "nothing contains Sloz") {
		t.Errorf("no line has it:\n%s", got)
	}
	if got := m.keys("esc").seen(); !strings.Contains(got, "idle") {
		t.Errorf("after esc:\n%s", got)
	}
	if m.press("ctrl+c", "") != true || m.keys("/").press("q", "q") {
		t.Error("ctrl+c leaves, q is a letter of the filter")
	}
}

func TestPauseKey(t *testing.T) {
	m := screenAtNoon(80, 24).keys("p")
	next := clitest.SnapshotAtNoon()
	next.At, next.Gateways = clitest.Noon.Add(time.Minute), nil
	next.Complete()
	m.latest = next
	if got := m.seen(); !strings.Contains(got, "PAUSED 12:00:00") || !strings.Contains(got, "2 gateways") {
		t.Errorf("paused:\n%s", got)
	}
	if got := m.keys("p").seen(); !strings.Contains(got, "12:01:00") || !strings.Contains(got, "0 gateways") {
		t.Errorf("going on:\n%s", got)
	}
}

func TestDetails(t *testing.T) {
	tests := map[string]struct {
		keys  []string
		wants []string
	}{
		"pool": {[]string{"1", "j", "enter"}, []string{"balance", "price", "tier batch", "32 waiting", "worker fast", "ready, 6 of 16 slots"}},
		"tier": {[]string{"2", "end", "enter"}, []string{"share", "max queue", "10000 per pool", "pool llama-70b"}},
		"worker": {[]string{"3", "enter"}, []string{"fast-0a1b2c", "vllm at http://fast", "host-fast", "100 done (4.5/s), 3 failed",
			"pool qwen", "rung 3, price 0.6s, mean request 100 tokens in, 50 out"}},
		"request": {[]string{"4", "end", "enter"}, []string{"019a0000-0000-7000-8000-000000000000", "gpt-4o", "/v1/chat/completions, streaming", "acme", "fast", "19 KiB"}},
	}
	for about, tt := range tests {
		m := screenAtNoon(80, 40).keys(tt.keys...)
		got := m.seen()
		for _, want := range tt.wants {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %q in\n%s", about, want, got)
			}
		}
		if m.latest.Requests, m.latest.Workers = nil, nil; about == "request" && !strings.Contains(m.seen(), "This request has ended. Esc: back") {
			t.Errorf("a request that ended:\n%s", m.seen())
		}
		if got := m.keys("esc").seen(); strings.Contains(got, "esc back") {
			t.Errorf("%s: esc does not close it:\n%s", about, got)
		}
	}
}
