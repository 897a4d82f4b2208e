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
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/brokerconn"
	"github.com/pulley-lb/pulley/metric"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

// Config holds a gateway's choices.
type Config struct {
	// Auth says whether clients need a key. Default AuthAuto.
	Auth AuthMode
	// WrongKeys is how many wrong keys may come from one address in a minute. Default 30.
	WrongKeys int
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
	// BodyShare is the share of BodyMemory that the bodies of one API key may have, and those on their way from one client
	// address: more than 0 and at most 1. One body of MaxBody always has room. Default 0.5.
	BodyShare float64
	// BodyRate and BodyTime bound how slowly a body may come: see policy.BodyPace. Default 1 KiB a second and 60 s.
	BodyRate int64
	BodyTime time.Duration
	// TrustedProxies are those whose X-Forwarded-For says the address of a call's client. Default: none.
	TrustedProxies []netip.Prefix
	// NoWorkerWait is how long a request of a known model waits while no worker serves it. Default 30 s.
	NoWorkerWait time.Duration
	// ForgetPools is after how long without any worker a pool is forgotten, unless the policy mentions it or it has requests.
	// Default 10 min.
	ForgetPools time.Duration
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
	// AdminToken returns what clients of the admin port must send as a bearer token, for all but health. Default nil: nothing.
	AdminToken func() string
	// AdminHosts are names under which an admin port on loopback may be asked, beside localhost. Default: none.
	AdminHosts []string
	// Page is served at the root of the admin port. Default: nothing is.
	Page AdminPage
	// PassHeaders are headers of engines' answers that clients get besides the usual ones; a * at the end stands for any
	// rest. Default: none.
	PassHeaders []string
	// Services serve paths of their own. Default: none.
	Services []Service
	// CORSOrigins may call from a browser; "*" is any. Default: none.
	CORSOrigins []string
	// AccessLog has a line for each call. Default: there is none.
	AccessLog AccessLog
	// Explain says which answers tell the client who served it, and why. Default ExplainKeys.
	Explain ExplainMode
	// Direct is where workers of other processes send their answers past the broker; they must be able to reach it at
	// DirectAddress. Default nil: answers go through the broker.
	Direct net.Listener
	// DirectAddress is host:port of Direct, as workers reach it. Default: its address.
	DirectAddress string
	// TracerProvider makes a trace of each call: see docs/observability.md. Default nil: there are no traces, and the context of a
	// client's trace goes to the engine as it is.
	TracerProvider trace.TracerProvider
	// Local, if not nil, lets workers of this process reach the gateway directly.
	Local *subjects.Local
	// MetricLabels are labels of metrics that clients choose. Default: none.
	MetricLabels Labels
	// Collectors are metrics of other parts of this process, which the admin port serves with the gateway's. Default: none.
	Collectors []prometheus.Collector
	// Version is reported in the metrics. Default "dev".
	Version string
	// Logger gets a line for each request that failed; at debug level, for every request. Default: silent.
	Logger *slog.Logger
}

// AdminPage is a page for operators. Its files need no token, and live does where one is set; do always needs one.
type AdminPage struct {
	Files http.Handler // of GET / and what is below /page/
	Live  http.Handler // of GET /page/live
	Do    http.Handler // of POST /page/do
}

// withDefaults checks a configuration and fills in what is not set.
func (c Config) withDefaults() (Config, error) {
	for _, b := range []struct {
		name  string
		value int64
	}{
		{"replicas", int64(c.Replicas)}, {"wrong keys", int64(c.WrongKeys)}, {"max body", c.MaxBody}, {"inline body", c.InlineBody}, {"body memory", c.BodyMemory},
		{"body rate", c.BodyRate}, {"body time", int64(c.BodyTime)},
		{"no-worker wait", int64(c.NoWorkerWait)}, {"forget pools", int64(c.ForgetPools)}, {"first byte within", int64(c.FirstByteWithin)}, {"keep-alive", int64(c.KeepAlive)}, {"slow client", int64(c.SlowClient)},
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
	if c.BodyShare < 0 || c.BodyShare > 1 {
		return c, errors.New("body share: must be more than 0 and at most 1")
	}
	c.RetryBudget = cmp.Or(c.RetryBudget, policy.RetryShare)
	c.WrongKeys = cmp.Or(c.WrongKeys, 30)
	c.Replicas = cmp.Or(c.Replicas, 1)
	c.MaxBody = cmp.Or(c.MaxBody, 64<<20)
	c.InlineBody = cmp.Or(c.InlineBody, 256<<10)
	c.BodyMemory = cmp.Or(c.BodyMemory, 1<<30)
	c.BodyShare = cmp.Or(c.BodyShare, 0.5)
	c.BodyRate = cmp.Or(c.BodyRate, 1<<10)
	c.BodyTime = cmp.Or(c.BodyTime, time.Minute)
	c.NoWorkerWait = cmp.Or(c.NoWorkerWait, 30*time.Second)
	c.ForgetPools = cmp.Or(c.ForgetPools, 10*time.Minute)
	c.KeepAlive = cmp.Or(c.KeepAlive, 10*time.Second)
	c.SlowClient = cmp.Or(c.SlowClient, 30*time.Second)
	c.MaxDeadline = cmp.Or(c.MaxDeadline, 24*time.Hour)
	c.DrainTimeout = cmp.Or(c.DrainTimeout, 10*time.Minute)
	c.Explain = cmp.Or(c.Explain, ExplainKeys)
	c.Version = cmp.Or(c.Version, "dev")
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	var err error
	if c.AccessLog, err = c.AccessLog.withDefaults(); err != nil {
		return c, err
	}
	return c, c.Explain.check()
}

// Gateway is one ingress. Any number of them share a broker. Create it with New, then Run it once.
type Gateway struct {
	// Fixed after New.
	cfg         *Config
	bus         *bus
	metrics     *metrics
	requests    *requests
	fleet       *fleet
	lanes       *lanes
	affinity    *affinity
	keys        *keyring
	router      *router
	admission   *admission
	exchange    *exchange
	dispatcher  *dispatcher
	ingress     *ingress
	watch       *watch
	stalls      *stalls
	stale       *stalePools
	settlements *settlements
	streams     *streams
	policy      *policyFollower
	shifts      *shifts
	keyMover    *keyMover
	ledger      *ledger
	demands     *demands
	control     *control
	background  *background
	direct      *directLinks
	viewer      *viewer

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
	headers, err := newAnswerHeaders(cfg.PassHeaders)
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
	b.conn = brokerconn.New(nc, b.log)
	b.rules.Store(newRules(policystore.Version{Policy: policy.Default()}))

	requests, queues, fleet, gpus := newRequests(), newQueues(), newFleet(), metric.NewGPUHistory()
	bodies, background := newBodies(&cfg), new(background)
	keys, affinity, lanes, shifts := newKeyring(b, cfg.Auth), newAffinity(b), newLanes(b), newShifts(b)
	links := newLinks(b)
	history, ledger := newHistory(), newLedger(b, cfg.Replicas)
	metrics := newMetrics(b.id, cfg.Version, cfg.MetricLabels, metric.Fleet{Beats: fleet.heartbeats, Lost: fleet.lostWorkers, Ages: fleet.ages, GPUs: gpus},
		keys.refused, keys.limited,
		metric.DirectWorkers.Func(func() float64 { return float64(links.directCount()) }),
		metric.InFlight.Func(func() float64 { return float64(requests.count()) }),
		metric.BodyBytes.Func(func() float64 { return float64(bodies.held.Load()) }))
	metrics.registry.MustRegister(cfg.Collectors...)
	accessLog := newAccessLog(cfg.AccessLog, b)
	metrics.registry.MustRegister(accessLog.collectors()...)
	settlements := newSettlements(b)
	publisher, retries, exchange := newPublisher(b, settlements), newRetries(cfg.RetryBudget), &exchange{bus: b, queues: queues, fleet: fleet}
	router := &router{bus: b, affinity: affinity, fleet: fleet, lanes: lanes, queues: queues}
	lengths := &lengths{fleet: fleet, lanes: lanes, pools: make(map[string]*policy.Tokens)}
	admission := &admission{
		cfg: &cfg, bus: b, keys: keys, router: router, lengths: lengths, fleet: fleet, queues: queues, metrics: metrics,
	}
	server := &server{
		cfg: &cfg, bus: b, requests: requests, admission: admission, router: router, fleet: fleet, lanes: lanes, lengths: lengths, queues: queues,
		exchange: exchange, publisher: publisher, settlements: settlements, keys: keys, shifts: shifts, retries: retries, metrics: metrics, history: history, ledger: ledger, background: background, headers: headers,
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
	told := &reports{id: b.id}
	watch := &watch{
		reports: told,
		bus:     b, streams: streams, publisher: publisher, fleet: fleet, gpus: gpus, lanes: lanes, queues: queues, exchange: exchange, requests: requests, short: newShortages(), links: links,
		late: &late{cfg: &cfg, fleet: fleet, retries: retries},
		gone: make(chan goneWorker, 1024), hangs: make(chan struct{}, 1), keyMover: newKeyMover(b), silence: new(silence),
	}
	follower := &policyFollower{bus: b, keys: keys, streams: streams, requests: requests}
	demands := newDemands(b, requests, fleet)
	scrape := &scrape{bus: b, requests: requests, fleet: fleet, streams: streams, policy: follower, demands: demands}
	metrics.prepare = func() { metrics.keep(scrape.pools(), scrape.tiers(), scrape.mirrors()) }
	g := &Gateway{
		cfg: &cfg, bus: b, metrics: metrics, requests: requests, fleet: fleet, lanes: lanes, affinity: affinity, keys: keys,
		router: router, admission: admission, exchange: exchange, settlements: settlements, streams: streams, shifts: shifts, background: background,
		dispatcher: &dispatcher{
			bus: b, requests: requests, publisher: publisher, settlements: settlements, fleet: fleet, affinity: affinity, exchange: exchange, metrics: metrics, watch: watch,
			links: links, direct: newDirectLinks(&cfg, b, links),
		},
		ingress: &ingress{
			cfg: &cfg, bus: b, keys: keys, router: router, admission: admission, mirrors: mirrors, server: server, cheap: cheap, metrics: metrics, history: history, ledger: ledger, bodies: bodies,
			pages: scrape.pages(), doors: doors, addresses: &addresses{proxies: cfg.TrustedProxies}, wrongKeys: newWrongKeys(cfg.WrongKeys),
			records: &records{accessLog, newTracer(&cfg, b.id, doors)}, takers: takersOf(cfg.Services),
		},
		watch: watch, keyMover: watch.keyMover, ledger: ledger, demands: demands,
		stale:  &stalePools{bus: b, fleet: fleet, lanes: lanes, requests: requests, after: cfg.ForgetPools},
		stalls: &stalls{bus: b, requests: requests, queues: queues, fleet: fleet, silence: watch.silence, metrics: metrics},
		policy: follower,
	}
	scrape.notReady = g.NotReady
	metrics.registry.MustRegister(scrape.collectors()...)
	g.direct = g.dispatcher.direct
	g.viewer = &viewer{bus: b, fleet: fleet, requests: requests, shifts: shifts, history: history, silence: watch.silence, policy: g.policy, brokers: &streams.brokers, notReady: g.NotReady}
	g.control = &control{
		bus: b, requests: requests, fleet: fleet, queues: queues, admission: admission, history: history, server: server, reports: told, draining: &g.draining,
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
		return g.bus.disconnected()
	case g.bus.denied() != "":
		return g.bus.denied()
	case !g.streams.ready.Load():
		if why := g.streams.trouble(); why != "" {
			return "the queue is not available: " + why
		}
		return "the queue is not available yet"
	case !g.keys.ready():
		return "the keys are not read yet"
	}
	return ""
}

// View returns what the gateway knows now.
func (g *Gateway) View() View { return g.viewer.view() }

// Hour returns the periods of the last hour in which a request of this gateway ended, the oldest first.
func (g *Gateway) Hour() []Period { return g.viewer.history.periods(time.Now()) }

func (g *Gateway) readiness() readiness {
	reason, trouble := g.NotReady(), ""
	if reason == "" {
		trouble = g.watch.trouble(time.Now())
	}
	return readiness{
		Ready: reason == "", Reason: reason, Trouble: trouble, Requests: g.requests.count(), Models: g.fleet.models(),
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
	g.fleet.onConnected(time.Now())
	defer g.cfg.Local.Open(g.bus.id, g.dispatcher)()

	var loops sync.WaitGroup
	loops.Go(func() { g.bus.conn.Run(life) })
	loops.Go(func() { g.watch.run(life) })
	loops.Go(func() { g.settlements.run(life) })
	loops.Go(func() { g.stalls.run(life) })
	loops.Go(func() { g.stale.run(life) })
	loops.Go(func() { g.lanes.run(life, g.watch.publishReferences) })
	loops.Go(func() { g.streams.run(life) })
	loops.Go(func() { g.policy.run(life) })
	loops.Go(func() { g.affinity.run(life, g.fleet.gateways) })
	loops.Go(func() { g.shifts.run(life) })
	loops.Go(func() { g.keys.run(life) })
	loops.Go(func() { g.keyMover.run(life) })
	loops.Go(func() { g.ledger.run(life) })
	loops.Go(func() { g.demands.run(life) })
	loops.Go(func() { g.direct.run(life, g.dispatcher.onLink) })
	loops.Go(func() { g.ingress.records.log.run(life) })
	for _, s := range g.cfg.Services {
		loops.Go(func() { s.Run(life, g.ingress.do) })
	}

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
		port := newAdminPort(g.cfg, admin.Addr())
		s := &http.Server{
			Handler: port.handler(g.metrics.registry, g.readiness), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
			MaxHeaderBytes: 32 << 10,
		}
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
	g.ledger.close()
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
		subjects.DemandReports:            g.demands.onReport,
		subjects.AskRequests:              g.control.onAskRequests,
		subjects.AskWorkers:               g.control.onAskWorkers,
		subjects.AskResults:               g.control.onAskResults,
		subjects.AskRequest:               g.control.onAskRequest,
		subjects.DoCancel:                 g.control.onCancel,
		subjects.DoPurge:                  g.control.onPurge,
		subjects.DoRetry:                  g.control.onRetry,
	} {
		group := ""
		if subject == subjects.DoRetry { // one gateway, any
			group = subjects.GatewayGroup
		}
		sub, err := g.bus.nc.QueueSubscribe(subject, group, only(subject, handle))
		if err != nil {
			unsubscribe()
			return nil, fmt.Errorf("gateway: subscribe %s: %w", subject, err)
		}
		sub.SetPendingLimits(-1, -1)
		subs = append(subs, sub)
	}
	return unsubscribe, nil
}

// only handles messages that were published to a subscribed subject. What a worker pulls is delivered to the subject that it
// names, and keeps the one on which the client's request was published.
func only(subscribed string, handle nats.MsgHandler) nats.MsgHandler {
	return func(m *nats.Msg) {
		if subjects.Match(subscribed, m.Subject) {
			handle(m)
		}
	}
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
