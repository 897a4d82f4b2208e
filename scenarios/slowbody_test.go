package scenarios

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/gateway"
)

// from is the gateway as a client at an IP address reaches it.
func (g *Gateway) from(t testing.TB, addr string) *Gateway {
	transport := &http.Transport{DisableCompression: true, DialContext: g.Listener.From(netip.MustParseAddr(addr))}
	t.Cleanup(transport.CloseIdleConnections)
	there := *g
	there.Client = &http.Client{Transport: transport}
	return &there
}

// dribble sends a request whose body comes piece by piece, and returns the answer, and when it came.
func dribble(t testing.TB, g *Gateway, addr, head string, every time.Duration, pieces ...string) (answer *http.Response, body string, after time.Duration) {
	t.Helper()
	conn, err := g.Listener.From(netip.MustParseAddr(addr))(t.Context(), "tcp", "gateway:80")
	if err != nil {
		t.Error(err)
		return nil, "", 0
	}
	began, answered := time.Now(), make(chan struct{})
	var sender sync.WaitGroup
	defer sender.Wait()
	defer conn.Close()
	defer close(answered)
	sender.Go(func() {
		io.WriteString(conn, head+"\r\n\r\n")
		for _, p := range pieces {
			if _, err := io.WriteString(conn, p); err != nil {
				return
			}
			select {
			case <-time.After(every):
			case <-answered:
				return
			}
		}
	})
	conn.SetReadDeadline(began.Add(30 * time.Minute))
	answer, err = http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return nil, err.Error(), time.Since(began)
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Error(err)
	}
	return answer, string(b), time.Since(began)
}

// ones is n pieces of one byte.
func ones(n int) []string { return strings.Split(strings.Repeat("x", n), "") }

// Bodies that come too slowly end, with an error in the form of the API; those that come slowly but in time are served.
func TestSlowBodies(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := with(t, env, gateway.Config{}, digest)
		const frame = `{"model":"m","messages":[{"role":"user","content":""}]}`
		prompt := func(size int) string { return strings.Replace(frame, `""`, `"`+strings.Repeat("x", size)+`"`, 1) }
		pieces := func(s string, size int) (p []string) {
			for len(s) > 0 {
				n := min(size, len(s))
				p, s = append(p, s[:n]), s[n:]
			}
			return p
		}
		head := func(path string, size int) string {
			return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\nContent-Length: %d", path, size)
		}
		chunked := func(p []string) (c []string) {
			for _, p := range p {
				c = append(c, fmt.Sprintf("%x\r\n%s\r\n", len(p), p))
			}
			return append(c, "0\r\n\r\n")
		}
		const chunks = "POST /v1/x HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked"
		var wg sync.WaitGroup
		for about, c := range map[string]struct {
			head   string
			every  time.Duration
			pieces []string
			status int
			says   string
			within time.Duration
		}{
			"a byte each 4 s":         {head("/v1/x", 64<<20), 4 * time.Second, ones(100), 408, "1024 bytes a second", 6 * time.Second},
			"a byte each 4 s, chunks": {chunks, 4 * time.Second, chunked(ones(100)), 408, "1024 bytes a second", 6 * time.Second},
			"in Anthropic's form":     {head("/v1/messages", 64<<20), 4 * time.Second, ones(100), 408, `"type":"error"`, 6 * time.Second},
			"nothing":                 {head("/v1/x", 100), time.Second, nil, 408, "1024 bytes a second", 6 * time.Second},
			"nothing any more":        {head("/v1/x", 1<<20), time.Hour, pieces(prompt(100_000), 100_000), 408, "no byte", 31 * time.Second},
			"half of the rate":        {head("/v1/x", 1<<20), time.Second, pieces(prompt(1<<20), 512), 408, "1024 bytes a second", 12 * time.Second},
			"a little above the rate": {head("/v1/x", 1<<20), time.Second, pieces(prompt(1<<20), 2048), 408, "longer than 1m0s", 75 * time.Second},
			"slow and small":          {head("/v1/x", len(prompt(300))), 100 * time.Millisecond, pieces(prompt(300), 10), 200, "", 6 * time.Second},
			"slow and short":          {head("/v1/x", len(prompt(80_000))), time.Second, pieces(prompt(80_000), 2048), 200, "", time.Minute},
			"a slow line":             {head("/v1/x", len(prompt(2<<20))), time.Second, pieces(prompt(2<<20), 20<<10), 200, "", 2 * time.Minute},
			"a slow line, chunks":     {chunks, time.Second, chunked(pieces(prompt(2<<20), 20<<10)), 200, "", 2 * time.Minute},
		} {
			wg.Go(func() {
				r, body, after := dribble(t, g, "192.0.2.7", c.head, c.every, c.pieces...)
				if r == nil || r.StatusCode != c.status || !strings.Contains(body, c.says) || after > c.within {
					t.Errorf("%s: after %v got %+v %.200q, want %d %q within %v", about, after, r, body, c.status, c.says, c.within)
					return
				}
				if c.status == 408 && (!strings.Contains(body, `"code":"body_timeout"`) || !r.Close) {
					t.Errorf("%s: got %v %s", about, r.Header, body)
				}
			})
		}
		wg.Wait()
		if m := metricsOf(t, g); !strings.Contains(m, "\npulley_request_body_bytes 0\n") {
			t.Error("the gateway still holds bodies")
		}
	})
}

// However many connections send how little, others are served: from another address whatever is left of the memory, and
// from the same one as long as bytes have not come.
func TestManySlowBodies(t *testing.T) {
	for about, c := range map[string]struct {
		cfg   gateway.Config
		conns int
		same  int // status of a request from the same address
	}{
		"with the memory of a default": {gateway.Config{}, 2000, 200},
		"with little memory":           {gateway.Config{BodyMemory: 4 << 20, MaxBody: 1 << 20}, 1000, 429},
	} {
		t.Run(about, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g := with(t, env, c.cfg, digest)
				other := g.from(t, "198.51.100.1")
				size := max(c.cfg.MaxBody, 1<<20)
				ctx, stop := context.WithCancel(t.Context())
				var slow sync.WaitGroup
				for range c.conns {
					slow.Go(func() {
						for ctx.Err() == nil {
							dribble(t, g, "192.0.2.7", fmt.Sprintf("POST /v1/x HTTP/1.1\r\nHost: gateway\r\nContent-Length: %d", size), 4*time.Second, ones(100)...)
							time.Sleep(time.Second)
						}
					})
				}
				same := g.from(t, "192.0.2.7")
				for range 20 {
					time.Sleep(900 * time.Millisecond)
					if r := do(t, other, "POST", "/v1/x", noise(500_000)); r.status != 200 || r.took > time.Second {
						t.Fatalf("from another address: got %d %q, %v after %v", r.status, r.body, r.err, r.took)
					}
				}
				switch r := do(t, same, "POST", "/v1/x", noise(100_000)); {
				case r.status != c.same:
					t.Errorf("from the same address: got %d %q", r.status, r.body)
				case c.same == 429:
					wantError(t, r, 429, "body_share_full")
				}
				stop()
				slow.Wait()
				if m := metricsOf(t, g); !strings.Contains(m, "\npulley_request_body_bytes 0\n") {
					t.Error("the gateway still holds bodies")
				}
			})
		})
	}
}

// A key has a share of the memory, whatever becomes of its bodies; other keys have room.
func TestBodyShareOfKey(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := with(t, env, gateway.Config{BodyMemory: 1 << 20, MaxBody: 300_000, BodyShare: 0.3}, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			time.Sleep(30 * time.Second)
		})
		greedy, other := env.AddKey("greedy"), env.AddKey("other")
		time.Sleep(2 * time.Second)
		var wg sync.WaitGroup
		for i := range 3 { // each from an address of its own
			wg.Go(func() {
				r := do(t, g.from(t, fmt.Sprintf("192.0.2.%d", i+1)), "POST", "/v1/x", noise(100_000), "Authorization", "Bearer "+greedy)
				if r.status != 200 {
					t.Errorf("within the share: got %d %q", r.status, r.body)
				}
			})
		}
		time.Sleep(time.Second)
		r := do(t, g, "POST", "/v1/x", noise(100_000), "Authorization", "Bearer "+greedy)
		if m := wantError(t, r, 429, "body_share_full"); !strings.Contains(m, "this API key") || r.header.Get("Retry-After") == "" {
			t.Errorf("got %v %s", r.header, m)
		}
		if r := do(t, g, "POST", "/v1/x", noise(290_000), "Authorization", "Bearer "+other); r.status != 200 {
			t.Errorf("another key: got %d %q", r.status, r.body)
		}
		wg.Wait()
		if r := do(t, g, "POST", "/v1/x", noise(290_000), "Authorization", "Bearer "+greedy); r.status != 200 {
			t.Errorf("after its others: got %d %q", r.status, r.body)
		}
	})
}

// What is refused before its body has come holds its connection for a while only.
func TestSlowBodyOfRefused(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{Auth: gateway.AuthRequired})
		for _, size := range []int{100, 200_000, 1 << 20} {
			for call, status := range map[string]int{"POST /v1/x": 401, "POST /v1/..%2fx": 404, "GET /v1/models": 401, "GET /healthz": 200, "GET /x": 404, "DELETE /v1/x": 405} {
				r, body, after := dribble(t, g, "192.0.2.7", fmt.Sprintf("%s HTTP/1.1\r\nHost: gateway\r\nContent-Length: %d", call, size), 20*time.Second, ones(50)...)
				if r == nil || r.StatusCode != status || after > 40*time.Second {
					t.Errorf("%s, %d bytes: got %v %s after %v", call, size, r, body, after)
				}
			}
		}
	})
}
