package gateway

import (
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/subjects"
)

// dispatcher gives to the requests what workers and the broker send to this gateway. It never blocks. For the workers of
// this process it is the gateway itself: see subjects.LocalGateway.
type dispatcher struct {
	bus         *bus
	requests    *requests
	publisher   *publisher
	settlements *settlements
	fleet       *fleet
	affinity    *affinity
	exchange    *exchange
	metrics     *metrics
	watch       *watch
	links       *links
	direct      *directLinks
}

// onMessage handles the messages to this gateway in their order.
func (d *dispatcher) onMessage(m *nats.Msg) {
	mine, ok := strings.CutPrefix(m.Subject, subjects.Gateway(d.bus.id)+".")
	if !ok {
		return
	}
	what, arg, _ := strings.Cut(mine, ".")
	switch what {
	case "stored":
		d.publisher.onAck(arg, m)
	case "settled":
		d.settlements.onConfirmed(arg, m)
	case "link":
		d.onLink(arg, m.Data)
		d.direct.offer(arg)
	case "alive":
		d.onAlive(arg, m.Data)
	case "body":
		d.onBodyRequest(arg, m)
	case "there":
		d.bus.respond(m, nil)
	case "left":
		d.watch.onLeft(arg)
	case "uncalled":
		d.onUncalled(arg, m)
	case "turn":
		d.exchange.onRelease(m)
	}
}

// onLink handles the claims and frames of a worker, which come in one message, in their order: a claim is known before the
// frames that follow it.
func (d *dispatcher) onLink(worker string, msg []byte) {
	l := d.links.get(worker)
	l.turn <- struct{}{}
	defer func() { <-l.turn }()
	for items := d.links.onMessage(worker, msg, time.Now()); len(items) > 0; {
		kind, payload, rest, err := subjects.NextItem(items)
		if err == nil {
			items = rest
			switch kind {
			case subjects.ItemClaim:
				err = d.onClaim(worker, payload)
			case subjects.ItemFrames:
				err = d.onFrames(worker, payload)
			case subjects.ItemAlive:
				d.onAlive(worker, payload)
			}
		}
		if err != nil {
			d.bus.seldom("frames dropped", "worker", worker, "err", err)
			return
		}
	}
}

func (d *dispatcher) onFrames(worker string, payload []byte) error {
	p, frames, err := subjects.ParsePrefix(payload)
	if err != nil {
		return err
	}
	if r := d.requests.find(p.ID); r != nil {
		r.onMessage(worker, p, frames)
	}
	return nil
}

func (d *dispatcher) Frames(p subjects.Prefix, frames []subjects.Frame) {
	if r := d.requests.find(p.ID); r != nil {
		r.onFrames(p, frames)
	}
}

func (d *dispatcher) onClaim(worker string, payload []byte) error {
	c, err := subjects.ParseClaim(payload)
	if err != nil {
		return err
	}
	if c.Worker != worker {
		return fmt.Errorf("claim: of worker %.40q", c.Worker)
	}
	if _, err := subjects.ParseAck(c.Ack); err != nil { // the gateway would settle the delivery there
		return fmt.Errorf("claim: %w", err)
	}
	refusal := d.stranger(c)
	if refusal == nil {
		refusal = d.Claim(*c)
	}
	if refusal == nil && c.Confirm {
		refusal = &subjects.Refusal{Verdict: subjects.Granted, Ack: c.Ack}
	}
	if refusal != nil {
		d.bus.publish(subjects.WorkerRefused(worker, c.Attempt), refusal)
	}
	return nil
}

// strangerDelay is when a request is delivered again whose claim came from a worker that is not known to serve it: the
// worker's heartbeat may be on its way.
const strangerDelay = 100 * time.Millisecond

// stranger refuses a claim of a worker that, by its heartbeats, is not there or does not serve the request's pool. It
// returns nil if the claim may be granted.
func (d *dispatcher) stranger(c *subjects.Claim) *subjects.Refusal {
	r := d.requests.find(c.ID)
	if r == nil {
		return nil
	}
	pool := r.target.Load().queue.pool
	if d.fleet.mayClaim(c.Worker, pool, d.bus.rules.Load().Policy.Pools[pool].Spill, time.Now()) {
		return nil
	}
	d.bus.seldom("claim refused: no heartbeat says that the worker serves the pool", "worker", c.Worker, "pool", pool, "id", c.ID)
	return &subjects.Refusal{Verdict: subjects.OtherWorker, Ack: c.Ack, DelayMS: strangerDelay.Milliseconds()}
}

// Claim grants a claim and returns nil, or returns the refusal. The gateway settles the delivery on the ack subject that
// the claim names, with rights that a worker does not have. So that must be a delivery of the request's own message.
func (d *dispatcher) Claim(c subjects.Claim) *subjects.Refusal {
	r := d.requests.find(c.ID)
	if r == nil {
		return &subjects.Refusal{Verdict: subjects.Gone, Ack: c.Ack}
	}
	if pin := r.pinned(); pin != "" && pin != c.Worker && d.fleet.live(pin) {
		return &subjects.Refusal{Verdict: subjects.OtherWorker, Ack: c.Ack, DelayMS: 100}
	}
	now := time.Now()
	delivery, _ := subjects.ParseAck(c.Ack) // that of another message is not granted
	verdict, at, avoid := r.claim(&c, delivery, false, now)
	var delayMS int64
	if verdict == subjects.OtherWorker {
		switch live, free := d.fleet.others(at.queue.pool, avoid); {
		case free > 0:
		case live > 0:
			delayMS = 100
		default: // there is no other worker
			verdict, at, _ = r.claim(&c, delivery, true, now)
		}
	}
	if verdict == subjects.Granted {
		if r.undelay() {
			at.queue.undelay(at.lane)
		}
		waited := now.Sub(at.since)
		if r.made() > 1 {
			waited = -1
		}
		at.queue.claimed(at.lane, waited, now)
	}
	if at.lane == subjects.Shared && at.delivers(delivery) {
		if releases, changed := at.queue.delivered(delivery.Pending, now); len(releases) > 0 || changed {
			d.exchange.onDelivered(at.queue, releases, delivery.Pending, changed, now)
		}
	}
	if verdict != subjects.Granted {
		return &subjects.Refusal{Verdict: verdict, Ack: c.Ack, DelayMS: delayMS}
	}
	d.fleet.onClaim(c.Worker)
	if r.affinity != 0 {
		if w := d.fleet.worker(c.Worker); w != nil && w.Serves(at.queue.pool) { // not one that helps out from another pool
			d.affinity.learn(r.affinity, at.queue.pool, c.Worker)
		}
	}
	d.metrics.of(r).queue.Observe(now.Sub(r.arrived).Seconds())
	return nil
}

func (d *dispatcher) Request(id subjects.ID) *subjects.Request {
	if r := d.requests.find(id); r != nil {
		return r.wire
	}
	return nil
}

// onAlive checks a worker's list of the attempts that it runs for this gateway. An attempt that should not run is
// cancelled: its first cancel was lost. An older worker has its id in the message alone.
func (d *dispatcher) onAlive(worker string, data []byte) {
	var alive subjects.Alive
	if subjects.Unmarshal(data, &alive) != nil {
		return
	}
	if worker == "" && d.fleet.worker(alive.Worker) != nil {
		worker = alive.Worker
	}
	if worker == "" || alive.Worker != worker {
		d.bus.seldom("list of attempts dropped: it is of another worker", "worker", worker, "of", alive.Worker)
		return
	}
	now := time.Now()
	for _, a := range alive.Attempts {
		var taken int64
		r := d.requests.find(a.ID)
		wanted := r != nil
		if wanted {
			taken, wanted = r.onListed(worker, a, now)
		}
		switch {
		case !wanted:
			d.bus.cancelAttempt(worker, a.ID, a.Attempt, "unknown attempt")
		case taken > a.Taken: // the last update may have been lost
			d.bus.publish(subjects.WorkerWindow(worker), subjects.WindowUpdate{ID: a.ID, Attempt: a.Attempt, Taken: taken})
		}
	}
}

// onUncalled takes in that no worker received a call: the one that it was sent to is gone.
func (d *dispatcher) onUncalled(arg string, m *nats.Msg) {
	id, mark, err := subjects.ParseUncalled(arg)
	if err != nil || m.Header.Get("Status") != "503" {
		return
	}
	if r := d.requests.find(id); r != nil {
		r.onUncalled(mark)
	}
}

// onBodyRequest answers with a piece of a body that travels by reference; an empty one says that the body is not here, or
// not for this worker.
func (d *dispatcher) onBodyRequest(worker string, m *nats.Msg) {
	var want subjects.BodyRequest
	if subjects.Unmarshal(m.Data, &want) != nil {
		return
	}
	var piece []byte
	if r := d.requests.find(want.ID); r != nil {
		piece = r.pieceFor(worker, want.Offset)
	}
	d.bus.respond(m, piece[:min(int64(len(piece)), subjects.MaxFrame, d.bus.nc.MaxPayload()/2)])
}
