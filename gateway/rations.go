package gateway

import (
	"sync"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// rationRenewed is by how many requests of all gateways that run in a pool its ration is out of date: half as many as park.
const rationRenewed = policy.ParkTarget / 2

// rations decides how long the rations hold that were published. References come once a second, and within that time the
// workers that park may have got more requests than others.
type rations struct {
	mu    sync.Mutex
	pools map[string]*poolRation // those with a ration, or with more workers than park
}

// poolRation is what is known of the requests of a pool.
type poolRation struct {
	rationed bool // by the last reference
	load     poolLoad
	was      poolLoad // as of the last reference
}

// poolLoad is how many requests of this gateway there are in a pool. waiting are those that should have found a worker.
type poolLoad struct{ waiting, running int }

// any says whether a pool has more workers than park bids.
func (r *rations) any() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.pools) > 0
}

// observe takes in the load of each pool. It reports whether references are to be published at once, since a ration no longer
// fits.
func (r *rations) observe(loads map[string]poolLoad, gateways int) (due bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, p := range r.pools {
		p.load = loads[name]
		waits := p.load.waiting > 0
		grown := p.load.running-p.was.running >= max(rationRenewed/gateways, 1)
		due = due || p.rationed && (waits || grown)
	}
	return due
}

// apply sets the rations of large pools, by their workers with a free slot and how many requests a second all gateways have
// there, except of those whose requests wait. It notes which references are published.
func (r *rations) apply(pools map[string]subjects.PoolReference, free map[string]*[policy.Rungs]int, perSecond map[string]float64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.pools
	r.pools = nil
	for name, ref := range pools {
		if ref.Workers <= policy.ParkTarget {
			continue
		}
		p := was[name]
		if p == nil {
			p = new(poolRation)
		}
		p.rationed = false
		if f := free[name]; f != nil && p.load.waiting == 0 {
			ration, rationed := policy.RationOf(*f, perSecond[name])
			if p.rationed = rationed; rationed {
				ref.Ration = &ration
				pools[name] = ref
			}
		}
		p.was = p.load
		if r.pools == nil {
			r.pools = make(map[string]*poolRation)
		}
		r.pools[name] = p
	}
}
