package gateway

import (
	"bytes"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

// View is what a gateway knows at one moment, without a question to the broker. What it points to is shared and must not be
// changed. Requests, and what has ended or failed are those of this gateway alone.
type View struct {
	At      time.Time
	Gateway string    // its id
	Peers   []string  // ids of the other gateways
	Server  string    // the NATS server that it is connected to; empty if it is not
	Since   time.Time // since when it receives heartbeats
	// SilentBrokers are the members of the brokers' cluster that the others do not hear, and for how many milliseconds.
	SilentBrokers map[string]int64
	NotReady      string // why it should not be sent requests; empty if it should

	Workers   []*subjects.Heartbeat
	Lost      []LostWorker
	Requests  []subjects.RequestInfo // the oldest first
	Unclaimed map[string]int         // deliveries of the last minute that no worker has claimed in time, by pool

	Policy        policystore.Version
	PolicyTrouble string // why it may be out of date; empty if it is not
	Shifts        []ShiftResults

	Recent   map[string]Period // the last RecentLength, by pool; of this gateway
	Ended    []Ended           // the latest, the oldest first
	Failures []Ended           // the latest that failed or were refused
	Events   []subjects.Event  // that this gateway has published, and changes of the policy, the oldest first
}

// LostWorker is a worker whose heartbeats have stopped within the last minute.
type LostWorker struct {
	*subjects.Heartbeat
	Silent time.Duration
}

// ShiftResults are a route with a shift that runs or has ended, and the results of its pools in the present step, from all
// gateways.
type ShiftResults struct {
	Model          string
	Route          policy.Route
	Canary, Stable policy.Side
}

// viewer makes views of what its parts know.
type viewer struct {
	bus      *bus
	fleet    *fleet
	requests *requests
	shifts   *shifts
	history  *history
	silence  *silence
	policy   *policyFollower
	brokers  *brokers
	notReady func() string
}

func (v *viewer) view() View {
	now, rules := time.Now(), v.bus.rules.Load()
	view := View{
		At: now, Gateway: v.bus.id, NotReady: v.notReady(), Workers: v.fleet.heartbeats(), Unclaimed: v.silence.counts(now), Policy: rules.Version, PolicyTrouble: v.policy.outOfDate(),
		Recent: v.history.recent(now), Events: v.bus.events.all(), SilentBrokers: v.brokers.silent(now),
	}
	if v.bus.nc.IsConnected() {
		view.Server = v.bus.nc.ConnectedUrlRedacted()
	}
	view.Peers, view.Lost, view.Since = v.fleet.absent(now)
	view.Ended, view.Failures = v.history.last()
	all := v.requests.all()
	slices.SortFunc(all, func(a, b *request) int { return bytes.Compare(a.wire.ID[:], b.wire.ID[:]) }) // pointers are quick to sort
	for _, r := range all {
		view.Requests = append(view.Requests, r.info(v.bus.id, now))
	}
	for _, model := range slices.Sorted(maps.Keys(rules.Policy.Routes)) {
		if r := rules.Policy.Routes[model]; r.Shift != nil {
			s := ShiftResults{Model: model, Route: r}
			s.Canary, s.Stable = v.shifts.total(model, r)
			view.Shifts = append(view.Shifts, s)
		}
	}
	return view
}

// absent returns the ids of other gateways, the workers whose heartbeats have stopped, and since when heartbeats are received.
func (f *fleet) absent(now time.Time) (peers []string, lost []LostWorker, listens time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, at := range f.peers {
		if now.Sub(at) <= peerDeadline {
			peers = append(peers, id)
		}
	}
	slices.Sort(peers)
	for id, m := range f.lost {
		if f.workers[id] == nil && m.beat.State != subjects.Left && now.Sub(m.seen) <= lostFor && !f.replacedLocked(m) {
			lost = append(lost, LostWorker{m.beat, now.Sub(m.seen)})
		}
	}
	return peers, lost, f.listens
}

// replacedLocked says whether a worker that is lost was started again since.
func (f *fleet) replacedLocked(lost *member) bool {
	for _, m := range f.workers {
		if m.beat.Name == lost.beat.Name && m.beat.Host == lost.beat.Host && m.beat.Started.After(lost.beat.Started) {
			return true
		}
	}
	return false
}

// eventsKept is how many events a gateway keeps.
const eventsKept = 100

// eventLog keeps the latest events.
type eventLog struct {
	mu   sync.Mutex
	list []subjects.Event // the oldest first; it is never changed in place
}

func (l *eventLog) add(e subjects.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(slices.Clone(l.list[max(0, len(l.list)+1-eventsKept):]), e)
}

func (l *eventLog) all() []subjects.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.list
}
