package page

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// fixed is a gateway that always knows the same, but for a number of requests.
type fixed struct {
	requests atomic.Int64
	views    atomic.Int64
}

func (f *fixed) view() gateway.View {
	f.views.Add(1)
	v := gateway.View{At: time.Now(), Gateway: "g", Server: "nats://there", Since: time.Now().Add(-time.Hour), Policy: policystore.Version{Policy: policy.Default()}}
	for i := range f.requests.Load() {
		v.Requests = append(v.Requests, subjects.RequestInfo{ID: fmt.Sprintf("%06d", i), Gateway: "g", Pool: "m\nevent: x\n\n", Tier: "standard", State: "running"})
	}
	return v
}

// site is a page on a listener in memory.
type site struct {
	*Page
	*fixed
	listener *testenv.Listener
}

func newSite(t *testing.T, env *testenv.Env) *site {
	t.Helper()
	nc, _ := env.Connect("page")
	p, err := New(nc, "v1", true, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s := &site{p, new(fixed), testenv.NewListener()}
	run := testenv.Start(func(ctx context.Context) error {
		return p.Run(ctx, Source{View: s.fixed.view, Hour: func() []gateway.Period { return nil }})
	})
	server := &http.Server{Handler: p.Admin().Live}
	serve := testenv.Start(func(context.Context) error { server.Serve(s.listener); return nil })
	t.Cleanup(func() {
		server.Close()
		serve.Wait()
		if err := run.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// event is a server-sent event.
type event struct{ name, data string }

// open connects a viewer. Its events come one after the other; the channel is closed with the stream.
func (s *site) open(t *testing.T) (events <-chan event, leave func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	client := &http.Client{Transport: &http.Transport{DialContext: s.listener.DialContext, DisableKeepAlives: true}}
	r, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://admin/page/live", nil)
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" || !strings.Contains(resp.Header.Get("Content-Security-Policy"), "default-src 'none'") {
		t.Fatalf("got %s, %v", resp.Status, resp.Header)
	}
	list := make(chan event, 1000)
	reading := testenv.Start(func(context.Context) error {
		defer close(list)
		defer resp.Body.Close()
		in := bufio.NewReader(resp.Body)
		var e event
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return nil
			}
			switch line = strings.TrimSuffix(line, "\n"); {
			case line == "" && e != event{}:
				list <- e
				e = event{}
			case line == "", strings.HasPrefix(line, ": "):
			case strings.HasPrefix(line, "event: "):
				e.name = line[len("event: "):]
			case strings.HasPrefix(line, "data: ") && e.data == "":
				e.data = line[len("data: "):]
			default:
				t.Errorf("a line %q", line)
			}
		}
	})
	leave = func() { cancel(); reading.Wait() }
	t.Cleanup(leave)
	return list, leave
}

// within returns how often each section came within a time, and its last data.
func within(events <-chan event, d time.Duration) (times map[string]int, last map[string]string) {
	times, last = make(map[string]int), make(map[string]string)
	for end := time.After(d); ; {
		select {
		case <-end:
			return times, last
		case e, open := <-events:
			if !open {
				return times, last
			}
			times[e.name]++
			last[e.name] = e.data
		}
	}
}

var allSections = []string{"head", "findings", "pools", "workers", "requests", "shifts", "ended", "failures", "dead", "events", "hour"}

func TestStreamSendsWhatChanges(t *testing.T) {
	testenv.Run(t, func(t *testing.T, env *testenv.Env) {
		s := newSite(t, env)
		time.Sleep(time.Minute)
		if n := s.views.Load(); n != 0 {
			t.Errorf("the gateway was asked %d times, and nobody looked", n)
		}
		s.requests.Store(2)
		events, leave := s.open(t)
		times, last := within(events, 500*time.Millisecond)
		for _, name := range allSections {
			if times[name] < 1 || times[name] > 2 || !json.Valid([]byte(last[name])) {
				t.Errorf("at first %s came %d times: %s", name, times[name], last[name])
			}
		}
		var got requestsState
		if err := json.Unmarshal([]byte(last["requests"]), &got); err != nil || got.Started != 2 || len(got.Running) != 2 || got.Running[0].Pool != "m\nevent: x\n\n" {
			t.Errorf("got %+v, %v", got, err)
		}
		if times, _ := within(events, 20*time.Second); len(times) != 1 || times["head"] < 19 || times["head"] > 21 {
			t.Errorf("nothing changed but the clock, and these came: %v", times)
		}
		s.requests.Store(3)
		if times, last := within(events, 1100*time.Millisecond); times["requests"] != 1 || times["pools"] != 1 || times["workers"] != 0 || !strings.Contains(last["requests"], `"running_all":3`) {
			t.Errorf("one more request: %v, %s", times, last["requests"])
		}
		leave()
		time.Sleep(2 * time.Second)
		asked := s.views.Load()
		time.Sleep(time.Minute)
		if n := s.views.Load(); n != asked {
			t.Errorf("the gateway was asked %d times after the last viewer had gone", n-asked)
		}
		s.requests.Store(0)
		events, _ = s.open(t) // nothing of what was long ago
		if _, last := within(events, 100*time.Millisecond); !strings.Contains(last["requests"], `"running_all":0`) {
			t.Errorf("a new viewer got %s", last["requests"])
		}
	})
}

func TestStreamEndsAfterAWhile(t *testing.T) {
	testenv.Run(t, func(t *testing.T, env *testenv.Env) {
		s := newSite(t, env)
		events, _ := s.open(t)
		began := time.Now()
		for range events {
		}
		if d := time.Since(began); d != streamFor {
			t.Errorf("it ended after %v", d)
		}
	})
}

// A viewer that does not read holds nothing: others get each state, and it is forgotten after a while.
func TestSlowViewer(t *testing.T) {
	testenv.Run(t, func(t *testing.T, env *testenv.Env) {
		s := newSite(t, env)
		s.requests.Store(runningShown)
		conn, err := s.listener.DialContext(t.Context(), "", "") // a pipe, which holds nothing
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, "GET /page/live HTTP/1.1\r\nHost: x\r\n\r\n")
		events, _ := s.open(t)
		within(events, 500*time.Millisecond)
		for n := int64(1); n < 8; n++ {
			s.requests.Store(n)
			if times, last := within(events, time.Second); times["requests"] != 1 || !strings.Contains(last["requests"], fmt.Sprintf(`"running_all":%d,`, n)) {
				t.Errorf("second %d: %v, %s", n, times, last["requests"])
			}
		}
		s.mu.Lock()
		before := s.viewers
		s.mu.Unlock()
		within(events, slowViewer)
		s.mu.Lock()
		defer s.mu.Unlock()
		if before != 2 || s.viewers != 1 {
			t.Errorf("%d viewers, and %d after %v", before, s.viewers, slowViewer)
		}
	})
}

func TestViewersAreBounded(t *testing.T) {
	p := &Page{changed: make(chan struct{})}
	for range maxViewers {
		if !p.enter() {
			t.Fatal("a viewer was refused")
		}
	}
	w := httptest.NewRecorder()
	p.live(w, httptest.NewRequest(http.MethodGet, "/page/live", nil))
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
		t.Errorf("one too many: %d %v", w.Code, w.Header())
	}
	p.leave()
	if !p.enter() {
		t.Error("no room after one had left")
	}
}

func TestFiles(t *testing.T) {
	h := (&Page{}).Admin().Files
	for path, want := range map[string]struct {
		status int
		kind   string
	}{
		"/": {200, "text/html; charset=utf-8"}, "/page/app.js": {200, "text/javascript; charset=utf-8"}, "/page/style.css": {200, "text/css; charset=utf-8"}, "/page/icon.svg": {200, "image/svg+xml"},
		"/page/": {404, ""}, "/page/x.js": {404, ""}, "/page/x/app.js": {404, ""}, "/page/../page.go": {404, ""}, "/page/static": {404, ""},
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.URL.Path = path
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != want.status || want.kind != "" && w.Header().Get("Content-Type") != want.kind {
			t.Errorf("%s: got %d %s", path, w.Code, w.Header().Get("Content-Type"))
		}
		for name := range secure {
			if w.Header().Get(name) == "" {
				t.Errorf("%s: no %s", path, name)
			}
		}
		if tag := w.Header().Get("ETag"); tag != "" {
			r.Header.Set("If-None-Match", tag)
			again := httptest.NewRecorder()
			if h.ServeHTTP(again, r); again.Code != http.StatusNotModified {
				t.Errorf("%s again: got %d", path, again.Code)
			}
		}
	}
}

// The files name no other origin, and have nothing that the Content-Security-Policy would not let run, or that makes markup of
// text.
func TestFilesKeepToThemselves(t *testing.T) {
	never := regexp.MustCompile(`(?i)innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function|javascript:|@import|url\(|<script>|<style|\sstyle=|\son[a-z]+=["']|EventSource|localStorage|cookie`)
	origin := regexp.MustCompile(`(https?:)?//[a-zA-Z0-9.-]+\.[a-z]{2,}[^\s"']*`)
	err := fs.WalkDir(static, "static", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := static.ReadFile(path)
		for _, found := range never.FindAllString(string(b), -1) {
			t.Errorf("%s has %q", path, found)
		}
		for _, found := range origin.FindAllString(string(b), -1) {
			if found != "http://www.w3.org/2000/svg" { // a namespace
				t.Errorf("%s has %q", path, found)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// BenchmarkSections makes the state of a large fleet, which is done once a second however many look.
func BenchmarkSections(b *testing.B) {
	f := new(fixed)
	f.requests.Store(1000)
	now := time.Now()
	v, hour := f.view(), make([]gateway.Period, 360)
	for i := range 100 {
		v.Workers = append(v.Workers, &subjects.Heartbeat{Worker: fmt.Sprint("w-", i), Name: fmt.Sprint("gpu-", i), State: subjects.Ready, Slots: 32, InFlight: 20, Weight: 1, Capacity: &subjects.Capacity{Total: 32}, Pools: []subjects.PoolStatus{{Pool: "m"}}})
	}
	for i := range hour {
		hour[i].Start = now.Add(time.Duration(i-360) * gateway.PeriodLength)
		for n := range 50 {
			hour[i].Times.Observe(true, time.Duration(100+n)*time.Millisecond, time.Duration(n)*time.Second)
		}
	}
	m := maker{hour: func() []gateway.Period { return hour }}
	size := 0
	for b.Loop() {
		v.At = v.At.Add(every)
		size = 0
		for _, s := range m.sections(&v, new(far)) {
			size += len(s.data)
		}
	}
	b.ReportMetric(float64(size), "bytes")
}
