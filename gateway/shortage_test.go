package gateway

import (
	"slices"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

func TestShortagesLast(t *testing.T) {
	s, now := newShortages(), time.Now()
	look := func(after time.Duration, waiting, free int, due bool, lasted time.Duration) {
		t.Helper()
		now = now.Add(after)
		if got := s.observe(map[string]int{"m": waiting}, map[string]coldPool{"m": {warm: true, free: free}}, now); got != due || s.of("m", now) != lasted {
			t.Errorf("%d wait, %d free: due %v after %v, want %v after %v", waiting, free, got, s.of("m", now), due, lasted)
		}
	}
	look(0, 3, 3, false, 0)
	look(sweepEvery, 3, 1, false, 0)
	look(policy.ShortAfter-sweepEvery, 1, 0, false, policy.ShortAfter-sweepEvery)
	look(sweepEvery, 1, 0, true, policy.ShortAfter)
	look(sweepEvery, 1, 0, false, policy.ShortAfter+sweepEvery)
	look(sweepEvery, 1, 1, false, 0)
	look(sweepEvery, 2, 1, false, 0)
	s.observe(nil, nil, now) // every worker has it loaded
	if s.of("m", now) != 0 {
		t.Error("a pool that no worker would have to load is short")
	}
	for i, due := range []bool{true, false, false} { // while none has the model, workers should know at once
		if s.observe(map[string]int{"m": 1}, map[string]coldPool{"m": {}}, now.Add(time.Duration(i)*sweepEvery)) != due {
			t.Errorf("loaded nowhere, look %d: due %v, want %v", i, !due, due)
		}
	}
}

func TestWhoCouldLoad(t *testing.T) {
	f, now := newFleet(), time.Now()
	beat := func(id string, state subjects.State, slots, inFlight int, p subjects.PoolStatus) {
		p.Pool = "m"
		f.onHeartbeat(&subjects.Heartbeat{Worker: id, Name: id, State: state, Slots: slots, InFlight: inFlight, Pools: []subjects.PoolStatus{p}}, now)
	}
	beat("warm", subjects.Ready, 4, 3, subjects.PoolStatus{})
	if cold := f.coldPools(); cold != nil {
		t.Errorf("%v, and no worker would have to load a model", cold)
	}
	beat("slow", subjects.Ready, 8, 0, subjects.PoolStatus{Cold: true, Spare: true, LoadMS: 30_000})
	beat("unknown", subjects.Ready, 2, 0, subjects.PoolStatus{Cold: true, Spare: true})
	beat("fast", subjects.Ready, 1, 0, subjects.PoolStatus{Cold: true, Spare: true, LoadMS: 2_000})
	beat("busy", subjects.Ready, 1, 1, subjects.PoolStatus{Cold: true, LoadMS: 1_000})
	beat("loading", subjects.Ready, 6, 1, subjects.PoolStatus{Cold: true, WillLoad: true, Loading: now})
	beat("down", subjects.Down, 1, 0, subjects.PoolStatus{Cold: true, Spare: true, LoadMS: 1_000})
	beat("paused", subjects.Paused, 9, 0, subjects.PoolStatus{})
	if cold := f.coldPools(); cold["m"] != (coldPool{warm: true, free: 1 + 5}) {
		t.Errorf("%+v, want the warm one's and those of the one that loads it", cold)
	}
	f.onClaim("warm")
	if cold := f.coldPools(); cold["m"].free != 5 {
		t.Errorf("%+v after a claim", cold)
	}
	beat("evicts", subjects.Ready, 3, 0, subjects.PoolStatus{Cold: true, Spare: true, Evicts: true, LoadMS: 500})
	want := []subjects.Loader{{Worker: "fast", Slots: 1}, {Worker: "unknown", Slots: 2}, {Worker: "slow", Slots: 8}, {Worker: "evicts", Slots: 3}}
	if got := f.loaders("m", policy.Mean{}); !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := f.loaders("other", policy.Mean{}); len(got) != 0 {
		t.Errorf("%+v for a pool that none serves", got)
	}
}

func TestModelEvents(t *testing.T) {
	now := time.Now()
	cold, loading, loaded := subjects.PoolStatus{Pool: "m", Cold: true}, subjects.PoolStatus{Pool: "m", Cold: true, Loading: now, LoadMS: 4200}, subjects.PoolStatus{Pool: "m"}
	for what, test := range map[string]struct {
		was, is subjects.PoolStatus
		want    subjects.EventKind
		text    string
	}{
		"it begins":             {cold, loading, subjects.EventModelLoading, `worker w: model "m" is being loaded; a load takes 4.2s`},
		"it goes on":            {loading, loading, "", ""},
		"it is there":           {loading, loaded, subjects.EventModelLoaded, `worker w: model "m" is loaded`},
		"another client did it": {cold, loaded, subjects.EventModelLoaded, `worker w: model "m" is loaded`},
		"it failed":             {loading, cold, "", ""},
		"it is gone":            {loaded, cold, subjects.EventModelEvicted, `worker w: model "m" is no longer loaded`},
		"nothing":               {loaded, loaded, "", ""},
	} {
		was := &subjects.Heartbeat{Name: "w", Pools: []subjects.PoolStatus{{Pool: "other"}, test.was}}
		is := &subjects.Heartbeat{Name: "w", Pools: []subjects.PoolStatus{test.is, {Pool: "new", Cold: true}}}
		got := modelChanges(was, is)
		switch {
		case test.want == "" && len(got) == 0:
		case len(got) != 1 || got[0].kind != test.want || got[0].modelText() != test.text:
			t.Errorf("%s: %+v, want %s, %s", what, got, test.want, test.text)
		}
	}
	if got := modelChanges(nil, &subjects.Heartbeat{Pools: []subjects.PoolStatus{cold}}); got != nil {
		t.Errorf("a worker that joins: %+v", got)
	}
}
