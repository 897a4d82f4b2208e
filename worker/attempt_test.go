package worker

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/subjects"
)

func TestWhatIsSilentForTooLong(t *testing.T) {
	now := time.Now()
	ago := func(s int) time.Time { return now.Add(-time.Duration(s) * time.Second) }
	for what, test := range map[string]struct {
		set    func(c *capacity, p *presence, a *attempt)
		last   time.Time // byte of the engine
		silent bool
	}{
		"a stream, for less than the stall timeout": {func(_ *capacity, _ *presence, a *attempt) { a.req.Stream = true }, ago(119), false},
		"a stream, for more":                        {func(_ *capacity, _ *presence, a *attempt) { a.req.Stream = true }, ago(121), true},
		"an answer that is not streamed":            {func(*capacity, *presence, *attempt) {}, ago(1000), false},
		"the engine has been down for long":         {func(c *capacity, p *presence, _ *attempt) { p.state, c.downAt = subjects.Down, ago(11) }, ago(60), true},
		"it has missed a question":                  {func(c *capacity, p *presence, _ *attempt) { p.state, c.downAt = subjects.Down, ago(1) }, ago(60), false},
		"down, but the client has some of it": {func(c *capacity, p *presence, a *attempt) {
			p.state, c.downAt = subjects.Down, ago(11)
			a.firstByte.set(a.started, ago(60))
		}, ago(60), false},
		"fenced for long": {func(c *capacity, _ *presence, _ *attempt) { c.fence.reason, c.fence.since = "XID 79", ago(11) }, ago(60), true},
		"fenced for want of word of the GPUs": {func(c *capacity, _ *presence, _ *attempt) {
			c.fence.reason, c.fence.since, c.cfg.NVMLRequired = "NVML is required", ago(11), true
		}, ago(60), false},
	} {
		t.Run(what, func(t *testing.T) {
			c, p := newCapacity(Config{Slots: 64}), newPresence(0)
			p.state = subjects.Ready
			a := newAttempt(nil, &subjects.Request{}, task{}, ago(2000))
			a.lastByte.set(a.started, test.last)
			test.set(c, p, a)
			if got := a.silent(c.illSince(p.down()), 2*time.Minute, now); got != test.silent {
				t.Errorf("%v, want %v", got, test.silent)
			}
		})
	}
}

// request is a request of pool m as a gateway would publish it.
func request(t *testing.T) (*subjects.Request, *nats.Msg) {
	t.Helper()
	req := &subjects.Request{ID: subjects.NewID(), Gateway: "g", Tier: "standard", Model: "m", Pool: "m", Method: "POST", Path: "/v1/completions", Stream: true}
	m, err := req.Msg(subjects.Shared, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	m.Reply = subjects.AckSubject(subjects.ReqStream("standard"), subjects.ReqConsumer("m", subjects.Shared), 1, 1)
	return req, m
}

// settled receives what a delivery is settled with.
func settled(t *testing.T, w *Worker, m *nats.Msg) (next func() string) {
	t.Helper()
	sub, err := w.nc.SubscribeSync(m.Reply)
	if err != nil {
		t.Fatal(err)
	}
	return func() string {
		m, err := sub.NextMsgWithContext(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return string(m.Data)
	}
}

// A request that is handed back waits for no first token here, and its lane rests.
func TestHandedBackIsNotWaitedFor(t *testing.T) {
	w := connected(t, Config{Slots: 64})
	w.serve([]string{"m"})
	w.presence.state = subjects.Ready
	w.bid()
	req, m := request(t)
	next := settled(t, w, m)
	w.attempts.fail(req.ID, time.Now())
	w.onDelivery(m)
	if got := next(); got != "-NAK" {
		t.Errorf("settled with %q, want it handed back", got)
	}
	if w.capacity.waiting != 0 || w.capacity.inFlight != 0 || len(w.estimates.waiting) != 0 || len(w.attempts.running) != 0 {
		t.Errorf("%d wait for their first token, %d in flight; want none", w.capacity.waiting, w.capacity.inFlight)
	}
	l := w.bidder.byQueue[queueName{subjects.ReqStream("standard"), subjects.ReqConsumer("m", subjects.Shared)}]
	if time.Until(l.restsTill) <= 0 {
		t.Error("the lane does not rest")
	}
}

func TestMalformedRequestIsDropped(t *testing.T) {
	w := connected(t, Config{Slots: 64})
	w.serve([]string{"m"})
	w.presence.state = subjects.Ready
	w.bid()
	_, m := request(t)
	m.Header.Set(subjects.HeaderRequest, "{")
	next := settled(t, w, m)
	w.onDelivery(m)
	if got := next(); got != "+TERM malformed" {
		t.Errorf("settled with %q", got)
	}
	if w.capacity.inFlight != 0 {
		t.Errorf("%d in flight", w.capacity.inFlight)
	}
}

// A delivery that comes when the worker drains already goes back to the queue.
func TestNothingBeginsWhileDraining(t *testing.T) {
	w := connected(t, Config{Slots: 64})
	w.serve([]string{"m"})
	w.presence.state = subjects.Ready
	w.bid()
	_, m := request(t)
	next := settled(t, w, m)
	if ended, running := w.attempts.close(); running != 0 {
		t.Fatalf("%d run", running)
	} else if _, open := <-ended; open {
		t.Fatal("nothing runs, and that has not ended")
	}
	w.onDelivery(m)
	if got := next(); got != "-NAK" || w.capacity.inFlight != 0 {
		t.Errorf("settled with %q, %d in flight", got, w.capacity.inFlight)
	}
}

// What failed here goes to others once. What a gateway keeps for others is not
// claimed until that is over.
func TestRequestsForOtherWorkers(t *testing.T) {
	now := time.Now()
	as := newAttempts()
	refuses := func(what string, id subjects.ID, after time.Duration, wantAfter time.Duration, want bool) {
		t.Helper()
		if again, yes := as.refuses(id, now.Add(after)); yes != want || again != wantAfter {
			t.Errorf("%s: refused %v, again after %v", what, yes, again)
		}
	}
	a := newAttempt(nil, &subjects.Request{ID: subjects.NewID()}, task{}, now)
	id := a.req.ID
	refuses("a new request", id, 0, 0, false)
	as.begin(a)
	as.fail(id, now)
	refuses("it failed here", id, 0, 0, true)
	refuses("it comes again", id, 0, 0, false)
	as.onRefusal(a.mark, true, now)
	if !errors.Is(context.Cause(a.ctx), errRefused) {
		t.Errorf("the attempt goes on: %v", context.Cause(a.ctx))
	}
	refuses("its gateway keeps it for others", id, 0, keptAgain, true)
	refuses("it still does", id, keptFor-1, keptAgain, true)
	refuses("not any more", id, keptFor, 0, false)
	as.fail(id, now)
	as.forget(now.Add(failedHereFor + 1))
	if len(as.failedHere)+len(as.kept) != 0 {
		t.Errorf("remembered: %d that failed, %d that were kept", len(as.failedHere), len(as.kept))
	}
}

// The end of the last attempt ends a drain.
func TestAttemptsEnd(t *testing.T) {
	as := newAttempts()
	a, b := newAttempt(nil, new(subjects.Request), task{tier: "batch"}, time.Now()), newAttempt(nil, new(subjects.Request), task{tier: "batch"}, time.Now())
	as.begin(a)
	as.begin(b)
	if n := as.byTier()["batch"]; n != 2 {
		t.Errorf("%d run", n)
	}
	ended, running := as.close()
	if running != 2 || as.begin(newAttempt(nil, new(subjects.Request), task{}, time.Now())) {
		t.Errorf("%d run, and one more begins", running)
	}
	as.end(a)
	select {
	case <-ended:
		t.Error("one still runs")
	default:
	}
	as.end(b)
	<-ended
}

// A window update opens the window of the attempt that it names, and never closes
// it again.
func TestWindowUpdates(t *testing.T) {
	as := newAttempts()
	a := newAttempt(nil, &subjects.Request{ID: subjects.NewID()}, task{}, time.Now())
	as.begin(a)
	update := func(mark uint64, taken int64) {
		as.onWindow(&nats.Msg{Data: subjects.MustMarshal(subjects.WindowUpdate{ID: a.req.ID, Attempt: mark, Taken: taken})})
	}
	for _, step := range []struct {
		mark  uint64
		taken int64
		want  int64
	}{{a.mark, 1000, 1000}, {a.mark + 1, 2000, 1000}, {a.mark, 500, 1000}, {a.mark, 1500, 1500}} {
		if update(step.mark, step.taken); a.taken.Load() != step.want {
			t.Errorf("after an update to %d the client took %d, want %d", step.taken, a.taken.Load(), step.want)
		}
	}
	done := make(chan bool)
	go func() { done <- a.awaitWindow(1500 + subjects.Window + 1) }()
	select {
	case <-done:
		t.Error("a byte too many, and it does not wait")
	case <-time.After(10 * time.Millisecond):
	}
	if update(a.mark, 1501); !<-done {
		t.Error("the attempt has ended")
	}
	go func() { done <- a.awaitWindow(1 << 30) }()
	as.onCancel(&nats.Msg{Data: subjects.MustMarshal(subjects.Cancel{ID: a.req.ID, Attempt: a.mark})}, nil)
	if <-done {
		t.Error("it was cancelled, and goes on")
	}
}

// A moment is read as it was set, also when nothing has passed since the start.
func TestMoment(t *testing.T) {
	start := time.Now()
	var m moment
	if m.isSet() || m.since(start, start.Add(time.Second)) != time.Second {
		t.Errorf("not set: %v since", m.since(start, start.Add(time.Second)))
	}
	for _, after := range []time.Duration{0, 1, time.Second} {
		m.set(start, start.Add(after))
		if got := m.since(start, start.Add(time.Minute)); !m.isSet() || got != time.Minute-after {
			t.Errorf("set %v after the start, a minute after which it was %v ago", after, got)
		}
	}
}

// A runner that has ended an attempt takes the next one, and all of them end.
func TestRunnersRunOneAttemptAfterTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		used := make(map[*runner]int)
		gate := make(chan struct{})
		rs := newRunners(func(a *attempt) {
			<-gate
			mu.Lock()
			defer mu.Unlock()
			used[a.runner]++
		})
		start := func(n int) {
			for range n {
				rs.start(newAttempt(nil, new(subjects.Request), task{}, time.Now()))
			}
			synctest.Wait()
		}
		const many = mostIdle + 10
		start(many) // at once: each has a runner of its own
		close(gate)
		synctest.Wait()
		if len(used) != many {
			t.Errorf("%d runners for %d attempts at once", len(used), many)
		}
		for range 100 {
			start(1)
		}
		if len(used) != many {
			t.Errorf("%d runners, want none but the %d that there were", len(used), many)
		}
		if n := rs.idle.Load(); n != mostIdle {
			t.Errorf("%d runners wait, want %d", n, mostIdle)
		}
		rs.close() // the bubble ends when all of them have
	})
}

// Deliveries of attempts that have ended lately are kept, those of each gateway for itself.
func TestAttemptsRememberFinished(t *testing.T) {
	as, now := newAttempts(), time.Now()
	finish := func(gateway, ack string, at time.Duration) {
		as.onFinished(newAttempt(&nats.Msg{Reply: ack}, &subjects.Request{Gateway: gateway}, task{}, now), now.Add(at))
	}
	finish("g", "1", 0)
	finish("g", "2", time.Second)
	finish("h", "3", time.Second)
	finish("g", "4", unsettledFor+time.Millisecond)
	if got := as.takeFinished("g"); !slices.Equal(got, []string{"2", "4"}) {
		t.Errorf("remembered are %q", got)
	}
	if got := as.takeFinished("g"); len(got) > 0 {
		t.Errorf("they are remembered again: %q", got)
	}
	as.forget(now.Add(time.Second + unsettledFor))
	if got := as.takeFinished("h"); !slices.Equal(got, []string{"3"}) {
		t.Errorf("of another gateway are remembered %q", got)
	}
	finish("h", "5", 0)
	if as.forget(now.Add(unsettledFor + 1)); len(as.finished) > 0 {
		t.Errorf("remembered for too long: %v", as.finished)
	}
}
