package worker

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// Config says which engine a worker serves, and how.
type Config struct {
	// Engine is the base URL of the engine, with or without a trailing /v1.
	Engine string
	// Name is for people. Default: host and port of Engine.
	Name string
	// EngineName is what people call such an engine, as in "vllm". Default: the
	// dialect that is found.
	EngineName string
	// APIKey is sent to the engine as a bearer token. Default: none.
	APIKey string
	// Models are the models to serve. Default: what the engine's /v1/models
	// says, asked again every few seconds.
	Models []string
	// Pool is the pool to join, with the engine's one model. Default: for each
	// model the pool of its name.
	Pool string
	// Slots is how many requests run at once at most. Default: as many as the
	// engine says it runs; where it says nothing of its load, 8.
	Slots int
	// Profile is how far requests may slow each other down for the sake of more of
	// them: a name, and objectives if there are any. Default policy.Balanced, and
	// policy.GivenSlots with Slots.
	Profile policy.Profile
	// Baseline is the time between two tokens of a request alone, for an engine
	// that never is alone on its GPU. Default: measured.
	Baseline time.Duration
	// Dialect is how the engine tells of itself. Default: found out.
	Dialect engine.Dialect
	// MetricsURL is where the engine's metrics are, if not where its dialect has
	// them. Default "".
	MetricsURL string
	// NVML tells how the GPUs are; nil is without. It must be running.
	NVML GPUs
	// NVMLRequired says that nothing may start without word of every GPU.
	NVMLRequired bool
	// GPUs are those that the engine runs on, by UUID, the beginning of one, or
	// NVML's index, with an instance as index:number. Default: all that NVML shows.
	GPUs []string
	// Weight divides the price: 2 takes requests as if it were twice as fast. The
	// policy may say otherwise. Default 1; while nothing is measured, the bandwidth
	// of the GPUs' memory.
	Weight float64
	// DrainTimeout bounds how long running requests may go on after Run was
	// told to stop; then other workers take over. Default 10 min.
	DrainTimeout time.Duration
	// StallTimeout is how long a streaming engine may be silent before its
	// attempt counts as failed. Default 2 min.
	StallTimeout time.Duration
	// SwapAfter is how long a request waits at most for a model that the engine
	// would have to load, while those that are loaded have work: see policy.Swap.
	// Default policy.SwapAfter, 10 s.
	SwapAfter time.Duration
	// Ungated lets tiers bid while prompts wait for their first token, whatever
	// tier is active above them: to measure what the prefill gate does. Default
	// false.
	Ungated bool
	// Local, if not nil, has the gateways of this process.
	Local *subjects.Local
	// Transport calls the engine. Default: one of its own, without compression.
	Transport http.RoundTripper
	// Version is told in heartbeats.
	Version string
	// Logger gets a line when the worker starts, stops, loses or finds its
	// engine. Default: silent.
	Logger *slog.Logger
}

// GPUs tells how the GPUs of the machine are, and how old that is. A
// [gpu.Sampler] does.
type GPUs interface {
	Latest() (gpu.Reading, time.Duration)
}

// errNotAsked is why the engine does not count as well before its models are known.
var errNotAsked = errors.New("not asked yet")

// Why an attempt was stopped, as causes of its context.
var (
	ErrCancelled   = errors.New("the gateway cancelled it")
	ErrGatewayGone = errors.New("its gateway is gone")
	ErrRefused     = errors.New("the gateway refused the claim")
	ErrDraining    = errors.New("the worker stops")
	ErrStalled     = errors.New("the engine went silent")
)

// ErrDrained is what Run returns when the worker has drained and left as an
// operator ordered, and not because it was stopped.
var ErrDrained = errors.New("drained by an operator's order")

// Worker serves one engine. Create it with New, then Run it once.
type Worker struct {
	// Fixed after New.
	cfg     Config
	id      string
	base    string // of the engine's URLs
	nc      *nats.Conn
	log     *slog.Logger
	scraper *engine.Scraper
	host    string
	started time.Time

	attempts sync.WaitGroup
	idle     chan *attempt // to goroutines that have none; closed by Run
	idlers   atomic.Int32  // how many these are
	lastCall atomic.Pointer[callKind]
	ordered  chan struct{} // closed when it was told to leave
	order    sync.Once

	mu       sync.Mutex
	policy   *policy.Policy // in force
	weight   float64        // that an operator gave it; 0: none
	cordoned bool
	state    subjects.State // but for cordoned: see toldLocked
	reason   string
	downAt   time.Time // when state last became down
	serves   []served  // what the engine has
	pools    map[string]*pool
	tiers    []tier
	lanes    []*lane // shared, and its own home lanes: each delivery and each end looks at all of them
	away     []*lane // home lanes of others
	byQueue  map[queueName]*lane
	byNumber map[int]*lane
	numbers  int // of lanes so far
	running  map[uint64]*attempt
	// prefilling are those that may still wait for their first token.
	prefilling  []*attempt
	prefilledAt time.Time // when the last of them had its first token
	// failedHere are requests that lately failed here: the queue gives them to
	// the cheapest bid, which is likely to be here again, and the engine should
	// not be asked before the others had their chance.
	failedHere map[subjects.ID]time.Time
	// keptFor are requests that a gateway keeps for other workers, and until when it
	// is not asked again: its word comes when the engine has been called already.
	keptFor    map[subjects.ID]time.Time
	inFlight   int
	room       room
	swaps      swaps
	engineErr  error // of the last question for its models
	done       uint64
	failed     uint64
	badInRow   int       // refusals and failures of the engine without a success between
	pausedTo   time.Time // no bids before
	decoding   meter
	wheel      policy.Wheel
	shares     []int  // of the tiers; what the wheel turns by
	turns      uint64 // of the wheel
	lookedAway time.Time
	gateOpens  *time.Timer          // when time alone opens the gate
	gateAt     time.Time            // what it is set to
	gateways   map[string]time.Time // last sign of life
	connected  time.Time
	changed    chan struct{} // makes healthLoop tell that the engine's health has changed
}

// New checks the configuration. It starts nothing.
func New(cfg Config, nc *nats.Conn) (*Worker, error) {
	u, err := url.Parse(cfg.Engine)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, fmt.Errorf("engine %q: want a URL such as http://127.0.0.1:8000", cfg.Engine)
	}
	if cfg.Slots < 0 {
		return nil, fmt.Errorf("engine %s: slots %d: must not be negative", cfg.Engine, cfg.Slots)
	}
	if cfg.Weight < 0 {
		return nil, fmt.Errorf("engine %s: weight %g: must not be negative", cfg.Engine, cfg.Weight)
	}
	for _, m := range cfg.Models {
		if m == "" || len(m) > subjects.MaxName || !utf8.ValidString(m) {
			return nil, fmt.Errorf("engine %s: model %.40q: a name has 1 to %d bytes of UTF-8", cfg.Engine, m, subjects.MaxName)
		}
	}
	if cfg.Pool != "" && len(cfg.Models) > 1 {
		return nil, fmt.Errorf("engine %s: pool %q takes one model, and %d are named", cfg.Engine, cfg.Pool, len(cfg.Models))
	}
	if len(cfg.Pool) > subjects.MaxName || !utf8.ValidString(cfg.Pool) {
		return nil, fmt.Errorf("engine %s: pool %.40q: a name has 1 to %d bytes of UTF-8", cfg.Engine, cfg.Pool, subjects.MaxName)
	}
	cfg.Name = cmp.Or(cfg.Name, u.Host)
	if len(cfg.Name) > 64 || !utf8.ValidString(cfg.Name) {
		return nil, fmt.Errorf("engine %s: name %.40q: a name has at most 64 bytes of UTF-8", cfg.Engine, cfg.Name)
	}
	if cfg.Profile.Name == "" {
		cfg.Profile.Name = policy.Balanced.Name
		if cfg.Slots > 0 {
			cfg.Profile.Name = policy.GivenSlots.Name
		}
	}
	named, ok := policy.ProfileNamed(cfg.Profile.Name)
	if !ok {
		return nil, fmt.Errorf("engine %s: there is no profile %q", cfg.Engine, cfg.Profile.Name)
	}
	cfg.Profile.Stretch, cfg.Profile.Fixed = named.Stretch, named.Fixed
	cfg.DrainTimeout = cmp.Or(cfg.DrainTimeout, 10*time.Minute)
	cfg.StallTimeout = cmp.Or(cfg.StallTimeout, 2*time.Minute)
	if cfg.SwapAfter < 0 {
		return nil, fmt.Errorf("engine %s: swap after %v: must not be negative", cfg.Engine, cfg.SwapAfter)
	}
	cfg.SwapAfter = cmp.Or(cfg.SwapAfter, policy.SwapAfter)
	cfg.Version = cmp.Or(cfg.Version, "dev")
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Transport == nil {
		cfg.Transport = engine.NewTransport(cfg.Engine, &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			MaxIdleConnsPerHost: max(cfg.Slots, 256) + 8,
			IdleConnTimeout:     90 * time.Second,
			DisableCompression:  true,
			ReadBufferSize:      32 << 10,
			WriteBufferSize:     16 << 10,
			// An answer's header must fit into a message.
			MaxResponseHeaderBytes: min(64<<10, nc.MaxPayload()/4),
		})
	}
	var mark [3]byte
	rand.Read(mark[:])
	host, _ := os.Hostname()
	w := &Worker{
		cfg:        cfg,
		id:         subjects.Token(cfg.Name) + "-" + hex.EncodeToString(mark[:]),
		base:       strings.TrimSuffix(strings.TrimRight(cfg.Engine, "/"), "/v1"),
		nc:         nc,
		host:       host,
		ordered:    make(chan struct{}),
		idle:       make(chan *attempt),
		policy:     policy.Default(),
		weight:     cfg.Weight,
		room:       newRoom(cfg, cmp.Or(cfg.Weight, 1)),
		state:      subjects.Down,
		reason:     errNotAsked.Error(),
		engineErr:  errNotAsked,
		pools:      make(map[string]*pool),
		byQueue:    make(map[queueName]*lane),
		byNumber:   make(map[int]*lane),
		running:    make(map[uint64]*attempt),
		failedHere: make(map[subjects.ID]time.Time),
		keptFor:    make(map[subjects.ID]time.Time),
		gateways:   make(map[string]time.Time),
		changed:    make(chan struct{}, 1),
	}
	w.log = cfg.Logger.With("worker", cfg.Name)
	client := &http.Client{Transport: cfg.Transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	scraper, err := engine.NewScraper(engine.ScraperConfig{
		URL: w.base, Dialect: cfg.Dialect, MetricsURL: cfg.MetricsURL, APIKey: cfg.APIKey, Client: client,
		OnStatus: w.hearEngine, OnListing: w.onListing,
	})
	if err != nil {
		return nil, fmt.Errorf("engine %s: %w", cfg.Engine, err)
	}
	w.scraper = scraper
	w.arrangeLocked() // nobody else has it yet
	return w, nil
}

// ID is the worker's unique id, a subject token.
func (w *Worker) ID() string { return w.id }

// Run serves until ctx is done or an operator orders it to leave, then drains:
// it takes nothing new, lets what runs finish within DrainTimeout, hands the rest
// to other workers, and says good-bye. It returns when all of that is over:
// ErrDrained if it was ordered, else nil.
func (w *Worker) Run(ctx context.Context) error {
	w.started = time.Now()
	w.connected = w.started
	w.gateOpens = time.NewTimer(time.Hour) // until the gate is first closed
	defer w.gateOpens.Stop()
	var subs []*nats.Subscription
	for subject, handle := range map[string]nats.MsgHandler{
		subjects.Worker(w.id) + ".>": w.receive,
		subjects.AllGateways:         w.hearGateway,
	} {
		sub, err := w.nc.Subscribe(subject, handle)
		if err != nil {
			return fmt.Errorf("worker %s: subscribe %s: %w", w.cfg.Name, subject, err)
		}
		sub.SetPendingLimits(-1, -1) // bounded by slots, bids and credit
		subs = append(subs, sub)
	}
	w.log.Info("worker started", "engine", w.cfg.Engine, "slots", w.room.slots, "profile", w.cfg.Profile.Name)

	// Two contexts: ctx ends pulling, life ends everything else.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	var loops sync.WaitGroup
	loops.Go(func() { w.healthLoop(life) })
	loops.Go(func() { w.bidLoop(life) })
	loops.Go(func() { w.aliveLoop(life) })
	loops.Go(func() { w.policyLoop(life) })
	loops.Go(func() { w.roomLoop(life) })
	loops.Go(func() { w.scraper.Run(life) })

	var left error
	select {
	case <-ctx.Done():
		w.drain("")
	case <-w.ordered:
		left = ErrDrained
		w.drain("an operator ordered it")
	}
	end()
	loops.Wait()
	for _, sub := range subs {
		sub.Unsubscribe()
	}
	close(w.idle)
	w.log.Info("worker stopped", "done", w.done, "failed", w.failed)
	return left
}

// drain returns when nothing runs any more.
func (w *Worker) drain(why string) {
	w.mu.Lock()
	w.setStateLocked(subjects.Draining, why)
	left := w.inFlight
	w.mu.Unlock()
	w.beat()
	w.log.Info("worker drains", "in_flight", left)

	finished := make(chan struct{})
	go func() { // ends with the attempts, which the next lines wait for
		w.attempts.Wait()
		close(finished)
	}()
	timeout := time.NewTimer(w.cfg.DrainTimeout)
	defer timeout.Stop()
	select {
	case <-finished:
	case <-timeout.C:
		w.mu.Lock()
		for _, a := range w.running {
			a.stop(ErrDraining)
		}
		w.mu.Unlock()
		<-finished
	}
	w.mu.Lock()
	w.setStateLocked(subjects.Left, "")
	w.mu.Unlock()
	w.beat()
	w.leave()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	w.nc.FlushWithContext(ctx)
}

// receive handles everything that is sent to this worker, in order: answers to
// bids and claims, cancels, credit, and word of gateways that are gone. It
// never blocks.
func (w *Worker) receive(m *nats.Msg) {
	mine, ok := strings.CutPrefix(m.Subject, subjects.Worker(w.id)+".")
	if !ok { // a delivery keeps the subject that the request was published on
		w.deliver(m)
		return
	}
	what, arg, _ := strings.Cut(mine, ".")
	switch what {
	case "bid":
		w.bidStatus(arg, m.Header.Get("Status"), m.Header.Get("Description"))
	case "refused":
		w.refused(arg, m)
	case "gone":
		if m.Header.Get("Status") == "503" {
			w.gatewayGone(arg)
		}
	case "cancel":
		w.cancelled(m)
	case "credit":
		w.credited(m)
	case "drain":
		w.leaveAsOrdered(m)
	}
}

func (w *Worker) setStateLocked(s subjects.State, reason string) {
	if w.state == s && w.reason == reason {
		return
	}
	if w.state == subjects.Left || w.state == subjects.Draining && s != subjects.Left {
		return
	}
	if s == subjects.Down && w.state != s {
		w.downAt = time.Now()
	}
	w.state, w.reason = s, reason
}
