package scenarios

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// Env is a broker with the gateways and workers that a test starts on it.
type Env struct {
	*testenv.Env
	t     testing.TB
	local *subjects.Local // set if the workers and gateways share a process

	direct bool          // workers can reach gateways past the broker
	late   time.Duration // how long what comes there takes longer than through the broker
	ports  sync.Map      // the *testenv.Listener of each gateway, by its address
}

// run calls test in a bubble with a running broker.
func run(t *testing.T, test func(t *testing.T, env *Env)) {
	t.Helper()
	testenv.Run(t, func(t *testing.T, env *testenv.Env) { test(t, &Env{Env: env, t: t}) })
}

// runBoth runs a test twice: with gateways and workers that communicate only through the broker,
// and with all of them in one process, as in pulley up.
func runBoth(t *testing.T, test func(t *testing.T, env *Env)) {
	t.Run("apart", func(t *testing.T) { run(t, test) })
	t.Run("in one process", func(t *testing.T) {
		testenv.Run(t, func(t *testing.T, env *testenv.Env) { test(t, &Env{Env: env, t: t, local: new(subjects.Local)}) })
	})
}

// Worker is a running worker.
type Worker struct {
	*testenv.Process
	*worker.Worker
	Link *testenv.Link
	nc   *nats.Conn
}

// Worker starts a worker for an engine. It sets the fields Engine, Transport and Local of cfg.
func (e *Env) Worker(en *testenv.Engine, cfg worker.Config) *Worker {
	e.t.Helper()
	nc, link := e.Connect("worker")
	return e.workerAt(nc, link, en, cfg)
}

// workerAt does the same on a connection that a link belongs to.
func (e *Env) workerAt(nc *nats.Conn, link *testenv.Link, en *testenv.Engine, cfg worker.Config) *Worker {
	e.t.Helper()
	cfg.Engine, cfg.Transport, cfg.Local = en.URL, engine.NewTransport(en.URL, en.Transport), e.local
	cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		port, ok := e.ports.Load(address)
		if !ok {
			return nil, errors.New("no such address")
		}
		return port.(*testenv.Listener).DialContext(ctx, network, address)
	}
	w, err := worker.New(cfg, nc)
	if err != nil {
		e.t.Fatal(err)
	}
	r := &Worker{Process: testenv.Start(w.Run), Worker: w, Link: link, nc: nc}
	e.t.Cleanup(func() {
		link.Thaw()
		link.Mend()
		r.Stop()
	})
	return r
}

// Kill ends the worker's connections at once and for good, as SIGKILL does: it sends nothing any
// more.
func (w *Worker) Kill(en *testenv.Engine) {
	w.Link.Cut(true)
	en.Listener.Cut()
}

// Gateway is a running gateway.
type Gateway struct {
	*testenv.Process
	*gateway.Gateway
	Link     *testenv.Link
	Client   *http.Client // reaches the gateway at http://gateway and its admin side at http://admin
	Listener *testenv.Listener
	Direct   *testenv.Listener // of connections past the broker; nil: there are none
}

// lateListener delays each read of its connections.
type lateListener struct {
	net.Listener
	by time.Duration
}

func (l lateListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return lateConn{c, l.by}, err
}

type lateConn struct {
	net.Conn
	by time.Duration
}

func (c lateConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	time.Sleep(c.by)
	return n, err
}

// Gateway starts a gateway and waits until it is ready.
func (e *Env) Gateway(cfg gateway.Config) *Gateway {
	e.t.Helper()
	nc, link := e.Connect("gateway")
	return e.gatewayAt(nc, link, cfg)
}

// gatewayAt does the same on a connection that a link belongs to.
func (e *Env) gatewayAt(nc *nats.Conn, link *testenv.Link, cfg gateway.Config) *Gateway {
	e.t.Helper()
	cfg.Local = e.local
	var direct *testenv.Listener
	if e.direct {
		direct = testenv.NewListener()
		cfg.Direct, cfg.DirectAddress = lateListener{direct, e.late}, fmt.Sprintf("%p", direct)
		e.ports.Store(cfg.DirectAddress, direct)
	}
	g, err := gateway.New(cfg, nc)
	if err != nil {
		e.t.Fatal(err)
	}
	ingress, admin := testenv.NewListener(), testenv.NewListener()
	transport := &http.Transport{
		DisableCompression: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == "admin:80" {
				return admin.DialContext(ctx, network, addr)
			}
			return ingress.DialContext(ctx, network, addr)
		},
	}
	r := &Gateway{Gateway: g, Link: link, Listener: ingress, Direct: direct, Client: &http.Client{Transport: transport}}
	r.Process = testenv.Start(func(ctx context.Context) error { return g.Run(ctx, ingress, admin) })
	e.t.Cleanup(func() {
		link.Thaw()
		link.Mend()
		transport.CloseIdleConnections()
		r.Stop()
	})
	testenv.Eventually(e.t, "gateway ready", 10*time.Second, func() bool {
		resp, err := r.Client.Get("http://admin/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return r
}

// Serves waits until a gateway lists a model.
func (g *Gateway) Serves(t testing.TB, model string) {
	t.Helper()
	testenv.Eventually(t, "gateway serves "+model, 10*time.Second, func() bool {
		resp, err := g.Client.Get("http://gateway/v1/models/" + model)
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	time.Sleep(2 * time.Second) // until the bids are parked
}
