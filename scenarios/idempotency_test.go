package scenarios

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/idempotency"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// withIdempotency starts a gateway that obeys Idempotency-Key.
func withIdempotency(t *testing.T, env *Env, cfg idempotency.Config) *Gateway {
	t.Helper()
	nc, link := env.Connect("gateway")
	s, err := idempotency.New(cfg, nc)
	if err != nil {
		t.Fatal(err)
	}
	return env.gatewayAt(nc, link, gateway.Config{Services: []gateway.Service{s}})
}

// pairOfGateways starts two such gateways and a worker, and returns the engine.
func pairOfGateways(t *testing.T, env *Env, cfg idempotency.Config) (g1, g2 *Gateway, e *testenv.Engine) {
	t.Helper()
	g1, g2 = withIdempotency(t, env, cfg), withIdempotency(t, env, cfg)
	e = env.Engine(slow("a"))
	env.Worker(e, worker.Config{Name: "a", Slots: 4})
	g1.Serves(t, "m")
	g2.Serves(t, "m")
	return g1, g2, e
}

// runsOf is how many requests an engine got since the last call.
func runsOf(e *testenv.Engine) func() int64 {
	before := e.Stats().Received
	return func() int64 {
		now := e.Stats().Received
		n := now - before
		before = now
		return n
	}
}

func isReplayed(a reply) bool { return a.header.Get("Idempotent-Replayed") == "true" }

// same checks that an answer is that of an earlier call.
func same(t testing.TB, about string, got, want reply) {
	t.Helper()
	if got.err != nil || got.status != want.status || got.body != want.body || got.header.Get("Content-Type") != want.header.Get("Content-Type") || !isReplayed(got) {
		t.Errorf("%s: %d, %q, replayed %t, %v: %.300s\nwant %d, %q: %.300s", about, got.status, got.header.Get("Content-Type"), isReplayed(got), got.err, got.body,
			want.status, want.header.Get("Content-Type"), want.body)
	}
}

// A request that is sent again with its Idempotency-Key gets the first one's answer, at any gateway, also when the first gateway is
// gone. Another request with that key is refused.
func TestIdempotencyKey(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		g1, g2, e := pairOfGateways(t, env, idempotency.Config{})
		runs := runsOf(e)
		for _, path := range []string{"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings"} {
			body := `{"model":"m","max_tokens":5,"prompt":"one two","input":"one two","messages":[{"role":"user","content":"one two"}]}`
			first := askAt(t, g1, path, body, "", "Idempotency-Key", path)
			if first.status != 200 || isReplayed(first) || runs() != 1 {
				t.Fatalf("%s: %d, replayed %t: %.300s", path, first.status, isReplayed(first), first.body)
			}
			same(t, path+" here", askAt(t, g1, path, body, "", "Idempotency-Key", path), first)
			same(t, path+" at another gateway", askAt(t, g2, path, body, "", "Idempotency-Key", path), first)
			for where, a := range map[string]reply{
				"body": askAt(t, g2, path, body+" ", "", "Idempotency-Key", path), "path": askAt(t, g1, "/v1/rerank", body, "", "Idempotency-Key", path),
			} {
				if a.status != 409 || !strings.Contains(a.body, "idempotency_key_reused") && path != "/v1/messages" || a.header.Get("X-Should-Retry") != "false" {
					t.Errorf("%s with another %s: %d %.300s", path, where, a.status, a.body)
				}
			}
			if n := runs(); n != 0 {
				t.Errorf("%s: %d runs more", path, n)
			}
		}
		// A stream that runs is joined, and is there as a whole afterwards.
		body := chat("m", true, 30)
		var first, joined reply
		var wg sync.WaitGroup
		wg.Go(func() { first = ask(t, g1, body, "", "Idempotency-Key", "s") })
		time.Sleep(time.Second)
		wg.Go(func() { joined = ask(t, g2, body, "", "Idempotency-Key", "s") })
		wg.Wait()
		if first.status != 200 || words(content(t, first.body)) != 30 || isReplayed(first) || !strings.Contains(first.body, "[DONE]") {
			t.Fatalf("first: %d %.300s", first.status, first.body)
		}
		same(t, "joined", joined, first)
		if joined.took > 4*time.Second {
			t.Errorf("the one that joined took %v", joined.took)
		}
		g1.Stop()
		same(t, "afterwards", ask(t, g2, body, "", "Idempotency-Key", "s"), first)
		if n := runs(); n != 1 {
			t.Errorf("%d runs", n)
		}
		if a := ask(t, g2, body, ""); a.status != 200 || runs() != 1 {
			t.Errorf("without a key: %d", a.status)
		}
		for about, keys := range map[string][]string{"empty": {""}, "blank": {" "}, "too long": {strings.Repeat("x", 256)}, "twice": {"a", "b"}} {
			header := []string{}
			for _, k := range keys {
				header = append(header, "Idempotency-Key", k)
			}
			if a := do(t, g2, "POST", "/v1/chat/completions", body, header...); a.status != 400 || !strings.Contains(a.body, "invalid_idempotency_key") {
				t.Errorf("%s: %d %.300s", about, a.status, a.body)
			}
		}
		if a := ask(t, g2, chat("m", false, 1), "", "Idempotency-Key", strings.Repeat("x", 255)); a.status != 200 {
			t.Errorf("the longest key: %d %.300s", a.status, a.body)
		}
	})
}

// The keys of a tenant are not those of another one.
func TestIdempotencyOfTenants(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g1, g2, e := pairOfGateways(t, env, idempotency.Config{})
		a, b := env.AddKey("acme"), env.AddKey("bee")
		time.Sleep(5 * time.Second)
		runs := runsOf(e)
		body := chat("m", false, 5)
		first := ask(t, g1, body, "", "Idempotency-Key", "k", "X-Api-Key", a)
		if second := ask(t, g2, body, "", "Idempotency-Key", "k", "X-Api-Key", b); second.status != 200 || isReplayed(second) {
			t.Errorf("another tenant: %d %.300s", second.status, second.body)
		}
		if other := ask(t, g1, chat("m", false, 6), "", "Idempotency-Key", "l", "X-Api-Key", b); other.status != 200 {
			t.Errorf("%d %.300s", other.status, other.body)
		}
		same(t, "the same tenant", ask(t, g2, body, "", "Idempotency-Key", "k", "X-Api-Key", a), first)
		if n := runs(); n != 3 {
			t.Errorf("%d runs, want 3", n)
		}
		if none := ask(t, g2, body, "", "Idempotency-Key", "k"); none.status != 401 {
			t.Errorf("without a key: %d %.300s", none.status, none.body)
		}
	})
}

// What is no answer is not kept: the next request with the key runs, whatever it asks for.
func TestIdempotencyOfErrors(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g1, g2, e := pairOfGateways(t, env, idempotency.Config{})
		for about, orders := range map[string]string{"an error": "fail=400", "a stream that breaks": "cut-after=5"} {
			stream := about != "an error"
			failed := ask(t, g1, chat("m", stream, 20), orders, "Idempotency-Key", about)
			if failed.status == 200 && !strings.Contains(failed.body, `"error"`) {
				t.Fatalf("%s: %d %.300s", about, failed.status, failed.body)
			}
			runs := runsOf(e)
			if a := ask(t, g2, chat("m", stream, 20), "", "Idempotency-Key", about); a.status != 200 || isReplayed(a) || words(content(t, a.body)) != 20 || runs() != 1 {
				t.Errorf("after %s: %d %.300s", about, a.status, a.body)
			}
		}
		if a := ask(t, g1, chat("nosuch", false, 1), "", "Idempotency-Key", "n"); a.status != 404 || !strings.Contains(a.body, "model_not_found") {
			t.Errorf("%d %.300s", a.status, a.body)
		}
		if a := ask(t, g2, chat("m", false, 1), "", "Idempotency-Key", "n"); a.status != 200 {
			t.Errorf("after a refusal: %d %.300s", a.status, a.body)
		}
		time.Sleep(10 * time.Second)                                       // what is not kept stays for a moment
		if n := storedMessages(t, env, "PULLEY_IDEMPOTENCY_USE"); n != 4 { // three answers, of which one is longer than a unit
			t.Errorf("%d units count, want 4", n)
		}
	})
}

func storedMessages(t testing.TB, env *Env, stream string) uint64 {
	t.Helper()
	s, err := env.JetStream().Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().State.Msgs
}

// open sends a request and returns when its answer has begun.
func open(t testing.TB, g *Gateway, body string, header ...string) (lines *bufio.Scanner, leave func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	resp, err := post(ctx, g, "/v1/chat/completions", body, "", header...)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body)
		t.Fatalf("%d %.300s", resp.StatusCode, b)
	}
	lines = bufio.NewScanner(resp.Body)
	lines.Scan()
	return lines, func() { cancel(); resp.Body.Close() }
}

// A request runs on when its first client leaves, while another one waits or comes soon. When nobody does, it is cancelled, and the
// key is free.
func TestIdempotencyClientLeaves(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g1, g2, e := pairOfGateways(t, env, idempotency.Config{})
		runs := runsOf(e)
		body := chat("m", true, 300) // 30 s
		_, leave := open(t, g1, body, "Idempotency-Key", "k")
		leave()
		time.Sleep(8 * time.Second)
		_, leave = open(t, g2, body, "Idempotency-Key", "k") // a retry within the grace
		time.Sleep(10 * time.Second)                         // for which it lives longer
		var joined reply
		var wg sync.WaitGroup
		wg.Go(func() { joined = ask(t, g2, body, "", "Idempotency-Key", "k") })
		time.Sleep(time.Second)
		leave()
		wg.Wait()
		if joined.status != 200 || words(content(t, joined.body)) != 300 || !isReplayed(joined) {
			t.Errorf("joined: %d %.500s", joined.status, joined.body)
		}
		if n := runs(); n != 1 {
			t.Errorf("%d runs, want 1", n)
		}
		_, leave = open(t, g1, body, "Idempotency-Key", "l")
		leave()
		time.Sleep(15 * time.Second)
		if n := e.Stats().Running; n != 0 {
			t.Errorf("%d requests run for nobody", n)
		}
		if a := ask(t, g2, chat("m", false, 5), "", "Idempotency-Key", "l"); a.status != 200 || isReplayed(a) {
			t.Errorf("a free key: %d %.300s", a.status, a.body)
		}
	})
}

// When the gateway that runs a request dies, its key is free: at once if its connection to the broker is closed, else when it has been
// silent for 10 s. If it comes back, its clients do not get the answer.
func TestIdempotencyGatewayDies(t *testing.T) {
	for name, strike := range map[string]func(g *Gateway){
		"gone": func(g *Gateway) { g.Link.Cut(true) }, "frozen": func(g *Gateway) { g.Link.Freeze() },
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g1, g2, _ := pairOfGateways(t, env, idempotency.Config{})
				body := chat("m", true, 100)
				var first, joined reply
				var wg sync.WaitGroup
				wg.Go(func() { first = ask(t, g1, body, "", "Idempotency-Key", "k") })
				time.Sleep(time.Second)
				wg.Go(func() { joined = ask(t, g2, body, "", "Idempotency-Key", "k") })
				time.Sleep(time.Second)
				strike(g1)
				began := time.Now()
				var again reply
				for {
					if again = ask(t, g2, body, "", "Idempotency-Key", "k"); again.err == nil && again.status == 200 {
						break
					}
					if time.Since(began) > 40*time.Second {
						t.Fatalf("%d %v %.300s", again.status, again.err, again.body)
					}
					time.Sleep(500 * time.Millisecond)
				}
				if words(content(t, again.body)) != 100 {
					t.Errorf("again: %.300s", again.body)
				}
				g1.Link.Thaw()
				g1.Link.Mend()
				wg.Wait()
				for about, a := range map[string]reply{"first": first, "joined": joined} {
					if strings.Contains(a.body, "[DONE]") {
						t.Errorf("%s: a whole answer beside the one that counts: %v %.300s", about, a.err, a.body)
					}
				}
				same(t, "afterwards", ask(t, g1, body, "", "Idempotency-Key", "k"), again)
			})
		})
	}
}

// A key expires, and everything that was stored of it. What there is no room for does not run.
func TestIdempotencyBounds(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, _, e := pairOfGateways(t, env, idempotency.Config{Keep: time.Minute, Store: 64 << 10, Tenant: 24 << 10, MaxAnswer: 2 << 10})
		body := chat("m", false, 5)
		first := ask(t, g, body, "", "Idempotency-Key", "k")
		time.Sleep(50 * time.Second)
		same(t, "within the window", ask(t, g, body, "", "Idempotency-Key", "k"), first)
		time.Sleep(11 * time.Second)
		if a := ask(t, g, chat("m", false, 6), "", "Idempotency-Key", "k"); a.status != 200 || isReplayed(a) {
			t.Errorf("after the window: %d %.300s", a.status, a.body)
		}
		for _, stream := range []bool{false, true} {
			a := ask(t, g, chat("m", stream, 400), "", "Idempotency-Key", "long")
			if !stream && (a.status != 507 || !strings.Contains(a.body, "idempotent_answer_too_large")) || stream && a.err == nil {
				t.Errorf("a long answer, stream %t: %d %v %.300s", stream, a.status, a.err, a.body)
			}
		}
		time.Sleep(6 * time.Second) // what is not kept counts for a moment
		runs := runsOf(e)
		full := 0
		for i := range 10 {
			a := ask(t, g, body, "", "Idempotency-Key", strings.Repeat("n", i+1))
			if a.status == 507 && strings.Contains(a.body, "idempotency_store_full") && a.header.Get("X-Should-Retry") == "false" {
				full++
			} else if a.status != 200 {
				t.Errorf("%d %.300s", a.status, a.body)
			}
		}
		if n := runs(); n != 5 || full != 5 {
			t.Errorf("%d ran and %d were refused, want 5 of each", n, full)
		}
		time.Sleep(2 * time.Minute)
		for _, name := range []string{"PULLEY_IDEMPOTENCY", "PULLEY_IDEMPOTENCY_USE"} {
			if n := storedMessages(t, env, name); n != 0 {
				t.Errorf("%s has %d messages", name, n)
			}
		}
	})
}

// The body of a call counts for the gateway's memory while the call waits for the broker, as it does without a key.
func TestIdempotencyBodyMemory(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		nc, link := env.Connect("gateway")
		s, err := idempotency.New(idempotency.Config{}, nc)
		if err != nil {
			t.Fatal(err)
		}
		g := env.gatewayAt(nc, link, gateway.Config{Services: []gateway.Service{s}, MaxBody: 200_000, BodyMemory: 300_000, BodyShare: 1})
		env.Worker(env.Engine(slow("a")), worker.Config{Name: "a", Slots: 4})
		g.Serves(t, "m")
		body := `{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"` + strings.Repeat("x ", 80_000) + `"}]}`
		if a := ask(t, g, body, "", "Idempotency-Key", "first"); a.status != 200 {
			t.Fatalf("%d %.300s", a.status, a.body)
		}
		link.Freeze()
		var waiting sync.WaitGroup
		waiting.Go(func() {
			if a := ask(t, g, body, "", "Idempotency-Key", "second"); a.status != 200 {
				t.Errorf("while the broker does not answer: %d %.300s", a.status, a.body)
			}
		})
		time.Sleep(2 * time.Second)
		wantError(t, ask(t, g, body, "", "Idempotency-Key", "third"), 429, "gateway_memory_full")
		link.Thaw()
		waiting.Wait()
		for i := range 4 { // nothing is left of them
			if a := ask(t, g, body, "", "Idempotency-Key", strings.Repeat("n", i+1)); a.status != 200 {
				t.Errorf("afterwards: %d %.300s", a.status, a.body)
			}
		}
	})
}

// A request that takes longer than its key is kept has an answer nevertheless.
func TestIdempotencyOfLongRequest(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, _, _ := pairOfGateways(t, env, idempotency.Config{Keep: time.Minute})
		if a := ask(t, g, chat("m", true, 700), "", "Idempotency-Key", "k"); a.status != 200 || a.err != nil || words(content(t, a.body)) != 700 {
			t.Errorf("%d %v %.300s", a.status, a.err, a.body)
		}
	})
}

// With the setting, retries of an SDK join the first request with the same body while it runs, and no other requests do.
func TestJoinRetries(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g1, g2, e := pairOfGateways(t, env, idempotency.Config{Retries: true})
		runs := runsOf(e)
		body := chat("m", true, 100)
		_, leave := open(t, g1, body, "X-Stainless-Retry-Count", "0")
		leave() // it waited too long
		time.Sleep(2 * time.Second)
		if a := ask(t, g2, body, "", "X-Stainless-Retry-Count", "1"); a.status != 200 || !isReplayed(a) || words(content(t, a.body)) != 100 {
			t.Errorf("the retry: %d %.300s", a.status, a.body)
		}
		if n := runs(); n != 1 {
			t.Errorf("%d runs, want 1", n)
		}
		var wg sync.WaitGroup
		for _, g := range []*Gateway{g1, g2, g1} { // first requests are their own, also if they are the same
			wg.Go(func() {
				if a := ask(t, g, body, "", "X-Stainless-Retry-Count", "0"); a.status != 200 || isReplayed(a) || words(content(t, a.body)) != 100 {
					t.Errorf("a first request: %d, replayed %t, %v, %d bytes: %.300s", a.status, isReplayed(a), a.err, len(a.body), a.body)
				}
			})
		}
		wg.Wait()
		if n := runs(); n != 3 {
			t.Errorf("%d runs, want 3", n)
		}
		if a := ask(t, g1, chat("m", false, 3), "", "X-Stainless-Retry-Count", "2"); a.status != 200 || isReplayed(a) || runs() != 1 {
			t.Errorf("a retry of what never came: %d %.300s", a.status, a.body)
		}
	})
}
