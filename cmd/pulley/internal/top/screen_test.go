package top

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/charmbracelet/x/ansi"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

func screenAtNoon(width, height int) *screen {
	m := newScreen(term.Terminal{Width: width, Height: height, Color: true}, unicodeGlyphs)
	m.latest = clitest.SnapshotAtNoon()
	return m
}

// seen returns the screen as text.
func (m *screen) seen() string {
	return ansi.Strip(strings.Join(m.lines(), "\n"))
}

func (m *screen) keys(keys ...string) *screen {
	for _, k := range keys {
		text := ""
		if len(k) == 1 {
			text = k
		}
		m.press(k, text)
	}
	return m
}

// At any size, and with anything open, a screen is filled and no line is too long.
func TestScreenFits(t *testing.T) {
	opened := map[string][]string{
		"pools": {"1"}, "tiers": {"2"}, "workers": {"3"}, "requests": {"4"}, "help": {"?"}, "wrong": {"!"},
		"details of a worker": {"3", "enter"}, "details of a request": {"4", "enter"}, "details of a tier": {"2", "j", "enter"}, "details of a pool": {"1", "down", "enter"},
		"filter": {"/", "l", "l"}, "filtered": {"/", "z", "enter"}, "paused": {"p"}, "scrolled": {"?", "pgdown", "end"},
	}
	for about, keys := range opened {
		for _, size := range [][2]int{{80, 24}, {1, 1}, {2, 5}, {10, 8}, {40, 12}, {79, 16}, {132, 50}, {300, 100}} {
			m := screenAtNoon(size[0], size[1]).keys(keys...)
			lines := m.lines()
			if want := max(size[1], footLines); len(lines) != want {
				t.Errorf("%s at %v: %d lines", about, size, len(lines))
			}
			for _, l := range lines {
				if w := ansi.StringWidth(l); w > size[0] {
					t.Errorf("%s at %v: a line of %d: %q", about, size, w, ansi.Strip(l))
				}
			}
		}
	}
}

func TestScreenAt80By24(t *testing.T) {
	got := screenAtNoon(80, 24).seen()
	for _, want := range []string{
		"pulley  2 gateways  1 worker  16 slots  6 in flight  34 waiting", "12:00:00\n",
		"4.5 req/s  1234 tok/s  policy revision 17, 3m00s old: tier set batch --share 2",
		"more: press !) worker gone is lost: no heartbeat for 5.0s\n",
		"[1 pools (4)]  2 tiers (3)   3 workers (4)   4 requests (3)",
		"llama-70b  ready      1 of 2   ███░░░░ 6/16       33          2    3.0s      4.5\n",
		"mistral    no worker  0 of 1   ░░░░░░░ 0/0         1          0       -        -\n",
		"fast     ready     vllm    ███░░░░ 6/16     2     4.5   1234       3  llama-7",
		"gone     lost ",
		"…000000000002  llama-70b  standard  queued",
		"11:59:59  worker-lost      worker gone fell silent\n",
		"q quit",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

// A pool has the latencies of its requests where there is room for them, and in its details.
func TestScreenShowsLatency(t *testing.T) {
	var times policy.Side
	for range 50 {
		times.Observe(true, 250*time.Millisecond, 4*time.Second)
	}
	m := screenAtNoon(140, 30)
	m.latest.Results = []subjects.PoolResults{{Pool: "qwen", Answered: 50, Refused: 2, Times: times}}
	m.latest.Complete()
	ttft, e2e := fleet.PercentilesOf(times)
	got := m.seen()
	for _, want := range []string{"TTFT P50", "TTFT P95", "E2E P95", latency(ttft.P95), latency(e2e.P95)} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	got = m.keys("end", "enter").seen()
	for _, want := range []string{fmt.Sprintf("p50 %s, p95 %[1]s, p99 %[1]s", latency(ttft.P50)), "p50 " + latency(e2e.P50), "50 answered, 0 failed, 2 refused, 0 cancelled"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

// Workers with capacity and GPU data show both, and still fit.
func TestScreenShowsCapacityAndGPUs(t *testing.T) {
	m := screenAtNoon(80, 24)
	report := func(i int, b policy.Bound, gpus ...subjects.GPU) {
		w := &m.latest.Workers[i]
		w.Capacity, w.NVML = &subjects.Capacity{Bound: b, Total: 16, Profile: "balanced", Terms: map[policy.Bound]float64{b: 16}}, &subjects.NVML{Mode: "auto", GPUs: gpus}
	}
	report(0, policy.BoundKV, clitest.GPU(0), clitest.GPU(1))                                   // fast
	report(2, policy.BoundFence, clitest.GPU(2, clitest.Lost), clitest.GPU(3))                  // idle, by name the third
	report(1, policy.BoundLimit, clitest.GPU(4, func(g *subjects.GPU) { g.State = gpu.Stale })) // gone
	m.latest.Workers[2].State = subjects.Fenced
	got := m.keys("3").seen()
	for _, want := range []string{
		"WORKER▴  STATE   IN FLIGHT     BOUND  GPU              ",
		"fast     ready   ███░░░░ 6/16  kv     64C 97% 144/160G ",
		"idle     fenced  ░░░░░░░ 0/8   fence  fenced 64C       ",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	for line := range strings.Lines(got) {
		if w := ansi.StringWidth(strings.TrimSuffix(line, "\n")); w > 80 {
			t.Errorf("a line of %d: %q", w, line)
		}
	}
	detail := m.keys("enter").seen()
	for _, want := range []string{"6 of 16: the KV cache has no space for more", "GPU 1", "ok, H100 80GB HBM3, 72.0/80.0 GiB, 97% busy"} {
		if !strings.Contains(detail, want) {
			t.Errorf("no %q in\n%s", want, detail)
		}
	}
}

func TestScreenSaysWhatIsWrong(t *testing.T) {
	tests := map[string]struct {
		change func(*fleet.Snapshot)
		want   string
	}{
		"nothing":       {func(s *fleet.Snapshot) { s.Workers, s.Lanes, s.Requests = s.Workers[:1], nil, nil }, "no problems"},
		"too early":     {func(s *fleet.Snapshot) { s.Workers, s.Gateways, s.Lanes, s.Since = nil, nil, nil, s.At }, "listening…"},
		"no gateway":    {func(s *fleet.Snapshot) { s.Gateways = nil }, "no gateway: clients cannot send requests"},
		"no connection": {func(s *fleet.Snapshot) { s.Server, s.Since = "", s.At.Add(-4*time.Second) }, "no connection to NATS for 4.0s: reconnecting"},
		"no worker":     {func(s *fleet.Snapshot) { s.Workers = nil }, "no worker: requests wait"},
		"policy":        {func(s *fleet.Snapshot) { s.Unread = map[string]string{"policy": "policy revision 9 is damaged"} }, "policy revision 9 is damaged"},
	}
	for about, tt := range tests {
		m := screenAtNoon(80, 24)
		tt.change(&m.latest)
		m.latest.Complete()
		if got := strings.Split(m.seen(), "\n")[2]; !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", about, got, tt.want)
		}
	}
	if got := screenAtNoon(80, 24).keys("!").seen(); !strings.Contains(got, "engine down: connection refused") || !strings.Contains(got, "remedy: start the engine at http://slow") {
		t.Errorf("no remedy in\n%s", got)
	}
}

// Names come from clients: control characters in them must not reach the terminal.
func TestScreenShowsNoControlCharacters(t *testing.T) {
	const evil = "\x1b]0;title\a\x1b[2J\r\nm\x00\u009b31m"
	m := screenAtNoon(120, 60)
	s := &m.latest
	for i := range s.Workers {
		s.Workers[i].Name, s.Workers[i].Reason, s.Workers[i].Engine, s.Workers[i].Pools[0].Pool = evil, evil, evil, evil
	}
	s.Requests[0].Pool, s.Requests[0].Tier, s.Requests[0].Model, s.Requests[0].ID, s.Requests[0].Path = evil, evil, evil, evil, evil
	s.Lanes[0].Pool, s.Policy.Why, s.Events[0].Text, s.Events[0].Kind = evil, evil, evil, evil
	s.Unread = map[string]string{"policy": evil}
	s.Complete()
	for _, keys := range [][]string{{"1"}, {"1", "enter"}, {"2"}, {"3"}, {"3", "enter"}, {"4"}, {"4", "end", "enter"}, {"!"}, {"/", evil, "enter"}} {
		text := strings.Join(m.keys("esc").keys(keys...).lines(), "\n")
		for _, sgr := range []term.Style{term.Bold, term.Dim, term.Red, term.Green, term.Yellow, term.Reverse, "0"} { // ours
			text = strings.ReplaceAll(text, "\x1b["+string(sgr)+"m", "")
		}
		if strings.ContainsFunc(text, func(r rune) bool { return r != '\n' && (r < ' ' || r >= 0x7f && r < 0xa0) }) {
			t.Errorf("after %q: %q", keys, text)
		}
	}
}

// Drawing a long list is cheap.
func BenchmarkScreenOf10000Requests(b *testing.B) {
	m := screenAtNoon(80, 24).keys("4")
	one := m.latest.Requests[0]
	for range 10_000 {
		one.ID, one.AgeMS = fmt.Sprintf("019a-%012x", rand.Uint64()), rand.Int64N(1e5)
		m.latest.Requests = append(m.latest.Requests, one)
	}
	for b.Loop() {
		m.lines()
	}
}
