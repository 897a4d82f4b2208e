package testenv

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server/ats"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
)

// Main runs a package's tests. It starts nats-server's process-wide access-time ticker outside of
// any bubble: started inside one, it would stop the bubble's clock.
func Main(m *testing.M) {
	ats.Register()
	m.Run()
}

// Env is a broker and everything that a test starts on it.
type Env struct {
	t      testing.TB
	dir    string
	broker *Process
	serve  *broker.Broker
	mu     sync.Mutex
}

// Run calls test in a bubble with a running broker. Everything that test starts is stopped before Run returns.
func Run(t *testing.T, test func(t *testing.T, env *Env)) {
	t.Helper()
	dir := t.TempDir()
	// nats.go keeps used timers in a sync.Pool; one from an earlier bubble would end this one. Two
	// collections empty the pool.
	runtime.GC()
	runtime.GC()
	synctest.Test(t, func(t *testing.T) {
		env := &Env{t: t, dir: filepath.Join(dir, "store")}
		env.StartBroker()
		t.Cleanup(env.StopBroker)
		test(t, env)
	})
}

// Process is a running part.
type Process struct {
	stop context.CancelFunc
	done chan struct{}
	err  error
}

// Start runs a part, such as a gateway.
func Start(run func(context.Context) error) *Process {
	ctx, stop := context.WithCancel(context.Background())
	p := &Process{stop: stop, done: make(chan struct{})}
	go func() { // ends with run; Stop waits for it
		p.err = run(ctx)
		close(p.done)
	}()
	return p
}

// Stop ends the part and waits until it has returned.
func (p *Process) Stop() error {
	p.stop()
	<-p.done
	return p.err
}

// Wait waits until the part has returned by itself.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Await waits until the part says that it is ready. A part that has ended instead fails the test.
func (p *Process) Await(t testing.TB, ready <-chan struct{}) {
	t.Helper()
	select {
	case <-ready:
	case <-p.done:
		t.Fatalf("ended before it was ready: %v", p.err)
	}
}

// Broker runs a broker in real time, with a store of its own, until the test ends. It returns a connection to it.
func Broker(t testing.TB, cfg broker.Config) *nats.Conn {
	t.Helper()
	cfg.StoreDir = t.TempDir()
	b, err := broker.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p := Start(b.Run)
	t.Cleanup(func() { p.Stop() })
	p.Await(t, b.Ready())
	nc, err := nats.Connect("", nats.InProcessServer(b), nats.Timeout(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// StartBroker starts the broker; after StopBroker, with the same store.
func (e *Env) StartBroker() {
	e.t.Helper()
	b, err := broker.New(broker.Config{StoreDir: e.dir, SyncInterval: time.Hour})
	if err != nil {
		e.t.Fatal(err)
	}
	p := Start(b.Run)
	p.Await(e.t, b.Ready())
	e.mu.Lock()
	defer e.mu.Unlock()
	e.broker, e.serve = p, b
}

// Broker is the one that runs.
func (e *Env) Broker() *broker.Broker {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.serve
}

// StopBroker stops the broker. Memory streams are lost, file streams are kept.
func (e *Env) StopBroker() {
	e.t.Helper()
	// A server that shuts down sleeps with its streams locked. A goroutine that waits for such a
	// lock, to create a consumer, would stop the bubble's clock.
	synctest.Wait()
	if err := e.broker.Stop(); err != nil {
		e.t.Error(err)
	}
}

// FillDisk makes what the broker writes to a stream on disk from now on meet a full disk, at the latest with the third message. The
// returned function makes room again; the stream works when the broker was stopped and started after it.
func (e *Env) FillDisk(stream string) (free func()) {
	e.t.Helper()
	probe := filepath.Join(e.dir, "jetstream", "probe") // else the broker would find that there is room
	if err := os.MkdirAll(filepath.Join(probe, "full"), 0o700); err != nil {
		e.t.Fatal(err)
	}
	full := []string{}
	for i := range 100 {
		block := filepath.Join(e.dir, "jetstream", "$G", "streams", stream, "msgs", strconv.Itoa(i)+".blk")
		if err := os.Symlink("/dev/full", block); err == nil {
			full = append(full, block)
		} else if !errors.Is(err, fs.ErrExist) {
			e.t.Fatal(err)
		}
	}
	return func() {
		for _, path := range append(full, probe) {
			if err := os.RemoveAll(path); err != nil {
				e.t.Error(err)
			}
		}
	}
}

func (e *Env) dial() (net.Conn, error) {
	e.mu.Lock()
	b := e.serve
	e.mu.Unlock()
	return b.InProcessConn()
}

// Connect opens a connection to the broker over its own link.
func (e *Env) Connect(name string) (*nats.Conn, *Link) {
	e.t.Helper()
	link := &Link{dial: e.dial}
	nc, err := nats.Connect("", nats.InProcessServer(link), nats.Name(name), nats.MaxReconnects(-1),
		nats.ReconnectWait(100*time.Millisecond), nats.ReconnectJitter(0, 0), nats.PingInterval(time.Hour), nats.ReconnectBufSize(-1))
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() {
		link.Thaw()
		nc.Close()
	})
	return nc, link
}

// ConnectCluster opens a connection as to a cluster of two servers. Freezing one of the links is what freezing that server
// is to this part.
func (e *Env) ConnectCluster(name string) (*nats.Conn, [2]*Link) {
	e.t.Helper()
	d := clusterDialer{"10.0.0.1:4222": {dial: e.dial}, "10.0.0.2:4222": {dial: e.dial}}
	nc, err := nats.Connect("nats://10.0.0.1:4222,nats://10.0.0.2:4222", nats.SetCustomDialer(d), nats.DontRandomize(), nats.Name(name), nats.MaxReconnects(-1),
		nats.ReconnectWait(100*time.Millisecond), nats.ReconnectJitter(0, 0), nats.PingInterval(time.Hour), nats.ReconnectBufSize(-1))
	if err != nil {
		e.t.Fatal(err)
	}
	links := [2]*Link{d["10.0.0.1:4222"], d["10.0.0.2:4222"]}
	e.t.Cleanup(func() {
		links[0].Thaw()
		links[1].Thaw()
		nc.Close()
	})
	return nc, links
}

// clusterDialer has a link for each server, by its address.
type clusterDialer map[string]*Link

func (d clusterDialer) Dial(_, address string) (net.Conn, error) { return d[address].InProcessConn() }

// JetStream opens a connection to inspect streams.
func (e *Env) JetStream() jetstream.JetStream {
	e.t.Helper()
	nc, _ := e.Connect("test")
	js, err := jetstream.New(nc)
	if err != nil {
		e.t.Fatal(err)
	}
	return js
}

// Engine is a simulated engine with its own listener.
type Engine struct {
	*sim.Engine
	URL       string
	Transport *http.Transport
	Listener  *Listener
	server    *http.Server
}

// Engine starts a simulated engine.
func (e *Env) Engine(cfg sim.Config) *Engine {
	e.t.Helper()
	eng, err := sim.New(cfg)
	if err != nil {
		e.t.Fatal(err)
	}
	en := e.Handler(cfg.Name, eng)
	en.Engine = eng
	return en
}

// Handler starts an engine that is any HTTP handler.
func (e *Env) Handler(name string, h http.Handler) *Engine {
	l := NewListener()
	en := &Engine{
		URL:       "http://" + name,
		Listener:  l,
		Transport: &http.Transport{DialContext: l.DialContext, DisableCompression: true, MaxIdleConnsPerHost: 1000},
		server:    &http.Server{Handler: h},
	}
	served := make(chan struct{})
	go func() { // ends when the listener is closed
		defer close(served)
		en.server.Serve(l)
	}()
	e.t.Cleanup(func() {
		en.Transport.CloseIdleConnections()
		en.server.Close()
		<-served
	})
	return en
}

// Kill closes the engine: running answers are cut, new requests are refused.
func (en *Engine) Kill() {
	en.Listener.Close()
	en.server.Close()
	en.Listener.Cut()
}

// Eventually waits until a condition holds. In real time, within should be a minute: a machine that is short of time may need long.
func Eventually(t testing.TB, what string, within time.Duration, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(within); ; time.Sleep(10 * time.Millisecond) {
		if holds() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, within)
		}
	}
}

// policyStore opens the policy store as an operator's command does.
func (e *Env) policyStore() (ctx context.Context, store *policystore.Store, done func()) {
	e.t.Helper()
	nc, _ := e.Connect("operator")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	store, err := policystore.Open(ctx, nc)
	if err != nil {
		e.t.Fatal(err)
	}
	return ctx, store, func() { cancel(); nc.Close() }
}

// SetPolicy changes the policy as an operator does, and waits until all parts have it.
func (e *Env) SetPolicy(change func(*policy.Policy)) {
	e.t.Helper()
	ctx, store, done := e.policyStore()
	defer done()
	if _, err := store.Update(ctx, "test", "test", func(p *policy.Policy) error { change(p); return nil }); err != nil {
		e.t.Fatal(err)
	}
	time.Sleep(time.Second)
}

// Policy is the current policy.
func (e *Env) Policy() *policy.Policy {
	e.t.Helper()
	ctx, store, done := e.policyStore()
	defer done()
	v, err := store.Load(ctx)
	if err != nil {
		e.t.Fatal(err)
	}
	return v.Policy
}

// AddKey creates an API key for a tenant, and waits until all gateways accept it.
func (e *Env) AddKey(tenant string, set ...func(*policy.Key)) string {
	e.t.Helper()
	ctx, store, done := e.policyStore()
	defer done()
	id := strings.ToLower(rand.Text()[:10])
	key := "sk-pulley-" + id + "-" + rand.Text() + rand.Text()[:17]
	k := policy.Key{ID: id, Tenant: tenant, Hash: policy.HashKey(key), Created: time.Now()}
	for _, s := range set {
		s(&k)
	}
	if err := store.PutKey(ctx, k); err != nil {
		e.t.Fatal(err)
	}
	time.Sleep(time.Second)
	return key
}

// RemoveKey revokes a key that AddKey has made, and waits until all gateways refuse it.
func (e *Env) RemoveKey(key string) {
	e.t.Helper()
	ctx, store, done := e.policyStore()
	defer done()
	id, _, _ := strings.Cut(strings.TrimPrefix(key, "sk-pulley-"), "-")
	if err := store.RemoveKey(ctx, id); err != nil {
		e.t.Fatal(err)
	}
	time.Sleep(time.Second)
}
