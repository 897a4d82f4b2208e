package scenarios

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/background"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/idempotency"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// speaking is a simulated engine that also has Ollama's API, in lines of JSON.
func speaking(env *Env, name string, slots int) *testenv.Engine {
	cfg := slow(name)
	cfg.Slots = slots
	e := env.Engine(cfg)
	return env.Handler(name+"-ollama", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/chat" {
			r.URL.Scheme, r.URL.Host, r.RequestURI = "http", name, ""
			relay(w, r, e)
			return
		}
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/x-ndjson")
		for i := range 40 {
			fmt.Fprintf(w, `{"model":"m","message":{"role":"assistant","content":"w%d "},"done":false}`+"\n", i)
			http.NewResponseController(w).Flush()
			time.Sleep(100 * time.Millisecond)
		}
		fmt.Fprintf(w, `{"model":"m","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","eval_count":40}`+"\n")
	}))
}

// relay has an engine answer.
func relay(w http.ResponseWriter, r *http.Request, e *testenv.Engine) {
	resp, err := e.Transport.RoundTrip(r)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer resp.Body.Close()
	maps.Copy(w.Header(), resp.Header)
	w.WriteHeader(resp.StatusCode)
	b := make([]byte, 32<<10)
	for {
		n, err := resp.Body.Read(b)
		w.Write(b[:n])
		http.NewResponseController(w).Flush()
		if err != nil {
			return
		}
	}
}

// pieces divides a stream after each event, or line. Comments belong to the event that follows them.
func pieces(header http.Header, body string) (all []string) {
	if !strings.HasPrefix(header.Get("Content-Type"), "text/event-stream") {
		for p := range strings.SplitAfterSeq(body, "\n") {
			if p != "" {
				all = append(all, p)
			}
		}
		return all
	}
	before := ""
	for _, p := range strings.SplitAfter(body, "\n\n") {
		before += p
		if strings.HasPrefix(p, "data:") || strings.Contains(p, "\ndata:") {
			all = append(all, before)
			before = ""
		}
	}
	return all
}

// lostStream is a stream that a client loses.
type lostStream struct {
	path, body string
	header     []string // of the request
	id         string   // of the request that ran
	got        string   // complete events
	events     int
}

// begin asks for a stream, reads some events, and loses it.
func (s *lostStream) begin(t testing.TB, g *Gateway, events int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	resp, err := post(ctx, g, s.path, s.body, "", s.header...)
	if err != nil {
		t.Errorf("%s: %v", s.path, err)
		return
	}
	defer resp.Body.Close()
	var got bytes.Buffer
	b := make([]byte, 1000)
	for err == nil && len(pieces(resp.Header, got.String())) <= events { // the last may not be complete
		var n int
		n, err = resp.Body.Read(b)
		got.Write(b[:n])
	}
	s.id, s.events, s.got = resp.Header.Get("X-Pulley-Request-Id"), events, strings.Join(pieces(resp.Header, got.String())[:events], "")
	if err != nil || resp.StatusCode != 200 {
		t.Errorf("%s: %d %v %.300s", s.path, resp.StatusCode, err, got.String())
	}
}

// resumed asks for what follows n events.
func (s *lostStream) resumed(t testing.TB, g *Gateway, id string, n int) reply {
	t.Helper()
	return askAt(t, g, s.path, s.body, "", append([]string{"X-Pulley-Resume", fmt.Sprintf("%s:%d", id, n)}, s.header...)...)
}

// resume reads the rest, and returns the whole stream and how long its next event took.
func (s *lostStream) resume(t testing.TB, g *Gateway) (stream string, took time.Duration) {
	t.Helper()
	began := time.Now()
	place := fmt.Sprintf("%s:%d", s.id, s.events)
	resp, err := post(t.Context(), g, s.path, s.body, "", append([]string{"X-Pulley-Resume", place}, s.header...)...)
	if err != nil {
		t.Errorf("%s: %v", s.path, err)
		return "", 0
	}
	defer resp.Body.Close()
	first := make([]byte, 1)
	_, err = io.ReadFull(resp.Body, first)
	took = time.Since(began)
	rest, err2 := io.ReadAll(resp.Body)
	h := resp.Header
	told := h.Get("X-Pulley-Request-Id") == s.id && h.Get("X-Pulley-Resume") == place && h.Get("Idempotent-Replayed") == "true"
	if err != nil || err2 != nil || resp.StatusCode != 200 || !told {
		t.Errorf("%s: %d %v %v %v %.300s", s.path, resp.StatusCode, h, err, err2, rest)
	}
	return s.got + string(first) + string(rest), took
}

// wantWhole checks that a resumed stream has the bytes of the original.
func wantWhole(t testing.TB, about, got string, original reply) {
	t.Helper()
	if original.err != nil || original.status != 200 || got != original.body {
		t.Errorf("%s: resumed to %d bytes, the original has %d (%d, %v):\n%s\nthe original:\n%s", about,
			len(got), len(original.body), original.status, original.err, got, original.body)
	}
}

// streamCalls are calls for streams of all APIs, by their paths.
var streamCalls = map[string]string{
	"/v1/chat/completions": chat("m", true, 40),
	"/v1/completions":      `{"model":"m","stream":true,"max_tokens":40,"prompt":"one two"}`,
	"/v1/responses":        `{"model":"m","stream":true,"max_output_tokens":40,"input":"one two"}`,
	"/v1/messages":         chat("m", true, 40),
	"/api/chat":            `{"model":"m","messages":[{"role":"user","content":"one two"}]}`,
}

// A client that has lost its stream gets what it lacks at any gateway: at once what has come meanwhile, then what comes, and after the
// end from any event on. It has the bytes of the whole stream then, and the request has run once.
func TestResume(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		g1, g2 := withIdempotency(t, env, idempotency.Config{}), withIdempotency(t, env, idempotency.Config{})
		env.Worker(speaking(env, "a", 4), worker.Config{Name: "a", Slots: 4})
		g1.Serves(t, "m")
		g2.Serves(t, "m")
		for path, body := range streamCalls {
			for i, g := range []*Gateway{g1, g2} {
				s := &lostStream{path: path, body: body, header: []string{"Idempotency-Key", fmt.Sprint(path, i)}}
				s.begin(t, g1, 5)
				time.Sleep(2 * time.Second) // 20 events are missed
				got, took := s.resume(t, g)
				if took > 100*time.Millisecond {
					t.Errorf("%s: the first missing event took %v", path, took)
				}
				original := askAt(t, g2, path, body, "", s.header...)
				wantWhole(t, path, got, original)
				if id := original.header.Get("X-Pulley-Request-Id"); id != s.id {
					t.Errorf("%s: %s ran, not %s", path, id, s.id)
				}
				all := pieces(original.header, original.body)
				for n := range len(all) + 1 {
					if a := s.resumed(t, g, s.id, n); a.err != nil || a.status != 200 || a.body != strings.Join(all[n:], "") {
						t.Errorf("%s: after %d of %d events: %d %v %.300s", path, n, len(all), a.status, a.err, a.body)
					}
				}
				if a := s.resumed(t, g, s.id, len(all)+1); a.status != 400 || !strings.Contains(a.body, fmt.Sprintf("has only %d", len(all))) {
					t.Errorf("%s: after more events than it has: %d %.300s", path, a.status, a.body)
				}
			}
		}
	})
}

// What cannot be resumed is refused, and nothing runs: the client never gets the end of another answer.
func TestResumeRefused(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g1, g2, e := pairOfGateways(t, env, idempotency.Config{})
		acme, bee := env.AddKey("acme"), env.AddKey("bee")
		time.Sleep(5 * time.Second)
		as := func(key string, header ...string) []string { return append([]string{"X-Api-Key", key}, header...) }
		path, body := "/v1/chat/completions", chat("m", true, 60)
		s := &lostStream{path: path, body: body, header: as(acme, "Idempotency-Key", "k")}
		s.begin(t, g1, 5)
		runs := runsOf(e)
		other := "01a228f5-8369-7d79-9ba1-e32bb02083be"
		refused := func(about string, a reply, status int, code string) {
			t.Helper()
			wantError(labelled{t, about}, a, status, code)
		}
		for _, when := range []string{"while it runs", "afterwards"} {
			refused("another request", s.resumed(t, g2, other, 5), 409, "resume_id_mismatch")
			refused("more than it has", s.resumed(t, g2, s.id, 1000), 400, "invalid_resume")
			malformed := []string{"", s.id, "x:1", ":1"}
			for _, n := range []string{"", "x", "-1", "+1", "1.5", "1:2", "99999999999999999999"} {
				malformed = append(malformed, s.id+":"+n)
			}
			for _, place := range malformed {
				a := askAt(t, g2, path, body, "", as(acme, "Idempotency-Key", "k", "X-Pulley-Resume", place)...)
				refused(fmt.Sprintf("malformed: %q", place), a, 400, "invalid_resume")
			}
			twice := do(t, g2, "POST", path, body, as(acme, "Idempotency-Key", "k", "X-Pulley-Resume", s.id+":1", "X-Pulley-Resume", s.id+":1")...)
			refused("twice", twice, 400, "invalid_resume")
			at := s.id + ":5"
			refused("without a key", askAt(t, g2, path, body, "", as(acme, "X-Pulley-Resume", at)...), 400, "invalid_resume")
			blank := askAt(t, g2, path, body, "", as(acme, "Idempotency-Key", " ", "X-Pulley-Resume", at)...)
			refused("with a blank key", blank, 400, "invalid_idempotency_key")
			refused("with another body", askAt(t, g2, path, body+" ", "", as(acme, "Idempotency-Key", "k", "X-Pulley-Resume", at)...), 409, "idempotency_key_reused")
			refused("with an unknown key", askAt(t, g2, path, body, "", as(acme, "Idempotency-Key", "l", "X-Pulley-Resume", at)...), 404, "stream_not_stored")
			refused("of another tenant", askAt(t, g2, path, body, "", as(bee, "Idempotency-Key", "k", "X-Pulley-Resume", at)...), 404, "stream_not_stored")
			refused("of nobody", askAt(t, g2, path, body, "", "Idempotency-Key", "k", "X-Pulley-Resume", at), 401, "invalid_api_key")
			if when == "while it runs" {
				got, _ := s.resume(t, g2)
				wantWhole(t, when, got, ask(t, g1, body, "", s.header...))
			}
		}
		// An answer that is no stream; a request that has no answer yet, an error, and one that nobody waited for.
		plain := &lostStream{path: path, body: chat("m", false, 5), header: as(acme, "Idempotency-Key", "plain")}
		a := askAt(t, g1, path, plain.body, "", plain.header...)
		refused("not a stream", plain.resumed(t, g2, a.header.Get("X-Pulley-Request-Id"), 0), 400, "invalid_resume")
		long := &lostStream{path: path, body: chat("m", false, 50), header: as(acme, "Idempotency-Key", "long")}
		var wg sync.WaitGroup
		wg.Go(func() { askAt(t, g1, path, long.body, "", long.header...) })
		time.Sleep(time.Second)
		refused("not begun", long.resumed(t, g2, s.id, 0), 409, "resume_id_mismatch")
		wg.Wait()
		bad := &lostStream{path: path, body: chat("m", true, 50), header: as(acme, "Idempotency-Key", "bad")}
		a = askAt(t, g1, path, bad.body, "cut-after=5", bad.header...)
		refused("broken off", bad.resumed(t, g2, a.header.Get("X-Pulley-Request-Id"), 2), 404, "stream_not_stored")
		left := &lostStream{path: path, body: chat("m", true, 400), header: as(acme, "Idempotency-Key", "left")}
		left.begin(t, g1, 5)
		time.Sleep(8 * time.Second)
		if got := left.resumed(t, withTimeout(g2, 2*time.Second), left.id, 5); got.status != 200 || got.err == nil { // it is away again
			t.Errorf("within the grace: %d %v", got.status, got.err)
		}
		time.Sleep(20 * time.Second)
		refused("after the grace", left.resumed(t, g2, left.id, 5), 404, "stream_not_stored")
		if n := runs(); n != 4 {
			t.Errorf("%d runs, want those of 4 calls without the header", n)
		}
		// The key is free: the next request with it is another one.
		again := askAt(t, g2, path, left.body, "", left.header...)
		if again.status != 200 || words(content(t, again.body)) != 400 {
			t.Errorf("again: %d %v %.300s", again.status, again.err, again.body)
		}
		refused("that of the request before", left.resumed(t, g1, left.id, 5), 409, "resume_id_mismatch")
	})
}

// withTimeout is a gateway for clients that leave after a while.
func withTimeout(g *Gateway, d time.Duration) *Gateway {
	c, copied := *g.Client, *g
	c.Timeout, copied.Client = d, &c
	return &copied
}

// Where streams are not stored, a call that resumes one is refused as well.
func TestResumeWithoutStore(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		e := env.Engine(slow("a"))
		nc, link := env.Connect("gateway")
		responses, err := background.New(background.Config{}, nc)
		if err != nil {
			t.Fatal(err)
		}
		g := env.gatewayAt(nc, link, gateway.Config{Services: []gateway.Service{responses}})
		env.Worker(e, worker.Config{Name: "a", Slots: 4})
		g.Serves(t, "m")
		runs := runsOf(e)
		for _, prefer := range []string{"", "respond-async"} {
			a := ask(t, g, chat("m", true, 5), "", "Idempotency-Key", "k", "X-Pulley-Resume", "01a228f5-8369-7d79-9ba1-e32bb02083be:1", "Prefer", prefer)
			wantError(t, a, 400, "invalid_resume")
		}
		time.Sleep(time.Second)
		if n := runs(); n != 0 {
			t.Errorf("%d runs", n)
		}
	})
}

// Of many clients that lose their streams at once, each gets the rest of its own within 100 ms, also if the gateway to which it was
// connected cannot be reached. Streams that ran at a gateway that is gone are refused: nobody can end them.
func TestResumeOfMany(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		var gs []*Gateway
		for range 3 {
			gs = append(gs, withIdempotency(t, env, idempotency.Config{}))
		}
		const clients = 40
		env.Worker(speaking(env, "a", clients), worker.Config{Name: "a", Slots: clients})
		for _, g := range gs {
			g.Serves(t, "m")
		}
		paths := []string{"/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/chat"}
		streams := make([]*lostStream, clients)
		var wg sync.WaitGroup
		for i := range streams {
			path := paths[i%len(paths)]
			streams[i] = &lostStream{path: path, body: streamCalls[path], header: []string{"Idempotency-Key", fmt.Sprint(i)}}
			wg.Go(func() { streams[i].begin(t, gs[i%3], 2+i%7) })
		}
		wg.Wait()
		gs[2].Link.Cut(true)
		time.Sleep(time.Second)
		for i, s := range streams {
			wg.Go(func() {
				at := gs[i/3%2]
				if i%3 == 2 {
					wantStatus(labelled{t, s.path}, s.resumed(t, at, s.id, s.events), 404, "stream_not_stored")
					return
				}
				got, took := s.resume(t, at)
				if took > 100*time.Millisecond {
					t.Errorf("client %d: the first missing event took %v", i, took)
				}
				wantWhole(t, fmt.Sprint("client ", i, ", ", s.path), got, askAt(t, gs[(i/3+1)%2], s.path, s.body, "", s.header...))
			})
		}
		wg.Wait()
	})
}

// Nobody can end a stream whose gateway is gone. One that has resumed at another gateway gets what is stored, and is cut off; then the
// call is refused, and the request runs again without it.
func TestResumeGatewayDies(t *testing.T) {
	for name, c := range map[string]struct {
		strike func(g *Gateway)
		within time.Duration // until the call is refused
	}{
		"gone":   {func(g *Gateway) { g.Link.Cut(true) }, 4 * time.Second},
		"frozen": {func(g *Gateway) { g.Link.Freeze() }, 20 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g1, g2, _ := pairOfGateways(t, env, idempotency.Config{})
				s := &lostStream{path: "/v1/chat/completions", body: chat("m", true, 100), header: []string{"Idempotency-Key", "k"}}
				s.begin(t, g1, 5)
				var joined reply
				var wg sync.WaitGroup
				wg.Go(func() { joined = s.resumed(t, g2, s.id, s.events) })
				time.Sleep(time.Second)
				c.strike(g1)
				began := time.Now()
				for {
					a := s.resumed(t, g2, s.id, s.events)
					if a.status == 404 {
						wantStatus(t, a, 404, "stream_not_stored")
						break
					}
					if a.status != 200 || a.err == nil || strings.Contains(a.body, "[DONE]") {
						t.Fatalf("%d %v %.300s", a.status, a.err, a.body)
					}
				}
				if took := time.Since(began); took > c.within {
					t.Errorf("refused after %v", took)
				}
				wg.Wait()
				if joined.status != 200 || joined.err == nil || words(content(t, joined.body)) < 5 || strings.Contains(joined.body, "[DONE]") {
					t.Errorf("joined: %d %v %.300s", joined.status, joined.err, joined.body)
				}
				again := ask(t, g2, s.body, "", s.header...)
				if again.status != 200 || words(content(t, again.body)) != 100 || again.header.Get("X-Pulley-Request-Id") == s.id {
					t.Errorf("again: %d %v %.300s", again.status, again.err, again.body)
				}
				wantStatus(t, s.resumed(t, g2, s.id, s.events), 409, "resume_id_mismatch")
			})
		})
	}
}

// wantStatus checks an error of any API.
func wantStatus(t testing.TB, a reply, status int, code string) {
	t.Helper()
	said := strings.Contains(a.body, code) || strings.Contains(a.body, "not_found") // Anthropic's errors have no codes
	if a.err != nil || a.status != status || a.header.Get("X-Should-Retry") != "false" || !said {
		t.Errorf("%d %v %.300s, want %d %s", a.status, a.err, a.body, status, code)
	}
}
