package scenarios

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// standing is what the headers of an answer report about a limit.
func standing(t testing.TB, r reply, what string) (limit, remaining int, reset time.Duration) {
	t.Helper()
	limit, err1 := strconv.Atoi(r.header.Get("X-Ratelimit-Limit-" + what))
	remaining, err2 := strconv.Atoi(r.header.Get("X-Ratelimit-Remaining-" + what))
	reset, err3 := time.ParseDuration(r.header.Get("X-Ratelimit-Reset-" + what))
	if err1 != nil || err2 != nil || err3 != nil {
		t.Errorf("%s: %v, %v, %v in %v", what, err1, err2, err3, r.header)
	}
	return limit, remaining, reset
}

func TestARateLimitIsExactAtOneGateway(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := with(t, env, gateway.Config{}, using(1, 1, nil))
		header := keysOf(t, env).put(policy.Key{ID: "aaaaaaaaaa", RPM: 10})
		time.Sleep(inForce)
		body := chat("m", false, 1)
		began := time.Now()
		for i := range 10 {
			r := ask(t, g, body, "", header...)
			if limit, remaining, reset := standing(t, r, "Requests"); r.status != 200 || limit != 10 || remaining != 9-i || reset > time.Duration(i+1)*6*time.Second {
				t.Errorf("request %d: %d, %d of %d remain, all after %v", i, r.status, remaining, limit, reset)
			}
			if r.header.Get("X-Ratelimit-Limit-Tokens") != "" {
				t.Error("headers of a limit that is none")
			}
		}
		r := ask(t, g, body, "", header...)
		m := wantError(t, r, 429, "rate_limit_exceeded")
		if want := `Rate limit reached for key aaaaaaaaaa of tenant "acme" on requests per min (RPM): Limit 10, Used 10, Requested 1. Please try again in `; !strings.HasPrefix(m, want) {
			t.Errorf("message %q, want %q…", m, want)
		}
		if limit, remaining, reset := standing(t, r, "Requests"); limit != 10 || remaining != 0 || reset < 59*time.Second || reset > time.Minute {
			t.Errorf("%d of %d remain, all after %v", remaining, limit, reset)
		}
		if got := r.header.Get("Retry-After"); got != "6" {
			t.Errorf("Retry-After %q, want 6", got)
		}
		ms, err := strconv.Atoi(r.header.Get("Retry-After-Ms"))
		if err != nil || ms < 5000 || ms > 6000 {
			t.Errorf("Retry-After-Ms %q", r.header.Get("Retry-After-Ms"))
		}
		time.Sleep(time.Duration(ms)*time.Millisecond - 100*time.Millisecond)
		wantError(t, ask(t, g, body, "", header...), 429, "rate_limit_exceeded")
		time.Sleep(100 * time.Millisecond)
		if r := ask(t, g, body, "", header...); r.status != 200 {
			t.Errorf("at the announced time: %d %s", r.status, r.body)
		}
		t.Logf("11 requests in %v", time.Since(began))
		wantMetrics(t, g, `pulley_rate_limited_total{limit="requests"} 2`)
	})
}

func TestTokenLimitsCountWhatTheEngineReports(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := with(t, env, gateway.Config{}, using(100, 900, nil))
		header := keysOf(t, env).put(policy.Key{ID: "aaaaaaaaaa", TPM: 6000}) // 100 per second
		time.Sleep(inForce)
		for i := range 6 {
			r := ask(t, g, chat("m", false, 1), "", header...)
			if _, remaining, _ := standing(t, r, "Tokens"); r.status != 200 || remaining > 6000-1000*i || remaining < 6000-1000*i-100 {
				t.Errorf("request %d: %d, %d tokens remain, want a little less than %d", i, r.status, remaining, 6000-1000*i)
			}
		}
		r := ask(t, g, chat("m", false, 1), "", header...)
		if m := wantError(t, r, 429, "rate_limit_exceeded"); !strings.Contains(m, "on tokens per min (TPM): Limit 6000, Used 6000, ") {
			t.Errorf("message %q", m)
		}
	})
}

// However a request ends, it stops counting at once.
func TestConcurrencyIsReleased(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := with(t, env, gateway.Config{}, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("X-Fail") != "" {
				w.WriteHeader(400)
				return
			}
			using(1, 1, func(ctx context.Context) {
				select {
				case <-ctx.Done():
				case <-time.After(5 * time.Second):
				}
			})(w, r)
		})
		header := keysOf(t, env).put(policy.Key{ID: "aaaaaaaaaa", Concurrency: 2})
		time.Sleep(inForce)
		body := chat("m", false, 1)
		var wg sync.WaitGroup
		defer wg.Wait()
		gone, leave := context.WithCancel(t.Context())
		wg.Go(func() {
			if resp, err := post(gone, g, "/v1/chat/completions", body, "", header...); err == nil {
				resp.Body.Close()
				t.Errorf("a client that left got %d", resp.StatusCode)
			}
		})
		wg.Go(func() {
			if r := ask(t, g, body, "", header...); r.status != 200 {
				t.Errorf("%d %s", r.status, r.body)
			}
		})
		time.Sleep(time.Second)
		r := ask(t, g, body, "", header...)
		if m := wantError(t, r, 429, "rate_limit_exceeded"); !strings.Contains(m, "on requests at once: Limit 2, Used 2") || r.header.Get("Retry-After") != "1" {
			t.Errorf("message %q, Retry-After %q", m, r.header.Get("Retry-After"))
		}
		leave()
		time.Sleep(100 * time.Millisecond)
		for range 5 {
			if r := ask(t, g, body, "", append(header, "X-Fail", "1")...); r.status != 400 {
				t.Errorf("after a client left: %d %s", r.status, r.body)
			}
		}
		if r := ask(t, g, chat("m", false, 1), "", append(header, "X-Request-Timeout", "1")...); r.status != 504 {
			t.Errorf("%d %s", r.status, r.body)
		}
		wantError(t, ask(t, g, chat("nope", false, 1), "", header...), 404, "model_not_found")
		time.Sleep(4 * time.Second)
		for range 2 {
			wg.Go(func() {
				if r := ask(t, g, body, "", header...); r.status != 200 {
					t.Errorf("after all ended: %d %s", r.status, r.body)
				}
			})
		}
		time.Sleep(time.Second)
		wantError(t, ask(t, g, body, "", header...), 429, "rate_limit_exceeded")
	})
}

// flood sends requests to every gateway from many clients for a period, and returns how many were
// admitted, and of how many.
func flood(t *testing.T, gs []*Gateway, clients int, d time.Duration, header []string) (let, of int) {
	t.Helper()
	var wg sync.WaitGroup
	var mu sync.Mutex
	end := time.Now().Add(d)
	for i := range clients {
		wg.Go(func() {
			time.Sleep(time.Duration(i) * 7 * time.Millisecond)
			for time.Now().Before(end) {
				r := ask(t, gs[i%len(gs)], chat("m", false, 1), "", header...)
				mu.Lock()
				of++
				switch r.status {
				case 200:
					let++
				case 429:
				default:
					t.Errorf("%d %s", r.status, r.body)
				}
				mu.Unlock()
				time.Sleep(250 * time.Millisecond)
			}
		})
	}
	wg.Wait()
	return let, of
}

func TestThreeGatewaysShareAKeysLimits(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		var mu sync.Mutex
		running, most := 0, 0
		gs := threeGateways(t, env, using(10, 90, func(ctx context.Context) {
			mu.Lock()
			running++
			most = max(most, running)
			mu.Unlock()
			select {
			case <-ctx.Done():
			case <-time.After(500 * time.Millisecond):
			}
			mu.Lock()
			running--
			mu.Unlock()
		}))
		k := keysOf(t, env)
		const d = 30 * time.Second

		header := k.put(policy.Key{ID: "aaaaaaaaaa", RPM: 60})
		time.Sleep(inForce)
		let, of := flood(t, gs, 30, d, header)
		t.Logf("RPM 60: %d of %d requests in %v at three gateways, exact is 90", let, of, d)
		if let > 90+2 || let < 85 {
			t.Errorf("RPM 60: %d of %d requests in %v, want 90 and at most two more", let, of, d)
		}

		header = k.put(policy.Key{ID: "bbbbbbbbbb", TPM: 6000})
		time.Sleep(inForce)
		let, of = flood(t, gs, 30, d, header)
		t.Logf("TPM 6000: %d tokens in %d of %d requests in %v at three gateways, exact is 9000 and what is in flight", 100*let, let, of, d)
		if let > 90+30+2 || let < 85 {
			t.Errorf("TPM 6000: %d of %d requests of 100 tokens in %v, want 90 and at most the 30 in flight more", let, of, d)
		}

		most = 0
		header = k.put(policy.Key{ID: "cccccccccc", Concurrency: 10})
		time.Sleep(inForce)
		let, of = flood(t, gs, 60, d, header)
		t.Logf("concurrency 10: at most %d at once, %d of %d requests in %v, at most 600 are possible", most, let, of, d)
		if most > 12 || let < 300 {
			t.Errorf("concurrency 10: at most %d at once, %d of %d requests in %v", most, let, of, d)
		}
	})
}

// peer pretends to be another gateway.
func peer(t testing.TB, env *Env) func(gateway string, used map[string]subjects.KeyUsage) {
	nc, _ := env.Connect("peer")
	return func(gateway string, used map[string]subjects.KeyUsage) {
		t.Helper()
		b, err := json.Marshal(subjects.UsageReport{Gateway: gateway, Keys: used})
		if err != nil {
			t.Fatal(err)
		}
		if err := nc.Publish(subjects.UsageReports, b); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestReportsOfOtherGatewaysCount(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := with(t, env, gateway.Config{}, using(1, 1, nil))
		tell := peer(t, env)
		header := keysOf(t, env).put(policy.Key{ID: "aaaaaaaaaa", RPM: 60, TPM: 60_000, Concurrency: 3})
		time.Sleep(inForce)
		const key = "aaaaaaaaaa"
		remain := func(what string, requests, tokens int) {
			t.Helper()
			r := ask(t, g, chat("m", false, 1), "", header...)
			_, gotRequests, _ := standing(t, r, "Requests")
			_, gotTokens, _ := standing(t, r, "Tokens")
			if r.status != 200 || gotRequests != requests || gotTokens/1000 != tokens/1000 {
				t.Errorf("%s: %d, %d requests and %d tokens remain, want %d and about %d", what, r.status, gotRequests, gotTokens, requests, tokens)
			}
			time.Sleep(time.Second) // until it is full again
		}
		remain("alone", 59, 59_900)
		tell("p1", nil) // it starts
		tell("p1", map[string]subjects.KeyUsage{key: {Requests: 20, Tokens: 30_000, Running: 1}})
		remain("another used some", 39, 29_900)
		tell("p1", map[string]subjects.KeyUsage{key: {Requests: 20, Tokens: 20_000, Running: 1}})
		remain("fewer tokens than it thought", 39, 40_900)
		tell("p1", map[string]subjects.KeyUsage{"unknownkey": {Requests: 20}})

		// Another gateway that was there before this one: it is unknown when it used what it
		// reports.
		tell("p2", map[string]subjects.KeyUsage{key: {Requests: 1e6, Tokens: 1e9, Running: 1}})
		remain("an old gateway appears", 39, 42_900)
		tell("p2", map[string]subjects.KeyUsage{key: {Requests: 1e6 + 10, Tokens: 1e9, Running: 2}})
		r := ask(t, g, chat("m", false, 1), "", header...)
		if m := wantError(t, r, 429, "rate_limit_exceeded"); !strings.Contains(m, "on requests at once: Limit 3, Used 3") {
			t.Errorf("message %q", m)
		}
		time.Sleep(2 * time.Second)
		tell("p2", nil)
		time.Sleep(2 * time.Second) // p1 has been silent for long, p2 has not
		r = ask(t, g, chat("m", false, 1), "", header...)
		if r.status != 200 {
			t.Errorf("one fell silent: %d %s", r.status, r.body)
		}
		tell("p1", map[string]subjects.KeyUsage{key: {Requests: 21, Running: 1}})
		wantError(t, ask(t, g, chat("m", false, 1), "", header...), 429, "rate_limit_exceeded")
		time.Sleep(70 * time.Second)
		remain("all fell silent", 59, 59_900)
	})
}

// A gateway that starts learns what runs, and takes no more than its part of limits that others may
// have used up.
func TestAGatewayThatStartsLater(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		release := make(chan struct{})
		var once sync.Once
		defer once.Do(func() { close(release) })
		g := with(t, env, gateway.Config{}, func(w http.ResponseWriter, r *http.Request) {
			using(1, 1, func(ctx context.Context) {
				if r.Header.Get("X-Wait") != "" {
					select {
					case <-ctx.Done():
					case <-release:
					}
				}
			})(w, r)
		})
		k := keysOf(t, env)
		header := k.put(policy.Key{ID: "aaaaaaaaaa", RPM: 100})
		long := append(k.put(policy.Key{ID: "bbbbbbbbbb", Concurrency: 3}), "X-Wait", "1")
		time.Sleep(inForce)
		var wg sync.WaitGroup
		defer wg.Wait()
		for range 2 {
			wg.Go(func() { ask(t, g, chat("m", false, 1), "", long...) })
		}
		for range 100 {
			if r := ask(t, g, chat("m", false, 1), "", header...); r.status != 200 {
				t.Fatalf("%d %s", r.status, r.body)
			}
		}
		late := env.Gateway(gateway.Config{})
		testenv.Eventually(t, "the second gateway knows the model", 3*time.Second, func() bool {
			return strings.Contains(do(t, late, "GET", "/v1/models", "", header...).body, `"m"`)
		})
		let, _ := flood(t, []*Gateway{late}, 5, 10*time.Second, header)
		t.Logf("RPM 100, used up: a second gateway admitted %d more, 10 s after its start", let)
		if let > 50+17+2 || let < 15 {
			t.Errorf("RPM 100, used up: a second gateway admitted %d, want about 17, and at most 50 more", let)
		}
		wg.Go(func() { ask(t, late, chat("m", false, 1), "", long...) })
		time.Sleep(time.Second)
		for _, g := range []*Gateway{g, late} {
			if m := wantError(t, ask(t, g, chat("m", false, 1), "", long...), 429, "rate_limit_exceeded"); !strings.Contains(m, "at once: Limit 3, Used 3") {
				t.Errorf("message %q", m)
			}
		}
		once.Do(func() { close(release) })
	})
}

// What a gateway was running when it died does not count for ever.
func TestADeadGatewaysRequestsStopCounting(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		gs := threeGateways(t, env, using(1, 1, func(ctx context.Context) { <-ctx.Done() }))
		header := keysOf(t, env).put(policy.Key{ID: "aaaaaaaaaa", Concurrency: 3})
		time.Sleep(inForce)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		for range 3 {
			wg.Go(func() {
				if resp, err := post(ctx, gs[0], "/v1/chat/completions", chat("m", false, 1), "", header...); err == nil {
					resp.Body.Close()
				}
			})
			time.Sleep(3 * time.Second)
		}
		full := func() bool {
			r := ask(t, gs[1], chat("m", false, 1), "", append(slices.Clone(header), "X-Request-Timeout", "0.1")...)
			return r.status == 429
		}
		if !full() {
			t.Error("three run at another gateway: a fourth was admitted")
		}
		gs[0].Link.Cut(true)
		began := time.Now()
		testenv.Eventually(t, "the dead gateway's requests are forgotten", 5*time.Second, func() bool { return !full() })
		t.Logf("after %v", time.Since(began))
	})
}

func TestATenantsShareOfAQueue(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := with(t, env, gateway.Config{}, using(1, 1, func(ctx context.Context) { <-ctx.Done() })) // four slots
		env.SetPolicy(func(p *policy.Policy) { p.Tiers[1].MaxQueue = 10 })
		k := keysOf(t, env)
		some := k.put(policy.Key{ID: "aaaaaaaaaa", Tenant: "some", MaxQueueShare: 30})
		all := k.put(policy.Key{ID: "bbbbbbbbbb", Tenant: "all"})
		time.Sleep(inForce)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		var mu sync.Mutex
		refused := make(map[string]int)
		send := func(n int, header []string) {
			for range n {
				wg.Go(func() {
					resp, err := post(ctx, g, "/v1/chat/completions", chat("m", false, 1), "", header...)
					if err != nil {
						return
					}
					defer resp.Body.Close()
					b, _ := io.ReadAll(resp.Body)
					wantErrorBody(t, string(b), "queue_full")
					mu.Lock()
					defer mu.Unlock()
					refused[header[1]]++
				})
				time.Sleep(10 * time.Millisecond)
			}
		}
		send(4, all) // they run
		send(9, some)
		send(20, all)
		mu.Lock()
		defer mu.Unlock()
		// Up to four of them are in the broker's queue, where tenants are not distinguished.
		waiting := 9 - refused[some[1]]
		if waiting < 3 || waiting > 3+4 {
			t.Errorf("%d of 9 wait, want 3 and at most 4 that are next", waiting)
		}
		if got := 20 - refused[all[1]]; got != 10-waiting {
			t.Errorf("%d of 20 without a share wait beside %d, want the rest of 10", got, waiting)
		}
	})
}

// Clients that each send one request after the other, to one gateway or to all in turn, are refused nothing within the limits of
// their key, and what is beyond them is refused.
func TestSequentialRequestsAreExact(t *testing.T) {
	for about, c := range map[string]struct {
		key      policy.Key
		gateways int
		clients  int
		requests int // of each client
		turn     int // 1: a client goes from gateway to gateway; 0: it stays at one
		stream   bool
		over     bool // one more request is refused
	}{
		"one at once, two gateways":               {policy.Key{Concurrency: 1}, 2, 1, 40, 1, false, false},
		"one at once, three gateways":             {policy.Key{Concurrency: 1}, 3, 1, 40, 1, false, false},
		"one at once, one gateway, streams":       {policy.Key{Concurrency: 1}, 1, 1, 40, 0, true, false},
		"one at once, three gateways, streams":    {policy.Key{Concurrency: 1}, 3, 1, 40, 1, true, false},
		"four at once by four, three gateways":    {policy.Key{Concurrency: 4}, 3, 4, 30, 1, false, false},
		"four at once by four, each stays":        {policy.Key{Concurrency: 4}, 2, 4, 30, 0, true, false},
		"requests a minute, one of three":         {policy.Key{RPM: 30}, 3, 1, 30, 0, false, true},
		"requests a minute, three in turn":        {policy.Key{RPM: 30}, 3, 1, 30, 1, false, true},
		"tokens a minute, one of three":           {policy.Key{TPM: 3000}, 3, 1, 30, 0, false, false},
		"all limits, three gateways, two clients": {policy.Key{RPM: 40, TPM: 1e6, Concurrency: 2}, 3, 2, 20, 1, false, true},
	} {
		t.Run(about, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				var gs []*Gateway
				for range c.gateways {
					gs = append(gs, env.Gateway(gateway.Config{}))
				}
				env.Worker(env.Handler("e", engineOf(func(w http.ResponseWriter, r *http.Request) {
					if !c.stream {
						using(50, 50, nil)(w, r)
						return
					}
					w.Header().Set("Content-Type", "text/event-stream")
					io.WriteString(w, "data: {\"choices\":[{\"delta\":{\"content\":\"yes\"}}]}\n\ndata: [DONE]\n\n")
					w.(http.Flusher).Flush()
					time.Sleep(20 * time.Millisecond) // the client has all of it already
				}, "m")), worker.Config{Name: "e", Slots: 100})
				for _, g := range gs {
					g.Serves(t, "m")
				}
				c.key.ID = "aaaaaaaaaa"
				header := keysOf(t, env).put(c.key)
				time.Sleep(2 * inForce)
				var wg sync.WaitGroup
				for i := range c.clients {
					wg.Go(func() {
						for n := range c.requests {
							resp, err := post(t.Context(), gs[(i+n*c.turn)%len(gs)], "/v1/chat/completions", chat("m", c.stream, 1), "", header...)
							if err != nil {
								t.Errorf("client %d, request %d: %v", i, n, err)
								continue
							}
							if resp.StatusCode != 200 {
								t.Errorf("client %d, request %d: %d", i, n, resp.StatusCode)
							}
							for all := []byte{}; !strings.Contains(string(all), "[DONE]"); {
								b := make([]byte, 1000)
								got, err := resp.Body.Read(b)
								if all = append(all, b[:got]...); err != nil {
									break
								}
							}
							wg.Go(func() { // as an SDK that reads no further
								io.Copy(io.Discard, resp.Body)
								resp.Body.Close()
							})
						}
					})
				}
				wg.Wait()
				if c.over {
					for _, g := range gs {
						wantError(t, ask(t, g, chat("m", false, 1), "", header...), 429, "rate_limit_exceeded")
					}
				}
			})
		})
	}
}

// A request that only what another gateway knows can admit waits for its answer, though that gateway is slow, but not for long.
func TestAGatewayThatAnswersLate(t *testing.T) {
	for about, c := range map[string]struct {
		after   time.Duration // of the answer
		running int           // what it says
		status  int
		took    time.Duration // at most
	}{
		"at once, it has ended":  {0, 0, 200, 100 * time.Millisecond},
		"late, it has ended":     {600 * time.Millisecond, 0, 200, 700 * time.Millisecond},
		"at once, it still runs": {0, 1, 429, 400 * time.Millisecond},
		"late, it still runs":    {600 * time.Millisecond, 1, 429, 700 * time.Millisecond},
		"too late":               {2 * time.Second, 0, 429, 1100 * time.Millisecond},
	} {
		t.Run(about, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g := with(t, env, gateway.Config{}, using(1, 1, nil))
				header := keysOf(t, env).put(policy.Key{ID: "aaaaaaaaaa", Concurrency: 1})
				time.Sleep(inForce)
				used := func(running int) map[string]subjects.KeyUsage {
					return map[string]subjects.KeyUsage{"aaaaaaaaaa": {Requests: 1, Running: running}}
				}
				nc, _ := env.Connect("other")
				if _, err := nc.Subscribe(subjects.UsageReports, func(m *nats.Msg) {
					var asked subjects.UsageReport
					if json.Unmarshal(m.Data, &asked) != nil || asked.Ask == 0 {
						return
					}
					time.AfterFunc(c.after, func() {
						b, _ := json.Marshal(subjects.UsageReport{Gateway: "other", Answers: map[string]uint64{asked.Gateway: asked.Ask}, Keys: used(c.running)})
						nc.Publish(subjects.UsageReports, b)
					})
				}); err != nil {
					t.Fatal(err)
				}
				peer(t, env)("other", used(1))
				began := time.Now()
				r := ask(t, g, chat("m", false, 1), "", header...)
				if took := time.Since(began); r.status != c.status || took > c.took {
					t.Errorf("%d after %v, want %d within %v", r.status, took, c.status, c.took)
				}
			})
		})
	}
}
