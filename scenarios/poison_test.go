package scenarios

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// mortal is an engine that certain requests kill.
type mortal struct {
	*testenv.Engine
	w    *Worker
	die  func(m *mortal, w http.ResponseWriter, r *http.Request)
	dead atomic.Bool
}

func (m *mortal) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/v1/models":
		fmt.Fprint(w, `{"object":"list","data":[{"id":"m","object":"model"}]}`)
	case "/health":
		if m.dead.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	case "/v1/chat/completions":
		body, _ := io.ReadAll(r.Body)
		switch {
		case m.dead.Load():
			w.WriteHeader(http.StatusInternalServerError)
		case strings.Contains(string(body), "poison"):
			m.die(m, w, r)
		default:
			fmt.Fprint(w, `{"id":"1","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"fine"},"finish_reason":"stop"}]}`)
		}
	default:
		http.NotFound(w, r)
	}
}

// exit ends the engine's process. The handler that calls it ends with its connection.
func (m *mortal) exit() {
	m.dead.Store(true)
	m.Kill()
	panic(http.ErrAbortHandler)
}

// A request that kills its engine kills two at most, in whichever way they die. Its client is told not to try again, and the
// dead letter says what happened at each.
func TestPoisonKillsTwo(t *testing.T) {
	const fleet = 5
	fail := func(w http.ResponseWriter, status int, text string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		io.WriteString(w, text)
		w.(http.Flusher).Flush()
	}
	for about, die := range map[string]func(m *mortal, w http.ResponseWriter, r *http.Request){
		"it exits at once": func(m *mortal, _ http.ResponseWriter, _ *http.Request) { m.exit() },
		"it exits after a while": func(m *mortal, _ http.ResponseWriter, _ *http.Request) {
			time.Sleep(3 * time.Second)
			m.exit()
		},
		"it exits after the head of its answer": func(m *mortal, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			fail(w, 200, ": wait\n\n")
			m.exit()
		},
		"it fails the request, and exits": func(m *mortal, w http.ResponseWriter, _ *http.Request) {
			fail(w, 500, `{"error":{"message":"Internal Server Error"}}`)
			m.exit()
		},
		"it fails the request, and its frontend lives on, not well": func(m *mortal, w http.ResponseWriter, _ *http.Request) {
			m.dead.Store(true)
			fail(w, 500, `{"error":{"message":"Internal Server Error"}}`)
		},
		"it fails the request with status 200, and is not well": func(m *mortal, w http.ResponseWriter, _ *http.Request) {
			m.dead.Store(true)
			fail(w, 200, `{"error":{"message":"generation failed","type":"server_error"}}`)
		},
		"it says that it has died, and is well again": func(m *mortal, w http.ResponseWriter, _ *http.Request) {
			fail(w, 500, `{"error":{"message":"EngineCore encountered an issue. See stack trace (above) for the root cause.","type":"InternalServerError","code":500}}`)
			m.dead.Store(true)
			time.AfterFunc(10*time.Second, func() { m.dead.Store(false) })
		},
		"its runner dies behind it": func(m *mortal, w http.ResponseWriter, _ *http.Request) {
			m.dead.Store(true)
			fail(w, 500, `{"error":"model runner has unexpectedly stopped, this may be due to resource limitations or an internal error"}`)
		},
		"it fails the request, and exits after a while": func(m *mortal, w http.ResponseWriter, _ *http.Request) {
			time.AfterFunc(500*time.Millisecond, func() {
				m.dead.Store(true)
				m.Kill()
			})
			fail(w, 500, `{"error":{"message":"Internal Server Error"}}`)
		},
		"the worker dies with it": func(m *mortal, _ http.ResponseWriter, _ *http.Request) {
			time.Sleep(10 * time.Millisecond)
			m.dead.Store(true)
			m.w.Kill(m.Engine)
			panic(http.ErrAbortHandler)
		},
		"some of each": func(m *mortal, w http.ResponseWriter, _ *http.Request) {
			if m.Engine.URL < "http://3" {
				m.exit()
			}
			m.dead.Store(true)
			fail(w, 500, `{"error":{"message":"CUDA error"}}`)
		},
	} {
		for _, stream := range []bool{false, true} {
			if raceEnabled && (stream || !strings.HasPrefix(about, "it fails")) {
				continue
			}
			t.Run(fmt.Sprintf("%s, stream %t", about, stream), func(t *testing.T) {
				run(t, func(t *testing.T, env *Env) {
					g := env.Gateway(gateway.Config{})
					ms := make([]*mortal, fleet)
					for i := range ms {
						m := &mortal{die: die}
						name := fmt.Sprint(i)
						m.Engine = env.Handler(name, m)
						m.w = env.Worker(m.Engine, worker.Config{Name: name, Slots: 4, Dialect: engine.DialectVLLM})
						ms[i] = m
					}
					g.Serves(t, "m")
					r := ask(t, g, fmt.Sprintf(`{"model":"m","stream":%t,"messages":[{"role":"user","content":"poison"}]}`, stream), "")
					if r.status < 500 || r.header.Get("X-Should-Retry") != "false" {
						t.Errorf("got %d, x-should-retry %q: %s", r.status, r.header.Get("X-Should-Retry"), r.body)
					}
					died := 0
					for _, m := range ms {
						if m.dead.Load() {
							died++
						}
					}
					if died != 2 {
						t.Errorf("%d engines died, want 2", died)
					}
					s, err := env.JetStream().Stream(t.Context(), subjects.DeadStream)
					if err != nil {
						t.Fatal(err)
					}
					letter, err := s.GetLastMsgForSubject(t.Context(), subjects.Dead("standard", "m"))
					if err != nil {
						t.Fatalf("no dead letter: %v", err)
					}
					if h := letter.Header[subjects.HeaderHistory]; len(h) != 2 || !strings.HasPrefix(h[0], "attempt 1, worker ") || !strings.HasPrefix(h[1], "attempt 2, worker ") {
						t.Errorf("the history of the attempts is %q", h)
					}
					time.Sleep(5 * time.Second)
					var asking sync.WaitGroup
					for range 20 { // the others go on
						asking.Go(func() {
							if r := ask(t, g, chat("m", false, 5), ""); r.status != 200 {
								t.Errorf("afterwards: %d %s", r.status, r.body)
							}
						})
					}
					asking.Wait()
				})
			})
		}
	}
}
