package gateway

import (
	"fmt"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// A large pool has a ration by what its workers' heartbeats say; one whose workers are few, or have few free slots, has none.
func TestReferencesRationLargePools(t *testing.T) {
	for name, c := range map[string]struct {
		workers, rung, inFlight int
		state                   subjects.State
		want                    *policy.Ration
	}{
		"few":          {64, 0, 0, subjects.Ready, nil},
		"many":         {256, 0, 0, subjects.Ready, &policy.Ration{Rung: 0, Part: 0.25}},
		"many, dear":   {128, 7, 2, subjects.Ready, &policy.Ration{Rung: 7, Part: 0.5}},
		"many, full":   {128, 9, 4, subjects.Ready, nil},
		"many, busy":   {128, 0, 0, subjects.Busy, nil},
		"rung too big": {128, 1000, 0, subjects.Ready, &policy.Ration{Rung: policy.Rungs - 1, Part: 0.5}},
	} {
		f := newFleet()
		for i := range c.workers {
			h := beatOf(fmt.Sprintf("w%d", i), c.state, 4, c.inFlight, "m")
			h.Pools[0].Rung = c.rung
			f.onHeartbeat(h, time.Now())
		}
		refs, _ := f.references(map[string][]string{"m": nil})
		var r rations
		r.apply(refs, f.free(), map[string]float64{"m": 0})
		got := refs["m"].Ration
		if (got == nil) != (c.want == nil) || got != nil && *got != *c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

// A ration holds until too many requests wait, or run, for the workers that park.
func TestRationsHoldWhileTheySuffice(t *testing.T) {
	refs := func(workers int) map[string]subjects.PoolReference {
		return map[string]subjects.PoolReference{"m": {Workers: workers}}
	}
	free := func(workers int) map[string]*[policy.Rungs]int { return map[string]*[policy.Rungs]int{"m": {workers}} }
	for name, c := range map[string]struct {
		workers, gateways    int
		before, now          poolLoad
		due, rationed, large bool
	}{
		"quiet":               {500, 1, poolLoad{}, poolLoad{0, 10}, false, true, true},
		"one waits":           {500, 1, poolLoad{}, poolLoad{1, 0}, true, false, true},
		"many more run":       {500, 1, poolLoad{0, 100}, poolLoad{0, 100 + rationRenewed}, true, true, true},
		"as many run":         {500, 1, poolLoad{0, 300}, poolLoad{0, 310}, false, true, true},
		"of four gateways":    {500, 4, poolLoad{0, 100}, poolLoad{0, 100 + rationRenewed/4}, true, true, true},
		"fewer run":           {500, 1, poolLoad{0, 300}, poolLoad{0, 3}, false, true, true},
		"a small pool":        {64, 1, poolLoad{}, poolLoad{0, 500}, false, false, false},
		"it was not rationed": {500, 1, poolLoad{1, 0}, poolLoad{9, 9}, false, false, true},
	} {
		var r rations
		r.apply(refs(c.workers), free(c.workers), nil)
		r.observe(map[string]poolLoad{"m": c.before}, c.gateways)
		r.apply(refs(c.workers), free(c.workers), nil)
		if r.any() != c.large {
			t.Errorf("%s: large %v, want %v", name, r.any(), c.large)
		}
		if due := r.observe(map[string]poolLoad{"m": c.now, "other": {100, 100}}, c.gateways); due != c.due {
			t.Errorf("%s: another reference is due: %v, want %v", name, due, c.due)
		}
		pools := refs(c.workers)
		r.apply(pools, free(c.workers), nil)
		if rationed := pools["m"].Ration != nil; rationed != c.rationed {
			t.Errorf("%s: rationed %v, want %v", name, rationed, c.rationed)
		}
		if r.observe(map[string]poolLoad{"m": c.now}, c.gateways) {
			t.Errorf("%s: due again, though nothing has changed since", name)
		}
	}
}
