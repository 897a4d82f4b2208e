package gateway

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// shortages follows for how long pools have been short of slots whose model some worker would have to load: more requests
// of this gateway wait than the workers that have the model loaded could start.
type shortages struct {
	mu    sync.Mutex
	since map[string]time.Time // by pool
}

func newShortages() *shortages { return &shortages{since: make(map[string]time.Time)} }

// coldPool is a pool whose model some worker would have to load.
type coldPool struct {
	warm bool // some worker has it loaded or is loading it
	free int  // slots without a request, of such workers
}

// observe takes in the pools whose model some worker would have to load, with how many requests wait for each. It reports
// whether workers should know of a shortage now: it has lasted for policy.ShortAfter, or has begun while none has the model.
func (s *shortages) observe(waiting map[string]int, cold map[string]coldPool, now time.Time) (due bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for pool := range s.since {
		if waiting[pool] <= cold[pool].free {
			delete(s.since, pool)
		}
	}
	for pool, n := range waiting {
		if n <= cold[pool].free {
			continue
		}
		if s.since[pool].IsZero() {
			s.since[pool] = now
			due = due || !cold[pool].warm
		}
		lasted := now.Sub(s.since[pool])
		due = due || lasted >= policy.ShortAfter && lasted < policy.ShortAfter+sweepEvery
	}
	return due
}

// of returns for how long a pool has been short of slots; 0 if it is not.
func (s *shortages) of(pool string, now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if since := s.since[pool]; !since.IsZero() {
		return now.Sub(since)
	}
	return 0
}

// coldPools returns the pools whose model some worker would have to load; nil if there are none.
func (f *fleet) coldPools() map[string]coldPool {
	f.mu.Lock()
	defer f.mu.Unlock()
	var cold map[string]coldPool
	for _, m := range f.workers {
		for i := range m.beat.Pools {
			if !m.beat.Live() || !m.beat.Pools[i].Cold {
				continue
			}
			if cold == nil {
				cold = make(map[string]coldPool)
			}
			cold[m.beat.Pools[i].Pool] = coldPool{}
		}
	}
	if cold == nil {
		return nil
	}
	for _, m := range f.workers {
		for i := range m.beat.Pools {
			p := &m.beat.Pools[i]
			if c, ok := cold[p.Pool]; ok && m.warm(p) {
				cold[p.Pool] = coldPool{warm: true, free: c.free + m.free()}
			}
		}
	}
	return cold
}

// warm reports whether the worker runs requests of a pool without a load, or is loading its model.
func (m *member) warm(p *subjects.PoolStatus) bool {
	return m.beat.State == subjects.Ready && (!p.Cold || p.WillLoad)
}

// free returns the worker's slots without a request.
func (m *member) free() int { return max(m.beat.Slots-m.beat.InFlight-m.taken, 0) }

// loader is a worker that could load a pool's model.
type loader struct {
	subjects.Loader
	evicts bool          // it may push out another model
	takes  time.Duration // until it has answered a mean request, as far as it is known
}

// loaders returns the workers that could load a pool's model without pushing out anything that is in use: see
// subjects.Shortage.
func (f *fleet) loaders(pool string, mean policy.Mean) []subjects.Loader {
	f.mu.Lock()
	var list []loader
	for id, m := range f.workers {
		for i := range m.beat.Pools {
			p := &m.beat.Pools[i]
			if p.Pool != pool || m.beat.State != subjects.Ready || !p.Cold || p.WillLoad || !p.Spare {
				continue
			}
			takes := cmp.Or(time.Duration(p.LoadMS)*time.Millisecond, policy.FirstLoad)
			if price, ok := p.Curve.Price(mean, 1, 0); ok {
				takes += time.Duration(price * float64(time.Second))
			}
			list = append(list, loader{subjects.Loader{Worker: id, Slots: max(m.beat.Slots, 1)}, p.Evicts, takes})
		}
	}
	f.mu.Unlock()
	slices.SortFunc(list, func(a, b loader) int {
		if a.evicts != b.evicts {
			if b.evicts {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.takes, b.takes), cmp.Compare(a.Worker, b.Worker))
	})
	loaders := make([]subjects.Loader, 0, min(len(list), subjects.MaxLoaders))
	for _, l := range list[:min(len(list), subjects.MaxLoaders)] {
		loaders = append(loaders, l.Loader)
	}
	return loaders
}
