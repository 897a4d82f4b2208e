package gateway

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	// cheapAttempts is at how many workers a cheap call is tried.
	cheapAttempts = 2

	// maxCheapWaiting bounds the cheap calls of a gateway that wait because each worker runs as many as it may.
	maxCheapWaiting = 1024

	// fewCheap is what a gateway may have at each worker, however many gateways there are.
	fewCheap = 4

	// cheapLook is how often a waiting cheap call looks for a worker that has joined, or may run more.
	cheapLook = 250 * time.Millisecond
)

// cheapCalls serves the calls for which an engine generates nothing: see api.Cheap. Such a call needs no slot. So it waits
// in no queue and does not go through one: the gateway sends it straight to a worker that has the model loaded, which calls
// its engine beside all that runs there. A worker may run a number of them at once, which its heartbeat says; the gateways
// divide it among themselves, and what is beyond waits here, in the order of arrival.
//
// Where no worker takes calls, or the pool is paused, a cheap call is a request like any other.
type cheapCalls struct {
	ledger    *ledger
	bus       *bus
	requests  *requests
	fleet     *fleet
	admission *admission
	server    *server
	keys      *keyring
	metrics   *metrics

	mu      sync.Mutex
	running map[string]int // by worker's id
	waiting []*cheapTurn   // the longest wait first
}

// cheapTurn is a cheap call that waits.
type cheapTurn struct {
	pool    string
	tried   map[string]bool // ids of the workers that failed it
	granted chan string     // the id of its worker; capacity 1
}

// cheapWorker is a worker as cheap calls see it.
type cheapWorker struct {
	id, name string
	share    int  // of this gateway, in the calls that it runs at once
	last     bool // only if no other has the pool: it pauses, or requests of the pool fail there
}

func newCheapCalls(s *server) *cheapCalls {
	return &cheapCalls{
		bus: s.bus, requests: s.requests, fleet: s.fleet, admission: s.admission, server: s, keys: s.keys, metrics: s.metrics, ledger: s.ledger,
		running: make(map[string]int),
	}
}

// cheapWorkers are the workers that take cheap calls of a pool, the better ones only.
func (f *fleet) cheapWorkers(pool string, tried map[string]bool, now time.Time) []cheapWorker {
	gateways := f.gateways(now)
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []cheapWorker
	for id, m := range f.workers {
		at := slices.IndexFunc(m.beat.Pools, func(p subjects.PoolStatus) bool { return p.Pool == pool })
		if at < 0 || tried[id] || !m.beat.Live() || m.beat.Calls == 0 || !m.beat.Pools[at].Loaded() {
			continue
		}
		share := min(max(m.beat.Calls/gateways, fewCheap), m.beat.Calls)
		list = append(list, cheapWorker{id, m.beat.Name, share, m.beat.State != subjects.Ready || m.beat.Pools[at].Failing != ""})
	}
	if slices.ContainsFunc(list, func(w cheapWorker) bool { return !w.last }) {
		list = slices.DeleteFunc(list, func(w cheapWorker) bool { return w.last })
	}
	return list
}

// takes says whether a call of a pool can be served as a cheap one now.
func (c *cheapCalls) takes(path, pool string) bool {
	return api.Cheap(path) && !c.bus.rules.Load().Policy.Pools[pool].Paused && len(c.fleet.cheapWorkers(pool, nil, time.Now())) > 0
}

// serve takes a cheap call to its end.
func (c *cheapCalls) serve(ctx context.Context, w http.ResponseWriter, r *request) error {
	c.requests.add(r)
	ans := c.server.newAnswer(w, r)
	tried := make(map[string]bool)
	for len(tried) < cheapAttempts {
		worker, err := c.take(ctx, r, tried)
		if err != nil {
			defer c.finish(ctx, r, ans)
			return ans.refuse(c.server.clientError(ctx, r, err))
		}
		if worker.id == "" {
			break
		}
		tried[worker.id] = true
		again, err := c.callAt(ctx, r, ans, worker, len(tried) < cheapAttempts)
		c.give(worker.id)
		if !again {
			defer c.finish(ctx, r, ans)
			return err
		}
		ans.reset()
	}
	if r.said != nil || r.failures().Failures >= cheapAttempts {
		defer c.finish(ctx, r, ans)
		return c.giveUp(r, ans)
	}
	return c.enqueue(ctx, w, r)
}

// enqueue serves a cheap call that no worker could take as a request like any other.
func (c *cheapCalls) enqueue(ctx context.Context, w http.ResponseWriter, r *request) error {
	body, history := r.piece(0), r.failures()
	c.requests.remove(r)
	r.end()
	s := r.spec
	s.cheap = false
	again, err := c.admission.enter(&s, body)
	if err != nil {
		c.keys.end(r.caller, 0, 0, time.Now())
		return err
	}
	again.history.Failures, again.history.Crashes = history.Failures, history.Crashes
	c.metrics.cheap.WithLabelValues(s.admitted.queue.pool, "queued").Inc()
	return c.server.serve(ctx, w, again)
}

// take counts a call at the worker that runs the smallest part of what it may. While all that have not failed it are full,
// it waits. It returns nothing if there is none.
func (c *cheapCalls) take(ctx context.Context, r *request, tried map[string]bool) (cheapWorker, error) {
	pool := r.target.Load().queue.pool
	turn := &cheapTurn{pool: pool, tried: tried, granted: make(chan string, 1)}
	workers := c.fleet.cheapWorkers(pool, tried, time.Now())
	worker, waits, waiting := c.begin(turn, workers)
	switch {
	case worker.id != "" || len(workers) == 0:
		return worker, nil
	case !waits:
		return worker, c.full(r, fmt.Sprintf("the workers of %s run as many calls of this kind as they may, and %d others wait", api.Quote(pool), waiting))
	}
	look := time.NewTicker(cheapLook)
	defer look.Stop()
	deadline := time.NewTimer(time.Until(r.deadline))
	defer deadline.Stop()
	for {
		var err error
		select {
		case id := <-turn.granted:
			return c.granted(id), nil
		case <-look.C:
			if workers = c.fleet.cheapWorkers(pool, tried, time.Now()); len(workers) > 0 {
				if worker := c.again(turn, workers); worker.id != "" {
					return worker, nil
				}
				continue
			}
		case <-r.notify:
			if err = r.takeOrders().err; err == nil {
				continue
			}
		case <-ctx.Done():
			err = ctx.Err()
		case <-deadline.C:
			err = errDeadline
		}
		if id := c.leave(turn); id != "" {
			if err == nil {
				return c.granted(id), nil
			}
			c.give(id)
		}
		return cheapWorker{}, err
	}
}

func (c *cheapCalls) full(r *request, why string) *api.Error {
	at := r.target.Load()
	c.metrics.refusals.WithLabelValues(at.queue.pool, at.tier.Name, "full").Inc()
	return &api.Error{Status: http.StatusTooManyRequests, Code: "queue_full", Message: why, RetryAfter: time.Second}
}

// granted is the worker that a waiting call got.
func (c *cheapCalls) granted(id string) cheapWorker {
	w := cheapWorker{id: id, name: id}
	if beat := c.fleet.worker(id); beat != nil {
		w.name = beat.Name
	}
	return w
}

// begin counts a call at one of the workers. If all are full, the call joins those that wait, unless there are too many.
func (c *cheapCalls) begin(turn *cheapTurn, workers []cheapWorker) (w cheapWorker, waits bool, waiting int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w = c.bestLocked(workers); w.id != "" || len(workers) == 0 {
		return w, false, 0
	}
	if waiting = len(c.waiting); waiting >= maxCheapWaiting {
		return w, false, waiting
	}
	c.waiting = append(c.waiting, turn)
	return w, true, waiting
}

// again counts a waiting call at one of the workers, if one has room.
func (c *cheapCalls) again(turn *cheapTurn, workers []cheapWorker) (w cheapWorker) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := slices.Index(c.waiting, turn)
	if at < 0 { // it was granted a worker just now
		return w
	}
	if w = c.bestLocked(workers); w.id != "" {
		c.waiting = slices.Delete(c.waiting, at, at+1)
	}
	return w
}

func (c *cheapCalls) bestLocked(workers []cheapWorker) (best cheapWorker) {
	rand.Shuffle(len(workers), func(i, j int) { workers[i], workers[j] = workers[j], workers[i] })
	for _, w := range workers {
		if c.running[w.id] < w.share && (best.id == "" || c.running[w.id]*best.share < c.running[best.id]*w.share) {
			best = w
		}
	}
	if best.id != "" {
		c.running[best.id]++
	}
	return best
}

// leave ends a wait. It returns the id of the worker that the call was granted meanwhile.
func (c *cheapCalls) leave(turn *cheapTurn) (worker string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at := slices.Index(c.waiting, turn); at >= 0 {
		c.waiting = slices.Delete(c.waiting, at, at+1)
		return ""
	}
	return <-turn.granted
}

// give takes back what take has counted at a worker, and lets the next call begin there.
func (c *cheapCalls) give(worker string) {
	beat := c.fleet.worker(worker)
	c.mu.Lock()
	defer c.mu.Unlock()
	next := -1
	if beat != nil && beat.Live() {
		next = slices.IndexFunc(c.waiting, func(t *cheapTurn) bool { return !t.tried[worker] && beat.Serves(t.pool) })
	}
	if next >= 0 {
		turn := c.waiting[next]
		c.waiting = slices.Delete(c.waiting, next, next+1)
		turn.granted <- worker
		return
	}
	if c.running[worker]--; c.running[worker] <= 0 {
		delete(c.running, worker)
	}
}

// callAt sends the call to a worker and writes its answer. again says that another worker should be tried; more that it may.
func (c *cheapCalls) callAt(ctx context.Context, r *request, ans *answer, worker cheapWorker, more bool) (again bool, err error) {
	a := r.give(worker.id, worker.name, time.Now())
	m, err := r.wire.Call(worker.id, a.mark, r.piece(0))
	if err == nil {
		err = c.bus.nc.PublishMsg(m)
	}
	if err != nil {
		return false, ans.refuse(err)
	}
	fail, crashed, err := c.follow(ctx, r, ans)
	if fail == nil {
		return false, err
	}
	at := r.target.Load()
	class := failureClass(fail.Class, crashed)
	c.metrics.attempts.WithLabelValues(at.queue.pool, at.tier.Name, class).Inc()
	r.record.attemptFailed(a, class)
	c.bus.log.Info("attempt failed", "id", r.wire.ID, "attempt", a.number, "worker", a.name, "class", fail.Class, "crashed", crashed, "reason", fail.Reason, "after", time.Since(a.began))
	c.bus.cancelAttempt(a.worker, r.wire.ID, a.mark, "failed over")
	if ans.begun {
		return false, ans.refuse(api.Errorf(http.StatusBadGateway, "upstream_lost", "the answer broke off: %s", fail.Reason))
	}
	r.fail(a, fail.Class, crashed)
	r.reason = fail.Reason
	if fail.Answer != nil || fail.Class == subjects.FailRefused {
		r.said = fail
	}
	engine := fail.Class == subjects.FailEngine || fail.Class == subjects.FailTruncated || fail.Class == subjects.FailStalled
	if more && engine && !crashed && !c.server.retries.take(at.queue.pool, time.Now()) {
		return false, c.giveUp(r, ans)
	}
	r.retry(0, time.Now())
	if more && engine {
		c.metrics.retried(r, fail.Class, crashed)
	}
	return true, nil
}

// giveUp answers a call whose every attempt has failed.
func (c *cheapCalls) giveUp(r *request, ans *answer) error {
	ans.w.Header().Set("X-Pulley-Attempts", strconv.Itoa(r.made()))
	switch {
	case r.said == nil:
	case r.said.Answer != nil:
		return ans.giveBack(r.said)
	default: // only workers refuse without an answer of their engine
		return ans.refuse(c.full(r, r.said.Reason))
	}
	return ans.refuse(&api.Error{Status: http.StatusBadGateway, Code: "upstream_error", NoRetry: true,
		Message: fmt.Sprintf("every attempt failed; attempts: %d; last error: %s", r.made(), r.reason)})
}

// follow writes what comes of an attempt to the client, until its answer has ended or it has failed.
func (c *cheapCalls) follow(ctx context.Context, r *request, ans *answer) (fail *subjects.Fail, crashed bool, err error) {
	due, size := r.deadline, int64(0)
	timer := time.NewTimer(time.Until(due))
	defer timer.Stop()
	for {
		select {
		case <-r.notify:
			if err := r.takeOrders().err; err != nil {
				return nil, false, ans.refuse(err)
			}
			events := r.take()
			for i, ev := range events {
				ev.parse()
				switch ev.Kind {
				case subjects.KindHead:
					err = ans.head(ev.Head)
				case subjects.KindData:
					err = ans.data(ev.Data, i == len(events)-1)
				case subjects.KindEnd:
					return nil, false, ans.end(ev.End)
				case subjects.KindFail:
					if ev.Fail == nil {
						return nil, false, ans.refuse(errMalformed)
					}
					return ev.Fail, ev.crashed, nil
				}
				if err != nil {
					return nil, false, ans.refuse(err)
				}
			}
			if ans.size > size {
				due, size = r.patience.until(r.arrived, time.Now()), ans.size
				timer.Reset(time.Until(due))
			}
		case <-ctx.Done():
			return nil, false, ans.refuse(c.server.clientError(ctx, r, ctx.Err()))
		case <-timer.C:
			return nil, false, ans.refuse(c.server.clientError(ctx, r, errDeadline))
		}
	}
}

// finish ends a call: what still runs for it is stopped.
func (c *cheapCalls) finish(ctx context.Context, r *request, ans *answer) {
	c.requests.remove(r)
	a, _ := r.end()
	gone := ctx.Err() != nil
	if a != nil && !ans.whole {
		c.bus.cancelAttempt(a.worker, r.wire.ID, a.mark, "request ended")
	}
	c.keys.end(r.caller, 0, 0, time.Now())
	c.metrics.cheap.WithLabelValues(r.target.Load().queue.pool, string(ans.outcome(gone))).Inc()
	r.record.ended(r, a, ans, gone)
	c.ledger.finished(r, ans, a, gone)
}

// give makes an attempt of a cheap call at the worker that the gateway has chosen. No delivery is behind it.
func (r *request) give(worker, name string, now time.Time) *attempt {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.attempts++
	r.attempt = &attempt{mark: rand.Uint64(), worker: worker, name: name, number: r.attempts, began: now, listed: now}
	r.claimed = now
	return r.attempt
}

// onUncalled fails an attempt whose call no worker received.
func (r *request) onUncalled(mark uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a := r.attempt; a != nil && a.mark == mark {
		r.failAttemptLocked(subjects.FailDraining, "worker "+a.name+" is gone", false)
	}
}

// made is how many attempts were granted so far.
func (r *request) made() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.attempts
}

func (r *request) failures() policy.History {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.history
}
