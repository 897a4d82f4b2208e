package fleet

import (
	"time"

	"github.com/pulley-lb/pulley/subjects"
)

// sameFor is for how long after an event another gateway's report of the same is a repeat: gateways see the same heartbeats, but a
// silence at times that differ.
const sameFor = 10 * time.Second

// Once tells events from their repeats: each gateway reports what it sees of workers, models and queues. What happens several times
// is reported several times by each, and so the n-th report of one gateway is a repeat of the n-th of another. The zero
// value has seen nothing. It is not safe for concurrent use.
type Once struct {
	seen  map[subjects.Event]*sightings
	swept time.Time
}

// sightings are the reports of one event.
type sightings struct {
	by   map[string]int // by gateway
	most int
	last time.Time
}

// IsNew notes an event that was received at a time, and says whether it is no repeat.
func (o *Once) IsNew(e subjects.Event, now time.Time) bool {
	o.sweep(now)
	from := e.From
	e.From, e.At = "", time.Time{}
	s := o.seen[e]
	if s == nil || now.Sub(s.last) > sameFor {
		s = &sightings{by: make(map[string]int)}
		o.seen[e] = s
	}
	s.last = now
	s.by[from]++
	if s.by[from] <= s.most {
		return false
	}
	s.most = s.by[from]
	return true
}

// sweep forgets what is too old to be repeated.
func (o *Once) sweep(now time.Time) {
	if o.seen == nil {
		o.seen = make(map[subjects.Event]*sightings)
	}
	if now.Sub(o.swept) < sameFor {
		return
	}
	o.swept = now
	for e, s := range o.seen {
		if now.Sub(s.last) > sameFor {
			delete(o.seen, e)
		}
	}
}
