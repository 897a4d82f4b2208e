package gateway

import (
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/subjects"
)

// receive handles, in order and without ever blocking, what is sent to this
// gateway. That claims and frames come through one subscription is what
// makes a claim known before the frames that follow it.
func (g *Gateway) receive(m *nats.Msg) {
	what, number, _ := strings.Cut(strings.TrimPrefix(m.Subject, subjects.Gateway(g.id)+"."), ".")
	switch what {
	case "stored":
		g.stored(number, m)
	case "rsp":
		g.frames(m.Data)
	case "claim":
		g.claimed(m)
	case "alive":
		g.listed(m)
	case "body":
		g.bodyWanted(m)
	case "turn":
		g.exchange.onRelease(m)
	}
}

func (g *Gateway) frames(msg []byte) {
	p, frames, err := subjects.ParsePrefix(msg)
	if err != nil {
		g.log.Warn("frames dropped", "err", err)
		return
	}
	if f := g.requests.find(p.ID); f != nil {
		f.message(p, frames)
	}
}

func (g *Gateway) claimed(m *nats.Msg) {
	c, err := subjects.ParseClaim(m.Data)
	if err != nil {
		g.log.Warn("claim dropped", "err", err)
		return
	}
	refusal := g.arbitrate(c)
	if refusal == nil {
		return
	}
	m.Respond(subjects.MustMarshal(refusal))
}

// near is the gateway for the workers of its own process.
type near struct{ g *Gateway }

func (n near) Request(id subjects.ID) *subjects.Request {
	if f := n.g.requests.find(id); f != nil {
		return f.req
	}
	return nil
}

func (n near) Claim(c subjects.Claim) *subjects.Refusal { return n.g.arbitrate(&c) }

func (n near) Frames(p subjects.Prefix, frames []subjects.Frame) {
	if f := n.g.requests.find(p.ID); f != nil {
		f.frames(p, frames)
	}
}

// arbitrate says why a claim is not granted; nil if it is.
func (g *Gateway) arbitrate(c *subjects.Claim) *subjects.Refusal {
	f := g.requests.find(c.ID)
	if f == nil {
		return &subjects.Refusal{Verdict: subjects.Gone, Ack: c.Ack}
	}
	now := time.Now()
	verdict, delayMS := f.claim(c, now, func(avoid map[string]bool) (live, free int) {
		return g.fleet.others(f.at().pool, avoid)
	})
	at := f.at()
	if d, err := subjects.ParseAck(c.Ack); err == nil && at.lane == subjects.Shared {
		releases, changed := at.queue.delivered(d.Pending, now)
		g.exchange.release(at.queue, releases, d.Pending)
		if changed {
			g.exchange.publish(now, at.queue)
		}
	}
	if verdict != subjects.Granted {
		return &subjects.Refusal{Verdict: verdict, Ack: c.Ack, DelayMS: delayMS}
	}
	g.fleet.onClaim(c.Worker)
	if w := g.fleet.worker(c.Worker); f.home != 0 && w != nil && w.Serves(at.pool) {
		g.affinity.learn(f.home, at.pool, c.Worker)
	}
	at.queue.meters.queue.Observe(now.Sub(f.arrived).Seconds())
	return nil
}

// listed checks a worker's list of what it runs for us. What should not run is
// cancelled: its first cancel got lost.
func (g *Gateway) listed(m *nats.Msg) {
	var alive subjects.Alive
	if subjects.Unmarshal(m.Data, &alive) != nil {
		return
	}
	now := time.Now()
	for _, a := range alive.Attempts {
		if f := g.requests.find(a.ID); f == nil || !f.listed(a, now) {
			g.cancelAttempt(alive.Worker, a.ID, a.Attempt, "not wanted")
		}
	}
}

// bodyWanted serves a piece of a body that travels by reference.
func (g *Gateway) bodyWanted(m *nats.Msg) {
	var want subjects.BodyRequest
	if subjects.Unmarshal(m.Data, &want) != nil {
		return
	}
	var body []byte
	if f := g.requests.find(want.ID); f != nil {
		f.mu.Lock()
		body = f.body
		f.mu.Unlock()
	}
	if want.Offset < 0 || want.Offset > int64(len(body)) {
		want.Offset = int64(len(body))
	}
	piece := body[want.Offset:]
	m.Respond(piece[:min(int64(len(piece)), subjects.MaxFrame, g.nc.MaxPayload()/2)])
}

// tellRequests answers `pulley request ls`.
func (g *Gateway) tellRequests(m *nats.Msg) {
	now := time.Now()
	list := make([]subjects.RequestInfo, 0, 16)
	for _, f := range g.requests.all() {
		list = append(list, f.info(g.id, now))
	}
	slices.SortFunc(list, func(a, b subjects.RequestInfo) int { return strings.Compare(a.ID, b.ID) })
	g.respondList(m, len(list), func(from, to int) any { return list[from:to] })
}

// tellWorkers answers `pulley worker ls`.
func (g *Gateway) tellWorkers(m *nats.Msg) {
	list := g.fleet.heartbeats()
	g.respondList(m, len(list), func(from, to int) any { return list[from:to] })
}

// respondList sends a list in as many messages as it takes, then an empty one.
func (g *Gateway) respondList(m *nats.Msg, n int, piece func(from, to int) any) {
	each := 100
	for from := 0; from < n; {
		to := min(from+each, n)
		body := subjects.MustMarshal(piece(from, to))
		if int64(len(body)) > g.nc.MaxPayload() && to-from > 1 { // workers with many GPUs have much to tell
			each = (to - from) / 2
			continue
		}
		m.Respond(body)
		from = to
	}
	m.Respond(nil)
}
