package gateway

import (
	"maps"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/pulley-lb/pulley/subjects"
)

const (
	// homesWhole is how often the lists of home lanes are published though they have not changed: a message may be lost.
	homesWhole = 5 * time.Second

	// manyHomes is from how many home lanes on a pool's list is left out in between.
	manyHomes = 32
)

// homeLists decides when references have the lists of home lanes. With a thousand workers in a pool the list has 20 kB, and each
// of them gets each reference.
type homeLists struct {
	mu     sync.Mutex
	told   map[string]uint64 // the list of each pool that was published last, by its id
	whole  time.Time         // when all lists were last published
	joined uint64            // how many workers had joined then
}

// shorten sets the ids of long lists, and leaves them out if all workers keep what they were told, no worker has joined since
// and no list has changed.
func (l *homeLists) shorten(pools map[string]subjects.PoolReference, keep bool, joined uint64, now time.Time) {
	ids := make(map[string]uint64)
	for name, r := range pools {
		if len(r.HomeLanes) > manyHomes {
			r.HomesID = homesID(r.HomeLanes)
			pools[name], ids[name] = r, r.HomesID
		}
	}
	if !l.known(ids, keep, joined, now) {
		return
	}
	for name := range ids {
		r := pools[name]
		r.HomeLanes = nil
		pools[name] = r
	}
}

func (l *homeLists) known(ids map[string]uint64, keep bool, joined uint64, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if keep && joined == l.joined && now.Sub(l.whole) < homesWhole && maps.Equal(ids, l.told) {
		return true
	}
	l.told, l.whole, l.joined = ids, now, joined
	return false
}

// homesID is the same for the same lanes in any order, and not 0.
func homesID(lanes []string) uint64 {
	id := uint64(len(lanes))
	for _, lane := range lanes {
		id += xxhash.Sum64String(lane)
	}
	return max(id, 1)
}
