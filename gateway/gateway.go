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
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

// Config holds a gateway's choices.
type Config struct {
	// Auth says whether clients need a key. Default AuthAuto.
	Auth AuthMode
	// RetryBudget bounds the retries of a pool, as a share of its first attempts: see policy.RetryBudget. Default 0.2.
	RetryBudget float64
	// Replicas of the streams that the gateway creates. Default 1.
	Replicas int
	// MaxBody bounds a request's body, in bytes. Default 64 MiB.
	MaxBody int64
	// InlineBody is the largest body, in bytes, that travels through the queue; the gateway keeps larger ones and the
	// worker fetches them. Default 256 KiB, or half of the broker's max_payload if that is less.
	InlineBody int64
	// BodyMemory bounds, in bytes, all bodies held at once. Default 1 GiB.
	BodyMemory int64
	// NoWorkerWait is how long a request of a known model waits while no worker serves it. Default 30 s.
	NoWorkerWait time.Duration
	// FirstByteWithin is how long a stream may take to its first byte before it moves to another worker, once, if that has
	// room. A tier's own setting comes first. Default 0: much longer than its worker has measured for such prompts.
	FirstByteWithin time.Duration
	// KeepAlive is after how long without a byte a stream gets an SSE comment. Default 10 s.
	KeepAlive time.Duration
	// SlowClient is how long a client may refuse to take bytes. Default 30 s.
	SlowClient time.Duration
	// MaxDeadline bounds the deadline that a client may ask for. Default 24 h.
	MaxDeadline time.Duration
	// DrainTimeout bounds how long running requests may go on after Run's context has ended. Default 10 min.
	DrainTimeout time.Duration
	// DrainDelay is how long the listener stays open after /readyz began to fail, for balancers to notice. Default 0.
	DrainDelay time.Duration
	// DefaultModel is the model of calls that name none; DefaultOnly means the one that the fleet serves. Default: such calls are
	// refused.
	DefaultModel string
	// AllowPaths are paths of engines that clients may use beside those of inference: see api.NewDoors. Default: none.
	AllowPaths []string
	// CORSOrigins may call from a browser; "*" is any. Default: none.
	CORSOrigins []string
	// Explain says which answers tell the client who served it, and why. Default ExplainKeys.
	Explain ExplainMode
	// Local, if not nil, lets workers of this process reach the gateway directly.
	Local *subjects.Local
	// Version is reported in the metrics. Default "dev".
	Version string
	// Logger gets a line for each request that failed; at debug level, for every request. Default: silent.
	Logger *slog.Logger
}

// withDefaults checks a configuration and fills in what is not set.
func (c Config) withDefaults() (Config, error) {
	for _, b := range []struct {
		name  string
		value int64
	}{
		{"replicas", int64(c.Replicas)}, {"max body", c.MaxBody}, {"inline body", c.InlineBody}, {"body memory", c.BodyMemory},
		{"no-worker wait", int64(c.NoWorkerWait)}, {"first byte within", int64(c.FirstByteWithin)}, {"keep-alive", int64(c.KeepAlive)}, {"slow client", int64(c.SlowClient)},
		{"max deadline", int64(c.MaxDeadline)}, {"drain timeout", int64(c.DrainTimeout)}, {"drain delay", int64(c.DrainDelay)},
	} {
		if b.value < 0 {
			return c, fmt.Errorf("%s: must not be negative", b.name)
		}
	}
	if len(c.DefaultModel) > subjects.MaxName || !utf8.ValidString(c.DefaultModel) {
		return c, fmt.Errorf("default model %.40q: a name has at most %d bytes of UTF-8", c.DefaultModel, subjects.MaxName)
	}
	if c.RetryBudget < 0 {
		return c, errors.New("retry budget: must not be negative")
	}
	c.RetryBudget = cmp.Or(c.RetryBudget, policy.RetryShare)
	c.Replicas = cmp.Or(c.Replicas, 1)
	c.MaxBody = cmp.Or(c.MaxBody, 64<<20)
	c.InlineBody = cmp.Or(c.InlineBody, 256<<10)
	c.BodyMemory = cmp.Or(c.BodyMemory, 1<<30)
	c.NoWorkerWait = cmp.Or(c.NoWorkerWait, 30*time.Second)
	c.KeepAlive = cmp.Or(c.KeepAlive, 10*time.Second)
	c.SlowClient = cmp.Or(c.SlowClient, 30*time.Second)
	c.MaxDeadline = cmp.Or(c.MaxDeadline, 24*time.Hour)
	c.DrainTimeout = cmp.Or(c.DrainTimeout, 10*time.Minute)
	c.Explain = cmp.Or(c.Explain, ExplainKeys)
	c.Version = cmp.Or(c.Version, "dev")
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, c.Explain.check()
}

// Gateway is one ingress. Any number of them share a broker. Create it with New, then Run it once.
type Gateway struct {
	// Fixed after New.
	cfg        *Config
	bus        *bus
	metrics    *metrics
	requests   *requests
	fleet      *fleet
	lanes      *lanes
	affinity   *affinity
	keys       *keyring
	router     *router
	admission  *admission
	exchange   *exchange
	dispatcher *dispatcher
	ingress    *ingress
	watch      *watch
	stalls     *stalls
	streams    *streams
	policy     *policyFollower
	shifts     *shifts
	control    *control
	background *background

	draining atomic.Bool // Run's context has ended
}

// New checks the configuration. It starts nothing.
func New(cfg Config, nc *nats.Conn) (*Gateway, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	doors, err := api.NewDoors(cfg.AllowPaths)
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	var random [6]byte
	rand.Read(random[:])
	b := &bus{id: hex.EncodeToString(random[:]), nc: nc, js: js}
	b.log = cfg.Logger.With("gateway", b.id)
	b.rules.Store(newRules(policystore.Version{Policy: policy.Default()}))

	requests, queues, fleet, gpus := newRequests(), newQueues(), newFleet(), newGPUHistory()
	bodies, background := &budget{max: cfg.BodyMemory}, new(background)
	keys, affinity, lanes, shifts := newKeyring(b, cfg.Auth), newAffinity(b), newLanes(b), newShifts(b)
	metrics := newMetrics(b.id, cfg.Version, fleetMetrics{fleet, gpus}, keys.refused, keys.limited,
		gaugeFunc("requests_in_flight", "Requests that the gateway holds now.", func() float64 { return float64(requests.count()) }),
		gaugeFunc("request_body_bytes", "Bytes of request bodies that the gateway holds now.", func() float64 { return float64(bodies.held.Load()) }))
	links := newLinks(b)
	publisher, retries, exchange := newPublisher(b), newRetries(cfg.RetryBudget), &exchange{bus: b, queues: queues, fleet: fleet}
	router := &router{bus: b, affinity: affinity, fleet: fleet, lanes: lanes, queues: queues}
	lengths := &lengths{fleet: fleet, lanes: lanes, pools: make(map[string]*policy.Tokens)}
	admission := &admission{
		cfg: &cfg, bus: b, keys: keys, router: router, lengths: lengths, fleet: fleet, queues: queues, metrics: metrics,
	}
	server := &server{
		cfg: &cfg, bus: b, requests: requests, admission: admission, router: router, fleet: fleet, lanes: lanes, lengths: lengths, queues: queues,
		exchange: exchange, publisher: publisher, keys: keys, shifts: shifts, retries: retries, metrics: metrics, background: background,
	}
	cheap := newCheapCalls(server)
	admission.cheap = cheap.takes
	mirrors := &mirrors{
		bus: b, router: router, admission: admission, queues: queues, server: server, bodies: bodies, metrics: metrics,
		slots: make(chan struct{}, maxMirrored),
	}
	streams := &streams{
		bus: b, replicas: cfg.Replicas, fleet: fleet, lanes: lanes, requests: requests, changed: make(chan struct{}, 1),
	}
	watch := &watch{
		bus: b, fleet: fleet, gpus: gpus, lanes: lanes, queues: queues, exchange: exchange, requests: requests, short: newShortages(), links: links,
		late: &late{cfg: &cfg, fleet: fleet, retries: retries},
		gone: make(chan goneWorker, 1024),
	}
	g := &Gateway{
		cfg: &cfg, bus: b, metrics: metrics, requests: requests, fleet: fleet, lanes: lanes, affinity: affinity, keys: keys,
		router: router, admission: admission, exchange: exchange, streams: streams, shifts: shifts, background: background,
		dispatcher: &dispatcher{
			bus: b, requests: requests, publisher: publisher, fleet: fleet, affinity: affinity, exchange: exchange, metrics: metrics, watch: watch,
			links: links,
		},
		ingress: &ingress{
			cfg: &cfg, bus: b, keys: keys, router: router, admission: admission, mirrors: mirrors, server: server, cheap: cheap, metrics: metrics, bodies: bodies,
			doors: doors,
		},
		watch:  watch,
		stalls: &stalls{bus: b, requests: requests, queues: queues, fleet: fleet},
		policy: &policyFollower{bus: b, keys: keys, streams: streams, requests: requests},
	}
	g.control = &control{
		bus: b, requests: requests, fleet: fleet, queues: queues, admission: admission, server: server, draining: &g.draining,
	}
	return g, nil
}

// ID is the gateway's unique id, a subject token.
func (g *Gateway) ID() string { return g.bus.id }

// Models are the names that requests may ask for now: what live workers serve, and what routes lead there.
func (g *Gateway) Models() []string { return g.router.models() }

// KeysRequired says whether clients need a key now.
func (g *Gateway) KeysRequired() bool { return g.keys.required() }

// NotReady is why this gateway should not be sent requests; "" if it should.
func (g *Gateway) NotReady() string {
	switch {
	case g.draining.Load():
		return "draining"
	case !g.bus.nc.IsConnected():
		return "no connection to the broker"
	case !g.streams.ready.Load():
		return "the queue is not available"
	case !g.keys.ready():
		return "the keys are not read yet"
	}
	return ""
}

func (g *Gateway) readiness() readiness {
	reason := g.NotReady()
	return readiness{
		Ready: reason == "", Reason: reason, Requests: g.requests.count(), Models: g.fleet.models(),
		Policy: g.policy.state(), Keys: g.keys.state(),
	}
}

// Run serves the API on ingress and health and metrics on admin (nil: not at all) until ctx is done. Then /readyz
// fails, requests under way finish within DrainTimeout, and it returns when all of that is over. It closes the
// listeners.
func (g *Gateway) Run(ctx context.Context, ingress, admin net.Listener) error {
	// Two contexts: ctx ends accepting, life ends everything else.
	life, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	g.background.ctx = life

	unsubscribe, err := g.subscribe()
	if err != nil {
		return err
	}
	defer g.cfg.Local.Open(g.bus.id, g.dispatcher)()

	var loops sync.WaitGroup
	loops.Go(func() { g.watch.run(life) })
	loops.Go(func() { g.stalls.run(life) })
	loops.Go(func() { g.lanes.run(life, g.watch.publishReferences) })
	loops.Go(func() { g.streams.run(life) })
	loops.Go(func() { g.policy.run(life) })
	loops.Go(func() { g.affinity.run(life, g.fleet.gateways) })
	loops.Go(func() { g.shifts.run(life) })
	loops.Go(func() { g.keys.run(life) })

	idle := newIdleConns()
	server := &http.Server{
		Handler:           g.ingress.handler(),
		ConnState:         idle.track,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		BaseContext:       func(net.Listener) context.Context { return life },
		ErrorLog:          slog.NewLogLogger(g.bus.log.Handler(), slog.LevelDebug),
	}
	servers := []*http.Server{server}
	failed := make(chan error, 2)
	loops.Go(func() { failed <- server.Serve(ingress) })
	if admin != nil {
		s := &http.Server{Handler: adminHandler(g.metrics.registry, g.readiness), ReadHeaderTimeout: 10 * time.Second}
		servers = append(servers, s)
		loops.Go(func() { failed <- s.Serve(admin) })
	}
	g.bus.log.Info("gateway started", "listen", ingress.Addr().String())

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
	unsubscribe()
	g.bus.log.Info("gateway stopped")
	return err
}

// subscribe subscribes to all that is published to this gateway. The handlers never block, so what is pending is bounded
// by flow control.
func (g *Gateway) subscribe() (unsubscribe func(), err error) {
	var subs []*nats.Subscription
	unsubscribe = func() {
		for _, sub := range subs {
			sub.Unsubscribe()
		}
	}
	for subject, handle := range map[string]nats.MsgHandler{
		subjects.Gateway(g.bus.id) + ".>": g.dispatcher.onMessage,
		subjects.AllHeartbeats:            g.watch.onHeartbeat,
		subjects.AllGateways:              g.watch.onReference,
		subjects.AllHeld:                  g.exchange.onHeld,
		subjects.AffinityReports:          g.affinity.onReport,
		subjects.ShiftReports:             g.shifts.onReport,
		subjects.AskRequests:              g.control.onAskRequests,
		subjects.AskWorkers:               g.control.onAskWorkers,
		subjects.AskRequest:               g.control.onAskRequest,
		subjects.DoCancel:                 g.control.onCancel,
		subjects.DoPurge:                  g.control.onPurge,
		subjects.DoRetry:                  g.control.onRetry,
	} {
		group := ""
		if subject == subjects.DoRetry { // one gateway, any
			group = subjects.GatewayGroup
		}
		sub, err := g.bus.nc.QueueSubscribe(subject, group, handle)
		if err != nil {
			unsubscribe()
			return nil, fmt.Errorf("gateway: subscribe %s: %w", subject, err)
		}
		sub.SetPendingLimits(-1, -1)
		subs = append(subs, sub)
	}
	return unsubscribe, nil
}

// drain lets the requests under way end: those that have not after DrainTimeout are ended with an error.
func (g *Gateway) drain(server *http.Server, idle *idleConns, end context.CancelCauseFunc) {
	g.draining.Store(true)
	g.bus.log.Info("gateway draining", "requests", g.requests.count())
	time.Sleep(g.cfg.DrainDelay)
	ctx, cancel := context.WithTimeout(context.Background(), g.cfg.DrainTimeout)
	var closing sync.WaitGroup
	closing.Go(func() { idle.closeLoop(ctx) })
	defer closing.Wait()
	defer cancel()
	if server.Shutdown(ctx) == nil {
		return
	}
	end(errStopping)
	last, cancelLast := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancelLast()
	server.Shutdown(last)
}
