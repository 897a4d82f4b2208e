package scenarios

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/worker"
)

func get(t testing.TB, g *Gateway, url string) reply {
	t.Helper()
	resp, err := g.Client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return reply{status: resp.StatusCode, header: resp.Header, body: string(b), err: err}
}

func TestDrainingWorker(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		g, es, ws := pair(t, env, slow("a"))
		var got reply
		var wg sync.WaitGroup
		wg.Go(func() { got = ask(t, g, chat("m", true, 100), "") })
		time.Sleep(time.Second)
		wg.Go(func() { ws[0].Stop() })
		time.Sleep(time.Second)
		eb := env.Engine(slow("b"))
		env.Worker(eb, worker.Config{Name: "b", Slots: 4})
		time.Sleep(2 * time.Second)
		for range 3 {
			if r := ask(t, g, chat("m", false, 1), ""); r.status != 200 || r.header.Get("x-sim-name") != "b" {
				t.Errorf("got %d by %s, want b alone to take new requests", r.status, r.header.Get("x-sim-name"))
			}
		}
		wg.Wait()
		if got.status != 200 || words(content(t, got.body)) != 100 {
			t.Errorf("the draining worker's request: %d, %d words", got.status, words(content(t, got.body)))
		}
		if s := es[0].Stats(); s.Aborted != 0 {
			t.Errorf("%d aborted", s.Aborted)
		}
	})
}

// What a worker cannot finish before its drain ends is done elsewhere, if the client has not
// received a byte of it.
func TestDrainEnds(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		ea, eb := env.Engine(slow("a")), env.Engine(slow("b"))
		wa := env.Worker(ea, worker.Config{Name: "a", Slots: 4, DrainTimeout: 5 * time.Second})
		g.Serves(t, "m")
		var plain, stream reply
		var wg sync.WaitGroup
		wg.Go(func() { plain = ask(t, g, chat("m", false, 200), "") })
		wg.Go(func() { stream = ask(t, g, chat("m", true, 200), "") })
		time.Sleep(time.Second)
		env.Worker(eb, worker.Config{Name: "b", Slots: 4})
		time.Sleep(time.Second)
		if err := wa.Stop(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if plain.status != 200 || plain.header.Get("x-sim-name") != "b" || words(content(t, plain.body)) != 200 {
			t.Errorf("plain: %d by %s", plain.status, plain.header.Get("x-sim-name"))
		}
		if !strings.Contains(stream.body, "upstream_lost") || strings.Contains(stream.body, "[DONE]") {
			t.Errorf("the stream had started, and ends with %q", stream.body[max(0, len(stream.body)-100):])
		}
	})
}

// A worker that leaves has published the last frames of its streams before it says so. The gateway gets both at once,
// through two subscriptions between which there is no order, and has to read many frames.
func TestLastFramesBeforeAWorkerLeaves(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		const drains, streams, tokens = 20, 8, 600
		g := env.Gateway(gateway.Config{})
		broken := 0
		for range drains {
			e := env.Engine(sim.Config{Name: "a", Models: []string{"m"}, Slots: streams, PrefillRate: 1e6, ITLBase: time.Millisecond})
			w := env.Worker(e, worker.Config{Name: "a", Slots: streams})
			g.Serves(t, "m")
			replies := make([]reply, streams)
			var wg sync.WaitGroup
			for i := range replies {
				wg.Go(func() { replies[i] = ask(t, g, chat("m", true, tokens), "") })
			}
			time.Sleep(100 * time.Millisecond)
			g.Link.Freeze() // shorter than it takes for the worker to count as dead
			if err := w.Stop(); err != nil {
				t.Error(err)
			}
			time.Sleep(100 * time.Millisecond)
			g.Link.Thaw()
			wg.Wait()
			for _, r := range replies {
				if r.status != 200 || r.err != nil || words(content(t, r.body)) != tokens || !strings.Contains(r.body, "[DONE]") {
					broken++
				}
			}
		}
		if broken > 0 {
			t.Errorf("%d of %d streams that were whole broke in %d drains", broken, drains*streams, drains)
		}
	})
}

// What a worker has not ended when it says that it has left never ends: the attempt fails at once.
func TestAWorkerLeavesInTheMiddleOfAStream(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		g, _, ws := pair(t, env, slow("a"))
		var got reply
		var wg sync.WaitGroup
		wg.Go(func() { got = ask(t, g, chat("m", true, 100), "") }) // 10 s
		time.Sleep(time.Second)
		nc, _ := env.Connect("liar")
		nc.Publish(subjects.Heartbeats(ws[0].ID()), subjects.MustMarshal(subjects.Heartbeat{Worker: ws[0].ID(), Name: "a", State: subjects.Left}))
		left := time.Now()
		wg.Wait()
		if d := time.Since(left); d > 100*time.Millisecond || !strings.Contains(got.body, "upstream_lost") || strings.Contains(got.body, "[DONE]") {
			t.Errorf("after %v it ends with %q", d, got.body[max(0, len(got.body)-200):])
		}
	})
}

func TestRollingRestart(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		g, es, ws := pair(t, env, slow("a"), slow("b"), slow("c"))
		var wg sync.WaitGroup
		var mu sync.Mutex
		var bad []string
		n := 0
		ctx, stop := context.WithCancel(t.Context())
		for i := range 6 {
			wg.Go(func() {
				for ctx.Err() == nil {
					r := ask(t, g, chat("m", i%2 == 0, 10), "")
					mu.Lock()
					n++
					if r.status != 200 || r.err != nil || words(content(t, r.body)) != 10 {
						bad = append(bad, fmt.Sprintf("%d %q %v", r.status, r.body, r.err))
					}
					mu.Unlock()
				}
			})
		}
		for i := range ws {
			time.Sleep(5 * time.Second)
			ws[i].Stop()
			env.Worker(es[i], worker.Config{Name: es[i].Stats().Name, Slots: 4})
		}
		time.Sleep(5 * time.Second)
		stop()
		wg.Wait()
		if len(bad) > 0 {
			t.Errorf("%d of %d failed, first %s", len(bad), n, bad[0])
		}
		for _, e := range es {
			if s := e.Stats(); s.Aborted > 0 {
				t.Errorf("%s: %d aborted", s.Name, s.Aborted)
			}
		}
		emptyQueues(t, env)
	})
}

func TestGatewayStops(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		g, _, _ := pair(t, env, slow("a"))
		var got reply
		var wg sync.WaitGroup
		wg.Go(func() { got = ask(t, g, chat("m", true, 50), "") })
		time.Sleep(time.Second)
		if err := g.Stop(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if got.status != 200 || words(content(t, got.body)) != 50 || !strings.Contains(got.body, "[DONE]") {
			t.Errorf("got %d, %d words", got.status, words(content(t, got.body)))
		}
		if _, err := post(t.Context(), g, "/v1/chat/completions", chat("m", true, 1), ""); err == nil {
			t.Error("a stopped gateway answers")
		}
	})
}

// A connection without any request, such as browsers open in advance, does not hold up a gateway
// that stops.
func TestGatewayStopsWithASilentClient(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, _, _ := pair(t, env, slow("a"))
		c, err := g.Listener.DialContext(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		time.Sleep(100 * time.Millisecond)
		began := time.Now()
		if err := g.Stop(); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("stopped after %v, want within 2s", took)
		}
	})
}

func TestGatewayStopsHard(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{DrainTimeout: 3 * time.Second})
		e := env.Engine(slow("a"))
		env.Worker(e, worker.Config{Name: "a", Slots: 1})
		g.Serves(t, "m")
		var running, waiting reply
		var wg sync.WaitGroup
		wg.Go(func() { running = ask(t, g, chat("m", true, 500), "") })
		time.Sleep(100 * time.Millisecond)
		wg.Go(func() { waiting = ask(t, g, chat("m", false, 500), "") })
		time.Sleep(time.Second)
		g.Stop()
		wg.Wait()
		if !strings.Contains(running.body, "gateway_stopping") || strings.Contains(running.body, "[DONE]") {
			t.Errorf("running: ends with %q", running.body[max(0, len(running.body)-200):])
		}
		if waiting.status != 503 || !strings.Contains(waiting.body, "gateway_stopping") {
			t.Errorf("waiting: %d %q", waiting.status, waiting.body)
		}
		idle(t, e, time.Second)
	})
}
