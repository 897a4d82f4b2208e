package gateway

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	// demandEvery is how often a gateway measures its demand; it reports what has changed since.
	demandEvery = 250 * time.Millisecond

	// demandAlive is how often it reports what has not changed, and demandSilent after how long without a report another one has none.
	demandAlive  = time.Second
	demandSilent = 3 * time.Second
)

// Demand is the work of a pool that is outstanding at all gateways, which an autoscaler should follow, and what there is for it.
type Demand struct {
	Requests int // that wait or run: how many slots they would fill
	// Seconds is how long the pool's workers take for it, and for what will come after those that run: see policy.Demand.Seconds.
	// Measured: they have measured that, or there is no work.
	Seconds  float64
	Measured bool
	Workers  int // that accept requests
	Slots    int // of these
}

// Demand returns the demand of a pool. What other gateways have is up to a second old.
func (g *Gateway) Demand(pool string) Demand { return g.demands.of(pool, time.Now()) }

// demands measures the demand of this gateway's requests, and exchanges it with the other gateways.
type demands struct {
	bus      *bus
	requests *requests
	fleet    *fleet

	mu     sync.Mutex
	own    map[string]subjects.PoolDemand // by pool, only where there is some
	others map[string]peerDemand          // by gateway
}

// peerDemand is what another gateway reported last.
type peerDemand struct {
	at    time.Time
	pools map[string]subjects.PoolDemand
}

func newDemands(b *bus, requests *requests, fleet *fleet) *demands {
	return &demands{bus: b, requests: requests, fleet: fleet, others: make(map[string]peerDemand)}
}

// measure returns the demand of the requests of this gateway, by pool: see policy.Demand.
func (d *demands) measure() map[string]subjects.PoolDemand {
	capable, work := d.fleet.capable(), make(map[string]*policy.Demand)
	for _, r := range d.requests.all() {
		pool := r.target.Load().queue.pool
		sum := work[pool]
		if sum == nil {
			sum = new(policy.Demand)
			work[pool] = sum
		}
		input, output, mean := float64(r.wire.InputTokens), float64(r.wire.MaxOutput), capable[pool].mean
		if waits, runs := r.phase(); waits {
			sum.Wait(input, output, mean)
		} else if runs {
			on, known := capable[pool].index[r.worker()]
			if !known { // it drains
				on = -1
			}
			sum.Run(input, output, on, mean)
		}
	}
	all := make(map[string]subjects.PoolDemand, len(work))
	for pool, sum := range work {
		if n := sum.Requests(); n > 0 {
			seconds, measured := sum.Seconds(capable[pool].workers)
			all[pool] = subjects.PoolDemand{Requests: n, Seconds: seconds, Measured: measured}
		}
	}
	return all
}

// run measures and reports until ctx is done.
func (d *demands) run(ctx context.Context) {
	var reported time.Time
	every(ctx, demandEvery, func() {
		now := time.Now()
		own := d.measure()
		if changed := d.set(own); changed || len(own) > 0 && now.Sub(reported) >= demandAlive {
			d.bus.publish(subjects.DemandReports, subjects.DemandReport{Gateway: d.bus.id, Pools: own})
			reported = now
		}
	})
	d.bus.publish(subjects.DemandReports, subjects.DemandReport{Gateway: d.bus.id})
}

// set notes what was measured, and says whether other pools have demand now.
func (d *demands) set(own map[string]subjects.PoolDemand) (changed bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	changed = !maps.EqualFunc(d.own, own, func(a, b subjects.PoolDemand) bool { return true })
	d.own = own
	return changed
}

func (d *demands) onReport(m *nats.Msg) {
	var report subjects.DemandReport
	if subjects.Unmarshal(m.Data, &report) != nil || report.Gateway == d.bus.id {
		return
	}
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.others[report.Gateway] = peerDemand{now, report.Pools}
	maps.DeleteFunc(d.others, func(_ string, p peerDemand) bool { return now.Sub(p.at) > demandSilent })
}

func (d *demands) of(pool string, now time.Time) Demand {
	size := d.fleet.sizes()[pool]
	sum := Demand{Measured: true, Workers: size.workers, Slots: size.slots}
	d.mu.Lock()
	defer d.mu.Unlock()
	add := func(p subjects.PoolDemand) {
		if p.Requests > 0 {
			sum.Requests += p.Requests
			sum.Seconds += p.Seconds
			sum.Measured = sum.Measured && p.Measured
		}
	}
	add(d.own[pool])
	for _, p := range d.others {
		if now.Sub(p.at) <= demandSilent {
			add(p.pools[pool])
		}
	}
	return sum
}
