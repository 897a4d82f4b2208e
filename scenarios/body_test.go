package scenarios

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// endless is a body of unknown length.
type endless struct{ io.Reader }

func TestBodyTooLarge(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		var asked atomic.Int64
		g := with(t, env, gateway.Config{MaxBody: 100_000, BodyMemory: 350_000}, func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			io.Copy(io.Discard, r.Body)
			if d, err := time.ParseDuration(r.Header.Get("X-Take")); err == nil {
				time.Sleep(d)
			}
		})
		body := func(size int) string {
			const frame = `{"model":"m","x":""}`
			return frame[:len(frame)-2] + strings.Repeat("x", size-len(frame)) + frame[len(frame)-2:]
		}
		if r := do(t, g, "POST", "/v1/x", body(100_000)); r.status != 200 {
			t.Errorf("the largest body: got %d %q, want 200", r.status, r.body)
		}
		wantError(t, do(t, g, "POST", "/v1/x", body(100_001)), 413, "request_too_large")
		wantError(t, do(t, g, "POST", "/v1/x", body(10_000_000)), 413, "request_too_large")
		r, err := http.NewRequestWithContext(t.Context(), "POST", "http://gateway/v1/x", endless{strings.NewReader(body(100_001))})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := g.Client.Do(r)
		if err != nil || resp.StatusCode != 413 {
			t.Errorf("chunked: got %v, %v, want 413", resp, err)
		} else {
			resp.Body.Close()
		}
		r.Body = io.NopCloser(endless{strings.NewReader(body(100_000))})
		if resp, err := g.Client.Do(r); err != nil || resp.StatusCode != 200 {
			t.Errorf("chunked, the largest: got %v, %v, want 200", resp, err)
		} else {
			resp.Body.Close()
		}
		if n := asked.Load(); n != 2 {
			t.Errorf("the engine was asked %d times, want twice", n)
		}

		// The memory holds three bodies.
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if r := do(t, g, "POST", "/v1/x", body(100_000), "X-Take", "10s"); r.status != 200 {
					t.Errorf("got %d %q, want 200", r.status, r.body)
				}
			})
		}
		time.Sleep(time.Second)
		full := do(t, g, "POST", "/v1/x", body(100_000))
		wantError(t, full, 429, "gateway_memory_full")
		if full.header.Get("Retry-After") == "" || full.took > 100*time.Millisecond {
			t.Errorf("retry-after %q after %v", full.header.Get("Retry-After"), full.took)
		}
		if r := do(t, g, "POST", "/v1/x", body(1000)); r.status != 200 {
			t.Errorf("a small one has room: got %d %q", r.status, r.body)
		}
		wg.Wait()
		for range 10 { // refused bodies leave nothing behind
			if r := do(t, g, "POST", "/v1/x", body(100_000)); r.status != 200 {
				t.Fatalf("after the others: got %d %q, want 200", r.status, r.body)
			}
		}
	})
}

// digest answers with the SHA-256 of the body.
func digest(w http.ResponseWriter, r *http.Request) {
	sum := sha256.New()
	n, err := io.Copy(sum, r.Body)
	if err != nil || r.ContentLength != n {
		w.WriteHeader(400)
	}
	fmt.Fprintf(w, "%x", sum.Sum(nil))
}

// noise is a JSON body of a size that hardly compresses.
func noise(size int) string {
	const frame = `{"model":"m","x":""}`
	raw := make([]byte, size)
	src := rand.NewChaCha8([32]byte{byte(size)})
	src.Read(raw)
	return frame[:len(frame)-2] + hex.EncodeToString(raw)[:size-len(frame)] + frame[len(frame)-2:]
}

var bodySizes = []int{100, 64 << 10, 256<<10 - 1, 256 << 10, 256<<10 + 1, 512 << 10, 1 << 20, 1<<20 + 1, 16 << 20}

func wantIntact(t *testing.T, g *Gateway, sizes []int) {
	t.Helper()
	for _, size := range sizes {
		body := noise(size)
		want := fmt.Sprintf("%x", sha256.Sum256([]byte(body)))
		if r := do(t, g, "POST", "/v1/x", body); r.status != 200 || r.body != want {
			t.Errorf("%d bytes: got %d %.200q, want %s", size, r.status, r.body, want)
		}
	}
}

func TestBodiesArriveIntact(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		g := with(t, env, gateway.Config{}, digest)
		wantIntact(t, g, bodySizes)
		var wg sync.WaitGroup
		for range 6 { // at once, over the same connections
			wg.Go(func() { wantIntact(t, g, bodySizes[:len(bodySizes)-1]) })
		}
		wg.Wait()
	})
}

// Messages stay within the broker's max_payload, whatever it is.
func TestSmallMaxPayload(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		dir := t.TempDir()
		conf := filepath.Join(dir, "nats.conf")
		if err := os.WriteFile(conf, []byte("max_payload: 64KB\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		b, err := broker.New(broker.Config{StoreDir: filepath.Join(dir, "store"), SyncInterval: time.Hour, ConfigFile: conf})
		if err != nil {
			t.Fatal(err)
		}
		// The gateway and the worker end before the broker does.
		var inner, outer sync.WaitGroup
		ctx, stop := context.WithCancel(t.Context())
		bctx, stopBroker := context.WithCancel(context.WithoutCancel(t.Context()))
		defer outer.Wait()
		defer stopBroker()
		defer inner.Wait()
		defer stop()
		outer.Go(func() { b.Run(bctx) })
		<-b.Ready()
		dial := func() *nats.Conn {
			nc, err := nats.Connect("", nats.InProcessServer(b), nats.PingInterval(time.Hour))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(nc.Close)
			return nc
		}
		nc := dial()
		if got := nc.MaxPayload(); got != 64<<10 {
			t.Fatalf("max_payload %d", got)
		}
		gw, err := gateway.New(gateway.Config{AllowPaths: []string{"/v1/x"}}, nc)
		if err != nil {
			t.Fatal(err)
		}
		l := testenv.NewListener()
		transport := &http.Transport{DialContext: l.DialContext}
		t.Cleanup(transport.CloseIdleConnections)
		g := &Gateway{Gateway: gw, Listener: l, Client: &http.Client{Transport: transport}}
		inner.Go(func() { gw.Run(ctx, l, nil) })
		e := env.Handler("e", engineOf(func(w http.ResponseWriter, r *http.Request) {
			for i := range 100 { // and an answer whose header is a large part of it
				w.Header().Set(fmt.Sprint("X-Header-", i), strings.Repeat("x", 100))
			}
			digest(w, r)
		}, "m"))
		wk, err := worker.New(worker.Config{Engine: e.URL, Transport: e.Transport}, dial())
		if err != nil {
			t.Fatal(err)
		}
		inner.Go(func() { wk.Run(ctx) })
		g.Serves(t, "m")
		wantIntact(t, g, bodySizes)
		// The request's own header must fit too: each quote takes two bytes.
		if r := do(t, g, "POST", "/v1/x", noise(60_000), "X-Long", strings.Repeat("x", 30<<10)); r.status != 200 {
			t.Errorf("30 KiB of header: got %d %q, want 200", r.status, r.body)
		}
		wantError(t, do(t, g, "POST", "/v1/x", noise(100), "X-Long", strings.Repeat(`"`, 33<<10)), 431, "headers_too_large")
	})
}
