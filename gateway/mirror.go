package gateway

import (
	"net/http"
	"time"

	"github.com/pulley-lb/pulley/subjects"
)

// maxMirrored bounds the copies under way: further ones are dropped, and counted.
const maxMirrored = 256

// mirrors sends copies of requests where their routes want them, at the lowest tier. No client waits for their answers,
// and what becomes of a copy does not affect its request.
type mirrors struct {
	bus       *bus
	router    *router
	admission *admission
	queues    *queues
	server    *server
	bodies    *bodies
	metrics   *metrics

	slots chan struct{} // holds one value for each copy under way
}

// send sends the copies of a request that its route wants.
func (m *mirrors) send(r *request) {
	for _, to := range r.route.Mirror {
		pool := m.router.poolOf(to.Pool)
		if m.router.spread("mirror "+r.routeName+" "+to.Pool).Next()*100 < to.Percent {
			outcome := "dropped"
			if m.sendTo(r, pool) {
				outcome = "sent"
			}
			m.metrics.mirrors.WithLabelValues(to.Pool, outcome).Inc()
		}
	}
}

// sendTo sends a copy, unless there are too many already. It says whether it did.
func (m *mirrors) sendTo(r *request, pool string) (sent bool) {
	select {
	case m.slots <- struct{}{}:
	default:
		return false
	}
	memory := &hold{of: m.bodies}
	if memory.grow(int64(len(r.body))) != nil {
		<-m.slots
		return false
	}
	done := func() {
		memory.give()
		<-m.slots
	}
	c, err := m.copyOf(r, pool)
	if err != nil {
		done()
		return false
	}
	m.server.background.Go(func() {
		defer done()
		m.server.serveUnattended(c, 0)
	})
	return true
}

// copyOf lets a copy of a request into the queue of a pool.
func (m *mirrors) copyOf(r *request, pool string) (*request, error) {
	tier, now := m.bus.rules.Load().Policy.Lowest(), time.Now()
	wire := *r.wire
	wire.ID, wire.Tier, wire.Pool = subjects.NewID(), tier.Name, pool
	wire.Header = r.wire.Header.Clone()
	wire.Header.Set("X-Request-Id", wire.ID.String())
	return m.admission.enter(&spec{
		wire: &wire, api: r.api, caller: &caller{tenant: r.caller.tenant}, cost: r.cost, unattended: true,
		arrived: now, deadline: now.Add(r.deadline.Sub(r.arrived)), patience: r.patience,
		admitted: target{queue: m.queues.get(pool, tier.Name), tier: tier, lane: subjects.Shared},
	}, r.body)
}

// serveUnattended serves a request that no client waits for. It returns the answer with the first keep bytes of its body.
func (s *server) serveUnattended(r *request, keep int) (*discard, error) {
	w := &discard{header: make(http.Header), keep: keep}
	return w, s.serve(s.background.ctx, w, r)
}

// discard is a client that takes everything and keeps the beginning.
type discard struct {
	header http.Header
	status int
	keep   int
	body   []byte
}

func (d *discard) Header() http.Header { return d.header }

func (d *discard) WriteHeader(status int) {
	if d.status == 0 {
		d.status = status
	}
}

func (d *discard) Write(b []byte) (int, error) {
	d.WriteHeader(http.StatusOK)
	d.body = append(d.body, b[:min(len(b), max(d.keep-len(d.body), 0))]...)
	return len(b), nil
}

func (d *discard) FlushError() error                { return nil }
func (d *discard) SetWriteDeadline(time.Time) error { return nil }
