package scenarios

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/worker"
)

// logWriter keeps what is written to it. While it is blocked, writes wait; while it fails, they do not succeed.
type logWriter struct {
	mu     sync.Mutex
	opened sync.Cond
	text   strings.Builder
	writes int
	shut   bool
	fails  bool
}

func newLogWriter() *logWriter {
	w := new(logWriter)
	w.opened.L = &w.mu
	return w
}

func (w *logWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writes++
	for w.shut {
		w.opened.Wait()
	}
	if w.fails {
		return 0, errors.New("no space left on device")
	}
	return w.text.Write(b)
}

func (w *logWriter) set(shut, fails bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.shut, w.fails = shut, fails
	w.opened.Broadcast()
}

func (w *logWriter) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

// take returns the lines that have come, and forgets them.
func (w *logWriter) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := w.text.String()
	w.text.Reset()
	return slices.DeleteFunc(strings.Split(text, "\n"), func(l string) bool { return l == "" })
}

// objects returns the lines that have come, parsed, and forgets them.
func (w *logWriter) objects(t testing.TB) (out []map[string]any) {
	t.Helper()
	time.Sleep(10 * time.Millisecond)
	for _, line := range w.take() {
		var v map[string]any
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		out = append(out, v)
	}
	return out
}

func TestAccessLogHasALineForEachCall(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		w := newLogWriter()
		g := env.Gateway(gateway.Config{AccessLog: gateway.AccessLog{Writer: w, JSON: true}})
		for _, name := range []string{"a", "b"} {
			env.Worker(env.Engine(slow(name)), worker.Config{Name: name, Slots: 4})
		}
		g.Serves(t, "m")
		ks := keysOf(t, env)
		key := ks.put(policy.Key{ID: "aaaaaaaaaa", Tenant: "acme", Models: []string{"m", "none"}})
		time.Sleep(inForce)
		w.objects(t)
		const secret = "one two three" // of the prompt
		for _, c := range []struct {
			about, path, body, orders string
			header                    []string
			gone                      time.Duration // after which the client leaves
			want                      map[string]any
			has, lacks                []string
		}{
			{
				about: "a stream",
				body:  chat("m", true, 5, `"stream_options":{"include_usage":true}`), header: key,
				want: map[string]any{"status": 200.0, "outcome": "answered", "tenant": "acme", "key": "aaaaaaaaaa", "model": "m", "pool": "m", "tier": "standard",
					"attempts": 1.0, "stream": true, "path": "/v1/chat/completions", "method": "POST", "output_tokens": 5.0},
				has: []string{"time", "id", "gateway", "worker", "ttft_ms", "total_ms", "bytes_in", "bytes_out", "queue_ms"}, lacks: []string{"code", "client_id"},
			},
			{
				about: "a whole answer with the client's own id",
				body:  chat("m", false, 3, `"service_tier":"batch"`), header: append([]string{"X-Request-Id", "mine-7"}, key...),
				want:  map[string]any{"status": 200.0, "outcome": "answered", "tier": "batch", "stream": false, "client_id": "mine-7", "output_tokens": 3.0},
				lacks: []string{"code"},
			},
			{
				about: "a retry",
				body:  chat("m", true, 2), orders: "fail, on=a", header: key,
				want: map[string]any{"status": 200.0, "outcome": "answered", "worker": "b"},
			},
			{
				about: "every attempt fails",
				body:  chat("m", false, 2), orders: "fail", header: key,
				want: map[string]any{"status": 500.0, "outcome": "failed", "attempts": 3.0},
			},
			{
				about: "an error in the middle",
				body:  chat("m", true, 9), orders: "cut-after=3", header: key,
				want: map[string]any{"status": 200.0, "outcome": "failed", "code": "upstream_lost"}, has: []string{"ttft_ms", "worker"},
			},
			{
				about: "no key",
				body:  chat("m", false, 1),
				want:  map[string]any{"status": 401.0, "outcome": "refused", "code": "invalid_api_key", "attempts": 0.0}, lacks: []string{"tenant", "key", "model", "worker"},
			},
			{
				about: "a model that is not there",
				body:  chat("none", false, 1), header: key,
				want: map[string]any{"status": 404.0, "code": "model_not_found", "model": "none", "tenant": "acme"}, lacks: []string{"pool", "worker", "ttft_ms", "queue_ms"},
			},
			{
				about: "a model that is not allowed",
				body:  chat("other", false, 1), header: key, want: map[string]any{"status": 403.0, "code": "model_not_allowed", "model": "other", "tier": "standard"},
			},
			{
				about: "a body that is no JSON", body: "{", header: key, want: map[string]any{"status": 400.0, "code": "invalid_request"}},
			{
				about: "a path of management",
				path:  "/api/pull?key=geheim", body: `{}`, header: key, want: map[string]any{"status": 404.0, "code": "path_not_allowed", "path": "/api/pull"},
			},
			{
				about: "a call without a slot",
				path:  "/tokenize", body: `{"model":"m","prompt":"one two three"}`, header: key,
				want: map[string]any{"path": "/tokenize", "pool": "m", "attempts": 1.0},
			},
			{
				about: "a client that leaves before the first token",
				body:  chat("m", true, 5), orders: "ttft=30s", header: key, gone: time.Second,
				want: map[string]any{"status": 499.0, "outcome": "cancelled"}, has: []string{"worker"}, lacks: []string{"code", "ttft_ms"},
			},
			{
				about: "a client that leaves during the answer",
				body:  chat("m", true, 500), header: key, gone: 3 * time.Second,
				want: map[string]any{"status": 499.0, "outcome": "cancelled"}, has: []string{"worker", "ttft_ms"},
			},
			{
				about: "a path without end",
				path:  "/v1/" + strings.Repeat("x", 5000), body: `{}`, header: key, want: map[string]any{"status": 404.0, "path": "/v1/" + strings.Repeat("x", 252) + "…"},
			},
		} {
			ctx, leave := context.WithCancel(t.Context())
			if c.gone > 0 {
				time.AfterFunc(c.gone, leave)
			}
			resp, err := post(ctx, g, cmp.Or(c.path, "/v1/chat/completions"), c.body, c.orders, c.header...)
			size := 0
			if err == nil {
				b, _ := io.ReadAll(resp.Body)
				size = len(b)
				resp.Body.Close()
			}
			leave()
			time.Sleep(time.Second)
			lines := w.objects(t)
			if len(lines) != 1 {
				t.Errorf("%s: %d lines, want 1: %v", c.about, len(lines), lines)
				continue
			}
			got := lines[0]
			for k, want := range c.want {
				if got[k] != want {
					t.Errorf("%s: %s is %v, want %v", c.about, k, got[k], want)
				}
			}
			for _, k := range c.has {
				if _, ok := got[k]; !ok {
					t.Errorf("%s: no %s: %v", c.about, k, got)
				}
			}
			for _, k := range c.lacks {
				if v, ok := got[k]; ok {
					t.Errorf("%s: %s is %v, want none", c.about, k, v)
				}
			}
			if c.gone == 0 && got["bytes_out"] != float64(size) {
				t.Errorf("%s: bytes_out is %v, want %d", c.about, got["bytes_out"], size)
			}
			text := fmt.Sprint(got)
			for _, s := range []string{secret, keyText("aaaaaaaaaa"), "geheim", "lorem"} {
				if strings.Contains(text, s) {
					t.Errorf("%s: the line has %q: %s", c.about, s, text)
				}
			}
		}
		if resp, err := g.Client.Get("http://gateway/healthz"); err != nil {
			t.Error(err)
		} else {
			resp.Body.Close()
		}
		if lines := w.objects(t); len(lines) != 0 {
			t.Errorf("a health check has a line: %v", lines)
		}
	})
}

func TestAccessLogAsText(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		w := newLogWriter()
		g := env.Gateway(gateway.Config{AccessLog: gateway.AccessLog{Writer: w}})
		env.Worker(env.Engine(slow("a")), worker.Config{Name: "a b"})
		g.Serves(t, "m")
		time.Sleep(time.Second)
		w.take()
		ask(t, g, chat("m", true, 2), "")
		askAt(t, g, "/v1/chat/completions", `{"model":"x\ny=\"z\"","messages":[]}`, "")
		time.Sleep(time.Second)
		lines := w.take()
		if len(lines) != 2 {
			t.Fatalf("%d lines: %q", len(lines), lines)
		}
		for i, want := range []string{` worker="a b" attempts=1 status=200 outcome=answered stream=true queue_ms=`, ` model="x\ny=\"z\"" tier=standard attempts=0 status=404 code=model_not_found outcome=refused`} {
			if !strings.HasPrefix(lines[i], "time=2") || !strings.Contains(lines[i], want) {
				t.Errorf("got %s, want it to have %s", lines[i], want)
			}
		}
	})
}

// Errors always have a line, whatever the others have.
func TestAccessLogChooses(t *testing.T) {
	for about, c := range map[string]struct {
		slow   time.Duration
		sample *float64
		want   string
	}{
		"all":                       {want: "quick slow error"},
		"none":                      {sample: new(0.0), want: "error"},
		"slow ones":                 {slow: time.Second, want: "slow error"},
		"slow ones and a share":     {slow: time.Second, sample: new(1.0), want: "quick slow error"},
		"slower than anything here": {slow: time.Hour, want: "error"},
	} {
		run(t, func(t *testing.T, env *Env) {
			w := newLogWriter()
			g := env.Gateway(gateway.Config{AccessLog: gateway.AccessLog{Writer: w, JSON: true, Slow: c.slow, Sample: c.sample}})
			env.Worker(env.Engine(slow("a")), worker.Config{Name: "a"})
			g.Serves(t, "m")
			w.objects(t)
			var got []string
			for name, body := range map[string]string{"quick": chat("m", true, 1), "slow": chat("m", true, 20), "error": chat("nosuch", true, 1)} {
				ask(t, g, body, "")
				if len(w.objects(t)) == 1 {
					got = append(got, name)
				}
			}
			want := strings.Fields(c.want)
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("%s: got %v, want %v", about, got, want)
			}
		})
	}
	for _, bad := range []gateway.AccessLog{{Slow: -1}, {Sample: new(1.5)}, {Sample: new(-0.1)}} {
		if _, err := gateway.New(gateway.Config{AccessLog: bad}, nil); err == nil {
			t.Errorf("%+v passes", bad)
		}
	}
}

// A writer that blocks or fails costs lines, which are counted and said, and never a request.
func TestAccessLogHoldsNoRequest(t *testing.T) {
	const calls = 5200 // more than the buffer holds
	for about, fails := range map[string]bool{"blocked": false, "failing": true} {
		run(t, func(t *testing.T, env *Env) {
			w, log := newLogWriter(), newLogWriter()
			g := env.Gateway(gateway.Config{AccessLog: gateway.AccessLog{Writer: w, JSON: true}, Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelWarn}))})
			env.Worker(env.Engine(slow("a")), worker.Config{Name: "a"})
			g.Serves(t, "m")
			w.objects(t)
			before := accessLines(t, g, "written")
			w.set(!fails, fails)
			for range calls {
				resp, err := g.Client.Get("http://gateway/v1/models")
				if err != nil || resp.StatusCode != 200 {
					t.Fatalf("%s: %v, %v", about, resp, err)
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			if r := ask(t, g, chat("m", true, 5), ""); r.status != 200 || r.took > 2*time.Second {
				t.Errorf("%s: status %d after %v", about, r.status, r.took)
			}
			time.Sleep(10 * time.Second)
			dropped, failed := accessLines(t, g, "dropped"), accessLines(t, g, "failed")
			if fails && failed != calls+1 || !fails && (dropped < 100 || dropped > calls) {
				t.Errorf("%s: %v lines dropped, %v failed", about, dropped, failed)
			}
			if said := log.String(); !strings.Contains(said, "access log: lines lost") || fails && !strings.Contains(said, "no space left on device") {
				t.Errorf("%s: the gateway said %q", about, said)
			}
			w.set(false, false)
			time.Sleep(time.Second)
			waited := len(w.objects(t))
			ask(t, g, chat("m", true, 1), "")
			if n := len(w.objects(t)); n != 1 {
				t.Errorf("%s: %d lines afterwards, want 1", about, n)
			}
			if written := accessLines(t, g, "written") - before; int(written) != waited+1 || waited+int(dropped+failed) != calls+1 {
				t.Errorf("%s: %v written, %v dropped, %v failed; %d came when it went on, of %d calls", about, written, dropped, failed, waited, calls+1)
			}
		})
	}
}

// A gateway ends although the log is blocked for good.
func TestGatewayEndsWhileItsAccessLogIsBlocked(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		w := newLogWriter()
		g := env.Gateway(gateway.Config{AccessLog: gateway.AccessLog{Writer: w}})
		w.set(true, false)
		ask(t, g, chat("nosuch", true, 1), "")
		begun := time.Now()
		g.Client.CloseIdleConnections()
		g.Stop()
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("took %v", took)
		}
		w.set(false, false)
	})
}

// What was written last is there when the gateway has ended.
func TestAccessLogIsWholeWhenTheGatewayEnds(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		w := newLogWriter()
		g := env.Gateway(gateway.Config{AccessLog: gateway.AccessLog{Writer: w}})
		for range 50 {
			ask(t, g, chat("nosuch", true, 1), "")
		}
		g.Client.CloseIdleConnections()
		g.Stop()
		if n := len(w.take()); n != 50 {
			t.Errorf("%d lines, want 50", n)
		}
	})
}

// accessLines is how many lines had an outcome, by the gateway's metrics.
func accessLines(t testing.TB, g *Gateway, outcome string) float64 {
	t.Helper()
	resp, err := g.Client.Get("http://admin/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	_, rest, ok := strings.Cut(string(b), fmt.Sprintf("pulley_access_log_lines_total{outcome=%q} ", outcome))
	if !ok {
		t.Fatalf("no count of lines that were %s", outcome)
	}
	value, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.ParseFloat(value, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
