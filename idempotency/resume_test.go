package idempotency_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/idempotency"
	"github.com/pulley-lb/pulley/testenv"
)

// A stream is resumed after any event, however it was divided where it is stored.
func TestResume(t *testing.T) {
	nc := testenv.Broker(t, broker.Config{})
	const id = "01a228f5-8369-7d79-9ba1-e32bb02083be"
	events := []string{
		"data: 1\n\n", ": a comment\n\nevent: x\ndata: 2\r\n\r\n", "data: 3\r\r", "id: 1\n\nretry: 5\n\n\ndata:\n\n", "data: 5\ndata: more\n\n", "data\n\n",
		"data: " + strings.Repeat("long", 100) + "\n\n", "data: [DONE]\n\n",
	}
	stream := strings.Join(events, "")
	for _, size := range []int{1, 2, 3, 7, len(stream)} {
		t.Run(fmt.Sprint("pieces of ", size), func(t *testing.T) {
			run := func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				w.Header().Set("X-Pulley-Request-Id", id)
				for i := 0; i < len(stream); i += size {
					io.WriteString(w, stream[i:min(i+size, len(stream))])
					http.NewResponseController(w).Flush()
					if i < 20*size { // so that they are stored apart
						time.Sleep(60 * time.Millisecond)
					}
				}
			}
			servers := []*server{start(t, nc, idempotency.Config{}, run), start(t, nc, idempotency.Config{}, run)}
			key := fmt.Sprint("k", size)
			if a := servers[0].post(t, key, "x"); a.status != 200 || a.body != stream {
				t.Fatalf("%+v", a)
			}
			for n := range len(events) + 1 {
				want := reply{200, strings.Join(events[n:], ""), true, nil}
				for _, s := range servers {
					if a := s.resume(t, key, fmt.Sprint(id, ":", n)); a != want {
						t.Errorf("after %d events: %+v, want %+v", n, a, want)
					}
				}
			}
			for place, status := range map[string]int{fmt.Sprint(id, ":", len(events)+1): 400, "01a228f5-8369-7d79-9ba1-e32bb02083bf:1": 409} {
				if a := servers[1].resume(t, key, place); a.status != status {
					t.Errorf("%s: %+v", place, a)
				}
			}
			if n := servers[0].ran.Load() + servers[1].ran.Load(); n != 1 {
				t.Errorf("%d ran", n)
			}
		})
	}
}

// resume asks for the rest of a stream.
func (s *server) resume(t testing.TB, key, place string) reply {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "POST", s.URL+"/v1/chat/completions", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	r.Header = http.Header{"Content-Type": {"application/json"}, "Idempotency-Key": {key}, gateway.ResumeHeader: {place}}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return reply{err: err}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, string(b), resp.Header.Get(idempotency.Replayed) != "", err}
}
