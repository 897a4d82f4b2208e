package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

// shifts counts how the sides of shifting routes do, here and at the other
// gateways, and takes the steps. Every gateway tries to; the policy's store lets
// one of them through. What is counted is lost with the gateway that counted it;
// what was decided is in the policy.
type shifts struct {
	g *Gateway

	mu   sync.Mutex
	own  map[string]*sides // by route
	told map[string]heardSides
}

// sides is how a route's pools did since a step began.
type sides struct {
	since time.Time
	pools map[string]*policy.Side
}

type heardSides struct {
	subjects.ShiftReport
	at time.Time
}

func newShifts(g *Gateway) *shifts {
	return &shifts{g: g, own: make(map[string]*sides), told: make(map[string]heardSides)}
}

// observe counts a request that is over. One that its client gave up says
// nothing, and one whose failure is counted already no more.
func (s *shifts) observe(f *flight, ans *answer) {
	if f.route == nil || !ans.whole && (f.counted || ans.r.Context().Err() != nil) {
		return
	}
	now := time.Now()
	first := f.firstByte
	if first.IsZero() {
		first = now
	}
	good := ans.whole && ans.got.Status < http.StatusInternalServerError
	s.add(f, good, first.Sub(f.arrived), now.Sub(f.arrived))
}

// failed counts an attempt that came to nothing, whatever becomes of the request
// elsewhere.
func (s *shifts) failed(f *flight, class subjects.FailClass) {
	if f.route == nil || class == subjects.FailRefused || class == subjects.FailDraining {
		return
	}
	f.counted = true
	s.add(f, false, 0, 0)
}

// add counts for the pool that a request is in, if its route shifts.
func (s *shifts) add(f *flight, good bool, ttft, e2e time.Duration) {
	route, ok := s.g.rules.Load().Policy.Routes[f.routed]
	if !ok || !shifting(route) || f.arrived.Before(route.Shift.Since) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	own := s.own[f.routed]
	if own == nil || !own.since.Equal(route.Shift.Since) {
		own = &sides{since: route.Shift.Since, pools: make(map[string]*policy.Side)}
		s.own[f.routed] = own
	}
	side := own.pools[f.at().pool]
	if side == nil {
		side = new(policy.Side)
		own.pools[f.at().pool] = side
	}
	side.Observe(good, ttft, e2e)
}

func shifting(r policy.Route) bool {
	return r.Shift != nil && r.Shift.State == policy.ShiftRunning
}

// hear takes what another gateway counted.
func (s *shifts) hear(m *nats.Msg) {
	var told subjects.ShiftReport
	if subjects.Unmarshal(m.Data, &told) != nil || told.Gateway == s.g.id {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told[told.Gateway] = heardSides{told, time.Now()}
}

func (s *shifts) loop(ctx context.Context) {
	tick := time.NewTicker(subjects.ShiftEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		running := make(map[string]policy.Route)
		for name, r := range s.g.rules.Load().Policy.Routes {
			if shifting(r) {
				running[name] = r
			}
		}
		s.tell(running)
		for name, r := range running {
			if err := s.step(ctx, name, r); err != nil && ctx.Err() == nil {
				s.g.log.Warn("shift not stepped", "route", name, "err", err)
			}
		}
	}
}

// tell publishes what was counted here, and forgets what is over.
func (s *shifts) tell(running map[string]policy.Route) {
	s.mu.Lock()
	told := subjects.ShiftReport{Gateway: s.g.id, Routes: make(map[string]map[string]policy.Side), Since: make(map[string]time.Time)}
	for name, own := range s.own {
		if r, ok := running[name]; !ok || !r.Shift.Since.Equal(own.since) {
			delete(s.own, name)
			continue
		}
		pools := make(map[string]policy.Side, len(own.pools))
		for pool, side := range own.pools {
			pools[pool] = *side
		}
		told.Routes[name], told.Since[name] = pools, own.since
	}
	if len(running) == 0 {
		clear(s.told)
	}
	s.mu.Unlock()
	if len(running) > 0 {
		s.g.publishJSON(subjects.ShiftReports, told)
	}
}

// count is how the two sides of a shift did, everywhere.
func (s *shifts) count(name string, r policy.Route) (canary, stable policy.Side) {
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
	for _, t := range s.told {
		if t.Since[name].Equal(r.Shift.Since) {
			for pool, side := range t.Routes[name] {
				add(pool, side)
			}
		}
	}
	return canary, stable
}

// step takes a route's next step if it is due.
func (s *shifts) step(ctx context.Context, name string, r policy.Route) error {
	canary, stable := s.count(name, r)
	_, what := r.Step(canary, stable, time.Now())
	if what == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	store, err := policystore.Open(ctx, s.g.nc)
	if err != nil {
		return err
	}
	errOver := errors.New("another gateway was quicker")
	_, err = store.Update(ctx, "gateway "+s.g.id, fmt.Sprintf("route shift %s: %s", name, what), func(p *policy.Policy) error {
		now, ok := p.Routes[name]
		if !ok || !shifting(now) || !now.Shift.Since.Equal(r.Shift.Since) {
			return errOver
		}
		next, what := now.Step(canary, stable, time.Now())
		if what == "" {
			return errOver
		}
		p.Routes[name] = next
		return nil
	})
	if errors.Is(err, errOver) {
		return nil
	}
	if err == nil {
		s.g.log.Info("route shifted", "route", name, "step", what)
		s.g.event(subjects.Event{Kind: subjects.EventShift, Model: name, Text: fmt.Sprintf("route %s: %s", name, what)})
	}
	return err
}
