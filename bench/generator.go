package bench

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// errorPause keeps a closed loop from hammering a server that refuses at once.
const errorPause = 10 * time.Millisecond

// Run puts the load of cfg on its URL and reports the result. When ctx ends, the requests in flight are cancelled and
// the result covers what was done until then, with Interrupted set and no error. An error means that nothing was sent.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.Transport == nil {
		transport := NewTransport()
		defer transport.CloseIdleConnections()
		cfg.Transport = transport
	}
	g, err := newGenerator(cfg)
	if err != nil {
		return nil, err
	}
	return g.run(ctx), nil
}

// NewTransport is the pool of connections that Run uses by default: HTTP/1.1, no proxy, no compression, every
// connection kept for the next request.
func NewTransport() *http.Transport {
	return &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout: 10 * time.Second,
		MaxIdleConnsPerHost: 100_000,
		IdleConnTimeout:     90 * time.Second,
		DisableCompression:  true,
		ReadBufferSize:      16 << 10,
		WriteBufferSize:     16 << 10,
	}
}

// generator makes the requests of one run.
type generator struct {
	// Fixed after newGenerator.
	cfg      Config
	client   *client
	bodies   *bodies
	recorder *recorder

	// Set by run before the first request.
	start time.Time

	mu       sync.Mutex
	issued   int       // guarded by mu
	measured int       // guarded by mu; part of issued, without the warm-up
	origin   time.Time // guarded by mu; when the first measured request was due
	inFlight int       // guarded by mu
}

func newGenerator(cfg Config) (*generator, error) {
	client, err := newClient(cfg)
	if err != nil {
		return nil, err
	}
	bodies, err := newBodies(cfg)
	if err != nil {
		return nil, err
	}
	return &generator{cfg: cfg, client: client, bodies: bodies, recorder: newRecorder(cfg)}, nil
}

func (g *generator) run(ctx context.Context) *Result {
	g.start = time.Now()
	ended := make(chan struct{})
	var progress sync.WaitGroup
	if g.cfg.Progress != nil {
		progress.Go(func() { g.progressLoop(ended) })
	}
	if g.cfg.closed() {
		g.closedLoop(ctx)
	} else {
		g.openLoop(ctx)
	}
	close(ended)
	progress.Wait()
	return g.recorder.result(g.start, g.origin, ctx.Err() != nil)
}

// closedLoop runs the workers until the run's bounds are reached.
func (g *generator) closedLoop(ctx context.Context) {
	var workers sync.WaitGroup
	for range g.cfg.Concurrency {
		workers.Go(func() { g.workerLoop(ctx) })
	}
	workers.Wait()
}

func (g *generator) workerLoop(ctx context.Context) {
	pause := newAlarm()
	for ctx.Err() == nil {
		o, ok := g.order(time.Now())
		if !ok || !g.enter() {
			return
		}
		o.asked = g.cfg.OutputTokens
		o.body = g.bodies.build(o.number, g.cfg.InputTokens, o.asked)
		if !g.exchange(ctx, o) {
			pause.sleepUntil(ctx, time.Now().Add(errorPause))
		}
	}
}

// openLoop sends each request when it is due and waits for none of them before all are sent.
func (g *generator) openLoop(ctx context.Context) {
	var requests sync.WaitGroup
	defer requests.Wait()
	wake := newAlarm()
	for arrival := range arrivals(g.cfg) {
		o, ok := g.order(g.start.Add(arrival.At))
		if !ok {
			return
		}
		o.asked = arrival.OutputTokens
		o.body = g.bodies.build(o.number, arrival.InputTokens, o.asked)
		if !wake.sleepUntil(ctx, o.due) {
			return
		}
		if !g.enter() {
			g.recorder.refuse(o.warmup)
			continue
		}
		requests.Go(func() { g.exchange(ctx, o) })
	}
}

// order is one request to send.
type order struct {
	number int
	due    time.Time
	warmup bool
	body   []byte
	asked  int // requested output tokens
}

// order decides whether a request that is due at the given time still belongs to the run, and whether it is measured.
func (g *generator) order(due time.Time) (o order, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	warmup := g.issued < g.cfg.Warmup.Requests || due.Sub(g.start) < g.cfg.Warmup.Duration
	if !warmup && g.measured == 0 {
		g.origin = due
	}
	switch {
	case warmup:
	case g.cfg.Requests > 0 && g.measured >= g.cfg.Requests:
		return order{}, false
	case g.cfg.Duration > 0 && due.Sub(g.origin) >= g.cfg.Duration:
		return order{}, false
	default:
		g.measured++
	}
	g.issued++
	return order{number: g.issued, due: due, warmup: warmup}, true
}

// enter counts a request as in flight, or reports that the bound is reached. exchange calls leave.
func (g *generator) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.cfg.closed() && g.inFlight >= g.cfg.MaxInFlight {
		return false
	}
	g.inFlight++
	return true
}

func (g *generator) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inFlight--
}

// exchange sends one request that entered, records it, and reports whether it succeeded.
func (g *generator) exchange(ctx context.Context, o order) bool {
	defer g.leave()
	x := g.client.pool.Get().(*exchange)
	defer g.client.pool.Put(x)
	x.reset(o)
	x.run(ctx, g.client)
	g.recorder.record(x)
	return x.failure.class == ""
}
