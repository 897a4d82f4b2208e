package scenarios

import (
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// logged is a log that a test reads.
type logged struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logged) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// has says whether a line has all of the words.
func (l *logged) has(words ...string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.text.String()) {
		all := true
		for _, w := range words {
			all = all && strings.Contains(line, w)
		}
		if all {
			return true
		}
	}
	return false
}

// A worker that is started again has the same stable id, and another one in full. So its permissions and its home lane stay,
// and nothing that is sent to the process before reaches the new one. Its first request is not refused.
func TestIDStaysOverARestart(t *testing.T) {
	for about, cfg := range map[string]worker.Config{
		"from its name":          {Name: "gpu 7:b", Slots: 4},
		"from its engine":        {Slots: 4},
		"configured":             {ID: "gpu-7", Slots: 4},
		"configured with a name": {ID: "gpu_7", Name: "another name", Slots: 4},
	} {
		t.Run(about, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g := env.Gateway(gateway.Config{})
				e := env.Engine(slow("e"))
				w := env.Worker(e, cfg)
				g.Serves(t, "m")
				first := subjects.StableID(w.ID())
				if cfg.ID != "" && first != cfg.ID {
					t.Errorf("stable id %q, want %q", first, cfg.ID)
				}
				if subjects.Token(first) == "" || strings.ContainsAny(first, ". *>") {
					t.Errorf("stable id %q is no token", first)
				}
				if err := w.Stop(); err != nil {
					t.Fatal(err)
				}
				again := env.Worker(e, cfg)
				if subjects.StableID(again.ID()) != first || again.ID() == w.ID() {
					t.Errorf("ids %q and then %q", w.ID(), again.ID())
				}
				if r := ask(t, g, chat("m", false, 1), ""); r.status != 200 || r.took > time.Second {
					t.Errorf("the first request after the restart: %d after %v", r.status, r.took)
				}
				if other := env.Worker(env.Engine(slow("f")), worker.Config{Name: cfg.Name, Slots: 4}); subjects.StableID(other.ID()) == first {
					t.Errorf("another engine's worker has the stable id %q too", first)
				}
			})
		})
	}
}

// Of two processes with the same configured id the later one serves, and says so; the other finishes what it has, and leaves
// with an error that names the other. It does not matter whether the broker was reachable for both at the time.
func TestTwoProcessesWithOneID(t *testing.T) {
	for about, away := range map[string]bool{"both connected": false, "the first was away": true} {
		t.Run(about, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g := env.Gateway(gateway.Config{})
				e, f := env.Engine(slow("e")), env.Engine(slow("f"))
				var log, newer logged
				first := env.Worker(e, worker.Config{ID: "gpu-7", Name: "e", Slots: 4, Logger: log.logger()})
				g.Serves(t, "m")
				answer := make(chan reply, 1)
				if away {
					first.Link.Cut(true)
					time.Sleep(3 * time.Second)
				} else {
					go func() { answer <- ask(t, g, chat("m", true, 50), "") }()
					time.Sleep(time.Second)
				}
				second := env.Worker(f, worker.Config{ID: "gpu-7", Name: "f", Slots: 4, Logger: newer.logger()})
				time.Sleep(3 * time.Second)
				if away {
					first.Link.Mend()
				}
				left := make(chan error, 1)
				go func() { left <- first.Wait() }()
				select {
				case err := <-left:
					if !errors.Is(err, worker.ErrReplaced) {
						t.Errorf("the first one left with %v", err)
					}
				case <-time.After(20 * time.Second):
					t.Error("the first one goes on")
				}
				if !away {
					if r := <-answer; r.status != 200 || words(content(t, r.body)) != 50 {
						t.Errorf("the stream that it had: %d %q", r.status, r.body)
					}
				}
				if !log.has("level=ERROR", "id=gpu-7", "host=", "pid=") {
					t.Errorf("the first one logged no error: %s", log.text.String())
				}
				testenv.Eventually(t, "the second one logs a warning", time.Second, func() bool { return newer.has("level=WARN", "id=gpu-7", "host=") })
				before := f.Stats().Received
				if r := ask(t, g, chat("m", false, 1), ""); r.status != 200 || f.Stats().Received != before+1 {
					t.Errorf("the second one does not serve: %d %s", r.status, r.body)
				}
				if err := second.Stop(); err != nil {
					t.Errorf("the second one left with %v", err)
				}
			})
		})
	}
}

// Two processes whose ids are the same by chance, such as on hosts of one name, both serve, and both say so.
func TestTwoProcessesWithOneNameAndHost(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		e := env.Engine(slow("e"))
		logs := [2]logged{}
		var ws []*Worker
		for i := range logs {
			ws = append(ws, env.Worker(e, worker.Config{Name: "e", Slots: 4, Logger: logs[i].logger()}))
			time.Sleep(2 * time.Second)
		}
		if subjects.StableID(ws[0].ID()) != subjects.StableID(ws[1].ID()) {
			t.Fatalf("ids %s and %s", ws[0].ID(), ws[1].ID())
		}
		for i := range logs {
			if !logs[i].has("level=WARN", "another process has the id of this worker") {
				t.Errorf("worker %d says nothing: %s", i, logs[i].text.String())
			}
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if r := ask(t, g, chat("m", false, 20), ""); r.status != 200 || r.took > 5*time.Second {
					t.Errorf("%d after %v", r.status, r.took)
				}
			})
		}
		wg.Wait()
		testenv.Eventually(t, "both are idle", 5*time.Second, func() bool { return e.Stats().Received == 8 })
		for _, w := range ws {
			if err := w.Stop(); err != nil {
				t.Errorf("left with %v", err)
			}
		}
	})
}
