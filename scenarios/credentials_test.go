package scenarios

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// lockedEngine is an engine that wants a key, below a base path.
type lockedEngine struct {
	handler http.Handler
	base    string
	public  []string // paths that it answers to everybody
	keys    atomic.Value
	refused atomic.Int64
}

func locked(t *testing.T, cfg sim.Config, base, key string, public ...string) *lockedEngine {
	t.Helper()
	eng, err := sim.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l := &lockedEngine{handler: http.StripPrefix(base, eng), base: base, public: public}
	l.set(key)
	return l
}

func (l *lockedEngine) set(key string) { l.keys.Store("Bearer " + key) }

func (l *lockedEngine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, below := strings.CutPrefix(r.URL.Path, l.base)
	if !below {
		http.Error(w, "<html>not here</html>", http.StatusNotFound)
		return
	}
	open := false
	for _, p := range l.public {
		open = open || p == path
	}
	if !open && r.Header.Get("Authorization") != l.keys.Load() {
		l.refused.Add(1)
		http.Error(w, `{"error":{"message":"Unauthorized","code":401}}`, http.StatusUnauthorized)
		return
	}
	l.handler.ServeHTTP(w, r)
}

func writeKey(t *testing.T, path, key string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// whileAsked sends ten requests a second, streamed and not, while do runs. It returns how many there were and what failed.
func whileAsked(t *testing.T, g *Gateway, do func()) (n int, failed []string) {
	t.Helper()
	var mu sync.Mutex
	var all sync.WaitGroup
	ended := make(chan struct{})
	all.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-ended:
				return
			case <-time.After(100 * time.Millisecond):
			}
			all.Go(func() {
				r := ask(t, g, chat("m", i%2 == 0, 3), "")
				mu.Lock()
				defer mu.Unlock()
				n++
				if r.status != 200 || words(content(t, r.body)) != 3 {
					failed = append(failed, fmt.Sprintf("%d after %v: %d %.200s", i, r.took, r.status, r.body))
				}
			})
		}
	})
	do()
	close(ended)
	all.Wait()
	return n, failed
}

// An engine's key changes under load, and no client notices.
func TestEngineKeyChanges(t *testing.T) {
	for about, c := range map[string]struct {
		base    string
		public  []string
		workers int
		change  func(t *testing.T, file string, e *lockedEngine)
	}{
		"the file first": {"", nil, 1, func(t *testing.T, file string, e *lockedEngine) {
			writeKey(t, file, "two")
			time.Sleep(20 * time.Second)
			e.set("two")
		}},
		"the engine first": {"", nil, 1, func(t *testing.T, file string, e *lockedEngine) {
			e.set("two")
			time.Sleep(8 * time.Second)
			writeKey(t, file, "two")
		}},
		"at once, below a base path": {"/gpu/a", nil, 2, func(t *testing.T, file string, e *lockedEngine) {
			writeKey(t, file, "two")
			e.set("two")
		}},
		"the engine first, which lists its models to everybody": {"", []string{"/v1/models", "/health"}, 2, func(t *testing.T, file string, e *lockedEngine) {
			e.set("two")
			time.Sleep(10 * time.Second)
			writeKey(t, file, "two")
		}},
		"again and again": {"/x", nil, 1, func(t *testing.T, file string, e *lockedEngine) {
			for i := range 6 {
				key := fmt.Sprint(i)
				if i%2 == 0 {
					e.set(key)
					time.Sleep(time.Second)
					writeKey(t, file, key)
				} else {
					writeKey(t, file, key)
					time.Sleep(3 * time.Second)
					e.set(key)
				}
				time.Sleep(2 * time.Second)
			}
		}},
	} {
		t.Run(about, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				file := filepath.Join(t.TempDir(), "key")
				writeKey(t, file, "one")
				g := env.Gateway(gateway.Config{})
				l := locked(t, slow("e"), c.base, "one", c.public...)
				e := env.Handler("e", l)
				e.URL += c.base
				for i := range c.workers {
					env.Worker(e, worker.Config{Name: fmt.Sprint("w", i), Slots: 8, Credentials: engine.Credentials{KeyFile: file}})
				}
				g.Serves(t, "m")
				n, failed := whileAsked(t, g, func() {
					time.Sleep(3 * time.Second)
					c.change(t, file, l)
					time.Sleep(10 * time.Second)
				})
				if len(failed) > 0 || n < 100 {
					t.Errorf("%d of %d failed: %q", len(failed), n, failed[:min(len(failed), 3)])
				}
				if l.refused.Load() == 0 {
					t.Error("no key was ever refused: nothing was tested")
				}
			})
		})
	}
}

// A worker with a wrong key is down and says why, whatever its engine lists to everybody, and its clients are served elsewhere.
func TestWrongEngineKey(t *testing.T) {
	for about, c := range map[string]struct {
		cfg    func(file string) worker.Config
		public []string
		reason string
	}{
		"in a file":   {func(file string) worker.Config { return worker.Config{Credentials: engine.Credentials{KeyFile: file}} }, nil, "refuses the API key in "},
		"a fixed one": {func(string) worker.Config { return worker.Config{Credentials: engine.Credentials{Key: "x"}} }, nil, "refuses the API key"},
		"none":        {func(string) worker.Config { return worker.Config{} }, nil, "wants credentials, and none are configured"},
		"a password": {func(string) worker.Config {
			return worker.Config{Credentials: engine.Credentials{User: "ann", Password: "x"}}
		}, nil, "refuses the user ann or the password"},
		"a named model": {func(string) worker.Config { return worker.Config{Models: []string{"m"}} }, nil, "wants credentials, and none are configured"},
		"an engine that lists its models to everybody": {func(file string) worker.Config {
			return worker.Config{Credentials: engine.Credentials{KeyFile: file}}
		}, []string{"/v1/models", "/health"}, "refuses the API key in "},
		"no key for an engine that lists its models to everybody": {func(string) worker.Config { return worker.Config{} },
			[]string{"/v1/models", "/health"}, "wants credentials, and none are configured"},
	} {
		t.Run(about, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				file := filepath.Join(t.TempDir(), "key")
				writeKey(t, file, "x")
				g := env.Gateway(gateway.Config{})
				beats := recordBeats(t, env)
				cfg := c.cfg(file)
				cfg.Name, cfg.Slots = "bad", 8
				fast := slow("bad")
				fast.ITLBase = time.Millisecond
				env.Worker(env.Handler("bad", locked(t, fast, "", "one", c.public...)), cfg)
				env.Worker(env.Handler("good", locked(t, slow("good"), "", "one")), worker.Config{Name: "good", Slots: 8, Credentials: engine.Credentials{Key: "one"}})
				g.Serves(t, "m")
				if n, failed := whileAsked(t, g, func() { time.Sleep(5 * time.Second) }); len(failed) > 0 {
					t.Errorf("%d of %d failed: %q", len(failed), n, failed[0])
				}
				h := beats.of("bad")
				if h.State != subjects.Down || h.DownClass != subjects.DownCredentials || !strings.Contains(h.Reason, c.reason) || !strings.Contains(h.Reason, "401") {
					t.Errorf("its worker is %s, %q: %q", h.State, h.DownClass, h.Reason)
				}
				if h := beats.of("good"); h.State != subjects.Ready || h.DownClass != "" {
					t.Errorf("the other is %s %q", h.State, h.DownClass)
				}
			})
		})
	}
}

// Alone, a worker with a wrong key has its clients wait like one without an engine.
func TestWrongEngineKeyAlone(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		file := filepath.Join(t.TempDir(), "key")
		writeKey(t, file, "one")
		g := env.Gateway(gateway.Config{})
		l := locked(t, slow("e"), "", "one", "/v1/models", "/health")
		env.Worker(env.Handler("e", l), worker.Config{Name: "e", Credentials: engine.Credentials{KeyFile: file}})
		g.Serves(t, "m")
		l.set("two")
		r := ask(t, g, chat("m", false, 1), "")
		wantError(t, r, 503, "no_worker")
		if r.took < 25*time.Second || r.took > time.Minute {
			t.Errorf("after %v", r.took)
		}
		if strings.Contains(r.body, "Unauthorized") || strings.Contains(r.body, file) {
			t.Errorf("the client is told %q", r.body)
		}
		writeKey(t, file, "two")
		testenv.Eventually(t, "it serves again", 2*time.Second, func() bool { return ask(t, g, chat("m", false, 1), "").status == 200 })
	})
}

// The worker's heartbeats have no secret, and neither has what clients get.
func TestHeartbeatsHaveNoSecret(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		file := filepath.Join(t.TempDir(), "key")
		writeKey(t, file, "s3cret")
		beats := recordBeats(t, env)
		g := env.Gateway(gateway.Config{})
		e := env.Handler("e", locked(t, slow("e"), "/a", "one"))
		e.URL = "http://ann:s3cret@e/a/"
		env.Worker(e, worker.Config{Name: "url"})
		e.URL = "http://e/a/v1"
		env.Worker(e, worker.Config{Name: "file", Credentials: engine.Credentials{KeyFile: file}, Models: []string{"m"}})
		time.Sleep(5 * time.Second)
		for name, url := range map[string]string{"url": "http://e/a", "file": "http://e/a"} {
			h := beats.of(name)
			if text := string(subjects.MustMarshal(h)); h.URL != url || strings.Contains(text, "s3cret") || strings.Contains(text, "YW5u") {
				t.Errorf("%s: %s", name, text)
			}
		}
		if r := ask(t, g, chat("m", false, 1), ""); r.status != 503 || strings.Contains(r.body, "s3cret") {
			t.Errorf("%d %s", r.status, r.body)
		}
	})
}
