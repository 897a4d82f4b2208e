package gateway

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// However many pools a worker announces, and however often it announces others, gateways take in a bounded number of them.
// Those that it had before stay.
func TestPoolsOfAWorkerAreBounded(t *testing.T) {
	named := func(prefix string, from, n int) (pools []string) {
		for i := range n {
			pools = append(pools, fmt.Sprint(prefix, from+i))
		}
		return pools
	}
	f, now := newFleet(), time.Now()
	taken := make(map[string]bool)
	beat := func(worker string, pools ...string) (had []string, omitted int) {
		h := beatOf(worker, subjects.Ready, 4, 0, pools...)
		omitted = f.admitPools(h, now)
		for _, p := range h.Pools {
			taken[p.Pool] = true
			had = append(had, p.Pool)
		}
		return had, omitted
	}
	if had, omitted := beat("w.1", "a", "b"); len(had) != 2 || omitted != 0 {
		t.Errorf("of two pools %v are left, %d omitted", had, omitted)
	}
	had, omitted := beat("w.1", append(named("x", 0, 300), "a", "b")...)
	if len(had) != subjects.MaxPools || omitted != 302-subjects.MaxPools || !slices.Contains(had, "a") || !slices.Contains(had, "b") {
		t.Errorf("of 302 pools %d are left, %d omitted: %v", len(had), omitted, had)
	}
	for i := range 50 { // also under new ids, as if it were started again
		now = now.Add(subjects.HeartbeatEvery)
		beat(fmt.Sprint("w.", i), append(named("y", 100*i, 90), "a")...)
		f.sweep(now, true)
	}
	if len(taken) != subjects.MaxPools {
		t.Errorf("%d pools, want at most %d", len(taken), subjects.MaxPools)
	}
	if had, _ := beat("v.1", named("z", 0, 3)...); len(had) != 3 {
		t.Errorf("another worker has %v", had)
	}
	now = now.Add(2 * offeredFor) // what it no longer has makes room
	if had, omitted := beat("w.1", named("n", 0, 20)...); len(had) != 20 || omitted != 0 {
		t.Errorf("later, %d of 20 pools are left, %d omitted", len(had), omitted)
	}
}

func beatOf(worker string, state subjects.State, slots, inFlight int, pools ...string) *subjects.Heartbeat {
	h := &subjects.Heartbeat{Worker: worker, Name: worker, State: state, Slots: slots, InFlight: inFlight, Weight: 1}
	for _, p := range pools {
		h.Pools = append(h.Pools, subjects.PoolStatus{Pool: p})
	}
	return h
}

func kinds(changes []change) (list []subjects.EventKind) {
	for _, c := range changes {
		list = append(list, c.kind)
	}
	return list
}

func TestFleetReturnsWhatChanged(t *testing.T) {
	for about, c := range map[string]struct {
		was, is subjects.State // "": none before
		want    []subjects.EventKind
	}{
		"a new worker":                      {"", subjects.Ready, []subjects.EventKind{subjects.EventWorkerJoined}},
		"a new worker that is fenced":       {"", subjects.Fenced, []subjects.EventKind{subjects.EventWorkerJoined, subjects.EventWorkerFenced}},
		"nothing":                           {subjects.Ready, subjects.Ready, nil},
		"its engine is down":                {subjects.Ready, subjects.Down, []subjects.EventKind{subjects.EventWorkerState}},
		"a pause is no news":                {subjects.Ready, subjects.Paused, nil},
		"nor is its end":                    {subjects.Paused, subjects.Ready, nil},
		"it is fenced":                      {subjects.Ready, subjects.Fenced, []subjects.EventKind{subjects.EventWorkerFenced}},
		"it stays fenced":                   {subjects.Fenced, subjects.Fenced, nil},
		"it is no longer fenced":            {subjects.Fenced, subjects.Ready, []subjects.EventKind{subjects.EventWorkerUnfenced}},
		"it is no longer fenced but paused": {subjects.Fenced, subjects.Paused, []subjects.EventKind{subjects.EventWorkerUnfenced}},
		"it is fenced, then down":           {subjects.Fenced, subjects.Down, []subjects.EventKind{subjects.EventWorkerState}},
	} {
		f := newFleet()
		if c.was != "" {
			f.onHeartbeat(beatOf("w", c.was, 4, 0, "m"), noon)
		}
		if got := kinds(f.onHeartbeat(beatOf("w", c.is, 4, 0, "m"), noon)); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", about, got, c.want)
		}
	}
	f := newFleet()
	f.onHeartbeat(beatOf("w", subjects.Ready, 4, 0, "m"), noon)
	last := beatOf("w", subjects.Left, 4, 0, "m")
	if !f.onLastHeartbeat(last, noon) {
		t.Error("a worker that leaves is unknown")
	}
	if got := f.onHeartbeat(beatOf("w", subjects.Ready, 4, 0, "m"), noon); got != nil {
		t.Errorf("a heartbeat after the last one: got %v", kinds(got))
	}
	if lost, _ := f.sweep(noon.Add(subjects.WorkerDeadline+time.Second), true); lost != nil {
		t.Errorf("before its last frames are handled: got %v", kinds(lost))
	}
	if got := kinds(f.onLeft("w")); !slices.Equal(got, []subjects.EventKind{subjects.EventWorkerLeft}) {
		t.Errorf("it leaves: got %v", got)
	}
	if got := f.onLeft("w"); got != nil {
		t.Errorf("it leaves again: got %v", kinds(got))
	}
	if f.onLastHeartbeat(last, noon) {
		t.Error("a worker that has left is known")
	}
}

// A worker that falls silent is lost, unless the silence is the gateway's own.
// What is wrong with a pool at a worker is an event when it begins and when it ends, and its requests move from a pool that
// hangs, to workers without such trouble.
func TestFleetKnowsWhatIsWrongWithAPool(t *testing.T) {
	f := newFleet()
	with := func(worker, vitality, failing, doubt string) *subjects.Heartbeat {
		h := beatOf(worker, subjects.Ready, 4, 0, "m", "n")
		h.Pools[0].Vitality, h.Pools[0].Failing, h.Pools[0].Doubt = vitality, failing, doubt
		return h
	}
	f.onHeartbeat(with("b", "", "", ""), noon)
	for i, c := range []struct {
		beat  *subjects.Heartbeat
		want  []subjects.EventKind
		hangs bool
		room  int // for m
	}{
		{with("a", "", "", ""), []subjects.EventKind{subjects.EventWorkerJoined}, false, 8},
		{with("a", subjects.VitalitySuspect, "", "nothing comes"), []subjects.EventKind{subjects.EventWorkerSuspect}, false, 4},
		{with("a", subjects.VitalitySuspect, "", "nothing came"), nil, false, 4},
		{with("a", subjects.VitalityHung, "it hangs", ""), []subjects.EventKind{subjects.EventWorkerFailing, subjects.EventWorkerSuspect}, true, 4},
		{with("a", "", "", ""), []subjects.EventKind{subjects.EventWorkerFailing}, false, 8},
	} {
		if got := kinds(f.onHeartbeat(c.beat, noon)); !slices.Equal(got, c.want) {
			t.Errorf("heartbeat %d: %v, want %v", i, got, c.want)
		}
		hanging := f.hanging()
		if why := hanging[placed{"a", "m"}]; (why != "") != c.hangs || hanging[placed{"a", "n"}] != "" {
			t.Errorf("heartbeat %d: %v hang", i, hanging)
		}
		if m, n := f.room("m", nil), f.room("n", nil); m != c.room || n != 8 {
			t.Errorf("heartbeat %d: room for %d and %d, want %d and 8", i, m, n, c.room)
		}
	}
	whole := beatOf("a", subjects.Fenced, 4, 0, "m", "n")
	whole.FenceClass, whole.Reason = subjects.FenceFrozen, "it is frozen"
	f.onHeartbeat(whole, noon)
	if hanging := f.hanging(); hanging[placed{"a", "n"}] != "it is frozen" || len(hanging) != 2 {
		t.Errorf("%v hang", hanging)
	}
}

// A note is an event when it comes and when it goes, and not when its words change.
func TestFleetNotesUnlikeWorkers(t *testing.T) {
	f := newFleet()
	slow, slower := policy.Note{Kind: policy.NoteSlow, Text: "4 times"}, policy.Note{Kind: policy.NoteSlow, Text: "5 times"}
	small, short := policy.Note{Kind: policy.NoteSmall, Text: "few"}, policy.Note{Kind: policy.NoteSmall, Text: "short"}
	for i, c := range []struct {
		notes []policy.Note
		want  []string
	}{
		{nil, []string{"worker-joined "}},
		{[]policy.Note{slow}, []string{"worker-note slow: 4 times"}},
		{[]policy.Note{slower}, nil},
		{[]policy.Note{slower, small, short}, []string{"worker-note small: few"}},
		{[]policy.Note{slower, short}, nil},
		{[]policy.Note{short}, []string{"worker-note "}},
		{nil, []string{"worker-note "}},
	} {
		h := beatOf("a", subjects.Ready, 4, 0, "m", "n")
		h.Pools[1].Notes = c.notes
		var got []string
		for _, c := range f.onHeartbeat(h, noon) {
			got = append(got, string(c.kind)+" "+c.why)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("heartbeat %d: %q, want %q", i, got, c.want)
		}
	}
}

// What is usual in a pool is so among workers that serve it well.
func TestFleetKnowsWhatIsUsual(t *testing.T) {
	f := newFleet()
	with := func(worker string, state subjects.State, token float64, failing string) {
		h := beatOf(worker, state, 4, 0, "m")
		h.Pools[0].Failing, h.Pools[0].Curve = failing, &policy.Curve{ITL: &policy.Line{A: token}}
		f.onHeartbeat(h, noon)
	}
	usual := func() float64 {
		refs, _ := f.references(map[string][]string{"m": nil})
		return refs["m"].Usual.Token
	}
	with("a", subjects.Ready, 0.01, "")
	with("b", subjects.Ready, 0.01, "")
	with("hole", subjects.Paused, 0.0001, "an error with status 200")
	with("down", subjects.Down, 0.0001, "")
	if got := usual(); got != 0 {
		t.Errorf("of two that work: %v is usual", got)
	}
	with("slow", subjects.Ready, 0.05, "")
	if got := usual(); got != 0.01 {
		t.Errorf("of three: %v is usual, want 0.01", got)
	}
}

func TestFleetLosesSilentWorkers(t *testing.T) {
	f := newFleet()
	f.onHeartbeat(beatOf("a", subjects.Ready, 4, 0, "m"), noon)
	f.onHeartbeat(beatOf("b", subjects.Ready, 4, 0, "m"), noon)
	now := noon
	sweeps := func(d time.Duration, connected bool) (lost []string) {
		for end := now.Add(d); now.Before(end); {
			now = now.Add(sweepEvery)
			changes, _ := f.sweep(now, connected)
			for _, c := range changes {
				lost = append(lost, fmt.Sprint(c.beat.Worker, " after ", c.silent))
			}
		}
		return lost
	}
	if lost := sweeps(time.Second, true); lost != nil {
		t.Errorf("lost %v after 1 s", lost)
	}
	if lost := sweeps(5*time.Second, false); lost != nil {
		t.Errorf("lost %v without a connection", lost)
	}
	now = now.Add(time.Minute)
	if lost, slept := f.sweep(now, true); lost != nil || !slept {
		t.Errorf("lost %v, slept %t, after a minute in which the gateway did not run", lost, slept)
	}
	f.onHeartbeat(beatOf("b", subjects.Ready, 4, 0, "m"), now.Add(time.Second))
	if lost := sweeps(2*time.Second, true); !slices.Equal(lost, []string{"a after 1.6s"}) {
		t.Errorf("lost %v, want a", lost)
	}
}

func TestFleetCountsSlots(t *testing.T) {
	f := newFleet()
	if _, known := f.pool("m"); known {
		t.Error("a pool is known that never had a worker")
	}
	f.onHeartbeat(beatOf("a", subjects.Ready, 4, 1, "m", "n"), noon)
	f.onHeartbeat(beatOf("b", subjects.Paused, 8, 0, "m"), noon)
	f.onHeartbeat(beatOf("c", subjects.Draining, 16, 0, "m"), noon)
	if p, known := f.pool("m"); !known || p != (poolState{slots: 12, free: 3}) {
		t.Errorf("got %+v, %t", p, known)
	}
	f.onClaim("a")
	f.sweep(noon.Add(time.Millisecond), true)
	if p, _ := f.pool("m"); p.free != 2 {
		t.Errorf("%d free slots after a claim, want 2", p.free)
	}
	if live, free := f.others("m", map[string]bool{"b": true}); live != 1 || free != 1 {
		t.Errorf("beside b there are %d live workers and %d with a free slot, want a", live, free)
	}
	if models := f.models(); !slices.Equal(models, []string{"m", "n"}) {
		t.Errorf("models %v", models)
	}
	f.onLeft("a")
	f.sweep(noon.Add(time.Second), true)
	if p, known := f.pool("n"); !known || p.slots != 0 || !p.emptySince.Equal(noon.Add(time.Second)) {
		t.Errorf("a pool without its worker: %+v, %t", p, known)
	}
}

// Other gateways count for as long as they publish references.
func TestFleetCountsGateways(t *testing.T) {
	f := newFleet()
	f.onGateway("b", noon)
	f.onGateway("c", noon.Add(time.Second))
	if got := f.gateways(noon.Add(time.Second)); got != 3 {
		t.Errorf("%d gateways, want 3", got)
	}
	if got := f.gateways(noon.Add(peerDeadline + time.Millisecond)); got != 2 {
		t.Errorf("%d gateways when one is silent, want 2", got)
	}
}
