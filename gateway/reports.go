package gateway

import (
	"slices"
	"sync"
	"time"

	"github.com/pulley-lb/pulley/subjects"
)

const (
	// lostReported is how long a worker that was lost is reported, and lostMost how many are: a report is a header.
	lostReported = 10 * time.Minute
	lostMost     = 16
)

// reports is what this gateway tells an operator who asks for the workers: what it has told the workers last, and which
// workers were lost.
type reports struct {
	id string // of the gateway

	mu   sync.Mutex
	last subjects.Report
	lost []lostWorker // the oldest first
}

type lostWorker struct {
	subjects.LostWorker
	at time.Time // of its last heartbeat
}

// tell notes what workers are told.
func (r *reports) tell(ref subjects.Reference) {
	told := subjects.Report{Gateway: ref.Gateway, Trouble: ref.Trouble, Silent: ref.SilentBrokers, Pools: make(map[string]subjects.PoolReport)}
	for name, p := range ref.Pools {
		if len(p.Held) > 0 || p.Unclaimed > 0 {
			told.Pools[name] = subjects.PoolReport{Held: p.Held, Unclaimed: p.Unclaimed}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = told
}

// onLost notes a worker whose last heartbeat came some time ago.
func (r *reports) onLost(h subjects.Heartbeat, silent time.Duration, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forgetLocked(h.Worker)
	r.lost = append(r.lost, lostWorker{subjects.LostWorker{Worker: h.Worker, Name: h.Name, Host: h.Host, Started: h.Started}, now.Add(-silent)})
	r.lost = r.lost[max(len(r.lost)-lostMost, 0):]
}

// onJoined notes that a worker is there, maybe again.
func (r *reports) onJoined(worker string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forgetLocked(worker)
}

func (r *reports) forgetLocked(worker string) {
	r.lost = slices.DeleteFunc(r.lost, func(l lostWorker) bool { return l.Worker == worker })
}

func (r *reports) report(now time.Time) subjects.Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lost = slices.DeleteFunc(r.lost, func(l lostWorker) bool { return now.Sub(l.at) > lostReported })
	told := r.last
	told.Gateway, told.Lost = r.id, nil
	for _, l := range r.lost {
		l.SilentMS = now.Sub(l.at).Milliseconds()
		told.Lost = append(told.Lost, l.LostWorker)
	}
	return told
}
