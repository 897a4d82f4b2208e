package scenarios

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/background"
	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// withBackground starts a gateway that serves background responses.
func withBackground(t *testing.T, env *Env, cfg background.Config) *Gateway {
	t.Helper()
	nc, link := env.Connect("gateway")
	s, err := background.New(cfg, nc)
	if err != nil {
		t.Fatal(err)
	}
	return env.gatewayAt(nc, link, gateway.Config{Services: []gateway.Service{s}})
}

// input is the body of a call of the Responses API.
func input(tokens int, more ...string) string {
	return fmt.Sprintf(`{"model":"m","input":"one two %d","max_output_tokens":%d%s}`, tokens, tokens, strings.Join(append([]string{""}, more...), ","))
}

// response is what the tests read of a response.
type response struct {
	ID, Object, Status string
	Background         bool
	CreatedAt          int64 `json:"created_at"`
	CompletedAt        int64 `json:"completed_at"`
	Error              *struct{ Code, Message string }
	Output             []struct{ Content []struct{ Text string } }
	Answer             *struct {
		StatusCode int             `json:"status_code"`
		Body       json.RawMessage `json:"body"`
	}
}

func (r response) text() string {
	if len(r.Output) == 0 || len(r.Output[0].Content) == 0 {
		return ""
	}
	return r.Output[0].Content[0].Text
}

// tellResponse reads a response from an answer with a status.
func tellResponse(t testing.TB, a reply, status int) (r response) {
	t.Helper()
	if a.status != status {
		t.Fatalf("status %d, want %d: %v %s", a.status, status, a.err, a.body)
	}
	if err := json.Unmarshal([]byte(a.body), &r); err != nil {
		t.Fatalf("%v in %s", err, a.body)
	}
	return r
}

func submit(t testing.TB, g *Gateway, body string, header ...string) response {
	t.Helper()
	return tellResponse(t, askAt(t, g, "/v1/responses", body, "", header...), 200)
}

func poll(t testing.TB, g *Gateway, id string, header ...string) response {
	t.Helper()
	return tellResponse(t, do(t, g, "GET", "/v1/responses/"+id, "", header...), 200)
}

// ended polls until a response has ended.
func ended(t testing.TB, g *Gateway, id string, within time.Duration, header ...string) (r response) {
	t.Helper()
	testenv.Eventually(t, "the response ends", within, func() bool {
		r = poll(t, g, id, header...)
		return r.Status != "queued" && r.Status != "in_progress"
	})
	return r
}

// event is a server-sent event of a response.
type event struct {
	Type     string
	Number   int `json:"sequence_number"`
	Delta    string
	Response *response
}

// events follows the events of a response after a number, until the stream ends or stop says so.
func events(t testing.TB, g *Gateway, id string, after int, stop func(event) bool) (list []event) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, _ := http.NewRequestWithContext(ctx, "GET", fmt.Sprintf("http://gateway/v1/responses/%s?stream=true&starting_after=%d", id, after), nil)
	resp, err := g.Client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return eventsOf(t, resp.Body, stop)
}

func eventsOf(t testing.TB, body io.Reader, stop func(event) bool) (list []event) {
	t.Helper()
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data: "))
		if !ok {
			continue
		}
		var e event
		if err := json.Unmarshal(data, &e); err != nil {
			t.Fatalf("%v in %s", err, data)
		}
		list = append(list, e)
		if stop != nil && stop(e) {
			return list
		}
	}
	return list
}

// inOrder checks that events have the numbers from first on without a gap.
func inOrder(t testing.TB, list []event, first int) {
	t.Helper()
	for i, e := range list {
		if e.Number != first+i {
			t.Fatalf("event %d (%s) has the number %d, want %d", i, e.Type, e.Number, first+i)
		}
	}
}

// said joins what the events since the last response.in_progress say.
func said(list []event) string {
	var s strings.Builder
	for _, e := range list {
		if e.Type == "response.in_progress" {
			s.Reset()
		}
		s.WriteString(e.Delta)
	}
	return s.String()
}

// A background response is stored, runs, and is found by its tenant at any gateway.
func TestBackgroundResponse(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		g1, g2 := withBackground(t, env, background.Config{}), withBackground(t, env, background.Config{})
		env.Worker(env.Engine(slow("a")), worker.Config{Name: "a", Slots: 4})
		g1.Serves(t, "m")
		want := tellResponse(t, askAt(t, g1, "/v1/responses", input(30), ""), 200)
		r := submit(t, g1, input(30, `"background":true`))
		if r.Status != "queued" || !r.Background || r.Object != "response" || r.CreatedAt == 0 {
			t.Errorf("accepted: %+v", r)
		}
		if p := poll(t, g2, r.ID); p.ID != r.ID {
			t.Errorf("polled at once: %+v", p)
		}
		time.Sleep(time.Second)
		if p := poll(t, g2, r.ID); p.Status != "in_progress" {
			t.Errorf("after a second: %+v", p)
		}
		done := ended(t, g2, r.ID, 10*time.Second)
		if done.Status != "completed" || done.text() != want.text() || done.ID != r.ID || !done.Background || done.CompletedAt < r.CreatedAt {
			t.Errorf("ended: %+v", done)
		}
		for _, after := range []int{-1, 0, 1, 7, 20, 1000} {
			list := events(t, g2, r.ID, after, nil)
			if after < 100 {
				inOrder(t, list, after+1)
			}
			if after < 2 && said(list) != want.text() {
				t.Errorf("events after %d say %q", after, said(list))
			}
			if after < 100 && (len(list) == 0 || list[len(list)-1].Type != "response.completed" || list[len(list)-1].Response.text() != want.text() || list[len(list)-1].Response.ID != r.ID) {
				t.Errorf("events after %d: %+v", after, list)
			}
		}
		if a := do(t, g2, "GET", "/v1/responses/"+r.ID+"?starting_after=3", `{"stream":true}`); !strings.HasPrefix(a.body, "event: ") { // as OpenAI's SDK for Go asks
			t.Errorf("a stream that is asked for in the body: %d %.100s", a.status, a.body)
		}
		for path, status := range map[string]int{"/v1/responses/resp_" + strings.Repeat("0", 48): 404, "/v1/responses/x": 404, "/v1/responses/" + r.ID + "/x": 404, "/v1/responses/" + want.ID: 404, "/v1/responses/" + r.ID + "?stream=true&starting_after=x": 400} {
			if a := do(t, g1, "GET", path, ""); a.status != status {
				t.Errorf("%s: %d %s", path, a.status, a.body)
			}
		}
		if a := do(t, g1, "DELETE", "/v1/responses/"+r.ID, ""); a.status != 200 || !strings.Contains(a.body, `"deleted":true`) {
			t.Errorf("deleted: %d %s", a.status, a.body)
		}
		for _, method := range []string{"GET", "DELETE"} {
			if a := do(t, g2, method, "/v1/responses/"+r.ID, ""); a.status != 404 {
				t.Errorf("%s of a deleted one: %d %s", method, a.status, a.body)
			}
		}
	})
}

// Clients that try a WebSocket on the path of responses are told to use HTTP, as where no responses are stored.
func TestNoWebSocketToResponses(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := withBackground(t, env, background.Config{})
		wantError(t, do(t, g, "GET", "/v1/responses", "", "Connection", "Upgrade", "Upgrade", "websocket"), 426, "websocket_not_supported")
		if r := do(t, g, "GET", "/v1/responses", ""); r.status != 200 {
			t.Errorf("a list: %d %s", r.status, r.body)
		}
	})
}

// A response is cancelled at any gateway, more than once, and its engine stops.
func TestBackgroundCancel(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g1, g2 := withBackground(t, env, background.Config{}), withBackground(t, env, background.Config{})
		e := env.Engine(slow("a"))
		env.Worker(e, worker.Config{Name: "a", Slots: 4})
		g1.Serves(t, "m")
		var list []response
		for i := range 6 { // two wait
			list = append(list, submit(t, g1, input(1000+i, `"background":true`)))
		}
		chatting := tellResponse(t, askAt(t, g1, "/v1/chat/completions", chat("m", false, 1000), "", "Prefer", "respond-async"), 202)
		time.Sleep(2 * time.Second)
		if n := e.Stats().Running; n != 4 {
			t.Fatalf("%d running", n)
		}
		var streams sync.WaitGroup
		for _, r := range list {
			streams.Go(func() {
				all := events(t, g2, r.ID, -1, nil)
				inOrder(t, all, 0)
				if last := all[len(all)-1]; last.Type != "response.cancelled" || last.Response.Status != "cancelled" {
					t.Errorf("the last event is %+v", last)
				}
			})
		}
		time.Sleep(time.Second)
		for _, r := range append(list, chatting) {
			for _, g := range []*Gateway{g2, g1} {
				if c := tellResponse(t, do(t, g, "POST", "/v1/responses/"+r.ID+"/cancel", ""), 200); c.Status != "cancelled" || c.ID != r.ID {
					t.Errorf("cancelled: %+v", c)
				}
			}
		}
		testenv.Eventually(t, "the engine stops", time.Second, func() bool { return e.Stats().Running == 0 })
		streams.Wait()
		if r := poll(t, g1, list[0].ID); r.Status != "cancelled" {
			t.Errorf("polled: %+v", r)
		}
		deleted := submit(t, g1, input(1000, `"background":true`))
		time.Sleep(2 * time.Second)
		if n := e.Stats().Running; n != 1 {
			t.Fatalf("%d running", n)
		}
		do(t, g2, "DELETE", "/v1/responses/"+deleted.ID, "")
		testenv.Eventually(t, "the engine stops", time.Second, func() bool { return e.Stats().Running == 0 })
		short := submit(t, g1, input(2, `"background":true`))
		ended(t, g1, short.ID, 10*time.Second)
		if c := tellResponse(t, do(t, g2, "POST", "/v1/responses/"+short.ID+"/cancel", ""), 200); c.Status != "completed" {
			t.Errorf("cancelled after its end: %+v", c)
		}
		if a := do(t, g2, "POST", "/v1/responses/resp_"+strings.Repeat("a", 48)+"/cancel", ""); a.status != 404 {
			t.Errorf("an unknown one: %d %s", a.status, a.body)
		}
		for path, want := range map[string]string{"x/cancel": `id \"x\" not found`, short.ID + "/stop/cancel": "cancelled with POST"} {
			if a := do(t, g2, "POST", "/v1/responses/"+path, ""); a.status != 404 || !strings.Contains(string(a.body), want) {
				t.Errorf("%s: %d %s", path, a.status, a.body)
			}
		}
		time.Sleep(time.Minute)
		if s := e.Stats(); s.Running != 0 || s.Received > 10 {
			t.Errorf("the engine ran more: %+v", s)
		}
	})
}

// Requests and answers may be large: what a client reads at any time is whole, and so are events that are longer than a message.
func TestBackgroundLarge(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := withBackground(t, env, background.Config{})
		env.Worker(env.Engine(sim.Config{Name: "a", Models: []string{"m"}, Slots: 4, PrefillRate: 1e6, ITLBase: time.Millisecond, TokensPerEvent: 200}), worker.Config{Name: "a", Slots: 4})
		g.Serves(t, "m")
		large := `"instructions":"` + strings.Repeat("long ", 80_000) + `"`
		for tokens, instructions := range map[int]string{10: large, 14_000: `"instructions":"short"`, 13_000: large} {
			want := tellResponse(t, askAt(t, g, "/v1/responses", input(tokens, instructions), ""), 200).text()
			r := submit(t, g, input(tokens, instructions, `"background":true`))
			seen := make(map[string]bool)
			for range 60 { // it takes CPU to read that often
				if r = poll(t, g, r.ID); r.Status == "completed" {
					break
				}
				seen[r.Status] = true
				time.Sleep(time.Second)
			}
			if list := events(t, g, r.ID, -1, nil); r.text() != want || said(list) != want || list[len(list)-1].Response.text() != want {
				t.Errorf("%d tokens, seen %v: %d bytes, events %d, want %d", tokens, seen, len(r.text()), len(said(list)), len(want))
			}
		}
		r := submit(t, g, input(100_000, large, `"background":true`))
		time.Sleep(5 * time.Second)
		if p := poll(t, g, r.ID); p.Status != "in_progress" {
			t.Errorf("%s", p.Status)
		}
		do(t, g, "POST", "/v1/responses/"+r.ID+"/cancel", "")
		if p := poll(t, g, r.ID); p.Status != "cancelled" {
			t.Errorf("%s", p.Status)
		}
	})
}

// Whatever a client asks for, the end of the response says what became of it.
func TestBackgroundAnswers(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := withBackground(t, env, background.Config{MaxAnswer: 40_000})
		env.Worker(env.Engine(sim.Config{Name: "a", Models: []string{"m"}, Slots: 4, PrefillRate: 100_000, ITLBase: time.Millisecond}), worker.Config{Name: "a", Slots: 4})
		g.Serves(t, "m")
		whole := ask(t, g, chat("m", false, 5), "")
		for what, c := range map[string]struct{ path, body, orders, status, says string }{
			"chat":             {"/v1/chat/completions", chat("m", false, 5), "", "completed", content(t, whole.body)},
			"a chat's stream":  {"/v1/chat/completions", chat("m", true, 5, `"stream_options":{"include_usage":true}`), "", "completed", content(t, whole.body)},
			"embeddings":       {"/v1/embeddings", `{"model":"m","input":"x"}`, "", "completed", "embedding"},
			"messages":         {"/v1/messages", `{"model":"m","max_tokens":3,"messages":[{"role":"user","content":"x"}]}`, "", "completed", "max_tokens"},
			"unknown model":    {"/v1/chat/completions", chat("x", false, 5), "", "failed", "x"},
			"engine's refusal": {"/v1/embeddings", `{"model":"m"}`, "", "failed", "input"},
			"responses":        {"/v1/responses", input(5), "", "completed", "output_text"},
			"a bad response":   {"/v1/responses", `{"model":"m"}`, "", "failed", "input"},
			"too large":        {"/v1/responses", input(5000), "", "failed", "larger"},
		} {
			a := tellResponse(t, askAt(t, g, c.path, c.body, c.orders, "Prefer", "wait=1, respond-async; x"), 202)
			done := ended(t, g, a.ID, time.Minute)
			raw := do(t, g, "GET", "/v1/responses/"+a.ID, "").body
			if done.Status != c.status || !strings.Contains(raw, c.says) || (done.Error != nil) != (c.status == "failed") {
				t.Errorf("%s: %s", what, raw)
			}
			if done.Answer != nil && c.status == "completed" && done.Answer.StatusCode != 200 {
				t.Errorf("%s: %s", what, raw)
			}
		}
		for body, want := range map[string]string{`{"background":true`: "400", `{"background":true,"store":false,"model":"m","input":"x"}`: "store", `[]`: "400", `{"background":true,"model":"m","model":"n"}`: "twice"} {
			if a := askAt(t, g, "/v1/responses", body, "", "Prefer", "respond-async"); a.status != 400 || want != "400" && !strings.Contains(a.body, want) {
				t.Errorf("%s: %d %s", body, a.status, a.body)
			}
		}
		a := askAt(t, g, "/v1/chat/completions", chat("m", false, 5), "", "Prefer", "respond-async")
		if a.header.Get("Preference-Applied") != "respond-async" || !strings.HasPrefix(a.header.Get("Location"), "/v1/responses/resp_") {
			t.Errorf("%v", a.header)
		}
	})
}

var allMoments = flag.Bool("background-moments", false, "TestBackgroundSurvives: strike at other moments, too")

// Whatever dies while background responses run, each of them ends once, with the right answer, and its events have numbers without a
// gap.
func TestBackgroundSurvives(t *testing.T) {
	const count = 30
	moments := []time.Duration{700 * time.Millisecond}
	if *allMoments {
		moments = append(moments, time.Millisecond, 3*time.Second)
	}
	kill := map[string]func(env *Env, gs []*Gateway, ws []*Worker, es []*testenv.Engine){
		"a gateway": func(_ *Env, gs []*Gateway, _ []*Worker, _ []*testenv.Engine) { gs[0].Link.Cut(true) },
		"a worker":  func(_ *Env, _ []*Gateway, ws []*Worker, es []*testenv.Engine) { ws[0].Kill(es[0]) },
		"a gateway and a worker": func(_ *Env, gs []*Gateway, ws []*Worker, es []*testenv.Engine) {
			gs[0].Link.Cut(true)
			ws[0].Kill(es[0])
		},
		"an engine":  func(_ *Env, _ []*Gateway, _ []*Worker, es []*testenv.Engine) { es[0].Kill() },
		"the broker": func(env *Env, _ []*Gateway, _ []*Worker, _ []*testenv.Engine) { env.StopBroker(); env.StartBroker() },
		"connections": func(_ *Env, gs []*Gateway, ws []*Worker, _ []*testenv.Engine) {
			gs[0].Link.Cut(false)
			ws[0].Link.Cut(false)
		},
		"a gateway that stops": func(_ *Env, gs []*Gateway, _ []*Worker, _ []*testenv.Engine) { gs[0].Stop() },
		"a gateway that freezes": func(_ *Env, gs []*Gateway, _ []*Worker, _ []*testenv.Engine) {
			gs[0].Link.Freeze()
			time.Sleep(20 * time.Second)
			gs[0].Link.Thaw()
		},
	}
	for what, strike := range kill {
		for _, after := range moments {
			t.Run(fmt.Sprintf("%s, %v", what, after), func(t *testing.T) {
				run(t, func(t *testing.T, env *Env) {
					gs := []*Gateway{withBackground(t, env, background.Config{}), withBackground(t, env, background.Config{})}
					var es []*testenv.Engine
					var ws []*Worker
					for _, name := range []string{"a", "b"} {
						es = append(es, env.Engine(sim.Config{Name: name, Models: []string{"m"}, Slots: 8, PrefillRate: 1000, ITLBase: 50 * time.Millisecond}))
						ws = append(ws, env.Worker(es[len(es)-1], worker.Config{Name: name, Slots: 8}))
					}
					gs[1].Serves(t, "m")
					var texts []string
					for n := range 3 {
						texts = append(texts, tellResponse(t, askAt(t, gs[1], "/v1/responses", input(20+10*n), ""), 200).text())
					}
					want := make(map[string]string)
					var ids []string
					for i := range count {
						r := submit(t, gs[i%2], input(20+10*(i%3), `"background":true`))
						ids = append(ids, r.ID)
						want[r.ID] = texts[i%3]
					}
					time.Sleep(after)
					strike(env, gs, ws, es)
					time.Sleep(time.Second)
					for _, id := range ids {
						r := ended(t, gs[1], id, 3*time.Minute)
						right := want[id]
						if r.Status != "completed" || r.text() != right {
							t.Errorf("%s: %+v, want %q", id, r, right)
						}
						list := events(t, gs[1], id, -1, nil)
						inOrder(t, list, 0)
						ends := 0
						for _, e := range list {
							if e.Type == "response.completed" {
								ends++
							}
						}
						if ends != 1 || said(list) != right || list[len(list)-1].Response.text() != right {
							t.Errorf("%s: %d ends, events say %q, want %q", id, ends, said(list), right)
						}
					}
				})
			})
		}
	}
}

// A client that is gone at the first event, or before, leaves a response that runs.
func TestBackgroundClientGone(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g1, g2 := withBackground(t, env, background.Config{}), withBackground(t, env, background.Config{})
		env.Worker(env.Engine(slow("a")), worker.Config{Name: "a", Slots: 4})
		g1.Serves(t, "m")
		var list []event
		for first := range 3 {
			ctx, cancel := context.WithCancel(t.Context())
			resp, err := post(ctx, g1, "/v1/responses", input(10+first, `"background":true`, `"stream":true`), "")
			if err != nil {
				t.Fatal(err)
			}
			seen := eventsOf(t, resp.Body, func(e event) bool { return e.Number >= first })
			cancel()
			resp.Body.Close()
			inOrder(t, seen, 0)
			list = append(list, seen[0])
		}
		for _, e := range list {
			if r := ended(t, g2, e.Response.ID, 20*time.Second); r.Status != "completed" || r.text() == "" {
				t.Errorf("%+v", r)
			}
		}
	})
}

// A stream that is resumed has the events that are missing within 100 ms, and then those that come.
func TestBackgroundResume(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g1, g2 := withBackground(t, env, background.Config{}), withBackground(t, env, background.Config{})
		env.Worker(env.Engine(slow("a")), worker.Config{Name: "a", Slots: 4})
		g1.Serves(t, "m")
		want := tellResponse(t, askAt(t, g1, "/v1/responses", input(100), ""), 200).text()
		resp, err := post(t.Context(), g1, "/v1/responses", input(100, `"background":true`, `"stream":true`), "")
		if err != nil {
			t.Fatal(err)
		}
		seen := eventsOf(t, resp.Body, func(e event) bool { return e.Number == 20 })
		resp.Body.Close()
		time.Sleep(2 * time.Second)
		begun := time.Now()
		missing := time.Duration(-1)
		rest := events(t, g2, seen[0].Response.ID, 20, func(e event) bool {
			if e.Number == 38 {
				missing = time.Since(begun)
			}
			return false
		})
		inOrder(t, rest, 21)
		if all := said(append(seen, rest...)); all != want {
			t.Errorf("%q, want %q", all, want)
		}
		if missing < 0 || missing > 100*time.Millisecond {
			t.Errorf("the missing events came after %v", missing)
		}
	})
}

// Tenants have their own responses. One whose key is revoked before it ran fails, and says so.
func TestBackgroundTenants(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := withBackground(t, env, background.Config{})
		e := env.Engine(slow("a"))
		w := env.Worker(e, worker.Config{Name: "a", Slots: 4})
		g.Serves(t, "m")
		w.Stop()
		a, b := env.AddKey("acme"), env.AddKey("bee")
		short := env.AddKey("acme", func(k *policy.Key) { k.Expires = time.Now().Add(30 * time.Second) })
		body := input(5, `"background":true`)
		mine := submit(t, g, body, "X-Api-Key", a)
		time.Sleep(time.Second)
		late := submit(t, g, body, "X-Api-Key", short)
		for _, c := range []struct{ method, path string }{{"GET", ""}, {"DELETE", ""}, {"POST", "/cancel"}, {"GET", "?stream=true"}} {
			if r := do(t, g, c.method, "/v1/responses/"+mine.ID+c.path, "", "X-Api-Key", b); r.status != 404 {
				t.Errorf("%s%s by another tenant: %d %s", c.method, c.path, r.status, r.body)
			}
			if r := do(t, g, c.method, "/v1/responses/"+mine.ID+c.path, ""); r.status != 401 {
				t.Errorf("%s%s without a key: %d %s", c.method, c.path, r.status, r.body)
			}
		}
		ids := func(key, query string) (out []string, more bool) {
			var page struct {
				Data    []response
				HasMore bool `json:"has_more"`
			}
			if err := json.Unmarshal([]byte(do(t, g, "GET", "/v1/responses"+query, "", "X-Api-Key", key).body), &page); err != nil {
				t.Fatal(err)
			}
			for _, r := range page.Data {
				out = append(out, r.ID)
			}
			return out, page.HasMore
		}
		if list, more := ids(a, "?order=asc"); len(list) != 2 || list[0] != mine.ID || more {
			t.Errorf("list %v, more %t", list, more)
		}
		if list, more := ids(a, "?limit=1"); len(list) != 1 || list[0] != late.ID || !more {
			t.Errorf("first page %v, more %t", list, more)
		}
		if list, more := ids(a, "?after="+late.ID); len(list) != 1 || list[0] != mine.ID || more {
			t.Errorf("second page %v, more %t", list, more)
		}
		if r := do(t, g, "DELETE", "/v1/responses/", "", "X-Api-Key", a); r.status < 400 {
			t.Errorf("deleted without an id: %d %s", r.status, r.body)
		}
		if list, _ := ids(b, ""); len(list) != 0 {
			t.Errorf("another tenant's list %v", list)
		}
		time.Sleep(time.Minute) // no worker until the one key has expired
		env.Worker(e, worker.Config{Name: "a", Slots: 4})
		if r := ended(t, g, mine.ID, time.Minute, "X-Api-Key", a); r.Status != "completed" {
			t.Errorf("%+v", r)
		}
		if r := ended(t, g, late.ID, time.Minute, "X-Api-Key", a); r.Status != "failed" || r.Error == nil || !strings.Contains(r.Error.Message, "expired") {
			t.Errorf("%+v %+v", r, r.Error)
		}
	})
}

// Responses expire, also while no gateway runs, and no more are accepted than there may be.
func TestBackgroundBounds(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := withBackground(t, env, background.Config{Keep: 10 * time.Minute, Within: 15 * time.Minute, Pending: 3, Store: 1 << 20})
		e := env.Engine(slow("a"))
		w := env.Worker(e, worker.Config{Name: "a", Slots: 4})
		g.Serves(t, "m")
		kept := submit(t, g, input(5, `"background":true`))
		ended(t, g, kept.ID, 10*time.Second)
		w.Stop()
		time.Sleep(5 * time.Second)
		var waits []response
		for range 3 {
			waits = append(waits, submit(t, g, input(5, `"background":true`)))
		}
		if r := askAt(t, g, "/v1/responses", input(5, `"background":true`), ""); r.status != 429 || r.header.Get("Retry-After") == "" || !strings.Contains(r.body, "background_queue_full") {
			t.Errorf("one too many: %d %s", r.status, r.body)
		}
		do(t, g, "POST", "/v1/responses/"+waits[0].ID+"/cancel", "")
		time.Sleep(20 * time.Second)
		large := strings.Repeat("x", 1<<20)
		if r := askAt(t, g, "/v1/responses", input(5, `"background":true`, `"instructions":"`+large+`"`), ""); r.status != 507 || !strings.Contains(r.body, "insufficient_storage") {
			t.Errorf("too large: %d %.200s", r.status, r.body)
		}
		fits := submit(t, g, input(5, `"background":true`, `"instructions":"`+strings.Repeat("x", 100_000)+`"`)) // nothing of the other one is left
		do(t, g, "DELETE", "/v1/responses/"+fits.ID, "")
		time.Sleep(11 * time.Minute)
		if r := do(t, g, "GET", "/v1/responses/"+kept.ID, ""); r.status != 404 {
			t.Errorf("after its time: %d %s", r.status, r.body)
		}
		if r := poll(t, g, waits[1].ID); r.Status != "queued" {
			t.Errorf("one that waits: %+v", r)
		}
		time.Sleep(5 * time.Minute)
		if r := poll(t, g, waits[1].ID); r.Status != "failed" || !strings.Contains(r.Error.Message, "15m0s") {
			t.Errorf("one that waited too long: %+v", r)
		}
		g.Stop()
		time.Sleep(30 * time.Minute)
		js := env.JetStream()
		for _, name := range []string{"PULLEY_BACKGROUND", "PULLEY_BACKGROUND_DATA", "PULLEY_BACKGROUND_JOBS"} {
			s, err := js.Stream(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			if n := s.CachedInfo().State.Msgs; n != 0 {
				t.Errorf("%s has %d messages", name, n)
			}
		}
	})
}

// A tenant whose responses wait for a worker does not keep those of others from running.
func TestBackgroundFair(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := withBackground(t, env, background.Config{Running: 4})
		gone := env.Worker(env.Engine(sim.Config{Name: "a", Models: []string{"gone"}, Slots: 4}), worker.Config{Name: "a", Slots: 4})
		env.Worker(env.Engine(slow("b")), worker.Config{Name: "b", Slots: 4})
		g.Serves(t, "m")
		g.Serves(t, "gone")
		gone.Stop()
		a, b := env.AddKey("acme"), env.AddKey("bee")
		for range 20 {
			submit(t, g, `{"model":"gone","input":"x","background":true}`, "X-Api-Key", a)
		}
		time.Sleep(10 * time.Second)
		for range 2 {
			r := submit(t, g, input(5, `"background":true`), "X-Api-Key", b)
			if r = ended(t, g, r.ID, 10*time.Second, "X-Api-Key", b); r.Status != "completed" {
				t.Errorf("%+v", r)
			}
			time.Sleep(20 * time.Second)
		}
	})
}

// An engine's error may be long.
func TestBackgroundLongError(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := withBackground(t, env, background.Config{})
		engine, err := sim.New(sim.Config{Models: []string{"m"}, Slots: 4})
		if err != nil {
			t.Fatal(err)
		}
		calls := new(atomic.Int64)
		env.Worker(env.Handler("a", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodPost {
				engine.ServeHTTP(w, r)
				return
			}
			calls.Add(1)
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(422)
			fmt.Fprintf(w, `{"error":{"message":"wrong: %s","code":"x"}}`, strings.Repeat("é", 1_000_000))
		})), worker.Config{Name: "a", Slots: 4})
		g.Serves(t, "m")
		for _, path := range []string{"/v1/responses", "/v1/embeddings"} {
			r := tellResponse(t, askAt(t, g, path, `{"model":"m","input":"x"}`, "", "Prefer", "respond-async"), 202)
			if r = ended(t, g, r.ID, 10*time.Second); r.Status != "failed" || len(r.Error.Message) < 1_000_000 {
				t.Errorf("%s: %.200v", path, r)
			}
		}
		if n := calls.Load(); n != 2 {
			t.Errorf("the engine was asked %d times", n)
		}
	})
}

// A gateway may be slow to write the state of a response that it accepts. If its job was dropped meanwhile, the state is refused:
// the client gets no response that nobody runs.
func TestBackgroundSlowAccept(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := withBackground(t, env, background.Config{})
		env.Worker(env.Engine(slow("a")), worker.Config{Name: "a", Slots: 4})
		g.Serves(t, "m")
		first := submit(t, g, input(2, `"background":true`))
		ended(t, g, first.ID, 10*time.Second)
		id := "resp_" + strings.Repeat("a", 48)
		js := env.JetStream()
		job := fmt.Sprintf(`{"id":%q,"tenant":"","path":"/v1/responses","header":{},"size":2,"created":%q,"deadline":%q}`, id,
			time.Now().Format(time.RFC3339Nano), time.Now().Add(time.Hour).Format(time.RFC3339Nano))
		for subject, data := range map[string]string{subjects.BackgroundPart("", id, "body"): "{}", subjects.BackgroundJob(""): job} {
			if _, err := js.Publish(t.Context(), subject, []byte(data)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(20 * time.Second)
		_, err := js.Publish(t.Context(), subjects.BackgroundState("", id), []byte("{}"), jetstream.WithExpectLastSequencePerSubject(0))
		if err == nil {
			t.Error("the state was written after the job was dropped")
		}
		if r := do(t, g, "GET", "/v1/responses/"+id, ""); r.status != 404 {
			t.Errorf("%d %s", r.status, r.body)
		}
		if r := do(t, g, "GET", "/v1/responses", ""); r.status != 200 || strings.Contains(r.body, id) || !strings.Contains(r.body, first.ID) {
			t.Errorf("%d %s", r.status, r.body)
		}
		if jobs, err := js.Stream(t.Context(), subjects.BackgroundJobs); err != nil || jobs.CachedInfo().State.Msgs != 0 {
			t.Errorf("the job is there: %v", err)
		}
	})
}
