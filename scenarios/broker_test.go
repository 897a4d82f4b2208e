package scenarios

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/subjects"
)

// A broker that loses the messages in its memory loses no request: the gateway holds them too.
func TestBrokerRestarts(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		cfg := slow("a")
		cfg.Slots = 1
		g, e, _ := pair(t, env, cfg)
		var wg sync.WaitGroup
		replies := make([]reply, 4)
		for i := range replies {
			wg.Go(func() { replies[i] = ask(t, g, chat("m", false, 50), "") })
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(time.Second)
		env.StopBroker()
		time.Sleep(3 * time.Second)
		env.StartBroker()
		wg.Wait()
		for i, r := range replies {
			if r.status != 200 || words(content(t, r.body)) != 50 {
				t.Errorf("reply %d: %d %q", i, r.status, r.body)
			}
		}
		t.Logf("engine asked %d times for %d requests", e[0].Stats().Received, len(replies))
		emptyQueues(t, env)
	})
}

func TestBrokerAwayIsReported(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, es, _ := pair(t, env, slow("a"))
		env.StopBroker()
		time.Sleep(time.Second)
		if r := get(t, g, "http://admin/readyz"); r.status != 503 || !strings.Contains(r.body, "no connection to the broker") {
			t.Errorf("readyz: %d %s", r.status, r.body)
		}
		r := ask(t, g, chat("m", false, 5), "")
		if r.status != 503 || !strings.Contains(r.body, "queue_unavailable") || r.header.Get("Retry-After") == "" {
			t.Errorf("got %d %q", r.status, r.body)
		}
		if r.took < 10*time.Second || r.took > 20*time.Second {
			t.Errorf("gave up after %v, want about 15s: a broker's leader may be gone for 7s", r.took)
		}
		env.StartBroker()
		time.Sleep(2 * time.Second)
		if n := es[0].Stats().Received; n != 0 {
			t.Errorf("the engine was asked %d times for a request that was refused", n)
		}
		if r := ask(t, g, chat("m", false, 5), ""); r.status != 200 {
			t.Errorf("afterwards: %d %q", r.status, r.body)
		}
	})
}

// A client that disconnects while its request is on the way to the broker leaves nothing behind
// that would take another request's place.
func TestClientGoneWhilePublishing(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		cfg := slow("a")
		cfg.Slots = 1
		g, es, _ := pair(t, env, cfg)
		busy, free := context.WithCancel(t.Context())
		defer free()
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { drain(post(busy, g, "/v1/chat/completions", chat("m", true, 1000), "")) })
		time.Sleep(time.Second)
		for _, timeout := range []string{"", "0.0004"} { // it disconnects by itself, or its deadline passes
			ctx, leave := context.WithCancel(t.Context())
			g.Link.Freeze()
			wg.Go(func() {
				drain(post(ctx, g, "/v1/chat/completions", chat("m", false, 5), "", "x-request-timeout", cmp.Or(timeout, "60")))
			})
			time.Sleep(100 * time.Millisecond)
			leave()
			time.Sleep(100 * time.Millisecond)
			g.Link.Thaw()
			time.Sleep(time.Second)
			s, err := env.JetStream().Stream(t.Context(), subjects.ReqStream("standard"))
			if err != nil {
				t.Fatal(err)
			}
			if n := s.CachedInfo().State.Msgs; n != 1 { // the running one
				t.Errorf("timeout %q: %d messages in the queue, want 1", timeout, n)
			}
		}
		free()
		idle(t, es[0], time.Second)
		if n := es[0].Stats().Received; n != 1 {
			t.Errorf("the engine was asked %d times, want once", n)
		}
	})
}

// A broker that acks late, or not at all, is sent the same message again, and stores it once.
func TestBrokerAcksLate(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		g, es, _ := pair(t, env, slow("a"))
		for _, late := range []time.Duration{time.Second, 5 * time.Second} {
			before := es[0].Stats().Received
			g.Link.Freeze()
			time.AfterFunc(late, g.Link.Thaw)
			r := ask(t, g, chat("m", false, 5), "")
			if r.status != 200 || words(content(t, r.body)) != 5 {
				t.Errorf("%v late: got %d %q", late, r.status, r.body)
			}
			if n := es[0].Stats().Received - before; n != 1 {
				t.Errorf("%v late: the engine was asked %d times, want once", late, n)
			}
			emptyQueues(t, env)
		}
	})
}

// A PubAck that arrives twice, for example from the old and the new leader of a stream, belongs to
// its own message only: another message, on its way at the time, is still removed when its client
// disconnects.
func TestBrokerAcksTwice(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		cfg := slow("a")
		cfg.Slots = 1
		g, es, _ := pair(t, env, cfg)
		nc, _ := env.Connect("a second leader")
		acks, err := nc.SubscribeSync("pulley.gw.*.stored.>")
		if err != nil {
			t.Fatal(err)
		}
		nc.Flush() // the broker has the subscription before the first ack
		var wg sync.WaitGroup
		defer wg.Wait()
		ctx, end := context.WithCancel(t.Context())
		defer end()
		send := func(ctx context.Context) {
			wg.Go(func() { drain(post(ctx, g, "/v1/chat/completions", chat("m", false, 1000), "")) })
			time.Sleep(time.Second)
		}
		send(ctx)
		ack, err := acks.NextMsg(time.Second)
		if err != nil {
			t.Fatal(err)
		}
		gone, leave := context.WithCancel(ctx)
		g.Link.Freeze()
		send(gone)
		if err := nc.Publish(ack.Subject, ack.Data); err != nil {
			t.Fatal(err)
		}
		nc.Flush()
		g.Link.Thaw()
		time.Sleep(time.Second)
		leave()
		time.Sleep(time.Second)
		s, err := env.JetStream().Stream(t.Context(), subjects.ReqStream("standard"))
		if err != nil {
			t.Fatal(err)
		}
		if n := s.CachedInfo().State.Msgs; n != 1 {
			t.Errorf("%d messages in the queue, want that of the client that stays", n)
		}
		if n := es[0].Stats().Received; n != 1 {
			t.Errorf("the engine was asked %d times, want once", n)
		}
	})
}

// A broker that cannot store a message says so, and the client gets that error.
func TestBrokerIsFull(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		g, es, _ := pair(t, env, slow("a"))
		js := env.JetStream()
		s, err := js.Stream(t.Context(), subjects.ReqStream("standard"))
		if err != nil {
			t.Fatal(err)
		}
		cfg := s.CachedInfo().Config
		cfg.MaxMsgs = 1
		if _, err := js.UpdateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() {
			if r := ask(t, g, chat("m", false, 50), ""); r.status != 200 {
				t.Errorf("the first: %d %q", r.status, r.body)
			}
		})
		time.Sleep(time.Second)
		r := ask(t, g, chat("m", false, 5), "")
		if r.status != 429 || !strings.Contains(r.body, "queue_full") || r.header.Get("Retry-After") == "" {
			t.Errorf("the second: got %d %q, want 429 queue_full", r.status, r.body)
		}
		if r.took > time.Second {
			t.Errorf("the second: refused after %v, want at once", r.took)
		}
		if n := es[0].Stats().Received; n != 1 {
			t.Errorf("the engine was asked %d times, want once", n)
		}
	})
}

// A follow-up whose message in the home lane is acked late moves to another lane only when it is
// known which message to remove.
func TestBrokerAcksAHomeLaneLate(t *testing.T) {
	for _, late := range []time.Duration{2500 * time.Millisecond, 6 * time.Second} {
		t.Run(late.String(), func(t *testing.T) {
			runBoth(t, func(t *testing.T, env *Env) {
				g, es, _ := pair(t, env, slow("a"), slow("b"))
				follow := func() reply { return ask(t, g, chat("m", false, 50), "", "X-Session-Id", "s") }
				if r := follow(); r.status != 200 {
					t.Fatalf("the first: %d %q", r.status, r.body)
				}
				time.Sleep(2 * time.Second)
				before := es[0].Stats().Received + es[1].Stats().Received
				g.Link.Freeze()
				time.AfterFunc(late, g.Link.Thaw)
				if r := follow(); r.status != 200 || words(content(t, r.body)) != 50 {
					t.Errorf("the follow-up: %d %q", r.status, r.body)
				}
				// Its worker may give up an attempt whose gateway was silent for that long.
				if n := es[0].Stats().Received + es[1].Stats().Received - before; n > 2 {
					t.Errorf("the engines were asked %d times, want once, or twice", n)
				}
				time.Sleep(2 * time.Second)
				emptyQueues(t, env)
			})
		})
	}
}

// A broker that does not answer does not keep a client waiting past its deadline.
func TestDeadlineWithASilentBroker(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		g, _, _ := pair(t, env, slow("a"))
		g.Link.Freeze()
		time.AfterFunc(10*time.Second, g.Link.Thaw)
		var wg sync.WaitGroup
		for _, deadline := range []time.Duration{300 * time.Millisecond, 2 * time.Second, 2500 * time.Millisecond, 5 * time.Second} {
			wg.Go(func() {
				r := ask(t, g, chat("m", false, 5), "", "x-request-timeout", deadline.String())
				if r.status != 504 || r.took < deadline || r.took > deadline+10*time.Millisecond {
					t.Errorf("got %d after %v, want 504 after %v", r.status, r.took, deadline)
				}
			})
		}
		wg.Wait()
		time.Sleep(8 * time.Second)
		emptyQueues(t, env)
	})
}

// A gateway that was away for so long that the workers took it for gone serves again when it is back, with the workers that
// it had.
func TestGatewayComesBackAfterItWasGone(t *testing.T) {
	for _, away := range []time.Duration{2 * time.Second, 15 * time.Second, 2 * time.Minute} {
		for what, leave := range map[string]func(*Gateway) (back func()){
			"it loses its connection": func(g *Gateway) func() { g.Link.Cut(true); return g.Link.Mend },
			"it is frozen":            func(g *Gateway) func() { g.Link.Freeze(); return g.Link.Thaw },
		} {
			t.Run(what+" for "+away.String(), func(t *testing.T) {
				run(t, func(t *testing.T, env *Env) {
					g, _, _ := pair(t, env, slow("a"))
					var wg sync.WaitGroup
					wg.Go(func() { ask(t, g, chat("m", true, 30), "") })
					time.Sleep(time.Second)
					back := leave(g)
					time.Sleep(away)
					back()
					wg.Wait()
					time.Sleep(2 * time.Second)
					for range 5 {
						if r := ask(t, g, chat("m", true, 5), ""); r.status != 200 || words(content(t, r.body)) != 5 || r.took > 2*time.Second {
							t.Errorf("afterwards: %d after %v %q", r.status, r.took, r.body)
						}
					}
				})
			})
		}
	}
}

// A running stream outlives the broker: what was lost on the way is sent again, and no request is run twice. For an engine
// that goes on, it makes no difference which of the three loses its connection, or whether the broker has restarted.
func TestStreamsOutliveTheBroker(t *testing.T) {
	const streams, tokens = 6, 120 // 12 s
	for about, away := range map[string]func(env *Env, g *Gateway, w *Worker){
		"restart at once":   func(env *Env, _ *Gateway, _ *Worker) { env.StopBroker(); env.StartBroker() },
		"restart after 1 s": func(env *Env, _ *Gateway, _ *Worker) { env.StopBroker(); time.Sleep(time.Second); env.StartBroker() },
		"restart after 5 s": func(env *Env, _ *Gateway, _ *Worker) {
			env.StopBroker()
			time.Sleep(5 * time.Second)
			env.StartBroker()
		},
		"restart after 30 s": func(env *Env, _ *Gateway, _ *Worker) {
			env.StopBroker()
			time.Sleep(30 * time.Second)
			env.StartBroker()
		},
		"three restarts": func(env *Env, _ *Gateway, _ *Worker) {
			for range 3 {
				env.StopBroker()
				time.Sleep(300 * time.Millisecond)
				env.StartBroker()
				time.Sleep(1700 * time.Millisecond)
			}
		},
		"the worker's node fails":         func(_ *Env, _ *Gateway, w *Worker) { w.Link.Cut(false) },
		"the gateway's node fails":        func(_ *Env, g *Gateway, _ *Worker) { g.Link.Cut(false) },
		"the worker reconnects after 1 s": func(_ *Env, _ *Gateway, w *Worker) { w.Link.Cut(true); time.Sleep(time.Second); w.Link.Mend() },
		"the gateway reconnects after 0.4 s": func(_ *Env, g *Gateway, _ *Worker) {
			g.Link.Cut(true)
			time.Sleep(400 * time.Millisecond)
			g.Link.Mend()
		},
		"both lose their connections, twice": func(_ *Env, g *Gateway, w *Worker) {
			w.Link.Cut(false)
			g.Link.Cut(false)
			time.Sleep(time.Second)
			g.Link.Cut(false)
			w.Link.Cut(false)
		},
	} {
		t.Run(about, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				cfg := slow("a")
				cfg.Slots = streams
				g, es, ws := pair(t, env, cfg)
				replies := make([]reply, streams)
				var wg sync.WaitGroup
				for i := range replies {
					wg.Go(func() { replies[i] = ask(t, g, chat("m", true, tokens), "") })
					time.Sleep(7 * time.Millisecond)
				}
				time.Sleep(time.Second)
				away(env, g, ws[0])
				wg.Wait()
				for i, r := range replies {
					if r.status != 200 || words(content(t, r.body)) != tokens || !strings.Contains(r.body, "[DONE]") {
						t.Errorf("stream %d: %d, %d words, ends with %q", i, r.status, words(content(t, r.body)), r.body[max(0, len(r.body)-200):])
					}
				}
				if s := es[0].Stats(); s.Received != streams || s.Aborted != 0 {
					t.Errorf("the engine was asked %d times for %d streams, and %d were aborted", s.Received, streams, s.Aborted)
				}
				emptyQueues(t, env)
			})
		})
	}
}

// After an outage the parts do not come back at the same time. Answers that ended meanwhile, and those that go on, are complete
// as soon as both ends are there.
func TestPartsComeBackOneAfterTheOther(t *testing.T) {
	for _, c := range []struct {
		gateway, worker time.Duration // how long each is away
		tokens          []int         // 3 s and 5 s: they end meanwhile
	}{
		{6 * time.Second, 6 * time.Second, []int{30, 30, 50, 300}},
		{6 * time.Second, 7 * time.Second, []int{30, 30, 50, 300}}, {6 * time.Second, 7800 * time.Millisecond, []int{30, 30, 50, 300}},
		{7 * time.Second, 6 * time.Second, []int{30, 50, 300}}, {14 * time.Second, 5 * time.Second, []int{30, 50, 300}},
		{6 * time.Second, 7800 * time.Millisecond, []int{30, 50}},
		{7 * time.Second, 6 * time.Second, []int{30, 50}}, {9 * time.Second, 6 * time.Second, []int{30, 50}},
		{12 * time.Second, 6 * time.Second, []int{30, 50}}, {14 * time.Second, 5 * time.Second, []int{30, 40}},
	} {
		if raceEnabled && len(c.tokens) != 2 {
			continue
		}
		t.Run(fmt.Sprintf("gateway after %v, worker after %v, %v tokens", c.gateway, c.worker, c.tokens), func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				cfg := slow("a")
				cfg.Slots = 8
				g, es, ws := pair(t, env, cfg)
				type ended struct {
					reply
					at time.Time
				}
				replies := make([]ended, len(c.tokens))
				var wg sync.WaitGroup
				for i := range replies {
					wg.Go(func() {
						replies[i].reply = ask(t, g, chat("m", i > 0, c.tokens[i]), "")
						replies[i].at = time.Now()
					})
				}
				time.Sleep(time.Second)
				g.Link.Cut(true)
				ws[0].Link.Cut(true)
				back := time.Now().Add(max(c.gateway, c.worker))
				time.AfterFunc(c.gateway, g.Link.Mend)
				time.AfterFunc(c.worker, ws[0].Link.Mend)
				wg.Wait()
				for i, r := range replies {
					if r.status != 200 || words(content(t, r.body)) != c.tokens[i] {
						t.Errorf("reply %d: %d, %d words, ends with %q", i, r.status, words(content(t, r.body)), r.body[max(0, len(r.body)-200):])
					}
					if late := r.at.Sub(back); c.tokens[i] <= 50 && late > 1500*time.Millisecond {
						t.Errorf("reply %d came %v after both were back", i, late)
					}
				}
				if s := es[0].Stats(); int(s.Received) != len(c.tokens) {
					t.Errorf("the engine was asked %d times for %d requests", s.Received, len(c.tokens))
				}
				emptyQueues(t, env)
			})
		})
	}
}
