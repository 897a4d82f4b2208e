package gateway

import (
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/pulley-lb/pulley/metric"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// scrape collects the metrics that are asked of the parts of a gateway at each scrape: of queues and pools, of the broker and
// the policy, and of the gateway as an engine.
type scrape struct {
	bus      *bus
	requests *requests
	fleet    *fleet
	streams  *streams
	policy   *policyFollower
	demands  *demands
	notReady func() string
}

// collectors are those of the admin port.
func (s *scrape) collectors() []prometheus.Collector {
	return []prometheus.Collector{
		metric.Collector{Metrics: []*metric.Metric{
			metric.QueueWaiting, metric.QueueOldest, metric.QueueRunning, metric.QueueMax, metric.PoolWorkers, metric.PoolSlots, metric.PoolFree,
		}, Values: s.collectQueues},
		metric.Collector{Metrics: []*metric.Metric{metric.DemandSlots, metric.DemandTime}, Values: s.collectDemand},
		metric.Collector{Metrics: []*metric.Metric{
			metric.BrokerConnected, metric.BrokerReconnects, metric.PolicyRevision, metric.PolicyAge, metric.PolicyStale, metric.GatewayReady,
		}, Values: s.collectBroker},
		metric.Collector{Metrics: []*metric.Metric{
			metric.StreamLeader, metric.StreamReady, metric.StreamReplicas, metric.StreamMessages, metric.StreamBytes, metric.StreamMax, metric.StreamMaxBytes,
		}, Values: s.collectStreams},
		s.asEngine(),
	}
}

// asEngine are the metrics of the gateway as an engine.
func (s *scrape) asEngine() prometheus.Collector {
	return metric.Collector{Metrics: []*metric.Metric{metric.VLLMRunning, metric.VLLMWaiting, metric.VLLMKV}, Values: s.collectEngine}
}

// pools are those that have a worker, or had one lately, those of the policy, and those of requests that are here.
func (s *scrape) pools() []string {
	named := make(map[string]bool)
	for name := range s.fleet.sizes() {
		named[name] = true
	}
	for _, name := range s.bus.rules.Load().Policy.PoolNames() {
		named[name] = true
	}
	for _, r := range s.requests.all() {
		named[r.target.Load().queue.pool] = true
	}
	return slices.Sorted(maps.Keys(named))
}

// tiers are those of the policy.
func (s *scrape) tiers() (names []string) {
	for _, t := range s.bus.rules.Load().Policy.Tiers {
		names = append(names, t.Name)
	}
	return names
}

// mirrors are the pools of the policy's mirrors.
func (s *scrape) mirrors() (names []string) {
	for _, r := range s.bus.rules.Load().Policy.Routes {
		for _, to := range r.Mirror {
			names = append(names, to.Pool)
		}
	}
	return names
}

// queueLoad is what a gateway has of a pool and a tier.
type queueLoad struct {
	waiting, running int
	oldest           time.Time // when the first of those that wait arrived
}

func (s *scrape) loads() map[place]queueLoad {
	loads := make(map[place]queueLoad)
	for _, r := range s.requests.all() {
		waits, runs := r.phase()
		at := r.target.Load()
		p := place{at.queue.pool, at.tier.Name}
		l := loads[p]
		switch {
		case waits:
			if l.waiting++; l.oldest.IsZero() || r.arrived.Before(l.oldest) {
				l.oldest = r.arrived
			}
		case runs:
			l.running++
		}
		loads[p] = l
	}
	return loads
}

// phase says whether the request waits for a worker, or runs on one. A call that needs no slot does neither.
func (r *request) phase() (waits, runs bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.waitsLocked(), r.attempt != nil && !r.ended && !r.cheap
}

func (s *scrape) collectQueues(to chan<- prometheus.Metric) {
	now, loads, sizes := time.Now(), s.loads(), s.fleet.sizes()
	tiers := s.bus.rules.Load().Policy.Tiers
	for _, pool := range s.pools() {
		for _, t := range tiers {
			p := place{pool, t.Name}
			l := loads[p]
			delete(loads, p)
			sendLoad(to, p, l, now)
			metric.QueueMax.Send(to, float64(t.MaxQueue), pool, t.Name)
		}
		size := sizes[pool]
		metric.PoolWorkers.Send(to, float64(size.workers), pool)
		metric.PoolSlots.Send(to, float64(size.slots), pool)
		metric.PoolFree.Send(to, float64(size.free), pool)
	}
	for p, l := range loads { // of a tier that has just gone
		sendLoad(to, p, l, now)
	}
}

func sendLoad(to chan<- prometheus.Metric, p place, l queueLoad, now time.Time) {
	metric.QueueWaiting.Send(to, float64(l.waiting), p.pool, p.tier)
	metric.QueueRunning.Send(to, float64(l.running), p.pool, p.tier)
	oldest := 0.0
	if l.waiting > 0 {
		oldest = now.Sub(l.oldest).Seconds()
	}
	metric.QueueOldest.Send(to, oldest, p.pool, p.tier)
}

// collectDemand says what an autoscaler should follow: see policy.Demand.
func (s *scrape) collectDemand(to chan<- prometheus.Metric) {
	own := s.demands.measure()
	for _, pool := range s.pools() {
		d := own[pool]
		metric.DemandSlots.Send(to, float64(d.Requests), pool)
		if d.Measured || d.Requests == 0 {
			metric.DemandTime.Send(to, d.Seconds, pool)
		}
	}
}

// worker is the id of the worker that runs the request; empty: none does.
func (r *request) worker() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.attempt == nil {
		return ""
	}
	return r.attempt.worker
}

// capablePool is what the workers of a pool have measured.
type capablePool struct {
	workers []policy.PoolWorker
	index   map[string]int // of each of workers, by its id
	means   []policy.Mean
	mean    policy.Mean
}

// capable returns what the workers that accept requests have measured, by pool.
func (f *fleet) capable() map[string]capablePool {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make(map[string]capablePool)
	for id, m := range f.workers {
		if !m.beat.Live() {
			continue
		}
		for i := range m.beat.Pools {
			p := &m.beat.Pools[i]
			c := all[p.Pool]
			if c.index == nil {
				c.index = make(map[string]int)
			}
			c.index[id] = len(c.workers)
			c.workers = append(c.workers, policy.PoolWorker{Curve: p.Curve, Slots: m.beat.Slots, InFlight: m.beat.InFlight})
			c.means = append(c.means, p.Mean)
			all[p.Pool] = c
		}
	}
	for pool, c := range all {
		c.mean = policy.MeanOf(c.means)
		all[pool] = c
	}
	return all
}

func (s *scrape) collectEngine(to chan<- prometheus.Metric) {
	sum := make(map[string]queueLoad)
	for p, l := range s.loads() {
		all := sum[p.pool]
		all.waiting += l.waiting
		all.running += l.running
		sum[p.pool] = all
	}
	beats := s.fleet.heartbeats()
	for _, pool := range s.pools() {
		metric.VLLMRunning.Send(to, float64(sum[pool].running), pool)
		metric.VLLMWaiting.Send(to, float64(sum[pool].waiting), pool)
		metric.VLLMKV.Send(to, metric.KVUsage(pool, beats), pool)
	}
}

func (s *scrape) collectBroker(to chan<- prometheus.Metric) {
	now := time.Now()
	metric.BrokerConnected.Send(to, metric.Truth(s.bus.conn.Hears(now)))
	metric.BrokerReconnects.Send(to, float64(s.bus.nc.Stats().Reconnects))
	metric.GatewayReady.Send(to, metric.Truth(s.notReady() == ""))
	metric.PolicyRevision.Send(to, float64(s.bus.rules.Load().Revision))
	metric.PolicyAge.Send(to, now.Sub(s.policy.inForceSince()).Seconds())
	metric.PolicyStale.Send(to, metric.Truth(s.policy.outOfDate() != ""))
}

func (s *scrape) collectStreams(to chan<- prometheus.Metric) {
	now := time.Now()
	for name, up := range s.streams.brokers.up() {
		metric.BrokerHeard.Send(to, metric.Truth(up), name)
	}
	for _, t := range s.bus.rules.Load().Policy.Tiers {
		st, known := s.streams.state(t.Name)
		if !known {
			continue
		}
		name := subjects.ReqStream(t.Name)
		fresh := st.answered && now.Sub(st.at) < 3*checkStreamsEvery
		metric.StreamReady.Send(to, metric.Truth(fresh), name)
		if !fresh {
			continue
		}
		if st.leader != "" {
			metric.StreamLeader.Send(to, 1, name, st.leader)
		}
		metric.StreamReplicas.Send(to, float64(st.replicas), name, "configured")
		metric.StreamReplicas.Send(to, float64(st.current), name, "current")
		metric.StreamMessages.Send(to, float64(st.messages), name)
		metric.StreamBytes.Send(to, float64(st.bytes), name)
		metric.StreamMax.Send(to, float64(st.perSubject), name)
		metric.StreamMaxBytes.Send(to, float64(st.maxBytes), name)
	}
}

// poolSize is what the workers of a pool that accept requests have.
type poolSize struct{ workers, slots, free int }

// sizes returns the size of each pool.
func (f *fleet) sizes() map[string]poolSize {
	f.mu.Lock()
	defer f.mu.Unlock()
	sizes := make(map[string]poolSize, len(f.pools))
	for name, p := range f.pools {
		sizes[name] = poolSize{slots: p.slots, free: p.free}
	}
	for _, m := range f.workers {
		if !m.beat.Live() {
			continue
		}
		for i := range m.beat.Pools {
			if size, ok := sizes[m.beat.Pools[i].Pool]; ok {
				size.workers++
				sizes[m.beat.Pools[i].Pool] = size
			}
		}
	}
	return sizes
}

// lostWorkers returns the last heartbeats of the workers that were lost in the last minutes.
func (f *fleet) lostWorkers() (beats []*subjects.Heartbeat) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.lost {
		if m.beat.State != subjects.Left {
			beats = append(beats, m.beat)
		}
	}
	return beats
}

// ages returns the time since each worker's last heartbeat came, by its id.
func (f *fleet) ages(now time.Time) map[string]time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	ages := make(map[string]time.Duration, len(f.workers))
	for id, m := range f.workers {
		ages[id] = max(now.Sub(m.heard), 0)
	}
	return ages
}

// enginePages are what routers ask of an engine: its load and its metrics, in vLLM's form.
type enginePages struct {
	load    func() int
	ready   func() bool
	metrics http.Handler
}

func (s *scrape) pages() *enginePages {
	registry := prometheus.NewRegistry()
	registry.MustRegister(s.asEngine())
	return &enginePages{
		load: s.requests.count, metrics: promhttp.HandlerFor(registry, promhttp.HandlerOpts{}),
		ready: func() bool { return s.notReady() == "" },
	}
}

// serveLoad answers as vLLM does.
func (p *enginePages) serveLoad(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, struct {
		Load int `json:"server_load"`
	}{p.load()})
}

// serveHealth says whether the gateway should be sent requests. It says no more, and needs no key.
func (p *enginePages) serveHealth(w http.ResponseWriter, r *http.Request) {
	if !p.ready() {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	healthz(w, r)
}

func (p *enginePages) serveMetrics(w http.ResponseWriter, r *http.Request) error {
	p.metrics.ServeHTTP(w, r)
	return nil
}
