package worker

import (
	"testing"
	"time"

	"github.com/pulley-lb/pulley/subjects"
)

// An attempt that was in flight while the worker was fenced, or its engine down,
// teaches no price.
func TestWhatAFenceTeaches(t *testing.T) {
	now := time.Now()
	for what, test := range map[string]struct {
		fencedAt time.Time
		fence    string
		downAt   time.Time
		learns   bool
	}{
		"never fenced":             {time.Time{}, "", time.Time{}, true},
		"fenced before it began":   {now.Add(-time.Minute), "", time.Time{}, true},
		"fenced while it ran":      {now.Add(-10 * time.Second), "", time.Time{}, false},
		"fenced when it ends":      {now.Add(-10 * time.Second), "the engine has stalled", time.Time{}, false},
		"fenced from before on it": {now.Add(-time.Minute), "NVML is required", time.Time{}, false},
		"down before it began":     {time.Time{}, "", now.Add(-time.Minute), true},
		"down while it ran":        {time.Time{}, "", now.Add(-10 * time.Second), false},
	} {
		t.Run(what, func(t *testing.T) {
			w := connected(t)
			w.serve([]served{{"m", "m"}})
			w.mu.Lock()
			defer w.mu.Unlock()
			w.room.fencedAt, w.room.fence, w.downAt = test.fencedAt, test.fence, test.downAt
			l := w.lanes[0]
			for range 2 { // a line takes two
				a := &attempt{
					lane: l, req: &subjects.Request{InputTokens: 100, Stream: true}, streamed: true,
					started: now.Add(-20 * time.Second), firstByte: now.Add(-19 * time.Second), prefillTook: time.Second,
				}
				w.learnLocked(a, 100, now)
			}
			if got := l.pool.curve(now) != nil; got != test.learns {
				t.Errorf("there is a curve: %v, want %v", got, test.learns)
			}
			if l.pool.mean.Output != 100 {
				t.Errorf("mean output %v, want 100: it is the same however long it took", l.pool.mean.Output)
			}
		})
	}
}

// A request that is handed back waits for no first token here.
func TestHandedBackIsNotWaitedFor(t *testing.T) {
	w := connected(t)
	w.serve([]served{{"m", "m"}})
	req := &subjects.Request{ID: subjects.NewID(), Gateway: "g", Tier: "standard", Model: "m", Pool: "m", Method: "POST", Path: "/v1/completions", Stream: true}
	m, err := req.Msg(subjects.Shared, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	w.failedHere[req.ID] = time.Now()
	a := w.beginLocked(m, w.lanes[0], time.Now())
	w.mu.Unlock()
	w.run(a)
	if w.room.firsts != 0 || w.inFlight != 0 {
		t.Errorf("%d wait for their first token, %d in flight; want none", w.room.firsts, w.inFlight)
	}
}
