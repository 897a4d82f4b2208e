package gateway

import (
	"time"

	"github.com/pulley-lb/pulley/subjects"
)

// tellWaits says how long requests have waited whose model some worker would have
// to load: it weighs that against what is loaded there.
func (g *Gateway) tellWaits(ref *subjects.Reference, cold map[string]bool, now time.Time) {
	for name, r := range ref.Pools {
		if !cold[name] && r.Loaded > 0 {
			r.Loaded = 0 // nobody asks
			ref.Pools[name] = r
		}
	}
	if len(cold) == 0 {
		return
	}
	for _, f := range g.all() {
		at := f.at()
		r, ok := ref.Pools[at.pool]
		if !ok || !cold[at.pool] {
			continue
		}
		if _, waits := f.queued(); !waits {
			continue
		}
		if r.WaitsMS == nil {
			r.WaitsMS = make(map[string]int64)
			ref.Pools[at.pool] = r
		}
		r.WaitsMS[at.tier.Name] = max(r.WaitsMS[at.tier.Name], now.Sub(f.arrived).Milliseconds(), 1)
	}
}
