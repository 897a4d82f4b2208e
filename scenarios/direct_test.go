package scenarios

import (
	"bufio"
	"context"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/testenv"
)

// runDirect runs a test with workers that can reach gateways past the broker.
func runDirect(t *testing.T, test func(t *testing.T, env *Env)) {
	t.Helper()
	testenv.Run(t, func(t *testing.T, env *testenv.Env) { test(t, &Env{Env: env, t: t, direct: true}) })
}

// linkMessages counts the messages of links that go through the broker.
func linkMessages(t *testing.T, env *Env) *atomic.Int64 {
	t.Helper()
	nc, _ := env.Connect("observer")
	var n atomic.Int64
	if _, err := nc.Subscribe("pulley.gw.*.link.>", func(*nats.Msg) { n.Add(1) }); err != nil {
		t.Fatal(err)
	}
	nc.Flush()
	return &n
}

// Whatever becomes of a direct connection and of the broker, each stream has all its tokens, once and in order, and no request
// runs twice.
func TestDirectStreams(t *testing.T) {
	const streams, tokens = 6, 120 // 12 s
	for about, c := range map[string]struct {
		away func(env *Env, g *Gateway, w *Worker)
		most int64 // link messages through the broker
	}{
		"nothing happens":            {func(*Env, *Gateway, *Worker) {}, 8},
		"the connection breaks once": {func(_ *Env, g *Gateway, _ *Worker) { g.Direct.Cut() }, 1000},
		"it breaks again and again": {func(_ *Env, g *Gateway, _ *Worker) {
			for range 300 {
				g.Direct.Cut()
				time.Sleep(30 * time.Millisecond)
			}
		}, 2000},
		"it breaks, and the worker cannot reach the gateway any more": {func(env *Env, g *Gateway, _ *Worker) {
			env.ports.Clear()
			g.Direct.Cut()
		}, 2000},
		"the broker restarts after 5 s": {func(env *Env, _ *Gateway, _ *Worker) {
			env.StopBroker()
			time.Sleep(5 * time.Second)
			env.StartBroker()
		}, 8},
		"the broker restarts, and the connection breaks meanwhile": {func(env *Env, g *Gateway, _ *Worker) {
			env.StopBroker()
			time.Sleep(time.Second)
			g.Direct.Cut()
			time.Sleep(time.Second)
			env.StartBroker()
		}, 2000},
		"the gateway loses the broker for 0.4 s": {func(_ *Env, g *Gateway, _ *Worker) {
			g.Link.Cut(true)
			time.Sleep(400 * time.Millisecond)
			g.Link.Mend()
		}, 8},
	} {
		t.Run(about, func(t *testing.T) {
			runDirect(t, func(t *testing.T, env *Env) {
				cfg := slow("a")
				cfg.Slots = streams
				g, es, ws := pair(t, env, cfg)
				through := linkMessages(t, env)
				replies := make([]reply, streams)
				var wg sync.WaitGroup
				for i := range replies {
					wg.Go(func() { replies[i] = ask(t, g, chat("m", true, tokens), "") })
					time.Sleep(7 * time.Millisecond)
				}
				time.Sleep(time.Second)
				c.away(env, g, ws[0])
				wg.Wait()
				for i, r := range replies {
					if r.status != 200 || words(content(t, r.body)) != tokens || !strings.Contains(r.body, "[DONE]") {
						t.Errorf("stream %d: %d, %d words, ends with %q", i, r.status, words(content(t, r.body)), r.body[max(0, len(r.body)-200):])
					}
				}
				if s := es[0].Stats(); s.Received != streams || s.Aborted != 0 {
					t.Errorf("the engine was asked %d times for %d streams, and %d were aborted", s.Received, streams, s.Aborted)
				}
				if n := through.Load(); n > c.most {
					t.Errorf("%d link messages went through the broker, want at most %d", n, c.most)
				}
				emptyQueues(t, env)
			})
		})
	}
}

// A broker that is away does not stop the streams that go past it.
func TestDirectStreamsGoOnWithoutTheBroker(t *testing.T) {
	runDirect(t, func(t *testing.T, env *Env) {
		g, _, _ := pair(t, env, slow("a"))
		resp, err := post(t.Context(), g, "/v1/chat/completions", chat("m", true, 100), "")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		lines := bufio.NewReader(resp.Body)
		last, longest := time.Now(), time.Duration(0)
		for n := 0; ; n++ {
			line, err := lines.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(line, "data: [DONE]") {
				break
			}
			if n == 40 {
				env.StopBroker()
			}
			longest, last = max(longest, time.Since(last)), time.Now()
		}
		if longest > 300*time.Millisecond {
			t.Errorf("a token took %v", longest)
		}
		env.StartBroker()
	})
}

// A client that takes nothing holds up its own stream, not those of others on the same connection; and a client that goes
// away ends its own alone.
func TestDirectStreamsOfSlowAndGoneClients(t *testing.T) {
	runDirect(t, func(t *testing.T, env *Env) {
		cfg := slow("a")
		cfg.Slots = 4
		g, es, _ := pair(t, env, cfg)
		stuck, err := post(t.Context(), g, "/v1/chat/completions", chat("m", true, 40), "") // in memory, each write waits for the reader
		if err != nil {
			t.Fatal(err)
		}
		ctx, leave := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { drain(post(ctx, g, "/v1/chat/completions", chat("m", true, 200), "")) })
		time.AfterFunc(time.Second, leave)
		for range 2 {
			wg.Go(func() {
				if r := ask(t, g, chat("m", true, 50), ""); r.status != 200 || words(content(t, r.body)) != 50 || r.took > 8*time.Second {
					t.Errorf("beside it: %d after %v, %d words", r.status, r.took, words(content(t, r.body)))
				}
			})
		}
		wg.Wait()
		drain(stuck, nil)
		idle(t, es[0], time.Second)
		if s := es[0].Stats(); s.Received != 4 {
			t.Errorf("the engine was asked %d times", s.Received)
		}
	})
}

// A direct connection that is slower than the broker loses nothing: no list of what runs overtakes a claim.
func TestDirectConnectionIsLate(t *testing.T) {
	testenv.Run(t, func(t *testing.T, e *testenv.Env) {
		env := &Env{Env: e, t: t, direct: true, late: 200 * time.Millisecond}
		g, es, _ := pair(t, env, slow("a"))
		const requests = 40
		var wg sync.WaitGroup
		for range requests {
			wg.Go(func() {
				if r := ask(t, g, chat("m", true, 3), ""); r.status != 200 || words(content(t, r.body)) != 3 {
					t.Errorf("got %d %q", r.status, r.body)
				}
			})
			time.Sleep(330 * time.Millisecond)
		}
		wg.Wait()
		if s := es[0].Stats(); s.Received != requests || s.Aborted != 0 {
			t.Errorf("the engine was asked %d times for %d requests, %d were aborted", s.Received, requests, s.Aborted)
		}
	})
}

// Only the worker that was made an offer may use it, once.
func TestDirectConnectionsOfStrangers(t *testing.T) {
	runDirect(t, func(t *testing.T, env *Env) {
		g, _, ws := pair(t, env, slow("a"))
		nc, _ := env.Connect("observer")
		offers, err := nc.SubscribeSync("pulley.wk.*.*.direct")
		if err != nil {
			t.Fatal(err)
		}
		nc.Flush()
		refuse := func(about string, hello any) {
			t.Helper()
			c, err := g.Direct.DialContext(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(20 * time.Second))
			if b, ok := hello.([]byte); ok {
				_, err = c.Write(b)
			} else {
				_, err = c.Write(subjects.Direct(hello))
			}
			if err == nil {
				_, err = subjects.ReadDirect(c, 1<<10)
			}
			if e, ok := err.(net.Error); err == nil || ok && e.Timeout() {
				t.Errorf("%s: %v, want a closed connection", about, err)
			}
		}
		refuse("nothing is said", []byte{})
		refuse("a length beyond all bounds", []byte{0xff, 0xff, 0xff, 0xff, 1})
		refuse("no JSON", append([]byte{0, 0, 0, 3}, "abc"...))
		refuse("no offer", subjects.DirectHello{Offer: "00", Worker: ws[0].ID(), Proof: []byte("x")})
		env.ports.Clear() // the worker does not come
		if r := ask(t, g, chat("m", true, 5), ""); r.status != 200 {
			t.Fatalf("got %d %s", r.status, r.body)
		}
		m, err := offers.NextMsgWithContext(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var o subjects.DirectOffer
		if err := subjects.Unmarshal(m.Data, &o); err != nil {
			t.Fatal(err)
		}
		refuse("another worker", subjects.DirectHello{Offer: o.Offer, Worker: "other.1", Proof: subjects.WorkerProof(o.Secret, "other.1")})
		refuse("the offer is gone with that", subjects.DirectHello{Offer: o.Offer, Worker: ws[0].ID(), Proof: subjects.WorkerProof(o.Secret, ws[0].ID())})
	})
}
