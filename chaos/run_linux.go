package chaos

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/subjects"
)

// Config says what is run, for how long, and what strikes it.
type Config struct {
	// Bin is the binary of Pulley. Required.
	Bin string
	// Dir gets the logs of the parts and the stores of the brokers. Required; it must exist.
	Dir string
	// Topology is the size of the fleet.
	Topology Topology
	// Seed decides the requests, and the faults with their order, targets and times. What happens in between is the
	// machine's.
	Seed uint64
	// For is how long faults are injected. Default one minute.
	For time.Duration
	// Kinds are the kinds of faults. Default all.
	Kinds []string
	// Quiet is the mean time between two faults. Default 4 s.
	Quiet time.Duration
	// WarmUp is how long the fleet serves before anything strikes. Recoveries need 5 s to compare with. Default 6 s.
	WarmUp time.Duration
	// Patience is how long a client waits for the end of an answer. Default 60 s.
	Patience time.Duration
	// Rate is in requests per second. Default 20.
	Rate float64
	// Bug is the name of a bug that the binary has on purpose: see Bugs. Default none.
	Bug string
	// Log is called for each fault. Default nil: nothing is logged.
	Log func(format string, args ...any)
}

const (
	// coolDown is how long it serves after the last fault.
	coolDown = 4 * time.Second

	// emptyWithin is how long the queue may take to be empty when all requests have ended.
	emptyWithin = 5 * time.Second
)

// ErrCannot says that this machine does not allow any of the faults.
var ErrCannot = errors.New("this machine does not allow faults of disks")

// Run starts a fleet, puts it under load, strikes it, and returns what happened. The error is one of the harness itself: it
// says nothing about Pulley, unless a part does not start again.
func Run(ctx context.Context, cfg Config) (*History, error) {
	cfg.For = cmp.Or(cfg.For, time.Minute)
	cfg.Quiet = cmp.Or(cfg.Quiet, 4*time.Second)
	cfg.Rate = cmp.Or(cfg.Rate, 20)
	cfg.Patience = cmp.Or(cfg.Patience, time.Minute)
	cfg.WarmUp = cmp.Or(cfg.WarmUp, 6*time.Second)
	cfg.Topology = cfg.Topology.withDefaults()
	if len(cfg.Kinds) == 0 {
		cfg.Kinds = Kinds()
	}
	if cfg.Log == nil {
		cfg.Log = func(string, ...any) {}
	}
	if slices.ContainsFunc(cfg.Kinds, NeedsDisks) {
		why := lacksForDisks()
		cfg.Topology.Disks = why == ""
		if why != "" {
			cfg.Log("left out are faults of disks: %s", why)
			cfg.Kinds = slices.DeleteFunc(slices.Clone(cfg.Kinds), NeedsDisks)
		}
		if len(cfg.Kinds) == 0 {
			return nil, fmt.Errorf("%w: %s", ErrCannot, why)
		}
	}
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return nil, err
	}
	var env []string
	if cfg.Bug != "" {
		env = append(env, bugVariable+"="+cfg.Bug)
	}
	began := time.Now()
	f, err := newFleet(ctx, cfg.Bin, cfg.Dir, cfg.Topology, env, began)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := &History{Format: Format, Seed: cfg.Seed, Brokers: len(f.Brokers), Gateways: len(f.Gateways), Pace: Seconds(pace.Seconds()), Bug: cfg.Bug}
	for _, e := range f.Engines {
		h.Engines = append(h.Engines, Slots{Engine: e.Name, Slots: e.Slots})
	}
	lags := f.watchLags()
	clients, stopLoad := f.load(cfg)
	err = f.strikes(ctx, cfg, clients, h)
	stopLoad()
	h.Lags = lags()
	h.Requests = clients.history()
	h.Left = f.left(ctx)
	h.Ended = f.now()
	for _, e := range f.Engines {
		h.Runs = append(h.Runs, e.Runs()...)
	}
	for i := range h.Runs {
		if h.Runs[i].How == "" { // it still runs
			h.Runs[i].End = h.Ended
		}
	}
	return h, err
}

const (
	lookEvery = 20 * time.Millisecond // how often the harness looks whether it gets on
	leastLag  = 200 * time.Millisecond
)

// watchLags notes when the harness does not get on, until it is called.
func (f *Fleet) watchLags() (stop func() []Lag) {
	ctx, cancel := context.WithCancel(context.Background())
	found := make(chan []Lag)
	go func() {
		var all []Lag
		for ctx.Err() == nil {
			before := time.Now()
			time.Sleep(lookEvery)
			if late := time.Since(before) - lookEvery; late >= leastLag {
				all = append(all, Lag{At: f.now(), For: Seconds(late.Seconds())})
			}
		}
		found <- all
	}()
	return func() []Lag {
		cancel()
		return <-found
	}
}

// load puts the fleet under load, until stop, which returns when all requests have ended.
func (f *Fleet) load(cfg Config) (c *clients, stop func()) {
	var doors []*door
	for _, g := range f.Gateways {
		d := &door{name: g.Name, addr: g.addr}
		d.open.Store(true)
		doors = append(doors, d)
	}
	c = newClients(doors, cfg.Patience, f.now)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.run(ctx, cfg.Rate, cfg.Seed)
	}()
	watch, unwatch := context.WithCancel(context.Background())
	watched := make(chan struct{}, len(f.Gateways))
	for i, g := range f.Gateways {
		go func() { // a load balancer's health checks
			defer func() { watched <- struct{}{} }()
			for watch.Err() == nil {
				doors[i].open.Store(g.ready())
				pause(watch, 100*time.Millisecond)
			}
		}()
	}
	return c, func() {
		cancel()
		<-done
		unwatch()
		for range f.Gateways {
			<-watched
		}
	}
}

// strikes injects faults until the time is over, and notes them. It returns an error if a part did not come back.
func (f *Fleet) strikes(ctx context.Context, cfg Config, c *clients, h *History) error {
	in := &injector{fleet: f, clients: c}
	next := Plan(cfg.Seed, cfg.Kinds, cfg.Topology, cfg.Quiet)
	pause(ctx, cfg.WarmUp)
	end := time.Now().Add(cfg.For)
	for first := true; ctx.Err() == nil; first = false {
		s := next()
		if !first {
			pause(ctx, s.Quiet)
		}
		if !time.Now().Before(end) {
			break
		}
		fault := in.strike(ctx, s)
		h.Faults = append(h.Faults, fault)
		cfg.Log("%7.2f s  %-24s %-10s healed after %.1f s: %s %s", fault.Start, fault.Kind, fault.Target, fault.Healed-fault.Start, fault.Effect, fault.Err)
		if fault.Err != "" && !strings.Contains(fault.Err, errNoEffect.Error()) {
			return fmt.Errorf("%s at %s: %s", fault.Kind, fault.Target, fault.Err)
		}
	}
	pause(ctx, coolDown)
	return nil
}

// left looks at the queue when all requests have ended, and again until it is empty.
func (f *Fleet) left(ctx context.Context) (l Left) {
	nc, err := nats.Connect(f.directURL(), nats.Timeout(2*time.Second))
	if err != nil {
		return Left{Err: err.Error()}
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return Left{Err: err.Error()}
	}
	for end := time.Now().Add(emptyWithin); ; pause(ctx, 200*time.Millisecond) {
		if l, err = count(ctx, js); err != nil {
			l.Err = err.Error()
		}
		if err == nil && l.Waiting == 0 || !time.Now().Before(end) {
			return l
		}
	}
}

// first says what the first message of a stream is.
func first(ctx context.Context, js jetstream.JetStream, info *jetstream.StreamInfo) string {
	text := fmt.Sprintf("%s %d", info.Config.Name, info.State.FirstSeq)
	s, err := js.Stream(ctx, info.Config.Name)
	if err != nil {
		return text
	}
	m, err := s.GetMsg(ctx, info.State.FirstSeq)
	if err != nil {
		return fmt.Sprintf("%s, %v", text, err)
	}
	request := m.Header.Get(subjects.HeaderRequest)
	if _, id, found := strings.Cut(request, RequestHeader); found {
		request, _, _ = strings.Cut(strings.TrimLeft(id, `":[`), `"`)
	}
	return fmt.Sprintf("%s, stored at %s, %s", text, m.Time.Format(time.RFC3339Nano), request)
}

func count(ctx context.Context, js jetstream.JetStream) (l Left, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	list := js.ListStreams(ctx)
	for info := range list.Info() {
		switch {
		case strings.HasPrefix(info.Config.Name, subjects.ReqStream("")[:len("PULLEY_REQ_")]):
			l.Waiting += int(info.State.Msgs)
			if info.State.Msgs > 0 && l.First == "" {
				l.First = first(ctx, js, info)
			}
		case slices.Contains(info.Config.Subjects, "pulley.dead.>"):
			l.Dead = int(info.State.Msgs)
		}
	}
	return l, errors.Join(list.Err())
}
