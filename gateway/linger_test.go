package gateway

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
)

// A refusal reaches a client that sends its whole body before it reads.
func TestRefusalOfLargeBody(t *testing.T) {
	nc := startBroker(t).connect()
	serve := func(cfg Config) string {
		g, err := New(cfg, nc)
		if err != nil {
			t.Fatal(err)
		}
		g.bus.rules.Store(newRules(policystore.Version{Policy: policy.Default()}))
		g.keys.set(map[string]policy.Key{})
		srv := httptest.NewServer(g.ingress.handler())
		t.Cleanup(srv.Close)
		return srv.Listener.Addr().String()
	}
	limited, locked := serve(Config{MaxBody: 1 << 20}), serve(Config{Auth: AuthRequired})
	piece := strings.Repeat("x", 100_000)
	for about, c := range map[string]struct {
		addr, path, head string
		sent             int // pieces
		want             string
	}{
		"413":            {limited, "/v1/chat/completions", "Content-Length: 20000000\r\n", 200, "413"},
		"413, chunked":   {limited, "/v1/chat/completions", "Transfer-Encoding: chunked\r\n", 200, "413"},
		"401":            {locked, "/v1/chat/completions", "Content-Length: 20000000\r\n", 200, "401"},
		"401, chunked":   {locked, "/v1/chat/completions", "Transfer-Encoding: chunked\r\n", 200, "401"},
		"401, small":     {locked, "/v1/chat/completions", "Content-Length: 100000\r\n", 1, "401"},
		"404":            {limited, "/sleep", "Content-Length: 20000000\r\n", 200, "404"},
		"404, ambiguous": {limited, "/v1/..%2fsleep", "Content-Length: 20000000\r\n", 200, "404"},
		"405":            {limited, "/v1/models", "Content-Length: 20000000\r\n", 200, "405"},
		"waits":          {limited, "/v1/chat/completions", "Content-Length: 20000000\r\nExpect: 100-continue\r\n", 0, "413"},
	} {
		t.Run(about, func(t *testing.T) {
			conn, err := net.Dial("tcp", c.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(time.Minute))
			fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n%s\r\n", c.path, c.head)
			chunked := strings.HasPrefix(c.head, "Transfer")
			for i := range c.sent {
				out := piece
				if chunked {
					out = fmt.Sprintf("%x\r\n%s\r\n", len(piece), piece)
				}
				if _, err := io.WriteString(conn, out); err != nil {
					t.Fatalf("piece %d: %v", i, err)
				}
			}
			if chunked {
				io.WriteString(conn, "0\r\n\r\n")
			}
			line, err := bufio.NewReader(conn).ReadString('\n')
			if err != nil || !strings.Contains(line, " "+c.want+" ") {
				t.Errorf("got %q, %v", line, err)
			}
		})
	}
}
