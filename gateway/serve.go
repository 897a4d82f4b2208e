package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// checkEvery is how often a waiting request checks whether it waits in the right queue.
const checkEvery = time.Second

// Why a request ends that is not answered, though its client is there.
var (
	errDeadline = errors.New("the request's deadline has passed")
	errStopping = errors.New("the gateway is shutting down")
	errKills    = errors.New("the request kills engines")
)

// errClientGone ends a request whose client went away. That is an outcome of its own, 499 in the log, and no failure.
var errClientGone = errors.New("client gone")

// server takes admitted requests from their queue to their end.
type server struct {
	cfg         *Config
	bus         *bus
	requests    *requests
	admission   *admission
	router      *router
	fleet       *fleet
	lanes       *lanes
	lengths     *lengths
	queues      *queues
	exchange    *exchange
	publisher   *publisher
	settlements *settlements
	keys        *keyring
	shifts      *shifts
	retries     *retries
	metrics     *metrics
	history     *history
	ledger      *ledger
	background  *background
	headers     *answerHeaders
}

// background is the work that no client waits for. Gateway.Run sets its context and waits for it.
type background struct {
	sync.WaitGroup
	ctx context.Context // ends with the gateway; fixed before the first request
}

// serve takes a request to its end: it puts it on the queue, writes its answer, tries again after a failure, and cleans up.
func (s *server) serve(ctx context.Context, w http.ResponseWriter, r *request) error {
	s.requests.add(r)
	r.caller.watch.on(r, s.bus)
	s.retries.first(r.target.Load().queue.pool, time.Now())
	ans := s.newAnswer(w, r)
	defer s.finish(ctx, r, ans)
	if err := s.enqueue(r); err != nil {
		return ans.refuse(s.clientError(ctx, r, err))
	}
	return s.follow(ctx, r, ans)
}

// enqueue publishes a request on the lane of its target, or has it held until its ticket is granted.
func (s *server) enqueue(r *request) error {
	r.laneSince = time.Now()
	at := r.target.Load()
	if r.ticket = at.queue.enqueue(at.lane, r.wire.Tenant, r.cost, r.laneSince); r.ticket != nil {
		s.exchange.publishChange(at.queue, r.laneSince)
		return nil
	}
	return s.publisher.publish(r)
}

// follow handles what happens to a request, until its answer has ended or its client is gone.
func (s *server) follow(ctx context.Context, r *request, ans *answer) error {
	progress := time.Now()                     // when something last came
	keepAlive := progress.Add(s.cfg.KeepAlive) // when a keep-alive may be due
	check := progress.Add(s.checkIn(r))        // when to check on the queue
	due, size := r.deadline, int64(0)          // when the client's patience ends, and what had come of the answer
	timer := time.NewTimer(time.Until(earliest(due, keepAlive, check)))
	defer timer.Stop()
	for {
		var granted <-chan struct{}
		if r.ticket != nil {
			granted = r.ticket.granted
		}
		select {
		case <-granted:
			r.ticket = nil
			if err := s.publisher.publish(r); err != nil {
				return ans.refuse(s.clientError(ctx, r, err))
			}
		case <-r.notify:
			if err := s.obey(ctx, r); err != nil {
				return ans.refuse(s.clientError(ctx, r, err))
			}
			done, err := s.onEvents(ctx, r, ans)
			if done || err != nil {
				return err
			}
			progress = time.Now()
			ans.observeGap(progress)
			switch {
			case ans.size > size:
				due, size = r.patience.until(r.arrived, progress), ans.size
			case ans.got == nil: // it waits for a worker, perhaps again
				check, due, size = progress.Add(s.checkIn(r)), r.deadline, 0
				timer.Reset(earliest(due, keepAlive, check).Sub(progress))
			}
		case <-ctx.Done():
			return ans.refuse(s.clientError(ctx, r, ctx.Err()))
		case <-timer.C:
			now := time.Now()
			if !now.Before(due) {
				return ans.refuse(s.clientError(ctx, r, errDeadline))
			}
			if !now.Before(keepAlive) {
				keepAlive = progress.Add(s.cfg.KeepAlive)
				if !now.Before(keepAlive) {
					if err := ans.keepAlive(now); err != nil {
						return err
					}
					keepAlive = now.Add(s.cfg.KeepAlive)
				}
			}
			if !now.Before(check) {
				if _, waits := r.waiting(); waits {
					if err := s.check(ctx, r); err != nil {
						return ans.refuse(s.clientError(ctx, r, err))
					}
					check = time.Now().Add(s.checkIn(r))
				} else { // if the attempt fails, the handler is woken
					check = now.Add(s.cfg.MaxDeadline)
				}
			}
			timer.Reset(time.Until(earliest(due, keepAlive, check)))
		}
	}
}

func earliest(times ...time.Time) time.Time { return slices.MinFunc(times, time.Time.Compare) }

// checkIn is the time until a waiting request has to be checked.
func (s *server) checkIn(r *request) time.Duration {
	in := checkEvery
	if limit := s.maxWait(r.target.Load()); limit > 0 && r.made() == 0 {
		in = min(in, max(limit-time.Since(r.arrived), 0)+time.Millisecond)
	}
	return in
}

// maxWait is the longest wait of a target's tier, by the policy in force; 0: there is none.
func (s *server) maxWait(at *target) time.Duration {
	if t, ok := s.bus.rules.Load().tiers[at.tier.Name]; ok {
		return time.Duration(t.MaxWait)
	}
	return time.Duration(at.tier.MaxWait)
}

// check handles what a waiting request is not woken for: the longest wait of its tier, an ack that is late, a fallback, a
// pool without a worker, a home lane that takes too long, and a message that the queue has lost.
func (s *server) check(ctx context.Context, r *request) error {
	now, at := time.Now(), r.target.Load()
	waited := now.Sub(r.arrived)
	if limit := s.maxWait(at); limit > 0 && waited >= limit && r.made() == 0 { // otherwise a worker did take it
		s.metrics.refusals.WithLabelValues(at.queue.pool, at.tier.Name, "max_wait").Inc()
		retry := at.queue.refuse(s.viewOf(at, now), policy.SoonestWait(limit), now)
		return &api.Error{Status: http.StatusTooManyRequests, Code: "queue_timeout", RetryAfter: retry,
			Message: fmt.Sprintf("no worker took the request within the %v that tier %s allows", limit, at.tier.Name)}
	}
	if s.publisher.ackIsLate(r, now) {
		return s.publisher.publishUntilStored(ctx, r, errNoAck)
	}
	s.lanes.check(at.queue.pool, at.lane, now)
	if pool := s.router.fallback(r, now); pool != "" {
		return s.move(ctx, r, pool, at.tier)
	}
	p, known := s.fleet.pool(at.queue.pool) // a route may lead to one that never had a worker
	if waited > s.cfg.NoWorkerWait && (!known || !p.emptySince.IsZero() && now.Sub(p.emptySince) > s.cfg.NoWorkerWait) {
		return api.Unavailable("no_worker", 10*time.Second, "no worker serves %s", api.Quote(r.wire.Model))
	}
	if waited > s.cfg.NoWorkerWait && now.Sub(s.lengths.lastFor(at.queue.pool, at.lane, now)) > s.cfg.NoWorkerWait {
		return api.Unavailable("no_worker", 10*time.Second, "no worker that has a context long enough for the request serves %s now", api.Quote(r.wire.Model))
	}
	if s.lengths.stale(at.queue.pool, at.lane, r.needs) {
		return s.move(ctx, r, at.queue.pool, at.tier)
	}
	if at.lane != subjects.Shared && !subjects.IsLongLane(at.lane) && !(r.pin != "" && subjects.StableID(r.pin) == at.lane && s.router.laneOfPin(s.bus.rules.Load().Policy, at.queue.pool, r.pin)) && now.Sub(r.laneSince) >= max(time.Duration(s.bus.rules.Load().Policy.Pools[at.queue.pool].StickFor), checkEvery) {
		return s.move(ctx, r, at.queue.pool, at.tier)
	}
	return s.publisher.publishIfLost(ctx, r)
}

// viewOf is the queue of a target as a new request would find it.
func (s *server) viewOf(at *target, now time.Time) policy.Queue {
	pool, _ := s.fleet.pool(at.queue.pool)
	return at.queue.view(at.tier, pool.slots, pool.free, now)
}

// obey does what other goroutines want the request's handler to do.
func (s *server) obey(ctx context.Context, r *request) error {
	o := r.takeOrders()
	err := o.err
	switch {
	case errors.Is(err, errKills):
		_, why := r.failures().After()
		return s.bury(r, why, "the engine died shortly after it")
	case err != nil:
	case o.notStored != nil:
		err = s.publisher.publishUntilStored(ctx, r, o.notStored)
	case o.republish:
		err = s.publisher.publish(r)
	}
	if err == nil && o.moveShared && r.ticket == nil && s.publisher.awaitAck(ctx, r, r.ackDue()) == 0 { // no worker bids on that lane: there is time to wait
		err = s.publisher.publishUntilStored(ctx, r, errNoAck)
	}
	if err != nil || !o.moveShared {
		return err
	}
	at, rules := r.target.Load(), s.bus.rules.Load()
	tier, ok := rules.tiers[at.tier.Name]
	if !ok {
		tier = rules.tiers[policy.DefaultTier]
	}
	return s.move(ctx, r, at.queue.pool, tier)
}

// move takes a waiting request to the shared lane of another queue, or of its own; if it is too long for some of the pool's
// workers, to the lane of those that can serve it. A request that a worker has claimed
// stays there. One that was delivered meanwhile is refused to that worker, by the sequence of its message: while that is
// unknown the request stays until the next check.
func (s *server) move(ctx context.Context, r *request, pool string, tier policy.Tier) error {
	published := r.ticket == nil
	if published && s.publisher.awaitAck(ctx, r, r.ackDue()) == 0 {
		return s.publisher.publishUntilStored(ctx, r, errNoAck)
	}
	left, moves := s.publisher.leaveBehind(r, published)
	if !moves {
		return nil
	}
	from := r.target.Load()
	if published {
		s.settlements.remove(context.WithoutCancel(ctx), r.wire.ID, left.stream, left.seq)
		if r.undelay() {
			from.queue.undelay(from.lane)
		}
		from.queue.withdraw(from.lane)
	} else {
		from.queue.cancel(r.ticket)
		r.ticket = nil
	}
	to := &target{queue: s.queues.get(pool, tier.Name), tier: tier, lane: cmp.Or(s.lengths.lane(pool, r.needs), subjects.Shared)}
	to.since = time.Now()
	to.join = to.queue.join(to.since)
	r.target.Store(to)
	r.record.moved(to)
	s.bus.log.Info("request moved", "id", r.wire.ID, "pool", pool, "tier", tier.Name, "lane", to.lane, "from_pool", from.queue.pool, "from_tier", from.tier.Name, "from_lane", from.lane)
	return s.enqueue(r)
}

// onEvents writes what has come to the client. It says whether the answer has ended.
func (s *server) onEvents(ctx context.Context, r *request, ans *answer) (done bool, err error) {
	events := r.take()
	for i, ev := range events {
		ev.parse()
		switch ev.Kind {
		case subjects.KindHead:
			err = ans.head(ev.Head)
		case subjects.KindData:
			err = ans.data(ev.Data, i == len(events)-1)
		case subjects.KindEnd:
			return true, ans.end(ev.End)
		case subjects.KindFail:
			return s.onFail(ctx, r, ans, ev)
		}
		if err != nil {
			return true, ans.refuse(err)
		}
	}
	return false, nil
}

// onFail decides what becomes of a request whose attempt failed, and does it.
func (s *server) onFail(ctx context.Context, r *request, ans *answer, ev event) (done bool, err error) {
	fail := ev.Fail
	if fail == nil {
		return true, ans.refuse(errMalformed)
	}
	defer ev.turn.onBack()
	a, at := r.current(), r.target.Load()
	class := failureClass(fail.Class, ev.crashed)
	s.metrics.attempts.WithLabelValues(at.queue.pool, at.tier.Name, class).Inc()
	r.record.attemptFailed(a, class)
	s.bus.log.Info("attempt failed", "id", r.wire.ID, "attempt", a.number, "worker", a.name, "class", fail.Class, "crashed", ev.crashed, "reason", fail.Reason, "after", time.Since(a.began))
	s.shifts.failed(r, fail.Class)
	s.router.affinity.forget(r.affinity, a.worker)
	if ans.begun {
		return true, ans.refuse(api.Errorf(http.StatusBadGateway, "upstream_lost", "the answer broke off: %s", fail.Reason))
	}
	history, refused := r.fail(a, fail.Class, ev.crashed)
	r.note(a, class, fail.Reason, time.Now())
	ours := fail.Class != subjects.FailRefused && fail.Class != subjects.FailMisfit && fail.Class != subjects.FailCredentials && fail.Class != subjects.FailDraining
	if ours && !ev.crashed {
		r.failedAt = append(r.failedAt, a.worker)
	}
	if ours && fail.Answer != nil {
		r.said = fail
	}
	if fail.Class == subjects.FailRefused || fail.Class == subjects.FailMisfit {
		live, _ := s.fleet.others(at.queue.pool, refused)
		history.AllRefused = live == 0
	}
	if fail.Class == subjects.FailMisfit {
		longer, away := true, false
		r.needs, longer, away = s.lengths.onMisfit(at.queue.pool, a.worker, fail, r.needs, refused)
		history.AllRefused = (history.AllRefused || !longer) && !away // it waits for the one that is away
	}
	next, why := history.After()
	// A crash is bounded by itself: no request is started again after two. What moves was counted before.
	if next == policy.Retry && ours && !ev.crashed && !ev.moved && fail.Class != subjects.FailCrashed && !s.retries.take(at.queue.pool, time.Now()) {
		s.metrics.refusals.WithLabelValues(at.queue.pool, at.tier.Name, "retry_budget").Inc()
		next, why = policy.DeadLetter, "too many requests of the pool fail for another attempt"
	}
	if next != policy.Retry {
		ans.w.Header().Set("X-Pulley-Attempts", strconv.Itoa(a.number))
	}
	switch next {
	case policy.Retry:
		ans.reset()
		if ours {
			s.metrics.retried(r, fail.Class, ev.crashed || ev.moved)
		}
		if err := s.retry(ctx, r, a, fail.Class, ev.crashed, ev.turn); err != nil {
			return true, ans.refuse(s.clientError(ctx, r, err))
		}
		return false, nil
	case policy.ReturnRefusal:
		return true, ans.giveBack(fail)
	default:
		s.bury(r, why, fail.Reason)
		if r.said != nil {
			if history.Crashes > 0 && r.said.Answer.Header != nil { // it may kill an engine with each retry of an SDK, too
				r.said.Answer.Header.Set("X-Should-Retry", "false")
			}
			return true, ans.giveBack(r.said)
		}
		return true, ans.refuse(deadLettered(r, why, fail.Reason))
	}
}

// bury makes a request a dead letter, and returns what its client is told.
func (s *server) bury(r *request, why, last string) *api.Error {
	if !r.unattended { // else it is a dead letter already, or a copy
		r.dead = true
		at := r.target.Load()
		s.metrics.dead.WithLabelValues(at.queue.pool, at.tier.Name).Inc()
		s.publisher.deadLetter(r, fmt.Sprintf("%s; last error: %s", why, last))
	}
	return deadLettered(r, why, last)
}

func deadLettered(r *request, why, last string) *api.Error {
	return &api.Error{Status: http.StatusBadGateway, Code: "dead_lettered", NoRetry: true,
		Message: fmt.Sprintf("%s; attempts: %d; last error: %s", why, r.made(), last)}
}

// mostTries bounds request.tries: refusals may be many.
const mostTries = 20

// note adds an attempt that failed to what is kept with a dead letter.
func (r *request) note(a *attempt, class, reason string, now time.Time) {
	if len(r.tries) == mostTries {
		r.tries = slices.Delete(r.tries, 0, 1)
	}
	r.tries = append(r.tries, fmt.Sprintf("attempt %d, worker %s, began %s, %s after %v: %s",
		a.number, a.name, a.began.UTC().Format(time.RFC3339), class, now.Sub(a.began).Round(time.Millisecond), reason))
}

// blame tells the workers that failed a request that another one has answered it.
func (s *server) blame(r *request, by *attempt, ans *answer) {
	if ans.got.Status >= http.StatusBadRequest {
		return
	}
	for _, worker := range r.failedAt {
		if worker != by.worker {
			s.bus.publish(subjects.WorkerBlame(worker), subjects.Blame{ID: r.wire.ID})
		}
	}
}

// deathShows is how long it takes until it is known that an engine that has failed a request is gone.
const deathShows = 1500 * time.Millisecond

// retry puts a request whose attempt a failed in front of its queue again, when it is its turn.
func (s *server) retry(ctx context.Context, r *request, a *attempt, class subjects.FailClass, crashed bool, turn *turn) error {
	at := r.target.Load()
	avoid := r.avoided()
	var delay time.Duration
	if live, _ := s.fleet.others(at.queue.pool, avoid); live == 0 { // give this one time to recover
		delay = policy.Pause(a.number, 0)
	}
	if h := r.failures(); h.Failures >= 2 && h.Crashes < h.Failures { // its engines may be about to die: the next one must not
		delay = max(delay, deathShows)
	}
	at.queue.requeue(at.lane)
	if delay > 0 {
		at.queue.delay(at.lane)
	}
	ack, others := r.retry(delay, time.Now())
	if crashed || class == subjects.FailTruncated || class == subjects.FailStalled {
		s.bus.cancelAttempt(a.worker, r.wire.ID, a.mark, subjects.FailedOver) // should it still run
	}
	for _, other := range others {
		s.settlements.settle(r.wire.ID, other, subjects.Term("stored twice"))
	}
	if err := s.publisher.handBack(ctx, r, ack, delay, turn); err != nil {
		return err
	}
	if long := s.lengths.lane(at.queue.pool, r.needs); at.lane != subjects.StableID(a.worker) && (long == "" || long == at.lane || class != subjects.FailMisfit) {
		return nil
	}
	return s.move(ctx, r, at.queue.pool, at.tier) // no other worker may bid on that lane
}

// clientError turns the reason for which a request ends into what its client is sent.
func (s *server) clientError(ctx context.Context, r *request, err error) error {
	if _, ok := errors.AsType[*api.Error](err); ok {
		return err
	}
	switch {
	case errors.Is(err, errQueueFull):
		at := r.target.Load()
		return s.admission.full(at, s.viewOf(at, time.Now()), 0, err.Error(), errQueueFull.Error())
	case errors.Is(err, errDeadline):
		where := "it was running"
		if _, waits := r.waiting(); waits {
			where = "it waited for a worker"
		}
		return r.patience.late(r.arrived, time.Now(), where)
	case ctx.Err() == nil:
		return err
	case errors.Is(context.Cause(ctx), errStopping):
		return api.Unavailable("gateway_stopping", time.Second, "the gateway is shutting down")
	}
	return errClientGone
}

// finish ends a request: what still waits or runs for it is stopped, and what its answer says is counted.
func (s *server) finish(ctx context.Context, r *request, ans *answer) {
	s.requests.remove(r)
	a, others := r.end()
	at := r.target.Load()
	for _, other := range others {
		s.settlements.settle(r.wire.ID, other, subjects.Term("stored twice"))
	}
	switch {
	case r.ticket != nil:
		at.queue.cancel(r.ticket)
		s.publisher.forgetAck(r)
	case a == nil:
		if r.undelay() {
			at.queue.undelay(at.lane)
		}
		at.queue.withdraw(at.lane)
		s.background.Go(func() { s.publisher.takeBackLast(s.background.ctx, r) }) // the client need not wait for the broker
	case ans.whole:
		s.blame(r, a, ans)
		s.publisher.forgetAck(r)
		s.settlements.settle(r.wire.ID, a.ack, subjects.Ack)
		now := time.Now()
		at.queue.observeService(now.Sub(a.began), now)
	default:
		s.publisher.forgetAck(r)
		s.bus.cancelAttempt(a.worker, r.wire.ID, a.mark, "request ended")
		s.settlements.settle(r.wire.ID, a.ack, subjects.Term("request ended"))
	}
	if ans.whole {
		s.lengths.learn(at.queue.pool, r.needs, ans.usage.InputTokens)
	}
	s.keys.end(r.caller, ans.usage.InputTokens, ans.usage.OutputTokens, time.Now())
	gone := ctx.Err() != nil
	if r.route != nil {
		s.shifts.observe(r, ans, gone)
	}
	s.metrics.ended(r, ans, a != nil, gone)
	r.record.ended(r, a, ans, gone)
	s.history.finished(r, ans, a, gone)
	s.ledger.finished(r, ans, a, gone)
}
