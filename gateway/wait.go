package gateway

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	// lookAfter is how often a waiting request looks whether anybody could serve it.
	lookAfter = time.Second

	// lookInQueue is how often it looks whether the queue still has it.
	lookInQueue = 15 * time.Second
)

// queueUp puts a request on the queue of its place, or has it wait here for its
// turn to go there.
func (g *Gateway) queueUp(f *flight) error {
	f.since = time.Now()
	at := f.at()
	if f.ticket = at.queue.enqueue(at.lane, f.req.Tenant, f.cost, f.since); f.ticket != nil {
		g.exchange.publishChange(at.queue, f.since)
		return nil
	}
	return g.publish(f)
}

// follow writes what comes back, until the answer ends or the client does.
func (g *Gateway) follow(ctx context.Context, f *flight, ans *answer) error {
	moved := time.Now()                 // when something last came
	quiet := moved.Add(g.cfg.KeepAlive) // when to see whether a keep-alive is due
	look := moved.Add(f.lookIn())       // when to look, while it waits
	alarm := g.alarm(earliest(f.until, quiet, look).Sub(moved))
	defer g.silence(alarm)
	for {
		var granted <-chan struct{}
		if f.ticket != nil {
			granted = f.ticket.granted
		}
		select {
		case <-granted:
			f.ticket = nil
			if err := g.publish(f); err != nil {
				return ans.refuse(g.ended(ctx, f, err))
			}
		case <-f.notify:
			if err := g.ordered(ctx, f); err != nil {
				return ans.refuse(g.ended(ctx, f, err))
			}
			done, err := g.progress(ctx, f, ans)
			if done || err != nil {
				return err
			}
			moved = time.Now()
			if ans.got == nil { // it waits again
				look = moved.Add(f.lookIn())
				alarm.Reset(earliest(f.until, quiet, look).Sub(moved))
			}
		case <-ctx.Done():
			return ans.refuse(g.ended(ctx, f, ctx.Err()))
		case <-alarm.C:
			now := time.Now()
			if !now.Before(f.until) {
				return ans.refuse(g.ended(ctx, f, errDeadline))
			}
			if !now.Before(quiet) {
				quiet = moved.Add(g.cfg.KeepAlive)
				if !now.Before(quiet) {
					if err := ans.keepAlive(f.at().queue.position(f.at().join, now)); err != nil {
						return err
					}
					quiet = now.Add(g.cfg.KeepAlive)
				}
			}
			if !now.Before(look) {
				if _, queued := f.queued(); queued {
					if err := g.look(ctx, f); err != nil {
						return ans.refuse(g.ended(ctx, f, err))
					}
					look = time.Now().Add(f.lookIn())
				} else { // should the attempt fail, it looks again
					look = f.until
				}
			}
			alarm.Reset(time.Until(earliest(f.until, quiet, look)))
		}
	}
}

// alarm is a timer that goes off after d.
func (g *Gateway) alarm(d time.Duration) *time.Timer {
	t, ok := g.alarms.Get().(*time.Timer)
	if !ok {
		return time.NewTimer(d)
	}
	t.Reset(d)
	return t
}

// silence lets another request have a timer.
func (g *Gateway) silence(t *time.Timer) {
	t.Stop()
	g.alarms.Put(t)
}

func earliest(a, b, c time.Time) time.Time {
	if b.Before(a) {
		a = b
	}
	if c.Before(a) {
		a = c
	}
	return a
}

// lookIn is when a waiting request has to look what has become of its queue.
func (f *flight) lookIn() time.Duration {
	in := lookAfter
	if most := time.Duration(f.at().tier.MaxWait); most > 0 {
		in = min(in, max(most-time.Since(f.arrived), 0)+time.Millisecond)
	}
	return in
}

// look sees to a request that waits: whether it may go on to, and where.
func (g *Gateway) look(ctx context.Context, f *flight) error {
	now, at := time.Now(), f.at()
	waited := now.Sub(f.arrived)
	if most := time.Duration(at.tier.MaxWait); most > 0 && waited >= most {
		g.metrics.refused(at.pool, at.tier.Name, "max_wait")
		return &api.Error{Status: http.StatusTooManyRequests, Code: "queue_timeout", RetryAfter: time.Second,
			Message: fmt.Sprintf("no worker took the request within the %v that tier %s allows", most, at.tier.Name)}
	}
	if f.noWord(now) {
		return g.persist(ctx, f, errNoWord)
	}
	g.lanes.check(at.pool, at.lane, now)
	if pool := g.betterPool(f, waited, now); pool != "" {
		return g.move(ctx, f, pool, at.tier, subjects.Shared)
	}
	if p, _ := g.fleet.pool(at.pool); !p.emptySince.IsZero() && now.Sub(p.emptySince) > g.cfg.NoWorkerWait && waited > g.cfg.NoWorkerWait {
		return api.Unavailable("no_worker", 10*time.Second, "no worker serves %s", api.Quote(f.req.Model))
	}
	if at.lane != subjects.Shared && now.Sub(f.since) >= max(time.Duration(g.rules.Load().Policy.Pools[at.pool].StickFor), lookAfter) {
		return g.move(ctx, f, at.pool, at.tier, subjects.Shared)
	}
	return g.stillQueued(ctx, f)
}

// betterPool is the fallback that a waiting request should go to; "" if it
// should stay.
func (g *Gateway) betterPool(f *flight, waited time.Duration, now time.Time) string {
	if f.route == nil || len(f.route.Fallback) == 0 {
		return ""
	}
	at := f.at()
	after := time.Duration(f.route.FallbackAfter)
	if p, _ := g.fleet.pool(at.pool); p.slots > 0 && (after == 0 || waited < after) {
		return ""
	}
	for _, pool := range f.route.Fallback {
		if pool == at.pool {
			return "" // it is as far as it can get
		}
		if g.serves(f.route, pool, now) {
			return pool
		}
	}
	return ""
}

// ordered does what was decided outside of the request's handler.
func (g *Gateway) ordered(ctx context.Context, f *flight) error {
	f.mu.Lock()
	err, unstored, lost, move := f.purged, f.unstored, f.lost && f.current == nil, f.move
	f.unstored, f.lost, f.move = nil, false, false
	f.mu.Unlock()
	switch {
	case err != nil:
	case unstored != nil:
		err = g.persist(ctx, f, unstored)
	case lost:
		err = g.publish(f)
	}
	if err == nil && move && f.ticket == nil && g.await(ctx, f, f.until) == 0 { // nobody bids where it is: there is time to find out
		err = g.persist(ctx, f, errNoWord)
	}
	if err != nil || !move {
		return err
	}
	at := f.at()
	tier, ok := g.rules.Load().tiers[at.tier.Name]
	if !ok {
		tier = g.rules.Load().tiers[policy.DefaultTier]
	}
	return g.move(ctx, f, at.pool, tier, subjects.Shared)
}

// move takes a waiting request to another queue. One that a worker has claimed
// stays with it; one that was delivered meanwhile is refused there, for which it
// takes the sequence of its message: without that it stays, until the next look.
func (g *Gateway) move(ctx context.Context, f *flight, pool string, tier policy.Tier, lane string) error {
	from := f.at()
	if f.ticket == nil && g.await(ctx, f, f.until) == 0 {
		return g.persist(ctx, f, errNoWord)
	}
	to := place{pool: pool, tier: tier, lane: lane, queue: g.queues.get(pool, tier.Name)}
	now := time.Now()
	f.mu.Lock()
	if f.over || f.current != nil {
		f.mu.Unlock()
		return nil
	}
	seq := f.seq
	if f.ticket == nil {
		f.left = leftover{stream: subjects.ReqStream(from.tier.Name), seq: seq}
	}
	f.seq, f.lost = 0, false
	f.mu.Unlock()
	if f.ticket != nil {
		from.queue.cancel(f.ticket)
		f.ticket = nil
	} else {
		g.takeBack(f, f.left.stream, seq)
		from.queue.withdraw(from.lane)
	}
	to.join = to.queue.join(now)
	f.where.Store(&to)
	g.log.Info("request moved", "id", f.req.ID, "pool", pool, "tier", tier.Name, "lane", lane, "from_pool", from.pool, "from_tier", from.tier.Name, "from_lane", from.lane)
	return g.queueUp(f)
}

// stillQueued publishes a request again that waits for long and that the
// queue, against its word, no longer has.
func (g *Gateway) stillQueued(ctx context.Context, f *flight) error {
	now := time.Now()
	if now.Sub(f.inQueue) < lookInQueue {
		return nil
	}
	f.inQueue = now
	seq, queued := f.queued()
	if !queued || seq == 0 {
		return nil
	}
	there, err := g.holds(ctx, f, subjects.ReqStream(f.at().tier.Name), seq)
	if there || err != nil {
		return nil // not knowing is no reason to run it twice
	}
	g.log.Warn("the queue lost a request; publishing it again", "id", f.req.ID)
	return g.publish(f)
}
