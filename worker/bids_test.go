package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// BenchmarkBid is what a look at the bids costs, which is taken at each delivery
// and each end of a request: on a worker with 32 requests in flight, in a pool
// of 8 workers with a home lane each, with three tiers.
func BenchmarkBid(b *testing.B) {
	for _, homes := range []int{0, 8} {
		b.Run(fmt.Sprintf("%d home lanes/nothing to do", homes), func(b *testing.B) {
			w := busy(b, homes)
			b.ReportAllocs()
			for b.Loop() {
				w.mu.Lock()
				w.bidLocked()
				w.mu.Unlock()
			}
		})
		b.Run(fmt.Sprintf("%d home lanes/a request comes and goes", homes), func(b *testing.B) {
			w := busy(b, homes)
			b.ReportAllocs()
			out := w.nc.Stats().OutMsgs
			for b.Loop() {
				w.mu.Lock()
				w.lanes[0].answered()
				w.inFlight++
				w.bidLocked()
				w.inFlight--
				w.bidLocked()
				w.mu.Unlock()
			}
			b.ReportMetric(float64(w.nc.Stats().OutMsgs-out)/float64(b.N), "bids/op")
		})
		b.Run(fmt.Sprintf("%d home lanes/tick", homes), func(b *testing.B) {
			w := busy(b, homes)
			b.ReportAllocs()
			out := w.nc.Stats().OutMsgs
			for b.Loop() {
				w.mu.Lock()
				w.tickLocked(time.Now())
				w.mu.Unlock()
			}
			b.ReportMetric(float64(w.nc.Stats().OutMsgs-out)/float64(b.N), "bids/op")
		})
	}
}

// Workers come and go, each with an id of its own: nothing of those that are gone
// may stay.
func TestOfWorkersThatAreGoneNothingStays(t *testing.T) {
	w := connected(t)
	w.serve([]served{{"m", "m"}, {"n", "n"}})
	w.state = subjects.Ready
	for i := range 300 {
		homes := []string{w.id}
		for j := range 8 {
			homes = append(homes, fmt.Sprintf("worker-%d", i+j))
		}
		ref := subjects.PoolReference{Workers: 9, HomeLanes: homes}
		body, err := json.Marshal(subjects.Reference{Gateway: "gw", Pools: map[string]subjects.PoolReference{"m": ref, "n": ref}})
		if err != nil {
			t.Fatal(err)
		}
		w.hearGateway(&nats.Msg{Data: body})
		w.mu.Lock()
		w.bidAwayLocked(time.Now())
		w.mu.Unlock()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, later := range []time.Duration{10 * time.Second, 20 * time.Second} { // their bids expire, and are not heard of
		w.forgetRetiredLocked(time.Now().Add(later))
	}
	const tiers, pools = 3, 2
	if got, want := len(w.lanes), pools*tiers*2; got != want {
		t.Errorf("%d lanes, want %d: shared and its own", got, want)
	}
	if got, want := len(w.away), pools*tiers*8; got != want {
		t.Errorf("%d home lanes of others, want %d", got, want)
	}
	if all := len(w.lanes) + len(w.away); len(w.byQueue) != all || len(w.byNumber) != all {
		t.Errorf("%d lanes by queue, %d by number, want %d", len(w.byQueue), len(w.byNumber), all)
	}
	if n := len(w.pools["m"].heard); n != 1 {
		t.Errorf("%d gateways remembered, want 1", n)
	}
}

// However the answers come, there are as many bids as the broker has.
func TestEachAnswerTakesOutOneBid(t *testing.T) {
	at := time.Now()
	l := &lane{open: []bid{{rung: 0, expires: at.Add(3 * time.Second)}, {rung: 1, expires: at}, {rung: 4, expires: at.Add(time.Second)}}}
	l.answered() // the broker answered the one at rung 1, and has not got that at rung 0 yet
	if len(l.open) != 2 || l.open[0].rung != 1 {
		t.Fatalf("open: %+v", l.open)
	}
	l.findLate(at.Add(answerLate + time.Millisecond)) // of course that one never expires
	if len(l.open) != 1 || l.late != 1 {
		t.Fatalf("open: %+v, late %d", l.open, l.late)
	}
	l.answered() // the one at rung 0
	if len(l.open) != 1 || l.open[0].rung != 4 || l.late != 0 {
		t.Errorf("open: %+v, late %d", l.open, l.late)
	}
	l.ended()
	if len(l.open) != 0 {
		t.Errorf("open: %+v", l.open)
	}
	l.ended() // of nothing that is known
	if b := l.answered(); b != (bid{}) || l.late != 0 {
		t.Errorf("answered: %+v, late %d", b, l.late)
	}
	l.open = append(l.open, bid{expires: at})
	l.findLate(at.Add(time.Minute))
	l.findLate(at.Add(2 * time.Minute))
	if l.late != 0 {
		t.Error("a lost answer is awaited for ever")
	}
}

// A bid on another's home lane was parked while the worker was idle, and lives
// on while it gets busy: what it brings then is cheaper at home.
func TestOnlyAPriceThatHoldsIsTaken(t *testing.T) {
	w := busy(t, 8)
	now := time.Now()
	w.bidAwayLocked(now)
	l := w.away[0]
	if len(l.open) != 1 || l.open[0].rung < policy.AwayPenalty {
		t.Fatalf("parked there: %+v", l.open)
	}
	b := l.open[0]
	if !w.hasRoomLocked(l, b, now, 1) {
		t.Error("nothing has changed, and it is handed back")
	}
	w.inFlight = 60
	if w.hasRoomLocked(l, b, now, 1) {
		t.Error("with twice as many in flight, it is taken at the old price")
	}
	own := w.lanes[0]
	if w.hasRoomLocked(own, own.open[0], now, 1) {
		t.Error("on the shared lane, it is taken at the old price")
	}
	if !w.hasRoomLocked(own, own.open[0], now, mostBounces+1) {
		t.Error("others have handed it back, and it is handed back again")
	}
	if own.waiting = 3; !w.hasRoomLocked(own, own.open[0], now, 1) {
		t.Error("others wait behind it, and it is handed back")
	}
}

// busy is a worker with half of its 64 slots taken and its bids parked.
func busy(t testing.TB, homes int) *Worker {
	t.Helper()
	w := connected(t)
	var ids []string
	for i := range homes {
		ids = append(ids, fmt.Sprintf("worker-%d", i))
	}
	w.id = "worker-3"
	now := time.Now()
	w.serve([]served{{"m", "m"}})
	w.state = subjects.Ready
	p := w.pools["m"]
	p.hear("gw", subjects.PoolReference{
		Price: 2.1, Mean: policy.Mean{Input: 1000, Output: 200, Samples: 100}, Workers: 8, HomeLanes: ids,
	}, now)
	w.arrangeLocked()
	for i := range 20 {
		p.prefill.Add(float64(100*i+10), 0.01*float64(i), now)
		p.itl.Add(float64(i+1), 0.01+0.0002*float64(i), now)
	}
	for range 32 {
		a := w.beginLocked(nil, w.lanes[0], now)
		a.req = &subjects.Request{Stream: true}
		w.firstLocked(a, now)
	}
	w.bidLocked()
	return w
}

// connected is a worker on a broker that knows none of its queues.
func connected(t testing.TB) *Worker {
	t.Helper()
	br, err := broker.New(broker.Config{StoreDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { br.Run(ctx); close(done) }() // Cleanup waits for it
	<-br.Ready()
	nc, err := nats.Connect("", nats.InProcessServer(br))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close(); stop(); <-done })
	w, err := New(Config{Engine: "http://engine", Slots: 64}, nc)
	if err != nil {
		t.Fatal(err)
	}
	w.gateOpens = time.NewTimer(time.Hour)
	return w
}
