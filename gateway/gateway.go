package gateway

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

// Config holds a gateway's choices.
type Config struct {
	// Auth says whether clients need a key. Default AuthAuto.
	Auth AuthMode
	// Replicas of the streams that the gateway creates. Default 1.
	Replicas int
	// MaxBody bounds a request's body, in bytes. Default 64 MiB.
	MaxBody int64
	// InlineBody is the largest body, in bytes, that travels through the queue;
	// larger ones stay here and are fetched by the worker. Default 256 KiB, or
	// half of the broker's max_payload if that is less.
	InlineBody int64
	// BodyMemory bounds, in bytes, all bodies held at once. Default 1 GiB.
	BodyMemory int64
	// NoWorkerWait is how long a request of a known model waits while no worker
	// serves it. Default 30 s.
	NoWorkerWait time.Duration
	// KeepAlive is after how long without a byte a stream gets an SSE comment.
	// Default 10 s.
	KeepAlive time.Duration
	// SlowClient is how long a client may refuse to take bytes. Default 30 s.
	SlowClient time.Duration
	// MaxDeadline bounds what a client may ask for. Default 24 h.
	MaxDeadline time.Duration
	// DrainTimeout bounds how long requests may go on after Run was told to
	// stop. Default 10 min.
	DrainTimeout time.Duration
	// DrainDelay is how long the listener stays open after /readyz began to
	// fail, for balancers to notice. Default 0.
	DrainDelay time.Duration
	// CORSOrigins may call from a browser; "*" is any. Default: none.
	CORSOrigins []string
	// Local, if not nil, lets workers of this process reach the gateway directly.
	Local *subjects.Local
	// Version is told in metrics.
	Version string
	// Logger gets a line for each request that was not answered well, at debug
	// level for each. Default: silent.
	Logger *slog.Logger
}

// Why a request ended, if it was not answered and its client is there.
var (
	errDeadline = errors.New("the request's deadline has passed")
	errStopping = errors.New("the gateway stops")
)

// Gateway is one ingress. Any number of them share a broker. Create it with
// New, then Run it once.
type Gateway struct {
	// Fixed after New.
	*bus
	cfg      Config
	metrics  *metrics
	bodies   budget
	requests *requests
	fleet    *fleet
	gpus     *gpuHistory
	lanes    *lanes
	watch    *watch
	streams  *streams
	policy   *policyFollower
	affinity *affinity
	keys     *keyring
	shifts   *shifts
	queues   *queues
	exchange *exchange
	mirrors  chan struct{}   // holds one for each copy under way
	life     context.Context // of Run: requests without a client end with it

	rules      atomic.Pointer[rules] // in force
	spreads    sync.Map              // *policy.Spread of each route
	background sync.WaitGroup        // requests without a client
	alarms     sync.Pool             // *time.Timer, of requests that have ended

	draining atomic.Bool

	mu        sync.Mutex
	published uint64             // messages to the tiers' streams
	unstored  map[uint64]*flight // whose message the broker has not confirmed, by number
}

// New checks the configuration. It starts nothing.
func New(cfg Config, nc *nats.Conn) (*Gateway, error) {
	for _, b := range []struct {
		name  string
		value int64
	}{
		{"replicas", int64(cfg.Replicas)}, {"max body", cfg.MaxBody}, {"inline body", cfg.InlineBody}, {"body memory", cfg.BodyMemory},
		{"no-worker wait", int64(cfg.NoWorkerWait)}, {"keep-alive", int64(cfg.KeepAlive)}, {"slow client", int64(cfg.SlowClient)},
		{"max deadline", int64(cfg.MaxDeadline)}, {"drain timeout", int64(cfg.DrainTimeout)}, {"drain delay", int64(cfg.DrainDelay)},
	} {
		if b.value < 0 {
			return nil, fmt.Errorf("%s: must not be negative", b.name)
		}
	}
	cfg.Replicas = cmp.Or(cfg.Replicas, 1)
	cfg.MaxBody = cmp.Or(cfg.MaxBody, 64<<20)
	cfg.InlineBody = cmp.Or(cfg.InlineBody, 256<<10)
	cfg.BodyMemory = cmp.Or(cfg.BodyMemory, 1<<30)
	cfg.NoWorkerWait = cmp.Or(cfg.NoWorkerWait, 30*time.Second)
	cfg.KeepAlive = cmp.Or(cfg.KeepAlive, 10*time.Second)
	cfg.SlowClient = cmp.Or(cfg.SlowClient, 30*time.Second)
	cfg.MaxDeadline = cmp.Or(cfg.MaxDeadline, 24*time.Hour)
	cfg.DrainTimeout = cmp.Or(cfg.DrainTimeout, 10*time.Minute)
	cfg.Version = cmp.Or(cfg.Version, "dev")
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	var mark [6]byte
	rand.Read(mark[:])
	b := &bus{id: hex.EncodeToString(mark[:]), nc: nc, js: js}
	b.log = cfg.Logger.With("gateway", b.id)
	g := &Gateway{
		cfg: cfg, bus: b,
		bodies:   budget{max: cfg.BodyMemory},
		unstored: make(map[uint64]*flight),
		mirrors:  make(chan struct{}, maxMirrors),
		requests: newRequests(),
		fleet:    newFleet(),
		gpus:     newGPUHistory(),
	}
	g.rules.Store(newRules(policystore.Version{Policy: policy.Default()}))
	g.lanes = newLanes(b, &g.rules)
	g.affinity = newAffinity(b)
	g.keys = newKeyring(b, cfg.Auth)
	g.shifts = newShifts(b, &g.rules)
	g.metrics = newMetrics(b.id, cfg.Version, fleetMetrics{g.fleet, g.gpus}, g.keys.refused, g.keys.limited,
		gaugeFunc("requests_in_flight", "Requests that the gateway holds now.", func() float64 { return float64(g.requests.count()) }),
		gaugeFunc("request_body_bytes", "Bytes of request bodies that the gateway holds now.", func() float64 { return float64(g.bodies.held.Load()) }))
	g.queues = newQueues(g.metrics)
	g.exchange = &exchange{bus: b, queues: g.queues, fleet: g.fleet}
	g.watch = &watch{
		bus: b, rules: &g.rules, fleet: g.fleet, gpus: g.gpus, lanes: g.lanes, queues: g.queues, exchange: g.exchange, requests: g.requests,
		gone: make(chan goneWorker, 1024),
	}
	g.streams = &streams{
		bus: b, rules: &g.rules, replicas: cfg.Replicas, fleet: g.fleet, lanes: g.lanes, requests: g.requests, changed: make(chan struct{}, 1),
	}
	g.policy = &policyFollower{bus: b, rules: &g.rules, keys: g.keys, streams: g.streams, requests: g.requests}
	return g, nil
}

// ID is the gateway's unique id, a subject token.
func (g *Gateway) ID() string { return g.id }

// Run serves the API on ingress and health and metrics on admin (nil: not at
// all) until ctx is done. Then /readyz fails, requests under way finish within
// DrainTimeout, and it returns when all of that is over. It closes the
// listeners.
func (g *Gateway) Run(ctx context.Context, ingress, admin net.Listener) error {
	// Two contexts: ctx ends accepting, life ends everything else.
	life, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	g.life = life

	var subs []*nats.Subscription
	for subject, handle := range map[string]nats.MsgHandler{
		subjects.Gateway(g.id) + ".>": g.receive,
		subjects.AllHeartbeats:        g.watch.onHeartbeat,
		subjects.AllGateways:          g.watch.onReference,
		subjects.AllHeld:              g.exchange.onHeld,
		subjects.AffinityReports:      g.affinity.onReport,
		subjects.ShiftReports:         g.shifts.onReport,
		subjects.AskRequests:          g.tellRequests,
		subjects.AskWorkers:           g.tellWorkers,
		subjects.AskRequest:           g.tellRequest,
		subjects.DoCancel:             g.doCancel,
		subjects.DoPurge:              g.doPurge,
		subjects.DoRetry:              g.doRetry,
	} {
		var sub *nats.Subscription
		var err error
		if subject == subjects.DoRetry { // one of us, whichever
			sub, err = g.nc.QueueSubscribe(subject, subjects.GatewayGroup, handle)
		} else {
			sub, err = g.nc.Subscribe(subject, handle)
		}
		if err != nil {
			return fmt.Errorf("gateway: subscribe %s: %w", subject, err)
		}
		sub.SetPendingLimits(-1, -1) // bounded by credit; the handlers never block
		subs = append(subs, sub)
	}

	defer g.cfg.Local.Open(g.id, near{g})()

	var loops sync.WaitGroup
	loops.Go(func() { g.watch.run(life) })
	loops.Go(func() { g.lanes.run(life, g.watch.publishReferences) })
	loops.Go(func() { g.streams.run(life) })
	loops.Go(func() { g.policy.run(life) })
	loops.Go(func() { g.affinity.run(life, g.fleet.gateways) })
	loops.Go(func() { g.shifts.run(life) })
	loops.Go(func() { g.keys.run(life) })

	idle := &idleConns{since: make(map[net.Conn]time.Time)}
	server := &http.Server{
		Handler:           g.handler(),
		ConnState:         idle.track,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		BaseContext:       func(net.Listener) context.Context { return life },
		ErrorLog:          slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
	}
	servers := []*http.Server{server}
	failed := make(chan error, 2)
	loops.Go(func() { failed <- server.Serve(ingress) })
	if admin != nil {
		s := &http.Server{Handler: g.adminHandler(), ReadHeaderTimeout: 10 * time.Second}
		servers = append(servers, s)
		loops.Go(func() { failed <- s.Serve(admin) })
	}
	g.log.Info("gateway started", "listen", ingress.Addr().String())

	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
		err = fmt.Errorf("gateway: %w", err)
	}
	g.drain(server, idle, end)
	for _, s := range servers {
		s.Close()
	}
	end(nil)
	g.background.Wait()
	loops.Wait()
	for _, sub := range subs {
		sub.Unsubscribe()
	}
	g.log.Info("gateway stopped")
	return err
}

func (g *Gateway) drain(server *http.Server, idle *idleConns, end context.CancelCauseFunc) {
	g.draining.Store(true)
	g.log.Info("gateway drains", "requests", g.requests.count())
	time.Sleep(g.cfg.DrainDelay)
	ctx, cancel := context.WithTimeout(context.Background(), g.cfg.DrainTimeout)
	defer cancel()
	go idle.closeLoop(ctx) // ends with ctx
	if server.Shutdown(ctx) == nil {
		return
	}
	end(errStopping) // the rest ends with an honest error
	ctx, cancel = context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	server.Shutdown(ctx)
}
