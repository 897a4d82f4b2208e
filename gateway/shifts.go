package gateway

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

// shifts counts the results of the pools of shifting routes, here and at the other gateways, and takes the steps of the
// shifts. Every gateway tries to take a step; the policy's store lets one of them succeed. Counts are lost with the gateway
// that made them; steps are in the policy.
type shifts struct {
	bus *bus

	mu      sync.Mutex
	own     map[string]*stepResults // by route
	seen    map[string]seenStep     // by route
	reports map[string]peerResults  // by gateway
}

// seenStep is when a step began, by this gateway's clock.
type seenStep struct{ since, at time.Time }

// clocksAgree is how far apart clocks may be that count as the same.
const clocksAgree = 5 * time.Second

// beganLocked is when the present step of a running shift began, by this gateway's clock: the step was stamped by the clock of who
// took it. A step that followed another one here began just now. Of one that was there before the gateway only the stamp is known.
func (s *shifts) beganLocked(name string, r policy.Route, now time.Time) time.Time {
	since := r.Shift.Since
	was, known := s.seen[name]
	if known && was.since.Equal(since) {
		return was.at
	}
	at := since
	if ago := now.Sub(since); ago < 0 || known && ago > clocksAgree {
		at = now
	}
	if s.seen == nil {
		s.seen = make(map[string]seenStep)
	}
	s.seen[name] = seenStep{since, at}
	return at
}

func (s *shifts) began(name string, r policy.Route, now time.Time) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.beganLocked(name, r, now)
}

// since is a running shift whose present step began at a time of this gateway's clock.
func since(r policy.Route, at time.Time) policy.Route {
	shift := *r.Shift
	shift.Since = at
	r.Shift = &shift
	return r
}

// stepResults are the results of a route's pools since a step began.
type stepResults struct {
	since time.Time
	pools map[string]*policy.Side
}

type peerResults struct {
	subjects.ShiftReport
	at time.Time
}

func newShifts(b *bus) *shifts {
	return &shifts{bus: b, own: make(map[string]*stepResults), reports: make(map[string]peerResults)}
}

// observe counts a request that has ended. One that its client gave up (gone), and one of which a failure is counted
// already, do not count.
func (s *shifts) observe(r *request, ans *answer, gone bool) {
	if r.route == nil || !ans.whole && (r.failureCounted || gone) {
		return
	}
	now := time.Now()
	first := r.firstByte
	if first.IsZero() {
		first = now
	}
	good := ans.whole && ans.got.Status < http.StatusInternalServerError
	s.add(r, good, first.Sub(r.arrived), now.Sub(r.arrived))
}

// failed counts a failed attempt, whatever becomes of the request on another worker.
func (s *shifts) failed(r *request, class subjects.FailClass) {
	if r.route == nil || class == subjects.FailRefused || class == subjects.FailDraining {
		return
	}
	r.failureCounted = true
	s.add(r, false, 0, 0)
}

// add counts a result for the pool that a request is in, if its route is shifting.
func (s *shifts) add(r *request, good bool, ttft, e2e time.Duration) {
	route, ok := s.bus.rules.Load().Policy.Routes[r.routeName]
	if !ok || !shifting(route) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.arrived.Before(s.beganLocked(r.routeName, route, time.Now())) {
		return
	}
	own := s.own[r.routeName]
	if own == nil || !own.since.Equal(route.Shift.Since) {
		own = &stepResults{since: route.Shift.Since, pools: make(map[string]*policy.Side)}
		s.own[r.routeName] = own
	}
	pool := r.target.Load().queue.pool
	if own.pools[pool] == nil {
		own.pools[pool] = new(policy.Side)
	}
	own.pools[pool].Observe(good, ttft, e2e)
}

func shifting(r policy.Route) bool {
	return r.Shift != nil && r.Shift.State == policy.ShiftRunning
}

func (s *shifts) onReport(m *nats.Msg) {
	var report subjects.ShiftReport
	if subjects.Unmarshal(m.Data, &report) != nil || report.Gateway == s.bus.id {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reports[report.Gateway] = peerResults{report, time.Now()}
}

// run reports what is counted here and takes the steps that are due, until ctx is done.
func (s *shifts) run(ctx context.Context) {
	every(ctx, subjects.ShiftEvery, func() {
		running := make(map[string]policy.Route)
		for name, r := range s.bus.rules.Load().Policy.Routes {
			if shifting(r) {
				running[name] = r
			}
		}
		if report := s.report(running); len(running) > 0 {
			s.bus.publish(subjects.ShiftReports, report)
		}
		for name, r := range running {
			if err := s.step(ctx, name, r); err != nil && ctx.Err() == nil {
				s.bus.log.Warn("route shift step failed", "route", name, "err", err)
			}
		}
	})
}

// report returns what was counted here, and forgets the steps that are over.
func (s *shifts) report(running map[string]policy.Route) subjects.ShiftReport {
	s.mu.Lock()
	defer s.mu.Unlock()
	report := subjects.ShiftReport{Gateway: s.bus.id, Routes: make(map[string]map[string]policy.Side), Since: make(map[string]time.Time)}
	for name, own := range s.own {
		if r, ok := running[name]; !ok || !r.Shift.Since.Equal(own.since) {
			delete(s.own, name)
			continue
		}
		pools := make(map[string]policy.Side, len(own.pools))
		for pool, side := range own.pools {
			pools[pool] = *side
		}
		report.Routes[name], report.Since[name] = pools, own.since
	}
	if len(running) == 0 {
		clear(s.reports)
	}
	maps.DeleteFunc(s.seen, func(name string, _ seenStep) bool { return running[name].Shift == nil })
	return report
}

// total returns the results of the new pool of a shift and of the others, from all gateways.
func (s *shifts) total(name string, r policy.Route) (canary, stable policy.Side) {
	s.mu.Lock()
	defer s.mu.Unlock()
	add := func(pool string, side policy.Side) {
		if pool == r.Shift.To {
			canary.Merge(side)
		} else {
			stable.Merge(side)
		}
	}
	if own := s.own[name]; own != nil && own.since.Equal(r.Shift.Since) {
		for pool, side := range own.pools {
			add(pool, *side)
		}
	}
	for _, p := range s.reports {
		if p.Since[name].Equal(r.Shift.Since) {
			for pool, side := range p.Routes[name] {
				add(pool, side)
			}
		}
	}
	return canary, stable
}

// step takes a route's next step if it is due.
func (s *shifts) step(ctx context.Context, name string, r policy.Route) error {
	canary, stable := s.total(name, r)
	began := s.began(name, r, time.Now())
	_, what := since(r, began).Step(canary, stable, time.Now())
	if what == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	store, err := policystore.Open(ctx, s.bus.nc)
	if err != nil {
		return err
	}
	errTaken := errors.New("another gateway took the step")
	_, err = store.Update(ctx, "gateway "+s.bus.id, fmt.Sprintf("route shift %s: %s", name, what), func(p *policy.Policy) error {
		now, ok := p.Routes[name]
		if !ok || !shifting(now) || !now.Shift.Since.Equal(r.Shift.Since) {
			return errTaken
		}
		next, what := since(now, began).Step(canary, stable, time.Now())
		if what == "" {
			return errTaken
		}
		p.Routes[name] = next
		return nil
	})
	if errors.Is(err, errTaken) {
		return nil
	}
	if err == nil {
		s.bus.log.Info("route shifted", "route", name, "step", what)
		s.bus.event(subjects.Event{Kind: subjects.EventShift, Model: name, Text: fmt.Sprintf("route %s: %s", name, what)})
	}
	return err
}
