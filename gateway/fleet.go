package gateway

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	sweepEvery = 100 * time.Millisecond

	// sleptTooLong is the time between two sweeps from which on this gateway itself was stopped or starved, and no
	// worker's silence proves anything.
	sleptTooLong = 5 * sweepEvery

	// peerDeadline is after how long without a reference another gateway no longer counts.
	peerDeadline = 3*subjects.ReferenceEvery + subjects.ReferenceEvery/2
)

// fleet is what this gateway knows of workers, pools and other gateways. It records what they publish, answers questions
// and returns what has changed; it starts nothing and publishes nothing.
type fleet struct {
	mu          sync.Mutex
	workers     map[string]*member              // by id
	lost        map[string]*member              // workers whose heartbeats have stopped a while ago, by id
	pools       map[string]*poolState           // those that have ever had a worker
	adapters    map[string]map[string]string    // names of the adapters that engines have had beside a pool's model, by pool, and that model
	lengths     map[string][]int64              // of the contexts of each pool's live workers, each once, in ascending order; see PoolStatus.Length
	away        map[string]lengthsSeen          // of the contexts of a pool's workers that are or were there, and when each was last that of a live one
	peers       map[string]time.Time            // other gateways, and when each last published a reference
	offers      map[string]map[string]time.Time // pools by worker's stable id, and when each was last in a heartbeat: see admitPools
	swept       time.Time
	sweptOffers time.Time // when offers was last swept
	listens     time.Time // since when heartbeats are received
	primed      bool      // addPools was called
	joined      uint64    // how many workers have joined
}

type member struct {
	beat  *subjects.Heartbeat // the last one; it is never changed
	heard time.Time           // when it came
	seen  time.Time           // since when the worker is silent: time in which this gateway did not hear does not count
	taken int                 // claims since beat
}

// poolState is the sum over the live workers of a pool.
type poolState struct {
	emptySince time.Time // since when the pool has no live worker; zero while it has one
	slots      int
	free       int  // slots without a request
	anyCase    bool // an engine takes the pool's name in any case, and without its tag if that is latest
}

// change is something that happened to a worker.
type change struct {
	kind   subjects.EventKind
	beat   *subjects.Heartbeat  // its last heartbeat
	was    *subjects.Heartbeat  // the one before it; nil if the worker joined
	silent time.Duration        // before it was lost
	pool   string               // whose requests fail there, or no longer do; else empty
	why    string               // they fail; or the note
	note   string               // kind of the note
	model  *subjects.PoolStatus // the pool whose model was loaded, is being loaded, or was evicted
}

func newFleet() *fleet {
	return &fleet{workers: make(map[string]*member), lost: make(map[string]*member), pools: make(map[string]*poolState), peers: make(map[string]time.Time), adapters: make(map[string]map[string]string), away: make(map[string]lengthsSeen), offers: make(map[string]map[string]time.Time)}
}

// onHeartbeat records the heartbeat of a worker. One that has left does not come back.
func (f *fleet) onHeartbeat(h *subjects.Heartbeat, now time.Time) []change {
	f.mu.Lock()
	defer f.mu.Unlock()
	var was *subjects.Heartbeat
	if m := f.workers[h.Worker]; m != nil {
		was = m.beat
	}
	if was != nil && was.State == subjects.Left {
		return nil
	}
	f.workers[h.Worker] = &member{beat: h, heard: now, seen: now}
	if was == nil {
		f.joined++
	}
	for i := range h.Pools {
		p := f.addPoolLocked(h.Pools[i].Pool, now)
		f.addAdaptersLocked(&h.Pools[i])
		p.anyCase = p.anyCase || h.Pools[i].AnyCase || strings.HasSuffix(h.Pools[i].Pool, latest) // a worker may not know its engine yet
	}
	if was == nil || was.State != h.State || was.Slots != h.Slots || !slices.EqualFunc(was.Pools, h.Pools, func(a, b subjects.PoolStatus) bool { return a.Pool == b.Pool && a.Length == b.Length }) {
		f.countLocked(now)
	}
	return slices.Concat(changesOf(was, h), poolChanges(was, h), noteChanges(was, h), modelChanges(was, h))
}

// offeredFor is how long a pool counts for its worker after the last heartbeat that had it.
const offeredFor = 10 * time.Minute

// admitPools leaves in a heartbeat the pools that this gateway takes in of its worker, subjects.MaxPools within a while,
// those that were there before first. It returns how many others there are.
func (f *fleet) admitPools(h *subjects.Heartbeat, now time.Time) (omitted int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := subjects.StableID(h.Worker)
	had := f.offers[id]
	if had == nil {
		had = make(map[string]time.Time, min(len(h.Pools), subjects.MaxPools))
		f.offers[id] = had
	}
	for i := range h.Pools {
		if name := h.Pools[i].Pool; !had[name].IsZero() {
			had[name] = now
		}
	}
	maps.DeleteFunc(had, func(_ string, at time.Time) bool { return now.Sub(at) > offeredFor })
	said := len(h.Pools)
	h.Pools = slices.DeleteFunc(h.Pools, func(p subjects.PoolStatus) bool {
		if had[p.Pool].IsZero() && len(had) >= subjects.MaxPools {
			return true
		}
		had[p.Pool] = now
		return false
	})
	return said - len(h.Pools)
}

// addAdaptersLocked adds the adapters that an engine has. They are not forgotten when the engine unloads them: a request for
// one must not be answered by the model itself.
func (f *fleet) addAdaptersLocked(at *subjects.PoolStatus) {
	if len(at.Adapters) == 0 {
		return
	}
	known := f.adapters[at.Pool]
	if known == nil {
		known = make(map[string]string)
		f.adapters[at.Pool] = known
	}
	for _, name := range at.Adapters {
		if parent := cmp.Or(at.Model, at.Pool); known[name] != parent && len(known) < 4*subjects.MaxAdapters {
			known[name] = parent
		}
	}
}

// adapterOf returns the model that a name is an adapter of, as an engine of the pool calls it; empty if it is none. If only
// some live workers of the pool have the adapter, at is the id of the one of them with the most free slots.
func (f *fleet) adapterOf(pool, name string) (parent, at string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if parent = f.adapters[pool][name]; parent == "" {
		return "", ""
	}
	most, all := math.MinInt, true
	for id, m := range f.workers {
		if !m.beat.Live() {
			continue
		}
		for i := range m.beat.Pools {
			if p := &m.beat.Pools[i]; p.Pool != pool {
				continue
			} else if !slices.Contains(p.Adapters, name) {
				all = false
			} else if free := m.beat.Slots - m.beat.InFlight - m.taken; free > most {
				most, at = free, id
			}
		}
	}
	if all {
		at = ""
	}
	return parent, at
}

// poolChanges compares what a heartbeat says is wrong with pools at a worker with the heartbeat before: whose requests fail,
// and for which the engine is suspect.
func poolChanges(was, h *subjects.Heartbeat) (changes []change) {
	for _, c := range []struct {
		kind subjects.EventKind
		why  func(*subjects.PoolStatus) string
	}{
		{subjects.EventWorkerFailing, func(p *subjects.PoolStatus) string { return p.Failing }},
		{subjects.EventWorkerSuspect, func(p *subjects.PoolStatus) string { return p.Doubt }},
	} {
		for i := range h.Pools {
			if p := &h.Pools[i]; c.why(p) != "" && whyOf(was, p.Pool, c.why) == "" {
				changes = append(changes, change{kind: c.kind, beat: h, was: was, pool: p.Pool, why: c.why(p)})
			}
		}
		if was == nil {
			continue
		}
		for i := range was.Pools {
			if p := &was.Pools[i]; c.why(p) != "" && whyOf(h, p.Pool, c.why) == "" {
				changes = append(changes, change{kind: c.kind, beat: h, was: was, pool: p.Pool})
			}
		}
	}
	return changes
}

// noteChanges compares the notes of a heartbeat with those of the heartbeat before.
func noteChanges(was, h *subjects.Heartbeat) (changes []change) {
	for _, kind := range []string{policy.NoteSlow, policy.NoteSmall} {
		noted := func(p *subjects.PoolStatus) string {
			if i := slices.IndexFunc(p.Notes, func(n policy.Note) bool { return n.Kind == kind }); i >= 0 {
				return p.Notes[i].String()
			}
			return ""
		}
		for i := range h.Pools {
			p := &h.Pools[i]
			now, before := noted(p), whyOf(was, p.Pool, noted)
			if now != "" && before == "" || now == "" && before != "" {
				changes = append(changes, change{kind: subjects.EventWorkerNote, beat: h, was: was, pool: p.Pool, why: now, note: kind})
			}
		}
	}
	return changes
}

func whyOf(h *subjects.Heartbeat, pool string, why func(*subjects.PoolStatus) string) string {
	if h == nil {
		return ""
	}
	i := slices.IndexFunc(h.Pools, func(p subjects.PoolStatus) bool { return p.Pool == pool })
	if i < 0 {
		return ""
	}
	return why(&h.Pools[i])
}

// changesOf compares a heartbeat with the one before it.
func changesOf(was, h *subjects.Heartbeat) []change {
	c := change{beat: h, was: was}
	fenced, wasFenced := h.State == subjects.Fenced, was != nil && was.State == subjects.Fenced
	switch {
	case was == nil:
		c.kind = subjects.EventWorkerJoined
		if fenced {
			return []change{c, {kind: subjects.EventWorkerFenced, beat: h}}
		}
	case fenced && !wasFenced:
		c.kind = subjects.EventWorkerFenced
	case wasFenced && h.Live():
		c.kind = subjects.EventWorkerUnfenced
	case was.State != h.State && h.State != subjects.Paused && was.State != subjects.Paused:
		c.kind = subjects.EventWorkerState
	default:
		return nil
	}
	return []change{c}
}

// modelChanges compares the models that an engine has loaded, by a heartbeat and the one before it.
func modelChanges(was, h *subjects.Heartbeat) (list []change) {
	if was == nil {
		return nil
	}
	for i := range h.Pools {
		p := &h.Pools[i]
		at := slices.IndexFunc(was.Pools, func(o subjects.PoolStatus) bool { return o.Pool == p.Pool })
		if at < 0 {
			continue
		}
		c, before := change{beat: h, was: was, model: p}, &was.Pools[at]
		switch {
		case !p.Loading.IsZero() && before.Loading.IsZero():
			c.kind = subjects.EventModelLoading
		case p.Loaded() && !before.Loaded():
			c.kind = subjects.EventModelLoaded
		case before.Loaded() && !p.Loaded():
			c.kind = subjects.EventModelEvicted
		default:
			continue
		}
		list = append(list, c)
	}
	return list
}

// modelText says what happened to a model.
func (c *change) modelText() string {
	text := fmt.Sprintf("worker %s: model %s ", c.beat.Name, api.Quote(cmp.Or(c.model.Model, c.model.Pool)))
	switch c.kind {
	case subjects.EventModelLoading:
		text += "is being loaded"
	case subjects.EventModelLoaded:
		text += "is loaded"
	default:
		return text + "is no longer loaded"
	}
	if took := time.Duration(c.model.LoadMS) * time.Millisecond; took > 0 {
		text += fmt.Sprintf("; a load takes %v", took.Round(10*time.Millisecond))
	}
	return text
}

// onLastHeartbeat records that a worker has left, and reports whether it is known. The worker stays until onLeft: its last
// frames may not have been handled yet.
func (f *fleet) onLastHeartbeat(h *subjects.Heartbeat, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.workers[h.Worker]
	if m != nil {
		m.beat, m.heard, m.seen = h, now, now
	}
	return m != nil
}

// onLeft removes a worker that has left and all of whose frames have been handled. It returns nothing if the worker is
// unknown.
func (f *fleet) onLeft(worker string) []change {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.workers[worker]
	if m == nil {
		return nil
	}
	delete(f.workers, worker)
	return []change{{kind: subjects.EventWorkerLeft, beat: m.beat}}
}

func (f *fleet) onGateway(id string, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.peers[id] = now
}

// onClaim records that a worker has taken a request: until its next heartbeat it has one free slot less.
func (f *fleet) onClaim(worker string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.workers[worker]
	if m == nil {
		return
	}
	m.taken++
	for i := range m.beat.Pools {
		if p := f.pools[m.beat.Pools[i].Pool]; p != nil && p.free > 0 {
			p.free--
		}
	}
}

// addPools records pools that other gateways have seen.
func (f *fleet) addPools(names []string, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.primed = true
	for _, name := range names {
		f.addPoolLocked(name, now)
	}
}

// starting says that it is not known yet which pools there are.
func (f *fleet) starting() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.primed
}

// listensSince is for how long heartbeats have been received.
func (f *fleet) listensSince(now time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return now.Sub(f.listens)
}

func (f *fleet) addPoolLocked(name string, now time.Time) *poolState {
	p := f.pools[name]
	if p == nil {
		p = &poolState{emptySince: now}
		f.pools[name] = p
	}
	return p
}

// sweep removes the workers that stopped sending heartbeats, and those that left long ago. hears says that this gateway would
// hear them. deaf says that it did not, or did not run for a while: their silence counts only from then on.
func (f *fleet) sweep(now time.Time, hears bool) (lost []change, deaf bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	deaf = !hears || !f.swept.IsZero() && now.Sub(f.swept) > sleptTooLong
	f.swept = now
	for id, m := range f.workers {
		if deaf {
			m.seen = now
		}
		kind, deadline := subjects.EventWorkerLost, subjects.WorkerDeadline
		if m.beat.State == subjects.Left { // the message that calls onLeft was lost, or waits behind many frames
			kind, deadline = subjects.EventWorkerLeft, listDeadline
		}
		if silent := now.Sub(f.silentSinceLocked(m)); silent > deadline {
			delete(f.workers, id)
			f.lost[id] = m
			lost = append(lost, change{kind: kind, beat: m.beat, silent: silent})
		}
	}
	maps.DeleteFunc(f.lost, func(id string, m *member) bool { return f.workers[id] != nil || now.Sub(m.seen) > lostShown })
	if now.Sub(f.sweptOffers) >= time.Minute {
		f.sweptOffers = now
		maps.DeleteFunc(f.offers, func(_ string, had map[string]time.Time) bool {
			maps.DeleteFunc(had, func(_ string, at time.Time) bool { return now.Sub(at) > offeredFor })
			return len(had) == 0
		})
	}
	f.countLocked(now)
	return lost, deaf
}

// countLocked adds up what each pool has.
func (f *fleet) countLocked(now time.Time) {
	for _, p := range f.pools {
		p.slots, p.free = 0, 0
	}
	serving, lengths := make(map[string]bool), make(map[string][]int64)
	for _, m := range f.workers {
		f.seeLengthsLocked(m.beat, now)
		if !m.beat.Live() {
			continue
		}
		for i := range m.beat.Pools {
			p := f.pools[m.beat.Pools[i].Pool]
			serving[m.beat.Pools[i].Pool] = true
			p.slots += m.beat.Slots
			if n := m.beat.Pools[i].Length; n > 0 {
				lengths[m.beat.Pools[i].Pool] = append(lengths[m.beat.Pools[i].Pool], n)
			}
			if m.beat.State == subjects.Ready {
				p.free += max(m.beat.Slots-m.beat.InFlight-m.taken, 0)
			}
		}
	}
	for name, all := range lengths {
		lengths[name] = mostLengths(all)
	}
	f.lengths = lengths
	for name, p := range f.pools {
		switch {
		case serving[name]:
			p.emptySince = time.Time{}
		case p.emptySince.IsZero():
			p.emptySince = now
		}
	}
}

// maxLengths bounds fleet.lengths of a pool: there is a lane for each of them.
const maxLengths = 8

// mostLengths sorts lengths, and returns each once. Of too many it returns the least and the longest.
func mostLengths(all []int64) []int64 {
	slices.Sort(all)
	all = slices.Compact(all)
	if len(all) > maxLengths {
		all = slices.Delete(all, 1, len(all)-maxLengths+1)
	}
	return all
}

// lengthsOf returns the lengths of the contexts of a pool's live workers, each once, in ascending order. They must not be
// changed.
func (f *fleet) lengthsOf(pool string) []int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lengths[pool]
}

// pool returns the state of a pool, and whether it has ever had a worker.
func (f *fleet) pool(name string) (p poolState, known bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p := f.pools[name]; p != nil {
		return *p, true
	}
	return poolState{}, false
}

// find returns the pool that a name means, and whether it has ever had a worker: the pool of that name, or else one whose
// name differs in what its engine does not distinguish. If there is none, it returns the name itself.
func (f *fleet) find(name string) (pool string, p poolState, known bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p := f.pools[name]; p != nil {
		return name, *p, true
	}
	plain := plainName(name)
	for other, state := range f.pools {
		if state.anyCase && plainName(other) == plain && (!known || other < pool) {
			pool, p, known = other, *state, true
		}
	}
	if !known {
		pool = name
	}
	return pool, p, known
}

// latest is the tag that Ollama adds to a name without one.
const latest = ":latest"

// plainName is the same for all names that an engine like Ollama takes for one model.
func plainName(name string) string { return strings.TrimSuffix(strings.ToLower(name), latest) }

// listed returns, for each pool, what the lists of all engines that serve it now say of its model.
func (f *fleet) listed() map[string]*subjects.ListedModel {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make(map[string]*subjects.ListedModel)
	for _, m := range f.workers {
		if !m.beat.Live() {
			continue
		}
		for i := range m.beat.Pools {
			p := &m.beat.Pools[i]
			said := p.Listed
			if said == nil {
				said = new(subjects.ListedModel)
			}
			if so := all[p.Pool]; so != nil {
				so.Agree(said)
			} else {
				first := *said
				all[p.Pool] = &first
			}
		}
	}
	return all
}

// worker returns a worker's last heartbeat; nil if it is unknown.
func (f *fleet) worker(id string) *subjects.Heartbeat {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m := f.workers[id]; m != nil {
		return m.beat
	}
	return nil
}

// live says whether a worker is known and accepts new requests.
func (f *fleet) live(id string) bool {
	w := f.worker(id)
	return w != nil && w.Live()
}

// lostFor is how long a worker is remembered whose heartbeats have stopped: what has stopped may be the gateway's own
// connection, and then its claims come again together with its heartbeats.
const lostFor = time.Minute

// lostShown is how long metrics show that a worker is lost, for those who look seldom.
const lostShown = 10 * time.Minute

// mayClaim says whether a worker is there and serves a pool, or one of those that spill over to it, by its last heartbeat. In
// its first moments a gateway does not know the workers yet, nor after a new connection.
func (f *fleet) mayClaim(id, pool string, spill []policy.Spill, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.workers[id]
	if lost := f.lost[id]; m == nil && lost != nil && now.Sub(lost.seen) <= lostFor {
		m = lost
	}
	if m == nil {
		return now.Sub(f.listens) < subjects.WorkerDeadline
	}
	return m.beat.State != subjects.Left &&
		(m.beat.Serves(pool) || slices.ContainsFunc(spill, func(s policy.Spill) bool { return m.beat.Serves(s.Pool) }))
}

const (
	// beatOverdue is how long after its last heartbeat a worker is silent. It counts as lost only after
	// subjects.WorkerDeadline: until then it keeps what it runs.
	beatOverdue = subjects.HeartbeatEvery + 200*time.Millisecond

	// bidsStay is how long after its last heartbeat the broker may serve bids of a worker.
	bidsStay = 10 * time.Second
)

// overdue says whether a heartbeat of a worker that is there is overdue.
func (f *fleet) overdue(worker string, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.workers[worker]
	return m != nil && now.Sub(m.seen) >= beatOverdue
}

// silent returns the pools for which a silent worker may have bids: those that it serves, and those that spill over to them.
func (f *fleet) silent(p *policy.Policy, now time.Time) (pools map[string]bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, workers := range []map[string]*member{f.workers, f.lost} {
		for _, m := range workers {
			if d := now.Sub(m.seen); d < beatOverdue || d > bidsStay || m.beat.State == subjects.Left {
				continue
			}
			if pools == nil {
				pools = make(map[string]bool)
			}
			for i := range m.beat.Pools {
				pools[m.beat.Pools[i].Pool] = true
			}
			for name, rules := range p.Pools {
				if slices.ContainsFunc(rules.Spill, func(s policy.Spill) bool { return m.beat.Serves(s.Pool) }) {
					pools[name] = true
				}
			}
		}
	}
	return pools
}

// started says whether a worker with a stable id is there.
func (f *fleet) started(stable string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id := range f.workers {
		if subjects.StableID(id) == stable {
			return true
		}
	}
	return false
}

// comeBack is how much longer a worker may be silent after this gateway has had a new connection: the broker may have been
// away, and the worker comes back later.
const comeBack = 2 * time.Second

// onConnected notes that heartbeats are received from now on.
func (f *fleet) onConnected(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.listens = now
}

// silentSinceLocked is since when the silence of a worker counts.
func (f *fleet) silentSinceLocked(m *member) time.Time {
	if back := f.listens.Add(comeBack); !m.heard.After(f.listens) && m.seen.Before(back) {
		return back
	}
	return m.seen
}

// others counts the live workers of a pool that are not to be avoided, and those of them with a free slot.
func (f *fleet) others(pool string, avoid map[string]bool) (live, free int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, m := range f.workers {
		if avoid[id] || !m.beat.Live() || !m.beat.Serves(pool) {
			continue
		}
		live++
		if m.beat.State == subjects.Ready && m.beat.InFlight < m.beat.Slots {
			free++
		}
	}
	return live, free
}

// placed is a pool at a worker, by its id.
type placed struct{ worker, pool string }

// hanging returns why engines no longer answer requests, by worker and pool.
func (f *fleet) hanging() map[placed]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var hanging map[placed]string
	for id, m := range f.workers {
		whole := m.beat.Hangs()
		for i := range m.beat.Pools {
			p := &m.beat.Pools[i]
			if !whole && p.Vitality != subjects.VitalityHung {
				continue
			}
			if hanging == nil {
				hanging = make(map[placed]string)
			}
			hanging[placed{id, p.Pool}] = cmp.Or(p.Failing, m.beat.Reason)
		}
	}
	return hanging
}

// room is how many requests of a pool the workers can start now that are not to be avoided.
func (f *fleet) room(pool string, avoid map[string]bool) (room int) {
	f.takers(pool, avoid, func(m *member) { room += max(m.beat.Slots-m.beat.InFlight-m.taken, 0) })
	return room
}

// places is the same with those that may wait for these workers: as many as they run at once.
func (f *fleet) places(pool string, avoid map[string]bool) (places int) {
	f.takers(pool, avoid, func(m *member) { places += m.beat.Slots + max(m.beat.Slots-m.beat.InFlight-m.taken, 0) })
	return places
}

// takers calls do with each worker that accepts requests of a pool and is not to be avoided.
func (f *fleet) takers(pool string, avoid map[string]bool, do func(*member)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, m := range f.workers {
		if !avoid[id] && m.beat.State == subjects.Ready && m.beat.Answers(pool) {
			do(m)
		}
	}
}

// gateways is how many gateways there are, this one included.
func (f *fleet) gateways(now time.Time) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	maps.DeleteFunc(f.peers, func(_ string, at time.Time) bool { return now.Sub(at) > peerDeadline })
	return len(f.peers) + 1
}

// models returns the pools that live workers serve, by name.
func (f *fleet) models() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for _, m := range f.workers {
		if m.beat.Live() {
			for i := range m.beat.Pools {
				names = append(names, m.beat.Pools[i].Pool)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// heartbeats returns the last heartbeat of each worker, by name.
func (f *fleet) heartbeats() []*subjects.Heartbeat {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make([]*subjects.Heartbeat, 0, len(f.workers))
	for _, m := range f.workers {
		list = append(list, m.beat)
	}
	slices.SortFunc(list, func(a, b *subjects.Heartbeat) int {
		return strings.Compare(a.Name+a.Worker, b.Name+b.Worker)
	})
	return list
}

// keepHomes says whether all workers keep the home lanes that references leave out, and how many workers have joined until now.
func (f *fleet) keepHomes() (keep bool, joined uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.workers {
		if !m.beat.KeepsHomes {
			return false, f.joined
		}
	}
	return true, f.joined
}

// references returns what workers need to know to price requests: for the pools whose consumers exist, which have these
// home lanes. cold are the pools whose model some worker would have to load.
func (f *fleet) references(homes map[string][]string) (refs map[string]subjects.PoolReference, cold map[string]bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	means, peers := make(map[string][]policy.Mean), make(map[string][]policy.Peer)
	for _, m := range f.workers {
		for i := range m.beat.Pools {
			p := &m.beat.Pools[i]
			means[p.Pool] = append(means[p.Pool], p.Mean)
			if m.beat.Live() && m.beat.Answers(p.Pool) {
				peers[p.Pool] = append(peers[p.Pool], m.beat.Peer(p))
			}
		}
	}
	refs, cold = make(map[string]subjects.PoolReference, len(homes)), make(map[string]bool)
	for pool, lanes := range homes {
		refs[pool] = subjects.PoolReference{Mean: policy.MeanOf(means[pool]), Usual: policy.Usual(peers[pool]), HomeLanes: lanes}
	}
	now := make(map[string]float64, len(refs)) // the lowest price of a pool under its load
	for _, m := range f.workers {
		if !m.beat.Live() {
			continue
		}
		for i := range m.beat.Pools {
			p := &m.beat.Pools[i]
			r, ok := refs[p.Pool]
			if !ok {
				continue
			}
			if p.Cold {
				cold[p.Pool] = true
			}
			if !p.Cold || p.WillLoad {
				r.Loaded++
			}
			r.Workers++
			r.Slots += m.beat.Slots
			r.Weight += m.beat.Weight
			if price, ok := p.Curve.Price(r.Mean, 1, 0); ok && m.beat.Weight > 0 {
				price /= m.beat.Weight
				loaded, _ := p.Curve.Price(r.Mean, m.beat.InFlight+1, float64(m.beat.Prefills))
				loaded /= m.beat.Weight
				if low, known := now[p.Pool]; !known || loaded < low {
					now[p.Pool] = loaded
				}
				if r.Price == 0 || price < r.Price {
					r.Price = price
				}
			}
			refs[p.Pool] = r
		}
	}
	for pool, r := range refs {
		if r.Price > 0 {
			r.Price = policy.Reference(r.Price, now[pool])
			refs[pool] = r
		}
	}
	return refs, cold
}

// free counts the workers of each pool that have a free slot, by the rung of their next bid.
func (f *fleet) free() map[string]*[policy.Rungs]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	free := make(map[string]*[policy.Rungs]int)
	for _, m := range f.workers {
		if m.beat.State != subjects.Ready || m.beat.InFlight >= m.beat.Slots {
			continue
		}
		for i := range m.beat.Pools {
			p := &m.beat.Pools[i]
			if free[p.Pool] == nil {
				free[p.Pool] = new([policy.Rungs]int)
			}
			free[p.Pool][min(max(p.Rung, 0), policy.Rungs-1)]++
		}
	}
	return free
}
