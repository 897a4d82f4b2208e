package chaos

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/subjects"
)

// errNoEffect is a fault that was injected and struck nothing. The run says nothing about it.
var errNoEffect = errors.New("the fault had no effect")

// injector injects faults into a fleet under load, one after the other.
type injector struct {
	fleet   *Fleet
	clients *clients
	poisons int
}

// strike injects a fault, waits, and heals it. It returns when the fleet is whole again.
func (in *injector) strike(ctx context.Context, s Strike) Fault {
	f := Fault{Kind: s.Kind, Start: in.fleet.now()}
	var err error
	f.Target, f.Effect, err = in.do(ctx, s, &f)
	if f.Healed == 0 {
		f.Healed = in.fleet.now()
	}
	if err != nil {
		f.Err = err.Error()
	}
	return f
}

// do does what strike says. It may set the start of the fault and the time when it was healed more exactly.
func (in *injector) do(ctx context.Context, s Strike, f *Fault) (target, effect string, err error) {
	fl := in.fleet
	switch s.Kind {
	case "broker-kill":
		b := fl.Brokers[s.Target]
		effect, err = in.restart(ctx, b, s.Hold, b.Kill, in.brokerReady(s.Target))
		return b.Name, effect, err
	case "broker-restart":
		b := fl.Brokers[s.Target]
		effect, err = in.restart(ctx, b, s.Hold, func() (string, error) { return b.Terminate(drainWithin) }, in.brokerReady(s.Target))
		return b.Name, effect, err
	case "broker-freeze":
		b := fl.Brokers[s.Target]
		effect, err = in.freeze(ctx, b, s.Hold)
		return b.Name, effect, err
	case "brokers-kill", "broker-outage":
		effect, err = in.killBrokers(ctx, s.Hold)
		return "brokers", effect, err
	case "disk-full":
		effect, err = in.fullDisk(ctx, s.Target, s.Hold)
		return fl.Brokers[s.Target].Name, effect, err
	case "disk-read-only":
		effect, err = in.readOnlyDisk(ctx, s.Target, s.Hold)
		return fl.Brokers[s.Target].Name, effect, err
	case "disk-hang":
		effect, err = in.hangingDisk(ctx, s.Target, s.Hold)
		return fl.Brokers[s.Target].Name, effect, err
	case "disk-slow":
		effect, err = in.slowDisk(ctx, s.Target, s.Hold)
		return fl.Brokers[s.Target].Name, effect, err
	case "gateway-kill":
		g := fl.Gateways[s.Target]
		effect, err = in.restart(ctx, g.Process, s.Hold, g.Kill, g.ready)
		return g.Name, effect, err
	case "gateway-restart":
		g := fl.Gateways[s.Target]
		effect, err = in.restart(ctx, g.Process, s.Hold, func() (string, error) { return g.Terminate(drainWithin) }, g.ready)
		return g.Name, effect, err
	case "gateway-freeze":
		g := fl.Gateways[s.Target]
		effect, err = in.freeze(ctx, g.Process, s.Hold)
		return g.Name, effect, err
	case "worker-kill":
		w := fl.Workers[s.Target]
		effect, err = in.restart(ctx, w, s.Hold, w.Kill, in.workerReady(ctx, s.Target))
		return w.Name, effect, err
	case "worker-restart":
		w := fl.Workers[s.Target]
		effect, err = in.restart(ctx, w, s.Hold, func() (string, error) { return w.Terminate(drainWithin) }, in.workerReady(ctx, s.Target))
		return w.Name, effect, err
	case "worker-freeze":
		w := fl.Workers[s.Target]
		effect, err = in.freeze(ctx, w, s.Hold)
		return w.Name, effect, err
	case "engine-crash":
		e := fl.Engines[s.Target]
		broke := e.Crash()
		pause(ctx, s.Hold)
		return e.Name, fmt.Sprintf("%d connections broke", broke), e.Restart()
	case "engine-hang", "engine-error", "engine-garbage", "engine-cut", "engine-short":
		e := fl.Engines[s.Target]
		e.SetMode(Mode(s.Kind[len("engine-"):]))
		pause(ctx, s.Hold)
		hits := e.SetMode(Works)
		if hits == 0 {
			err = errNoEffect
		}
		return e.Name, fmt.Sprintf("%d answers struck", hits), err
	case "net-worker-broker-cut", "net-worker-broker-blip":
		name := fl.Workers[s.Target].Name
		effect, err = in.cut(ctx, s.Hold, fl.wires[name]...)
		return name, effect, err
	case "net-gateway-broker-cut":
		name := fl.Gateways[s.Target].Name
		effect, err = in.cut(ctx, s.Hold, fl.wires[name]...)
		return name, effect, err
	case "net-worker-engine-cut":
		e := fl.Engines[s.Target]
		effect, err = in.cut(ctx, s.Hold, e.proxy)
		return e.Name, effect, err
	case "net-worker-broker-slow":
		name := fl.Workers[s.Target].Name
		effect, err = in.slow(ctx, s.Hold, fl.wires[name]...)
		return name, effect, err
	case "net-gateway-broker-slow":
		name := fl.Gateways[s.Target].Name
		effect, err = in.slow(ctx, s.Hold, fl.wires[name]...)
		return name, effect, err
	case "net-worker-engine-slow":
		e := fl.Engines[s.Target]
		effect, err = in.slow(ctx, s.Hold, e.proxy)
		return e.Name, effect, err
	case "delivery-swallowed":
		effect, err = in.swallow(ctx, s.Hold)
		return "queue", effect, err
	case "poison":
		effect, err = in.poison(ctx, s.Hold)
		return "engines", effect, err
	case "policy-change":
		effect, err = in.changePolicy(ctx, s.Hold)
		return "policy", effect, err
	case "cancel-burst":
		for i := range 20 {
			in.clients.send(&Request{ID: fmt.Sprintf("c%06.0f-%d", float64(fl.now())*1000, i), Kind: KindCancel, Stream: true, Tokens: longAnswer}, s.Hold/2)
		}
		pause(ctx, s.Hold)
		return "clients", "20 clients left", nil
	}
	return "", "", fmt.Errorf("no fault is called %q", s.Kind)
}

// restart ends a process with end, and starts it again.
func (in *injector) restart(ctx context.Context, p *Process, hold time.Duration, end func() (string, error), ready func() bool) (effect string, err error) {
	if effect, err = end(); err != nil {
		return "", err
	}
	pause(ctx, hold)
	if err := p.Start(); err != nil {
		return effect, err
	}
	return effect, in.fleet.await(ctx, p, ready)
}

func (in *injector) brokerReady(i int) func() bool {
	return func() bool { return connects(in.fleet.brokers[i]) }
}

func (in *injector) workerReady(ctx context.Context, i int) func() bool {
	return func() bool { return in.fleet.workerReady(ctx, in.fleet.Workers[i].Name) }
}

func (in *injector) killBrokers(ctx context.Context, hold time.Duration) (effect string, err error) {
	for _, b := range in.fleet.Brokers {
		if effect, err = b.Kill(); err != nil {
			return "", err
		}
	}
	pause(ctx, hold)
	for _, b := range in.fleet.Brokers {
		if err := b.Start(); err != nil {
			return effect, err
		}
	}
	for i, b := range in.fleet.Brokers {
		if err := in.fleet.await(ctx, b, in.brokerReady(i)); err != nil {
			return effect, err
		}
	}
	return effect, nil
}

func (in *injector) freeze(ctx context.Context, p *Process, hold time.Duration) (effect string, err error) {
	if err := p.Freeze(); err != nil {
		return "", err
	}
	pause(ctx, hold)
	return p.Thaw()
}

// cut cuts networks, and checks that bytes came that did not pass.
func (in *injector) cut(ctx context.Context, hold time.Duration, wires ...*Proxy) (effect string, err error) {
	held, passed := total(wires, (*Proxy).Held), int64(0)
	for _, p := range wires {
		p.Cut()
	}
	pause(ctx, 50*time.Millisecond) // what was being written
	before := total(wires, (*Proxy).Passed)
	pause(ctx, hold-50*time.Millisecond)
	passed = total(wires, (*Proxy).Passed) - before
	held = total(wires, (*Proxy).Held) - held
	for _, p := range wires {
		err = errors.Join(err, p.Heal())
	}
	if held == 0 || passed > 0 {
		err = errors.Join(err, fmt.Errorf("%w: %d bytes held, %d passed", errNoEffect, held, passed))
	}
	return fmt.Sprintf("%d bytes held, none passed", held), err
}

// slow delays what passes.
func (in *injector) slow(ctx context.Context, hold time.Duration, wires ...*Proxy) (effect string, err error) {
	before := total(wires, (*Proxy).Delayed)
	for _, p := range wires {
		p.Delay(100 * time.Millisecond)
	}
	pause(ctx, hold)
	for _, p := range wires {
		err = errors.Join(err, p.Heal())
	}
	delayed := total(wires, (*Proxy).Delayed) - before
	if delayed == 0 {
		err = errors.Join(err, errNoEffect)
	}
	return fmt.Sprintf("%d bytes delayed", delayed), err
}

func total(wires []*Proxy, count func(*Proxy) int64) (n int64) {
	for _, p := range wires {
		n += count(p)
	}
	return n
}

// swallow bids for requests as the cheapest worker would, and does nothing with what it gets. That is what the broker sees
// when a connection breaks under a delivery.
func (in *injector) swallow(ctx context.Context, hold time.Duration) (effect string, err error) {
	nc, err := nats.Connect(in.fleet.directURL(), nats.Timeout(2*time.Second))
	if err != nil {
		return "", err
	}
	defer nc.Close()
	got := make(chan string, 16)
	for i := range 2 {
		inbox := fmt.Sprintf("%s.%d", nats.NewInbox(), i) // a broker distinguishes open bids by their replies
		if _, err := nc.Subscribe(inbox, func(m *nats.Msg) {
			if m.Header.Get("Status") == "" {
				got <- m.Reply
			}
		}); err != nil {
			return "", err
		}
		bid := subjects.MustMarshal(subjects.Bid{Batch: 1, Expires: hold.Nanoseconds(), Group: subjects.PriorityGroup, Priority: 0})
		if err := nc.PublishRequest(subjects.BidSubject("standard", Model, subjects.Shared), inbox, bid); err != nil {
			return "", err
		}
	}
	pause(ctx, hold)
	if len(got) == 0 {
		return "", errNoEffect
	}
	return fmt.Sprintf("%d deliveries swallowed", len(got)), nil
}

// poisonWithin bounds how long a request that crashes engines may wait in the queue.
const poisonWithin = 20 * time.Second

// poison sends a request that crashes each engine that runs it.
func (in *injector) poison(ctx context.Context, hold time.Duration) (effect string, err error) {
	crashes := func() (n int64) {
		for _, e := range in.fleet.Engines {
			n += e.crashes.Load()
		}
		return n
	}
	before := crashes()
	in.poisons++
	in.clients.send(&Request{ID: fmt.Sprintf("p%06d", in.poisons), Kind: KindPoison, Stream: in.poisons%2 == 0, Tokens: shortAnswer}, 0)
	for end := time.Now().Add(poisonWithin); crashes() == before && ctx.Err() == nil && time.Now().Before(end); {
		pause(ctx, 20*time.Millisecond) // after an outage there are many requests before it
	}
	pause(ctx, hold)
	n := crashes() - before
	if n == 0 {
		return "", errNoEffect
	}
	return fmt.Sprintf("%d engines crashed", n), nil
}

// changePolicy changes the policy five times under load, and back.
func (in *injector) changePolicy(ctx context.Context, hold time.Duration) (effect string, err error) {
	for i := range 5 {
		share := "9"
		if i == 4 {
			share = "1"
		}
		if _, err := in.fleet.pulley(ctx, "tier", "set", "batch", "--share", share, "--max-queue", fmt.Sprint(2000-i)); err != nil {
			return "", err
		}
		pause(ctx, hold/5)
	}
	out, err := in.fleet.pulley(ctx, "policy", "export")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("5 changes accepted, the policy has %d bytes", len(out)), nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
