package worker

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// receiver is a gateway as far as a link goes: it takes in messages in order, and asks for what it misses.
type receiver struct {
	nc   *nats.Conn
	lose func() bool // whether a message is lost on the way; nil: none is

	mu       sync.Mutex
	next     uint64
	messages int
	items    []string
	at       []time.Time // when each item came
}

func (r *receiver) onMessage(m *nats.Msg) {
	if r.lose != nil && r.lose() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	number, oldest, items, err := subjects.ParseLink(m.Data)
	r.next = max(r.next, oldest) // the first one is not 1
	switch {
	case err != nil:
		panic(err)
	case number > r.next:
		r.ack(true)
		return
	case number < r.next:
		return
	}
	r.next++
	r.messages++
	for len(items) > 0 {
		var payload []byte
		if _, payload, items, err = subjects.NextItem(items); err != nil {
			panic(err)
		}
		r.items, r.at = append(r.items, string(payload)), append(r.at, time.Now())
	}
}

func (r *receiver) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.messages
}

func (r *receiver) ack(again bool) {
	if r.lose == nil || !r.lose() {
		r.nc.Publish(subjects.WorkerGot("w", "g"), subjects.MustMarshal(subjects.LinkAck{Next: r.next, Again: again}))
	}
}

// linked calls test with a link and what receives its messages.
func linked(t *testing.T, lose func() bool, test func(t *testing.T, ls *links, r *receiver)) {
	t.Helper()
	testenv.Run(t, func(t *testing.T, env *testenv.Env) {
		gateway, _ := env.Connect("gateway")
		worker, _ := env.Connect("worker")
		r := &receiver{nc: gateway, next: 1, lose: lose}
		ls := newLinks(worker, "w", nil, slog.New(slog.DiscardHandler))
		for _, sub := range []func() (*nats.Subscription, error){
			func() (*nats.Subscription, error) {
				return gateway.Subscribe(subjects.GatewayLink("g", "w"), r.onMessage)
			},
			func() (*nats.Subscription, error) {
				return worker.Subscribe(subjects.WorkerGot("w", "g"), func(m *nats.Msg) { ls.onAck("g", m) })
			},
		} {
			if _, err := sub(); err != nil {
				t.Fatal(err)
			}
		}
		gateway.Flush()
		worker.Flush()
		test(t, ls, r)
	})
}

// What is added arrives once and in order, whichever messages and acks are lost.
func TestLinkLosesNothing(t *testing.T) {
	for _, share := range []float64{0, 0.1, 0.5} {
		t.Run(fmt.Sprintf("%g of the messages are lost", share), func(t *testing.T) {
			var mu sync.Mutex
			random := rand.New(rand.NewPCG(1, 2))
			lose := func() bool {
				mu.Lock()
				defer mu.Unlock()
				return random.Float64() < share
			}
			linked(t, lose, func(t *testing.T, ls *links, r *receiver) {
				const items = 500
				l := ls.get("g")
				var want []string
				for i := range items {
					payload := binary.BigEndian.AppendUint64(make([]byte, i%40, 48), uint64(i))
					want = append(want, string(payload))
					if !l.add(subjects.ItemFrames, payload, []when{during, first, last, only}[i%4]) {
						t.Fatal("the gateway is gone")
					}
					time.Sleep(time.Duration(i%7) * time.Millisecond)
				}
				for range 400 {
					r.mu.Lock()
					r.ack(false)
					r.mu.Unlock()
					time.Sleep(resendAfter / 4)
					ls.resend(false, time.Now())
				}
				r.mu.Lock()
				defer r.mu.Unlock()
				if !slices.Equal(r.items, want) {
					t.Errorf("%d of %d items arrived in order", len(r.items), items)
				}
				if !l.settled() {
					t.Error("messages are still kept")
				}
			})
		})
	}
}

// The tokens of one step of an engine travel together. None waits for long, the first of a stream and those of a stream
// alone do not wait at all.
func TestLinkBundles(t *testing.T) {
	for _, c := range []struct {
		streams int
		silent  int // of these, how many have nothing in a step
		most    float64
	}{
		{streams: 1, most: 1},
		{streams: 4, most: 1.1},
		{streams: 64, most: 1.1},
		{streams: 64, silent: 40, most: 1.2},
	} {
		t.Run(fmt.Sprintf("%d streams, %d of them silent", c.streams, c.silent), func(t *testing.T) {
			linked(t, nil, func(t *testing.T, ls *links, r *receiver) {
				const steps = 100
				l := ls.get("g")
				var added []time.Time
				add := func(w when) {
					added = append(added, time.Now())
					l.add(subjects.ItemFrames, []byte("token"), w)
				}
				for range c.streams {
					add(first)
					time.Sleep(time.Millisecond)
				}
				before := r.count()
				if before != c.streams {
					t.Errorf("%d messages for the first tokens of %d streams", before, c.streams)
				}
				for range steps {
					for range c.streams - c.silent {
						add(during)
						time.Sleep(2 * time.Microsecond)
					}
					time.Sleep(20 * time.Millisecond)
				}
				if n := float64(r.count()-before) / steps; n > c.most {
					t.Errorf("%.2f messages for each step, want at most %g", n, c.most)
				}
				r.mu.Lock()
				defer r.mu.Unlock()
				for i, at := range r.at {
					wait := at.Sub(added[i])
					if wait > bundleTime || wait > 0 && (c.streams == 1 || i < c.streams) {
						t.Fatalf("item %d waited for %v", i, wait)
					}
				}
				if len(r.items) != c.streams+steps*(c.streams-c.silent) {
					t.Errorf("%d items", len(r.items))
				}
			})
		})
	}
}

// A gateway that is gone, or does not acknowledge anything, takes no more.
func TestLinkToAGatewayThatIsGone(t *testing.T) {
	linked(t, nil, func(t *testing.T, ls *links, r *receiver) {
		l := ls.get("g")
		l.add(subjects.ItemFrames, []byte("x"), only)
		if l.settled() {
			t.Error("nothing has been acknowledged")
		}
		l.size = maxKept + 1
		if l.add(subjects.ItemFrames, []byte("x"), only) {
			t.Error("there is no bound on what is kept")
		}
		ls.drop("g")
		if l.add(subjects.ItemFrames, []byte("x"), only) || !l.settled() {
			t.Error("the link of a gateway that is gone goes on")
		}
		if ls.get("g") == l {
			t.Error("a gateway that is back has the old link")
		}
	})
}
