package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/pulley-lb/pulley/bench"
	"github.com/pulley-lb/pulley/bench/parts"
	"github.com/pulley-lb/pulley/subjects"
)

// Config says what to measure, and how long.
type Config struct {
	// Cases to measure, by name: those of Cases, or All. Default DefaultCases.
	Cases []string
	// Workers, Pools, Gateways and Brokers replace those of each case. Default 0: those of the case.
	Workers, Pools, Gateways, Brokers int
	// Rate is how many requests arrive in a second, with random intervals. Bursts are from a quarter of it to ten times that.
	// Default 200.
	Rate float64
	// Duration is how long requests arrive. Default 8 s.
	Duration time.Duration
	// IdleTime is how long the idle fleet is measured. Default 5 s.
	IdleTime time.Duration
	// Streams is how many are open at once in the case streams. Default 1000.
	Streams int
	// BodyBytes is the length of a request's body in the case bodies, BodyRate how many arrive in a second. Default 500 000
	// bytes and 10.
	BodyBytes int
	BodyRate  float64
	// Binary is the pulley to run. Default the running program.
	Binary string
	// Progress receives a line for each step of the measurement. Default none.
	Progress func(string)
	// Output receives what the processes write. Default none.
	Output io.Writer
}

// All chooses all cases.
const All = "all"

// caseKind is what a case puts on its fleet.
type caseKind int

const (
	steady  caseKind = iota // requests at a steady mean rate
	burst                   // ten times as many for a second
	streams                 // streams that are all asked for at once, and stay open
	bodies                  // long prompts
)

// fleetCase is a fleet with its load.
type fleetCase struct {
	name, what                        string
	kind                              caseKind
	workers, pools, gateways, brokers int
	byDefault                         bool
}

var fleetCases = []fleetCase{
	{"workers-1", "", steady, 1, 1, 1, 1, false},
	{"workers-10", "", steady, 10, 1, 1, 1, true},
	{"workers-100", "", steady, 100, 1, 1, 1, true},
	{"workers-1000", "", steady, 1000, 1, 1, 1, true},
	{"pools-200", "", steady, 1000, 200, 1, 1, false},
	{"gateways-2", "", steady, 100, 1, 2, 1, false},
	{"gateways-4", "", steady, 100, 1, 4, 1, false},
	{"brokers-3", "streams with three replicas", steady, 100, 1, 2, 3, false},
	{"burst", "ten times as many requests for a second", burst, 100, 1, 1, 1, true},
	{"streams", "streams asked for at once, a token every 2 s", streams, 10, 1, 1, 1, true},
	{"bodies", "long prompts", bodies, 10, 1, 1, 1, true},
}

// Cases are the names of all cases, in the order in which they run.
func Cases() []string { return names(func(fleetCase) bool { return true }) }

// DefaultCases are the names of those that run unless others are chosen.
func DefaultCases() []string { return names(func(c fleetCase) bool { return c.byDefault }) }

func names(which func(fleetCase) bool) (list []string) {
	for _, c := range fleetCases {
		if which(c) {
			list = append(list, c.name)
		}
	}
	return list
}

// The engines: a small answer takes 50 ms. A worker has as many slots as requests of the default rate need on three of them,
// or as the open streams need.
const (
	answerTokens = 5
	tokenTime    = 10 * time.Millisecond
	firstTime    = 10 * time.Millisecond
	workerSlots  = 16

	streamTokens = 5
	streamToken  = 2 * time.Second
)

func (c Config) withDefaults() (Config, error) {
	c.Rate, c.BodyRate = cmp.Or(c.Rate, 200), cmp.Or(c.BodyRate, 10)
	c.Duration, c.IdleTime = cmp.Or(c.Duration, 8*time.Second), cmp.Or(c.IdleTime, 5*time.Second)
	c.Streams, c.BodyBytes = cmp.Or(c.Streams, 1000), cmp.Or(c.BodyBytes, 500_000)
	if len(c.Cases) == 0 {
		c.Cases = DefaultCases()
	}
	if slices.Contains(c.Cases, All) {
		c.Cases = Cases()
	}
	for _, name := range c.Cases {
		if !slices.Contains(Cases(), name) {
			return c, fmt.Errorf("case %q: must be %s or one of %q", name, All, Cases())
		}
	}
	if c.Workers < 0 || c.Pools < 0 || c.Gateways < 0 || c.Brokers < 0 || c.Streams < 0 || c.BodyBytes < 0 ||
		c.Rate < 0 || c.BodyRate < 0 || c.Duration < 0 || c.IdleTime < 0 {
		return c, errors.New("numbers and durations must be positive")
	}
	if c.Brokers != 0 && c.Brokers != 1 && c.Brokers != 3 {
		return c, fmt.Errorf("brokers %d: must be 1 or 3", c.Brokers)
	}
	if c.Progress == nil {
		c.Progress = func(string) {}
	}
	return c, nil
}

// Run measures the cases, one after the other. After an error there is no report.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	report := newReport(cfg)
	for _, c := range fleetCases {
		if !slices.Contains(cfg.Cases, c.name) {
			continue
		}
		c.workers, c.gateways = cmp.Or(cfg.Workers, c.workers), cmp.Or(cfg.Gateways, c.gateways)
		c.pools, c.brokers = min(cmp.Or(cfg.Pools, c.pools), c.workers), cmp.Or(cfg.Brokers, c.brokers)
		row, err := measure(ctx, cfg, c)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		report.Rows = append(report.Rows, row)
	}
	report.judge()
	return report, nil
}

func measure(ctx context.Context, cfg Config, c fleetCase) (row *Row, err error) {
	err = parts.With(parts.Config{Binary: cfg.Binary, Progress: cfg.Progress, Output: cfg.Output}, func(set *parts.Set) error {
		cfg.Progress(fmt.Sprintf("%s: %s", c.name, c.title(cfg)))
		r := &running{cfg: cfg, of: c, parts: make(map[string][]*parts.Process)}
		if err := r.start(ctx, set); err != nil {
			return err
		}
		row, err = r.measure(ctx)
		return err
	})
	return row, err
}

func (c fleetCase) title(cfg Config) string {
	title := fmt.Sprintf("%s in %s, %s, %s; ", count(c.workers, "worker"), count(c.pools, "pool"), count(c.gateways, "gateway"), count(c.brokers, "broker"))
	switch c.kind {
	case steady:
		title += fmt.Sprintf("%g requests/s", cfg.rateOf(c))
	case burst:
		title += fmt.Sprintf("%g requests/s, and %g for a second", cfg.rateOf(c)/4, 10*cfg.rateOf(c)/4)
	case streams:
		title += fmt.Sprintf("%d %s", cfg.Streams, c.what)
	case bodies:
		title += fmt.Sprintf("%g requests/s with %d bytes", cfg.BodyRate, cfg.BodyBytes)
	}
	if c.what != "" && c.kind == steady {
		title += ", " + c.what
	}
	return title
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// rateOf is the rate of a case: at most half of what its workers can do.
func (c Config) rateOf(of fleetCase) float64 {
	const answer = firstTime + (answerTokens-1)*tokenTime
	return min(c.Rate, float64(of.workers*workerSlots)/answer.Seconds()/2)
}

// The parts of a fleet.
const (
	partBroker  = "broker"
	partGateway = "gateway"
	partWorkers = "workers"
)

var partNames = []string{partBroker, partGateway, partWorkers}

// running is the processes of one case.
type running struct {
	cfg      Config
	of       fleetCase
	gateways []*parts.Gateway
	parts    map[string][]*parts.Process // by the names of parts
}

func (r *running) start(ctx context.Context, set *parts.Set) error {
	url, err := r.startBrokers(ctx, set)
	if err != nil {
		return err
	}
	for i := range r.of.gateways {
		args := []string{}
		if r.of.brokers > 1 {
			args = append(args, "--replicas", strconv.Itoa(r.of.brokers))
		}
		g, err := set.Gateway(ctx, "gateway "+strconv.Itoa(i+1), url, args...)
		if err != nil {
			return err
		}
		r.gateways = append(r.gateways, g)
		r.parts[partGateway] = append(r.parts[partGateway], g.Process)
	}
	slots, first, token := workerSlots, firstTime, tokenTime
	if r.of.kind == streams {
		slots, first, token = max(r.cfg.Streams*5/4/r.of.workers, 1), 0, streamToken
	}
	workers, err := set.Start(partWorkers, partWorkers, "bench", "fleet-workers", "--nats", url,
		"--workers", strconv.Itoa(r.of.workers), "--pools", strconv.Itoa(r.of.pools), "--slots", strconv.Itoa(slots),
		"--first", first.String(), "--token", token.String(), "--log-level", "warn")
	if err != nil {
		return err
	}
	r.cfg.Progress(fmt.Sprintf("%s, pid %d", count(r.of.workers, "worker"), workers.PID()))
	r.parts[partWorkers] = []*parts.Process{workers}
	if _, err := workers.Address(ctx, func(line string) string {
		if strings.Contains(line, WorkersReady) {
			return line
		}
		return ""
	}); err != nil {
		return err
	}
	for _, g := range r.gateways {
		if err := g.Serves(ctx, r.of.workers); err != nil {
			return err
		}
	}
	if err := settled(ctx, url); err != nil {
		return err
	}
	for _, g := range r.gateways {
		for pool := range r.of.pools {
			if err := parts.Ready(ctx, g.URL, PoolName(pool)); err != nil {
				return err
			}
		}
	}
	return nil
}

// settledFor is for how long no consumer was created, when all are there that the gateways create for the workers.
const settledFor = 2 * time.Second

// settled waits until the gateways have created the consumers that the workers need. They create one after the other, and for a
// thousand workers that takes a while.
func settled(ctx context.Context, url string) error {
	nc, err := nats.Connect(url, nats.Name("pulley bench"))
	if err != nil {
		return fmt.Errorf("connect to the broker: %w", err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	was, since := 0, time.Now()
	for time.Since(since) < settledFor {
		if err := pause(ctx, settledFor/8); err != nil {
			return err
		}
		consumers := 0
		streams := js.ListStreams(ctx, jetstream.WithStreamListSubject(subjects.AllReqs))
		for info := range streams.Info() {
			consumers += info.State.Consumers
		}
		if err := streams.Err(); err != nil {
			return fmt.Errorf("ask the broker for its streams: %w", err)
		}
		if consumers != was {
			was, since = consumers, time.Now()
		}
	}
	return nil
}

// WorkersReady is in the line that the process with the workers prints when all of them run.
const WorkersReady = "workers ready"

func (r *running) startBrokers(ctx context.Context, set *parts.Set) (url string, err error) {
	if r.of.brokers == 1 {
		p, url, err := set.Broker(ctx, partBroker)
		r.parts[partBroker] = []*parts.Process{p}
		return url, err
	}
	routes, err := freeAddresses(r.of.brokers)
	if err != nil {
		return "", err
	}
	// A member is ready only with the others, so all are started before the first is waited for.
	var members []*parts.Process
	for i, route := range routes {
		name := partBroker + strconv.Itoa(i+1)
		p, err := set.Start(partBroker, name, "broker", "--listen", "127.0.0.1:0", "--store-dir", filepath.Join(set.Dir(), name), "--server-name", name,
			"--cluster-name", "bench", "--cluster-listen", route, "--routes", strings.Join(routes, ","))
		if err != nil {
			return "", err
		}
		members = append(members, p)
	}
	var urls []string
	for _, p := range members {
		address, err := p.Address(ctx, parts.AnyAddress)
		if err != nil {
			return "", err
		}
		r.cfg.Progress(fmt.Sprintf("%s at %s, pid %d", p.Name, address, p.PID()))
		urls = append(urls, "nats://"+address)
	}
	r.parts[partBroker] = members
	return strings.Join(urls, ","), nil
}

// freeAddresses asks the kernel for ports. Another process may take one of them before it is used.
func freeAddresses(n int) (addresses []string, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		addresses = append(addresses, l.Addr().String())
	}
	return addresses, nil
}

func (r *running) usage() map[string]parts.Usage {
	all := make(map[string]parts.Usage)
	for name, procs := range r.parts {
		for _, p := range procs {
			all[name] = all[name].Add(p.Usage())
		}
	}
	return all
}

// memory is the RSS of each part, in MiB; without the parts of which it is not known.
func (r *running) memory() map[string]float64 {
	all := make(map[string]float64)
	for name, procs := range r.parts {
		for _, p := range procs {
			if n, err := p.ResidentBytes(); err == nil {
				all[name] += float64(n) / (1 << 20)
			}
		}
	}
	return all
}

func (r *running) measure(ctx context.Context) (*Row, error) {
	row := &Row{Case: r.of.name, Title: r.of.title(r.cfg), Workers: r.of.workers, Pools: r.of.pools, Gateways: r.of.gateways, Brokers: r.of.brokers}
	if err := pause(ctx, r.cfg.IdleTime/2); err != nil { // it settles
		return nil, err
	}
	idle, err := r.during(func() error { return pause(ctx, r.cfg.IdleTime) })
	if err != nil {
		return nil, err
	}
	row.Idle = idle
	r.cfg.Progress(fmt.Sprintf("%s: load", r.of.name))
	var result *bench.Result
	loaded, err := r.during(func() (err error) {
		result, err = r.load(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	row.add(loaded, result, r.of.kind)
	return row, nil
}

// during returns what the parts use while a function runs.
func (r *running) during(do func() error) (p Phase, err error) {
	before, begun := r.usage(), time.Now()
	p.MemoryBefore, p.Memory = r.memory(), r.memory()
	done := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			for part, n := range r.memory() {
				p.Memory[part] = max(p.Memory[part], n)
			}
		}
	})
	err = do()
	p.seconds, p.cpu, p.Cores = time.Since(begun).Seconds(), make(map[string]time.Duration), make(map[string]float64)
	for part, used := range r.usage() {
		p.cpu[part] = used.Sub(before[part]).CPU
		p.Cores[part] = p.cpu[part].Seconds() / p.seconds
	}
	close(done)
	watching.Wait()
	p.MemoryAfter = r.memory()
	return p, err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// target is a pool behind a gateway.
type target struct{ url, model string }

// targets are the pools, each behind one gateway after the other; of few pools, each behind all gateways.
func (r *running) targets() (list []target) {
	for pool := range r.of.pools {
		for i, g := range r.gateways {
			if r.of.pools < len(r.gateways) || pool%len(r.gateways) == i {
				list = append(list, target{g.URL, PoolName(pool)})
			}
		}
	}
	return list
}

// load puts the case's load on all targets in equal parts.
func (r *running) load(ctx context.Context) (*bench.Result, error) {
	targets := r.targets()
	transport := bench.NewTransport()
	defer transport.CloseIdleConnections()
	var clients errgroup.Group
	results := make([]*bench.Result, len(targets))
	for i, t := range targets {
		cfg := r.loadOf(i, len(targets))
		cfg.URL, cfg.Model, cfg.Name, cfg.Transport = t.url, t.model, r.of.name, transport
		cfg.Seed = uint64(i + 1)
		clients.Go(func() (err error) {
			results[i], err = bench.Run(ctx, cfg)
			return err
		})
	}
	if err := clients.Wait(); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return bench.Merge(results...), nil
}

// loadOf is the load on one of so many targets.
func (r *running) loadOf(i, of int) bench.Config {
	cfg := bench.Config{Timeout: time.Minute, InputTokens: 16, OutputTokens: answerTokens}
	share := 1 / float64(of)
	switch r.of.kind {
	case steady:
		cfg.Rate, cfg.Duration = r.cfg.rateOf(r.of)*share, r.cfg.Duration
		cfg.Warmup = bench.Warmup{Duration: time.Second}
	case burst:
		cfg.Trace = burstTrace(r.cfg.rateOf(r.of)/4*share, r.cfg.Duration, uint64(i+1))
	case streams:
		n := (r.cfg.Streams + i) / of
		cfg.Stream, cfg.OutputTokens, cfg.Concurrency, cfg.Requests = true, streamTokens, max(n, 1), max(n, 1)
	case bodies:
		const wordBytes = 5 // of a word of a prompt, with a space
		cfg.Rate, cfg.Duration = r.cfg.BodyRate*share, r.cfg.Duration
		cfg.InputTokens, cfg.OutputTokens = max(int(float64(r.cfg.BodyBytes)/wordBytes), 1), 1
	}
	return cfg
}

// burstTrace has requests at a rate with random intervals, and ten times as many in the second after the first third.
func burstTrace(rate float64, duration time.Duration, seed uint64) (trace bench.Trace) {
	rng := rand.New(rand.NewPCG(seed, 2))
	from := duration / 3
	for at := time.Duration(0); at < duration; {
		trace = append(trace, bench.Arrival{At: at, InputTokens: 16, OutputTokens: answerTokens})
		now := rate
		if at >= from && at < from+time.Second {
			now *= 10
		}
		at += time.Duration(rng.ExpFloat64() / now * float64(time.Second))
	}
	return trace
}

// sum adds up the values of all parts.
func sum[V int | float64 | time.Duration](byPart map[string]V) (all V) {
	for v := range maps.Values(byPart) {
		all += v
	}
	return all
}
