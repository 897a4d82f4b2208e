package gateway

import (
	"net/http"
	"time"

	"github.com/pulley-lb/pulley/subjects"
)

// maxMirrors bounds the copies under way: more are left out, and counted.
const maxMirrors = 256

// mirror sends copies of a request where its route wants them, at the lowest
// tier. Nobody waits for their answers, and whatever becomes of them is of no
// consequence to the request.
func (g *Gateway) mirror(f *flight, timeout time.Duration) {
	if f.route == nil {
		return
	}
	for _, m := range f.route.Mirror {
		if g.spread("mirror "+f.routed+" "+m.Pool).Next()*100 < m.Percent {
			sent := g.mirrorTo(f, m.Pool, timeout)
			g.metrics.mirrored(m.Pool, sent)
		}
	}
}

func (g *Gateway) mirrorTo(f *flight, pool string, timeout time.Duration) (sent bool) {
	select {
	case g.mirrors <- struct{}{}:
	default:
		return false
	}
	done := func() { <-g.mirrors }
	size := int64(len(f.body))
	if !g.bodies.take(size) {
		done()
		return false
	}
	tier := g.rules.Load().Policy.Lowest()
	now := time.Now()
	req := *f.req
	req.ID, req.Tier, req.Pool = subjects.NewID(), tier.Name, pool
	req.Header = f.req.Header.Clone()
	req.Header.Set("X-Request-Id", req.ID.String())
	at := place{pool: pool, tier: tier, lane: subjects.Shared, queue: g.queues.get(pool, tier.Name)}
	who := &caller{tenant: f.caller.tenant}
	if g.enter(&at, who, timeout, now) != nil {
		g.bodies.give(size)
		done()
		return false
	}
	c := newFlight(&req, at, f.body, now, timeout)
	c.caller, c.cost = who, f.cost
	g.background.Go(func() {
		defer done()
		defer g.bodies.give(size)
		g.unattended(c, 0)
	})
	return true
}

// unattended carries a request that no client waits for. It returns the answer
// and as much of its body as keep bytes hold.
func (g *Gateway) unattended(f *flight, keep int) (*sink, error) {
	f.nobody = true
	s := &sink{header: make(http.Header), keep: keep}
	r, err := http.NewRequestWithContext(g.life, f.req.Method, f.req.Path, http.NoBody)
	if err != nil {
		g.land(f, newAnswer(g, s, &http.Request{}, f))
		return s, err
	}
	return s, g.carry(s, r, f)
}

// sink is a client that takes everything and reads the beginning.
type sink struct {
	header http.Header
	status int
	keep   int
	body   []byte
}

func (s *sink) Header() http.Header { return s.header }

func (s *sink) WriteHeader(status int) {
	if s.status == 0 {
		s.status = status
	}
}

func (s *sink) Write(b []byte) (int, error) {
	s.WriteHeader(http.StatusOK)
	s.body = append(s.body, b[:min(len(b), max(s.keep-len(s.body), 0))]...)
	return len(b), nil
}

func (s *sink) FlushError() error                { return nil }
func (s *sink) SetWriteDeadline(time.Time) error { return nil }
