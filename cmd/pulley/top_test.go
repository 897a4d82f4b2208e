package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/charmbracelet/x/ansi"

	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

var noon = time.Date(2026, 5, 4, 12, 0, 0, 0, time.Local)

// fleetAtNoon is two gateways and four workers, with some of everything that a
// screen can show.
func fleetAtNoon() snapshot {
	serves := func(pools ...string) (list []subjects.PoolStatus) {
		for i, p := range pools {
			list = append(list, subjects.PoolStatus{Pool: p, Rung: 2 + i, Mean: policy.Mean{Input: 100, Output: 50, Samples: 9},
				Curve: &policy.Curve{Prefill: &policy.Line{A: 0.1}, ITL: &policy.Line{A: 0.01}}})
		}
		return list
	}
	worker := func(name string, state subjects.State, inFlight, slots int, pools ...string) workerSeen {
		return workerSeen{Heartbeat: subjects.Heartbeat{
			Worker: subjects.Token(name) + "-0a1b2c", Name: name, Engine: "vllm", URL: "http://" + name, Host: "host-" + name,
			State: state, Slots: slots, InFlight: inFlight, Weight: 1, Started: noon.Add(-time.Hour), Pools: serves(pools...), Done: 100, Failed: 3,
		}}
	}
	s := snapshot{
		At: noon, Server: "nats://broker-1:4222", Since: noon.Add(-time.Minute),
		Gateways: []string{"gw-b", "gw-a"},
		Workers: []workerSeen{
			worker("fast", subjects.Ready, 6, 16, "llama-70b", "qwen"), worker("slow", subjects.Down, 0, 4, "llama-70b"),
			worker("idle", subjects.Cordoned, 0, 8, "embed"), worker("gone", subjects.Ready, 2, 8, "mistral"),
		},
		Policy: &policystore.Version{Revision: 17, At: noon.Add(-3 * time.Minute), By: "ann@ops", Why: "tier set batch --share 2", Policy: policy.Default()},
		held:   map[poolTier]int{{"llama-70b", "batch"}: 30},
		Queues: []queueSeen{
			{Pool: "llama-70b", Tier: "batch", Lane: "shared", Waiting: 2, Delivered: 1, TakenPerSecond: 1.5},
			{Pool: "llama-70b", Tier: "standard", Lane: "shared", Delivered: 2, TakenPerSecond: 3},
			{Pool: "mistral", Tier: "standard", Lane: "shared", Waiting: 1},
		},
		Events: []subjects.Event{
			{At: noon.Add(-time.Minute), Kind: subjects.EventWorkerJoined, Worker: "fast", Text: "worker fast joined"},
			{At: noon.Add(-time.Second), Kind: subjects.EventWorkerLost, Worker: "gone", Text: "worker gone fell silent"},
		},
	}
	s.Workers[0].DonePerSecond, s.Workers[0].TokensPerSecond = 4.5, 1234
	s.Workers[1].Reason = "connection refused"
	s.Workers[3].Lost = 5 * time.Second
	for i, state := range []string{"answering", "running", "queued"} {
		s.Requests = append(s.Requests, subjects.RequestInfo{
			ID: fmt.Sprintf("019a0000-0000-7000-8000-00000000000%d", i), Gateway: "gw-a", Tenant: "acme", Model: "gpt-4o", Tier: "standard", Pool: "llama-70b",
			Path: "/v1/chat/completions", Stream: true, State: state, Worker: "fast-0a1b2c", Attempt: 1, Arrived: noon.Add(-time.Minute), AgeMS: int64(1000 * (i + 1)), BytesOut: 20_000,
		})
	}
	s.Requests[2].Worker = ""
	s.complete()
	return s
}

func screenAtNoon(width, height int) *topScreen {
	m := newTopScreen(terminal{width: width, height: height, color: true}, unicodeGlyphs)
	m.latest = fleetAtNoon()
	return m
}

// seen is the screen as text.
func (m *topScreen) seen() string {
	return ansi.Strip(strings.Join(m.lines(), "\n"))
}

func (m *topScreen) keys(keys ...string) *topScreen {
	for _, k := range keys {
		text := ""
		if len(k) == 1 {
			text = k
		}
		m.press(k, text)
	}
	return m
}

func TestSnapshotAddsUp(t *testing.T) {
	s := fleetAtNoon()
	if got, want := s.Totals, (totals{Live: 1, Slots: 16, InFlight: 6, Waiting: 34, DonePerSecond: 4.5, TokensPerSecond: 1234}); got != want {
		t.Errorf("totals %+v, want %+v", got, want)
	}
	var pools []string
	for _, p := range s.Pools {
		pools = append(pools, fmt.Sprintf("%s: %d of %d live, %d/%d busy, %d waiting for %dms, %d running, %.1f taken/s",
			p.Pool, p.Live, p.Workers, p.Busy, p.Slots, p.Waiting, p.OldestMS, p.Running, p.TakenPerSecond))
	}
	want := []string{
		"embed: 0 of 1 live, 0/0 busy, 0 waiting for 0ms, 0 running, 0.0 taken/s",
		"llama-70b: 1 of 2 live, 6/16 busy, 33 waiting for 3000ms, 2 running, 4.5 taken/s", // 30 held, 2 queued in batch, 1 listed
		"mistral: 0 of 1 live, 0/0 busy, 1 waiting for 0ms, 0 running, 0.0 taken/s",
		"qwen: 1 of 1 live, 6/16 busy, 0 waiting for 0ms, 0 running, 0.0 taken/s",
	}
	if !slices.Equal(pools, want) {
		t.Errorf("pools:\n%s\nwant:\n%s", strings.Join(pools, "\n"), strings.Join(want, "\n"))
	}
	var tiers []string
	for _, l := range s.Tiers {
		tiers = append(tiers, fmt.Sprintf("%s %d", l.Name, l.Waiting))
	}
	if got := strings.Join(tiers, ", "); got != "priority 0, standard 2, batch 32" {
		t.Errorf("tiers %s", got)
	}
}

// While no gateway tells what runs, what the broker has delivered does.
func TestSnapshotWithoutGateways(t *testing.T) {
	s := fleetAtNoon()
	s.Gateways, s.Requests, s.held = nil, nil, nil
	s.complete()
	if p := s.Pools[1]; p.Pool != "llama-70b" || p.Running != 3 || p.Waiting != 2 {
		t.Errorf("got %+v, want 3 running, 2 waiting", p)
	}
}

func TestSnapshotKnowsWhoHelpsAPool(t *testing.T) {
	s := fleetAtNoon()
	s.Policy.Policy.Pools = map[string]policy.Pool{"mistral": {Spill: []policy.Spill{{Pool: "qwen", Penalty: 2}}}, "embed": {Paused: true}}
	s.complete()
	if p := s.Pools[2]; p.Pool != "mistral" || p.Live != 1 || p.Workers != 2 {
		t.Errorf("got %+v, want the worker of qwen to count", p)
	}
	if !s.Pools[0].Paused {
		t.Error("embed is not paused")
	}
}

func TestSnapshotAsJSON(t *testing.T) {
	var none snapshot
	none.complete()
	b, err := json.Marshal(none)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), "null") {
		t.Errorf("a list is null: %s", b)
	}
	s := fleetAtNoon()
	if b, err = json.Marshal(s); err != nil {
		t.Fatal(err)
	}
	var back struct {
		Pools   []struct{ Pool, State string }
		Workers []struct {
			Name          string
			DonePerSecond float64 `json:"done_per_second"`
		}
		Tiers  []struct{ Name string }
		Policy struct{ Revision int }
	}
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if back.Policy.Revision != 17 || len(back.Pools) != 4 || back.Tiers[1].Name != "standard" || back.Workers[0].Name != "fast" || back.Workers[0].DonePerSecond != 4.5 {
		t.Errorf("got %+v of %s", back, b)
	}
}

func TestRate(t *testing.T) {
	at := func(seconds float64) time.Time { return noon.Add(time.Duration(seconds * float64(time.Second))) }
	var r rate
	if r.perSecond() != 0 {
		t.Error("a rate of nothing")
	}
	r.add(at(0), 100)
	if r.perSecond() != 0 {
		t.Error("a rate of one sample")
	}
	r.add(at(2), 120)
	if got := r.perSecond(); got != 10 {
		t.Errorf("got %v, want 10", got)
	}
	for i := range 20 { // the fast start is forgotten
		r.add(at(3+float64(i)), 120+uint64(i))
	}
	if got := r.perSecond(); got != 1 {
		t.Errorf("got %v, want 1", got)
	}
	r.add(at(30), 5)
	if got := r.perSecond(); got != 0 {
		t.Errorf("counted anew: got %v, want 0", got)
	}
}

// Whatever the size, and whatever is open, a screen is filled and nothing
// sticks out.
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
		"more: !) worker gone is lost: silent for 5.0s\n",
		"[1 pools (4)]  2 tiers (3)   3 workers (4)   4 requests (3)",
		"llama-70b  ready      1 of 2   ███░░░░░ 6/16       33        2    3.0s      4.5\n",
		"mistral    no worker  0 of 1   ░░░░░░░░ 0/0         1        0       -        -\n",
		"fast     ready     vllm    ███░░░░░ 6/16     2     4.5   1234       3  llama-7",
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

// Workers that know of their room and their GPUs show both, and still fit.
func TestScreenShowsRoomAndGPUs(t *testing.T) {
	m := screenAtNoon(80, 24)
	told := func(i int, b policy.Bound, gpus ...subjects.GPU) {
		w := &m.latest.Workers[i]
		w.Capacity, w.NVML = &subjects.Capacity{Bound: b, Total: 16, Profile: "balanced", Terms: map[policy.Bound]float64{b: 16}}, &subjects.NVML{Mode: "auto", GPUs: gpus}
	}
	told(0, policy.BoundKV, toldGPU(0), toldGPU(1))                                       // fast
	told(2, policy.BoundFence, toldGPU(2, lost), toldGPU(3))                              // idle, by name the third
	told(1, policy.BoundLimit, toldGPU(4, func(g *subjects.GPU) { g.State = gpu.Stale })) // gone
	m.latest.Workers[2].State = subjects.Fenced
	got := m.keys("3").seen()
	for _, want := range []string{
		"WORKER▴  STATE   SLOTS          BOUND  GPU              ",
		"fast     ready   ███░░░░░ 6/16  kv     64C 97% 144/160G ",
		"idle     fenced  ░░░░░░░░ 0/8   fence  fenced 64C       ",
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
	for _, want := range []string{"6 of 16: the KV cache has no room for more", "GPU 1", "ok, H100 80GB HBM3, 72.0/80.0 GiB, 97% busy"} {
		if !strings.Contains(detail, want) {
			t.Errorf("no %q in\n%s", want, detail)
		}
	}
}

func TestScreenSaysWhatIsWrong(t *testing.T) {
	tests := map[string]struct {
		change func(*snapshot)
		want   string
	}{
		"nothing":       {func(s *snapshot) { s.Workers, s.Queues, s.Requests = s.Workers[:1], nil, nil }, "nothing is wrong"},
		"too early":     {func(s *snapshot) { s.Workers, s.Gateways, s.Queues, s.Since = nil, nil, nil, s.At }, "listening…"},
		"no gateway":    {func(s *snapshot) { s.Gateways = nil }, "no gateway: nobody can send requests"},
		"no connection": {func(s *snapshot) { s.Server, s.Since = "", s.At.Add(-4*time.Second) }, "no connection to NATS for 4.0s: trying again"},
		"no worker":     {func(s *snapshot) { s.Workers = nil }, "no worker: requests wait"},
		"policy":        {func(s *snapshot) { s.Unread = map[string]string{"policy": "policy revision 9 is damaged"} }, "policy revision 9 is damaged"},
	}
	for about, tt := range tests {
		m := screenAtNoon(80, 24)
		tt.change(&m.latest)
		m.latest.complete()
		if got := strings.Split(m.seen(), "\n")[2]; !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", about, got, tt.want)
		}
	}
	if got := screenAtNoon(80, 24).keys("!").seen(); !strings.Contains(got, "engine down: connection refused") || !strings.Contains(got, "remedy: start the engine at http://slow") {
		t.Errorf("no remedy in\n%s", got)
	}
}

// selectedLine is what is shown in reverse below the tabs.
func selectedLine(m *topScreen) string {
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
	m.latest.Workers = slices.DeleteFunc(slices.Clone(m.latest.Workers), func(w workerSeen) bool { return w.Name == name })
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
	if header := strings.Split(m.seen(), "\n")[headLines]; !strings.Contains(header, "SLOTS▾") {
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
	if got := m.seen(); !strings.Contains(got, "only: Slo") || strings.Contains(got, "idle") {
		t.Errorf("after enter:\n%s", got)
	}
	if got := m.keys("/", "z").seen(); !strings.Contains(got, "none with Sloz") {
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
	next := fleetAtNoon()
	next.At, next.Gateways = noon.Add(time.Minute), nil
	next.complete()
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
		"tier": {[]string{"2", "end", "enter"}, []string{"share", "max queue", "10000 for each pool", "pool llama-70b"}},
		"worker": {[]string{"3", "enter"}, []string{"fast-0a1b2c", "vllm at http://fast", "host-fast", "100 done (4.5/s), 3 failed",
			"pool qwen", "rung 3, price 0.6s, requests of 100 tokens in, 50 out"}},
		"request": {[]string{"4", "end", "enter"}, []string{"019a0000-0000-7000-8000-000000000000", "gpt-4o", "/v1/chat/completions, a stream", "acme", "fast", "19 KiB"}},
	}
	for about, tt := range tests {
		m := screenAtNoon(80, 40).keys(tt.keys...)
		got := m.seen()
		for _, want := range tt.wants {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %q in\n%s", about, want, got)
			}
		}
		if m.latest.Requests, m.latest.Workers = nil, nil; about == "request" && !strings.Contains(m.seen(), "it is gone") {
			t.Errorf("a request that ended:\n%s", m.seen())
		}
		if got := m.keys("esc").seen(); strings.Contains(got, "esc back") {
			t.Errorf("%s: esc does not close it:\n%s", about, got)
		}
	}
}

// Names come from strangers: nothing of them reaches the terminal as a command.
func TestScreenShowsNoControlCharacters(t *testing.T) {
	const evil = "\x1b]0;title\a\x1b[2J\r\nm\x00\u009b31m"
	m := screenAtNoon(120, 60)
	s := &m.latest
	for i := range s.Workers {
		s.Workers[i].Name, s.Workers[i].Reason, s.Workers[i].Engine, s.Workers[i].Pools[0].Pool = evil, evil, evil, evil
	}
	s.Requests[0].Pool, s.Requests[0].Tier, s.Requests[0].Model, s.Requests[0].ID, s.Requests[0].Path = evil, evil, evil, evil, evil
	s.Queues[0].Pool, s.Policy.Why, s.Events[0].Text, s.Events[0].Kind = evil, evil, evil, evil
	s.Unread = map[string]string{"policy": evil}
	s.complete()
	for _, keys := range [][]string{{"1"}, {"1", "enter"}, {"2"}, {"3"}, {"3", "enter"}, {"4"}, {"4", "end", "enter"}, {"!"}, {"/", evil, "enter"}} {
		text := strings.Join(m.keys("esc").keys(keys...).lines(), "\n")
		for _, sgr := range []style{bold, dim, red, green, yellow, reversed, "0"} { // ours
			text = strings.ReplaceAll(text, "\x1b["+string(sgr)+"m", "")
		}
		if strings.ContainsFunc(text, func(r rune) bool { return r != '\n' && (r < ' ' || r >= 0x7f && r < 0xa0) }) {
			t.Errorf("after %q: %q", keys, text)
		}
	}
}

func TestGlyphs(t *testing.T) {
	tests := []struct {
		env  map[string]string
		want glyphs
	}{
		{nil, asciiGlyphs},
		{map[string]string{"LANG": "de_DE.UTF-8"}, unicodeGlyphs},
		{map[string]string{"LANG": "C.utf8"}, unicodeGlyphs},
		{map[string]string{"LANG": "de_DE.UTF-8", "LC_ALL": "C"}, asciiGlyphs},
		{map[string]string{"LC_CTYPE": "en_US.UTF-8", "LANG": "C"}, unicodeGlyphs},
	}
	for _, tt := range tests {
		if got := glyphsFor(func(name string) string { return tt.env[name] }); got != tt.want {
			t.Errorf("%v: %+v", tt.env, got)
		}
	}
	for _, tt := range []struct {
		n, most int
		want    string
	}{{0, 8, ".... 0/8"}, {1, 8, "#... 1/8"}, {4, 8, "##.. 4/8"}, {8, 8, "#### 8/8"}, {9, 8, "#### 9/8"}, {0, 0, ".... 0/0"}} {
		if got := asciiGlyphs.bar(tt.n, tt.most, 4); got != tt.want {
			t.Errorf("bar of %d/%d: %q, want %q", tt.n, tt.most, got, tt.want)
		}
	}
}

func TestPerSecond(t *testing.T) {
	for x, want := range map[float64]string{0: "0.0", 0.25: "0.2", 9.96: "10", 123.4: "123", 9999: "9999", 12_345: "12k", 1.25e6: "1.2M"} {
		if got := perSecond(x); got != want {
			t.Errorf("%v: %q, want %q", x, got, want)
		}
	}
}

func TestSnapshotAsText(t *testing.T) {
	s := fleetAtNoon()
	var p page
	s.text(&p, unicodeGlyphs)
	got := p.b.String()
	for _, want := range []string{"pulley  2 gateways", "\npools\n", "\ntiers\n", "\nworkers\n", "\nrequests\n", "\nevents\n", "remedy: pulley worker uncordon idle", "RUNNING", "POOLS\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "\x1b") {
		t.Errorf("escape sequences without a terminal: %q", got)
	}
}

// A long list costs little to draw.
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
