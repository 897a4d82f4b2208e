package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/trace"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// Config says which engine a worker serves, and how.
type Config struct {
	// Engine is the base URL of the engine, with or without a trailing /v1: see engine.ParseAddress. A user and a password in
	// it are used if there are no Credentials. They are not shown.
	Engine string
	// Name is for people. Default: host and port of Engine.
	Name string
	// ID is the stable part of the worker's id, which the permissions of the broker name: letters, digits, '-' and '_', at most
	// 64. Of several processes with the same one, the latest serves, and the others drain. Default: the name, and a hash of it
	// with the names of this host and of the engine; then all of them serve.
	ID string
	// EngineName is what people call such an engine, as in "vllm". Default: the dialect that is detected.
	EngineName string
	// Credentials are sent to the engine. Default: none.
	Credentials engine.Credentials
	// TLS says how to call an engine with https. Default: the system's certificate authorities are trusted.
	TLS engine.TLS
	// Models are the models to serve. Default: what the engine's /v1/models lists, asked again every few seconds.
	Models []string
	// Pool is the pool to join, with the engine's one model. Default: for each model the pool of its name.
	Pool string
	// Slots is how many requests run at once at most. Default: as many as the
	// engine reports that it runs; where it reports nothing of its load, 8.
	Slots int
	// Ranks is how many data-parallel ranks a vLLM at Engine has, if the worker is to choose one for each request: the least
	// loaded. Slots are those of each rank then. Default 0: the engine chooses.
	Ranks int
	// Profile is how far requests may slow each other down for the sake of more of them: a name, and objectives if
	// there are any. Default policy.Balanced, and policy.GivenSlots with Slots.
	Profile policy.Profile
	// Baseline is the time between two tokens of a request alone, for an engine
	// that never is alone on its GPU. Default: measured.
	Baseline time.Duration
	// Dialect is how the engine reports its state. Default: detected.
	Dialect engine.Dialect
	// MetricsURL is where the engine's metrics are, if not where its dialect has them. Default "".
	MetricsURL string
	// NVML reports the state of the GPUs. It must be running. Default nil: GPUs are not monitored.
	NVML GPUs
	// NVMLRequired keeps requests from starting while NVML does not report every GPU of the engine. Default false.
	NVMLRequired bool
	// GPUs are those that the engine runs on, by UUID, the beginning of one, or
	// NVML's index, with an instance as index:number. Default: all that NVML shows.
	GPUs []string
	// Weight divides the price: with 2 the worker bids as if its engine were twice as fast. The policy may override it.
	// Default 1; while nothing is measured, the bandwidth of the GPUs' memory.
	Weight float64
	// DrainTimeout is how long running requests may go on after the context of Run has ended. Then they are handed over to
	// other workers. Default 10 min.
	DrainTimeout time.Duration
	// StallTimeout is how long a streaming engine may be silent before its attempt counts as failed. Default 2 min.
	StallTimeout time.Duration
	// SwapAfter is how long a request waits at most for a model that the engine would have to load, while those that
	// are loaded have work: see policy.Swap. Default policy.SwapAfter, 10 s.
	SwapAfter time.Duration
	// Preload are models that the engine should load when the worker starts, by the engine's name or the pool; AllModels is
	// every one, until no other fits beside those. Of an engine that does not report which models are loaded, each one
	// generates a token. Default: none.
	Preload []string
	// Ungated lets tiers bid while prompts wait for their first token, whatever tier is active above them: to measure
	// what the prefill gate does. Default false.
	Ungated bool
	// TracerProvider makes a span for each attempt: see docs/observability.md. Default nil: there are none, and the engine gets the
	// trace's context that the gateway sent.
	TracerProvider trace.TracerProvider
	// Local has the gateways of this process. Default nil: there are none.
	Local *subjects.Local
	// Transport calls the engine, with the Credentials added. Default: one of its own, without compression and by TLS.
	Transport http.RoundTripper
	// Dial opens connections to gateways that offer to take answers past the broker. Default: a [net.Dialer].
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Metrics measure the worker. Those of several workers of a process may be the same ones. Default: of its own, which nobody
	// sees.
	Metrics *Metrics
	// Version is published in heartbeats. Default "dev".
	Version string
	// Logger gets a line when the worker starts or stops, when its engine goes down or
	// up, and when the worker is fenced or cordoned. Default: silent.
	Logger *slog.Logger

	meters *meters // set by New
}

// GPUs reports the state of the machine's GPUs, and how old that report is. A [gpu.Sampler] does.
type GPUs interface {
	Latest() (gpu.Reading, time.Duration)
}

// ErrDrained is returned by Run when an operator ordered the worker to leave, and it has drained and left.
var ErrDrained = errors.New("drained by an operator's order")

// Worker serves one engine. Create it with New, then Run it once. Its state belongs to
// seven owners, which it asks one after the other: see the package comment.
type Worker struct {
	// Fixed after New.
	cfg     Config
	id      string
	engine  engineCalls
	who     *identity
	nc      *nats.Conn
	log     *slog.Logger
	scraper *engine.Scraper

	presence  *presence
	bidder    *bidder
	capacity  *capacity
	estimates *estimator
	attempts  *attempts
	vitals    *vitals
	runners   *runners
	links     *links
	loader    loader
	cheap     cheapCalls

	started time.Time // when Run began
	plans   plans
	order   *order
}

// New checks the configuration. It starts nothing.
func New(cfg Config, nc *nats.Conn) (*Worker, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	client, err := engine.NewClient(engine.ClientConfig{
		URL: cfg.Engine, Credentials: cfg.Credentials, TLS: cfg.TLS, RoundTripper: cfg.Transport, Logger: cfg.Logger.With("worker", cfg.Name),
		Transport: &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			MaxIdleConnsPerHost: max(cfg.Slots, 256) + 8,
			IdleConnTimeout:     90 * time.Second,
			DisableCompression:  true,
			ReadBufferSize:      32 << 10,
			WriteBufferSize:     16 << 10,
			// An answer's header must fit into a message.
			MaxResponseHeaderBytes: min(64<<10, nc.MaxPayload()/4),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("engine %s: %w", cfg.Engine, err)
	}
	cfg.Transport = client
	w := &Worker{
		cfg:    cfg,
		engine: engineCalls{base: cfg.Engine},
		nc:     nc,
		log:    cfg.Logger.With("worker", cfg.Name),
		order:  newOrder(),
	}
	w.who = newIdentity(&cfg, nc, w.log, w.order)
	w.id = w.who.id
	w.cfg.meters = cfg.Metrics.of(w.who.id, cfg.Name, w.who.host)
	w.engine.tracer = newTracer(&w.cfg, w.id)
	w.presence = newPresence(cfg.Weight)
	w.bidder = newBidder(w.id, cfg.Ungated)
	w.capacity = newCapacity(cfg)
	w.estimates = newEstimator()
	w.attempts = newAttempts()
	w.vitals = newVitals()
	w.runners = newRunners(w.run)
	w.links = newLinks(nc, w.id, cfg.Dial, w.log)
	w.cfg.meters.watch(w.links.conn, nc)
	w.cheap = cheapCalls{
		cfg: &w.cfg, engine: &w.engine, nc: nc, log: w.log, attempts: w.attempts, links: w.links, look: func() { w.scraper.Look() },
		accepts: func(pool string) (model string, state subjects.State) {
			fence := ""
			if !w.capacity.load().open {
				fence = "fenced"
			}
			state, _ = w.presence.report(fence)
			for _, s := range w.bidder.serving() {
				if s.pool == pool {
					model = s.model
				}
			}
			return model, state
		},
	}
	w.cheap.runners = newRunners(w.cheap.run)
	switch { // known before the engine answers, so that requests for them wait
	case len(cfg.Models) > 0:
		w.serve(cfg.Models)
	case cfg.Pool != "":
		w.serve([]string{cfg.Pool}) // until the engine says what its model is called
	}
	w.scraper, err = engine.NewScraper(engine.ScraperConfig{
		URL: w.engine.base, Dialect: cfg.Dialect, MetricsURL: cfg.MetricsURL,
		Client:   &http.Client{Transport: cfg.Transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		OnStatus: w.onStatus, OnListing: w.onListing,
	})
	if err != nil {
		return nil, fmt.Errorf("engine %s: %w", cfg.Engine, err)
	}
	if cfg.Credentials.Given() {
		w.scraper.Doubt()
	}
	w.loader = loader{
		capacity: w.capacity, engine: w.scraper, nc: nc, log: w.log, key: w.who.learnedKey(cfg.Name),
		changed: func() { w.presence.beat(); w.bid() },
	}
	return w, nil
}

const (
	maxWorkerName = 64 // bytes
	maxRanks      = 256
)

// complete checks the configuration and fills in the defaults.
func (cfg Config) complete() (Config, error) {
	at, err := engine.ParseAddress(cfg.Engine)
	if err != nil {
		return cfg, fmt.Errorf("engine %s: %w", engine.ShowURL(cfg.Engine), err)
	}
	cfg.Engine = at.URL
	if cfg.Credentials, err = cfg.Credentials.With(at); err != nil {
		return cfg, fmt.Errorf("engine %s: %w", cfg.Engine, err)
	}
	u, err := url.Parse(cfg.Engine)
	if err != nil {
		return cfg, err
	}
	if cfg.Name == "" {
		if cfg.Name = u.Host + u.Path; len(cfg.Name) > maxWorkerName {
			cfg.Name = u.Host
		}
	}
	if err := cfg.check(); err != nil {
		return cfg, fmt.Errorf("engine %s: %w", cfg.Engine, err)
	}
	cfg.Slots *= max(cfg.Ranks, 1)
	if cfg.Profile.Name == "" {
		cfg.Profile.Name = policy.Balanced.Name
		if cfg.Slots > 0 {
			cfg.Profile.Name = policy.GivenSlots.Name
		}
	}
	named, ok := policy.ProfileNamed(cfg.Profile.Name)
	if !ok {
		return cfg, fmt.Errorf("engine %s: unknown profile %q", cfg.Engine, cfg.Profile.Name)
	}
	cfg.Profile.Stretch, cfg.Profile.Fixed = named.Stretch, named.Fixed
	cfg.DrainTimeout = cmp.Or(cfg.DrainTimeout, 10*time.Minute)
	cfg.StallTimeout = cmp.Or(cfg.StallTimeout, 2*time.Minute)
	cfg.SwapAfter = cmp.Or(cfg.SwapAfter, policy.SwapAfter)
	cfg.Version = cmp.Or(cfg.Version, "dev")
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics()
	}
	if cfg.Dial == nil {
		cfg.Dial = new(net.Dialer).DialContext
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return cfg, nil
}

// check checks the names of models, pool and worker, and the numbers.
func (cfg *Config) check() error {
	named := func(name string, longest int) bool { return len(name) <= longest && utf8.ValidString(name) }
	for _, m := range cfg.Models {
		if m == "" || !named(m, subjects.MaxName) {
			return fmt.Errorf("model %.40q: a name has 1 to %d bytes of UTF-8", m, subjects.MaxName)
		}
	}
	switch {
	case cfg.Pool != "" && len(cfg.Models) > 1:
		return fmt.Errorf("pool %q takes one model, but %d are configured", cfg.Pool, len(cfg.Models))
	case !named(cfg.Pool, subjects.MaxName):
		return fmt.Errorf("pool %.40q: a name has 1 to %d bytes of UTF-8", cfg.Pool, subjects.MaxName)
	case cfg.ID != "" && CheckID(cfg.ID) != nil:
		return CheckID(cfg.ID)
	case !named(cfg.Name, maxWorkerName):
		return fmt.Errorf("name %.40q: a name has at most %d bytes of UTF-8", cfg.Name, maxWorkerName)
	case cfg.Slots < 0:
		return fmt.Errorf("slots %d: must not be negative", cfg.Slots)
	case cfg.Ranks < 0 || cfg.Ranks > maxRanks:
		return fmt.Errorf("ranks %d: must be 0 to %d", cfg.Ranks, maxRanks)
	case cfg.Weight < 0:
		return fmt.Errorf("weight %g: must not be negative", cfg.Weight)
	case cfg.SwapAfter < 0:
		return fmt.Errorf("swap after %v: must not be negative", cfg.SwapAfter)
	}
	return nil
}

// ID is the worker's unique id, a subject token.
func (w *Worker) ID() string { return w.id }

// Run serves until ctx is done or an operator orders the worker to leave. Then it drains: it accepts no new requests,
// lets running ones finish within DrainTimeout, hands the others over to other workers, and leaves. It returns after
// that: ErrDrained if an operator ordered it, ErrReplaced if another process has started with its id, else nil.
func (w *Worker) Run(ctx context.Context) error {
	w.started = time.Now()
	w.who.started = w.started
	w.presence.onReconnect(w.started)
	w.cfg.meters.onHeartbeat(new(w.heartbeat(w.started)), w.started)
	w.plans.gate = time.NewTimer(time.Hour) // publishBids resets it
	defer w.plans.gate.Stop()
	var subs []*nats.Subscription
	for subject, handle := range map[string]nats.MsgHandler{
		subjects.Worker(w.id) + ".>":                    w.receive,
		subjects.AllGateways:                            w.onReference,
		subjects.WorkerDrain(w.id):                      w.onDrainOrder,
		subjects.WorkerStarted(subjects.StableID(w.id)): w.who.onStarted,
	} {
		sub, err := w.nc.Subscribe(subject, handle)
		if err != nil {
			return fmt.Errorf("worker %s: subscribe %s: %w", w.cfg.Name, subject, err)
		}
		sub.SetPendingLimits(-1, -1) // bounded by slots, bids and windows
		subs = append(subs, sub)
	}
	w.who.announce()
	w.log.Info("worker started", "id", w.id, "engine", w.cfg.Engine, "slots", w.capacity.load().slots, "profile", w.cfg.Profile.Name)

	// Two contexts: ctx ends bidding, life ends everything else.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	var loops sync.WaitGroup
	loops.Go(func() { every(life, subjects.HeartbeatEvery, w.presence.due, w.publishHeartbeat) })
	loops.Go(func() {
		// The worker's entry in the membership bucket is for gateways that start later. The first gateway creates the bucket;
		// until then, and if an entry is lost, heartbeats work without it.
		every(life, memberEvery, w.presence.members, func(now time.Time) {
			if body, err := subjects.Marshal(w.heartbeat(now)); err == nil {
				w.nc.Publish(subjects.KVSubject(subjects.WorkersBucket, w.id), body)
			}
		})
	})
	loops.Go(func() {
		w.loader.remember(life)
		every(life, memberEvery, nil, func(time.Time) { w.loader.remember(life) })
	})
	loops.Go(func() { w.loader.run(life) })
	loops.Go(func() { w.links.conn.Run(life) })
	loops.Go(func() { w.bidLoop(life) })
	loops.Go(func() { w.policyLoop(life) })
	loops.Go(func() { w.scraper.Run(life) })
	loops.Go(func() { every(life, subjects.AliveEvery, w.attempts.listing, w.publishAlive) })
	loops.Go(func() { every(life, vitalsTick, nil, w.lookAtVitals) })
	loops.Go(func() { every(life, capacityTick, nil, w.lookAtCapacity) })
	loops.Go(func() {
		every(life, resendAfter/4, nil, func(now time.Time) {
			if !w.links.conn.Hears(now) {
				w.presence.onDeaf(now)
				return
			}
			if w.presence.hearsNobody(now) {
				w.log.Warn("no gateway is heard: none runs, or the NATS credentials are those of another role")
			}
			gone := w.presence.gone(now)
			w.links.tend(gone, now)
			w.links.probe(w.attempts.gateways(), now)
			for _, gateway := range gone {
				w.attempts.onGatewayGone(gateway)
				for _, ack := range w.attempts.takeFinished(gateway) {
					w.nc.Publish(ack, subjects.Term("gateway gone"))
				}
			}
		})
	})
	loops.Go(func() {
		w.vitals.run(life, func(ctx context.Context, path, model string, stream bool) bool {
			return w.engine.probe(ctx, w.cfg.Transport, path, model, stream)
		})
	})

	var left error
	select {
	case <-ctx.Done():
		w.drain("")
	case <-w.order.given:
		why := "drained by an operator"
		if left = w.order.why; errors.Is(left, ErrReplaced) {
			why = left.Error()
		}
		w.drain(why)
	}
	end()
	loops.Wait()
	w.leave()
	for _, sub := range subs {
		sub.Unsubscribe()
	}
	w.runners.close()
	w.cheap.runners.close()
	w.links.close()
	w.cfg.Metrics.drop(w.cfg.meters)
	w.log.Info("worker stopped", "done", w.attempts.done.Load(), "failed", w.attempts.failed.Load())
	return left
}

// every calls do at an interval, and whenever due signals, until ctx is done.
func every(ctx context.Context, interval time.Duration, due <-chan struct{}, do func(now time.Time)) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-due:
		case <-tick.C:
		}
		do(time.Now())
	}
}

// drain stops accepting requests, and returns when no attempt runs any more.
func (w *Worker) drain(why string) {
	w.presence.set(subjects.Draining, why)
	ended, running := w.attempts.close()
	w.presence.beat()
	w.log.Info("worker draining", "in_flight", running)

	timeout := time.NewTimer(w.cfg.DrainTimeout)
	defer timeout.Stop()
	select {
	case <-ended:
		return
	case <-timeout.C:
	}
	for _, a := range w.attempts.all() {
		a.stop(errDraining)
	}
	<-ended
}

// leave publishes the last heartbeat, after the last frames and on the same connection.
// No other heartbeat follows, since the loops have ended.
func (w *Worker) leave() {
	w.links.await()
	w.presence.set(subjects.Left, "")
	w.publishHeartbeat(time.Now())
	w.nc.PublishMsg(subjects.Purge(subjects.WorkersBucket, w.id))
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	w.nc.FlushWithContext(ctx)
}
