package idempotency_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/idempotency"
	"github.com/pulley-lb/pulley/testenv"
)

// server stands for a gateway: it has a service take every call, and run answers the requests that run.
type server struct {
	*httptest.Server
	ran atomic.Int64
}

func start(t testing.TB, nc *nats.Conn, cfg idempotency.Config, run http.HandlerFunc) *server {
	t.Helper()
	s, err := idempotency.New(cfg, nc)
	if err != nil {
		t.Fatal(err)
	}
	srv := new(server)
	srv.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil {
			err = s.Take(w, r, gateway.Caller{Tenant: "acme"}, body)
		}
		if e, ok := errors.AsType[*api.Error](err); ok {
			e.Write(w, api.Of(r.URL.Path), "")
		} else if err != nil {
			panic(http.ErrAbortHandler)
		}
	}))
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		s.Run(ctx, func(w http.ResponseWriter, r *http.Request, _ gateway.Caller, _ string) {
			if r.Header.Get("Idempotency-Key") != "" {
				t.Error("a request runs with its key, and would be taken again")
			}
			if r.Header.Get("Content-Type") == "ready" {
				w.WriteHeader(http.StatusOK)
				return
			}
			srv.ran.Add(1)
			run(w, r)
		})
	})
	t.Cleanup(func() { stop(); running.Wait(); srv.Close() })
	testenv.Eventually(t, "the service runs", time.Minute, func() bool {
		return srv.send(t, "ready "+srv.URL, "ready", "").status != http.StatusServiceUnavailable
	})
	return srv
}

// reply is what a client got.
type reply struct {
	status   int
	body     string
	replayed bool
	err      error // of reading the body
}

func (s *server) post(t testing.TB, key, body string) reply {
	return s.send(t, key, "application/json", body)
}

func (s *server) send(t testing.TB, key, kind, body string) reply {
	t.Helper()
	resp, err := s.open(t, key, kind, body)
	if err != nil {
		return reply{err: err}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, string(b), resp.Header.Get(idempotency.Replayed) != "", err}
}

func (s *server) open(t testing.TB, key, kind, body string) (*http.Response, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "POST", s.URL+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", kind)
	r.Header.Set("Idempotency-Key", key)
	return http.DefaultClient.Do(r)
}

// An answer of any size and kind is stored as it is, once.
func TestAnswers(t *testing.T) {
	nc := testenv.Broker(t, broker.Config{})
	run := func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "audio/mpeg")
		w.WriteHeader(http.StatusAccepted)
		for range 8 {
			w.Write(bytes.Repeat(b, 1<<10))
		}
	}
	s1, s2 := start(t, nc, idempotency.Config{}, run), start(t, nc, idempotency.Config{}, run)
	for _, body := range []string{"", "x", "\x00\xff\n", strings.Repeat("0123456789", 4)} {
		want := reply{status: http.StatusAccepted, body: strings.Repeat(body, 8<<10)}
		for i, s := range []*server{s1, s2, s1, s2} {
			want.replayed = i > 0
			if a := s.post(t, fmt.Sprintf("k%x", body[:min(len(body), 3)]), body); a != want {
				t.Errorf("%d bytes, call %d: %d, %d bytes, replayed %t, %v", len(want.body), i, a.status, len(a.body), a.replayed, a.err)
			}
		}
	}
	if n := s1.ran.Load() + s2.ran.Load(); n != 4 {
		t.Errorf("%d ran, want 4", n)
	}
}

// Who joins gets the stream from its beginning, and its events as they come.
func TestJoin(t *testing.T) {
	nc := testenv.Broker(t, broker.Config{})
	more := make(chan struct{})
	run := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			if i > 0 {
				<-more
			}
			fmt.Fprintf(w, "data: %d\n\n", i)
			http.NewResponseController(w).Flush()
		}
		fmt.Fprint(w, "data: [DONE]\n\n")
		http.NewResponseController(w).Flush()
	}
	servers := []*server{start(t, nc, idempotency.Config{}, run), start(t, nc, idempotency.Config{}, run)}
	var bodies []io.Reader
	for i := range 6 {
		resp, err := servers[i%2].open(t, "k", "", "x")
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(err, resp)
		}
		defer resp.Body.Close()
		bodies = append(bodies, resp.Body)
	}
	event := func(want string) {
		t.Helper()
		for i, b := range bodies {
			got := make([]byte, len(want))
			if _, err := io.ReadFull(b, got); err != nil || string(got) != want {
				t.Errorf("client %d: %q %v, want %q", i, got, err, want)
			}
		}
	}
	event("data: 0\n\n")
	more <- struct{}{}
	event("data: 1\n\n")
	more <- struct{}{}
	event("data: 2\n\ndata: [DONE]\n\n")
	if n := servers[0].ran.Load() + servers[1].ran.Load(); n != 1 {
		t.Errorf("%d ran", n)
	}
}

// Who joins at the gateway that runs the request, when more of the answer is stored than is kept there, gets it from the beginning as
// well, and then what comes. So does a client that resumes.
func TestJoinLate(t *testing.T) {
	nc := testenv.Broker(t, broker.Config{})
	const id = "01a228f5-8369-7d79-9ba1-e32bb02083be"
	joined := make(chan struct{})
	event := func(i int) string { return fmt.Sprintf("data: %d%s\n\n", i, strings.Repeat("x", 32<<10)) }
	s := start(t, nc, idempotency.Config{}, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("X-Pulley-Request-Id", id)
		for i := range 20 {
			if i == 10 {
				<-joined
			}
			io.WriteString(w, event(i))
			http.NewResponseController(w).Flush()
			time.Sleep(60 * time.Millisecond) // so that they are stored apart
		}
	})
	first, err := s.open(t, "k", "application/json", "x")
	if err != nil {
		t.Fatal(err)
	}
	defer first.Body.Close()
	var want, got strings.Builder
	for i := range 20 {
		want.WriteString(event(i))
	}
	if _, err := io.CopyN(&got, first.Body, int64(10*len(event(0)))); err != nil {
		t.Fatal(err)
	}
	replies := make([]reply, 3)
	var wg sync.WaitGroup
	wg.Go(func() { replies[0] = s.post(t, "k", "x") })
	wg.Go(func() { replies[1] = s.resume(t, "k", id+":2") })
	wg.Go(func() { replies[2] = s.resume(t, "k", id+":10") })
	time.Sleep(200 * time.Millisecond)
	close(joined)
	if _, err := io.Copy(&got, first.Body); err != nil || got.String() != want.String() {
		t.Errorf("the first: %d bytes, %v", got.Len(), err)
	}
	wg.Wait()
	for i, has := range []int{0, 2, 10} {
		if r := replies[i]; r.err != nil || r.status != 200 || r.body != want.String()[has*len(event(0)):] {
			t.Errorf("with %d events: %d, %d bytes, %v", has, r.status, len(r.body), r.err)
		}
	}
}

// Forms are the same if their parts are: what separates these is made up for each.
func TestForms(t *testing.T) {
	nc := testenv.Broker(t, broker.Config{})
	s := start(t, nc, idempotency.Config{}, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.FormValue("text")) })
	form := func(text string) (kind, body string) {
		var b bytes.Buffer
		w := multipart.NewWriter(&b)
		w.WriteField("text", text)
		w.Close()
		return w.FormDataContentType(), b.String()
	}
	for i := range 3 {
		kind, body := form("one")
		if a := s.send(t, "k", kind, body); a.status != 200 || a.body != "one" || a.replayed != (i > 0) {
			t.Errorf("%+v", a)
		}
	}
	kind, body := form("two")
	if a := s.send(t, "k", kind, body); a.status != 409 {
		t.Errorf("another form: %+v", a)
	}
}

// What is no answer reaches its client, and is not kept. A client never has all the events of a stream that is not kept.
func TestNotKept(t *testing.T) {
	nc := testenv.Broker(t, broker.Config{})
	event := func(w http.ResponseWriter, data string) {
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprintf(w, "data: %s\n\n", data)
		http.NewResponseController(w).Flush()
	}
	for name, c := range map[string]struct {
		run  http.HandlerFunc
		want reply
	}{
		"429":   {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(429); io.WriteString(w, "later") }, reply{status: 429, body: "later"}},
		"400":   {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(400); io.WriteString(w, "bad") }, reply{status: 400, body: "bad"}},
		"none":  {func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }, reply{status: 503}},
		"break": {func(w http.ResponseWriter, r *http.Request) { event(w, "1"); panic(http.ErrAbortHandler) }, reply{status: 200, body: "data: 1\n\n", err: io.ErrUnexpectedEOF}},
		"error event": {func(w http.ResponseWriter, r *http.Request) {
			event(w, "1")
			event(w, `{"error":{"message":"x"}}`)
			w.Header().Set(gateway.BrokenOff, "true")
		}, reply{status: 200, body: "data: 1\n\ndata: {\"error\":{\"message\":\"x\"}}\n\n"}},
		"broken at its end": {func(w http.ResponseWriter, r *http.Request) {
			event(w, "1")
			event(w, "[DONE]")
			panic(http.ErrAbortHandler)
		}, reply{status: 200, body: "data: 1\n\n", err: io.ErrUnexpectedEOF}},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, nc, idempotency.Config{}, c.run)
			for i := range 3 {
				a := s.post(t, name, fmt.Sprint(i)) // any body
				if c.want.status == 503 {
					a.body = ""
				}
				if a != c.want {
					t.Errorf("%+v, want %+v", a, c.want)
				}
			}
			if n := s.ran.Load(); n != 3 {
				t.Errorf("%d ran, want 3", n)
			}
		})
	}
}

// An answer for which the store has no room fails, and leaves nothing.
func TestFull(t *testing.T) {
	nc := testenv.Broker(t, broker.Config{})
	s := start(t, nc, idempotency.Config{Store: 64 << 10, Tenant: 1 << 20}, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Write(b)
	})
	large, small := strings.Repeat("x", 200<<10), strings.Repeat("x", 10<<10)
	for range 3 {
		if a := s.post(t, "large", large); a.status != 507 || !strings.Contains(a.body, "idempotency_store_full") {
			t.Errorf("large: %d %.300s", a.status, a.body)
		}
	}
	if a := s.post(t, "large", small); a.status != 200 || a.replayed || a.body != small {
		t.Errorf("small: %d, replayed %t", a.status, a.replayed)
	}
	if n := s.ran.Load(); n != 4 {
		t.Errorf("%d ran, want 4", n)
	}
	full := 0
	for i := range 20 {
		if a := s.post(t, fmt.Sprint(i), small); a.status == 507 {
			full++
		}
	}
	if full == 0 || full == 20 {
		t.Errorf("%d of 20 were refused", full)
	}
}

// Answers that come at the same time do not take more than their tenant's share, and those that fail leave it free.
func TestTenantFull(t *testing.T) {
	nc := testenv.Broker(t, broker.Config{})
	var together sync.WaitGroup
	together.Add(8)
	s := start(t, nc, idempotency.Config{Store: 4 << 20, Tenant: 64 << 10}, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if len(b) > 1 {
			together.Done()
			together.Wait()
		}
		w.Write(b)
	})
	large := strings.Repeat("x", 40<<10)
	var kept, full atomic.Int64
	var calls sync.WaitGroup
	for i := range 8 {
		calls.Go(func() {
			switch a := s.post(t, fmt.Sprint("large", i), large); {
			case a.status == 200 && a.body == large:
				kept.Add(1)
			case a.status == 507 && strings.Contains(a.body, "the tenant's share"):
				full.Add(1)
			default:
				t.Errorf("%d %v %.300s", a.status, a.err, a.body)
			}
		})
	}
	calls.Wait()
	if kept.Load() > 1 || kept.Load()+full.Load() != 8 {
		t.Errorf("%d answers of 40 KiB are kept and %d refused, with a share of 64 KiB", kept.Load(), full.Load())
	}
	testenv.Eventually(t, "there is room again", time.Minute, func() bool { return s.post(t, "small", "x").status == 200 })
}

func TestConfig(t *testing.T) {
	nc := testenv.Broker(t, broker.Config{})
	for _, cfg := range []idempotency.Config{{Keep: time.Second}, {Keep: -1}, {Grace: -1}, {MaxAnswer: -1}, {Store: -1}, {Tenant: -1}} {
		if _, err := idempotency.New(cfg, nc); err == nil {
			t.Errorf("%+v is accepted", cfg)
		}
	}
}
