package scenarios

import (
	"context"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/worker"
)

// A message that was sent twice is stored twice if a broker's leader was frozen, and passes the first on when another one has
// stored the second. The late ack shows that, and the copy is removed, while the request waits and after its end.
func TestCopyThatIsStoredLate(t *testing.T) {
	for about, ended := range map[string]bool{"while it waits": false, "after its end": true} {
		t.Run(about, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				cfg := slow("a")
				cfg.Slots = 1
				e := env.Engine(cfg)
				g := env.Gateway(gateway.Config{})
				env.Worker(e, worker.Config{Name: "a", Slots: 1})
				g.Serves(t, "m")
				var wg sync.WaitGroup
				defer wg.Wait()
				busy, free := context.WithCancel(t.Context())
				defer free()
				if !ended {
					wg.Go(func() { drain(post(busy, g, "/v1/chat/completions", chat("m", false, 10_000), "")) })
					time.Sleep(time.Second)
				}
				number := uint64(1)
				if !ended {
					number = 2
				}
				g.Link.Freeze() // what is sent now the broker does not get: it is sent again after 2 s
				answered := make(chan reply, 1)
				wg.Go(func() { answered <- ask(t, g, chat("m", false, 5), "") })
				time.Sleep(300 * time.Millisecond)
				g.Link.Cut(true)
				g.Link.Thaw()
				g.Link.Mend()
				time.Sleep(3 * time.Second)
				js := env.JetStream()
				s, err := js.Stream(t.Context(), subjects.ReqStream("standard"))
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(50 * time.Millisecond)
				info, err := s.Info(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				id := ""
				if ended {
					r := <-answered
					if id = r.header.Get("X-Request-Id"); r.status != 200 {
						t.Fatalf("%d %q", r.status, r.body)
					}
				} else if stored, err := s.GetMsg(t.Context(), info.State.LastSeq); err == nil {
					id = stored.Header.Get(subjects.HeaderMsgID)
				}
				// From a leader that does not know the first one. No worker bids there, so that only the gateway can remove it.
				m := &nats.Msg{Subject: subjects.Req("standard", "m", "nobody"), Header: nats.Header{subjects.HeaderMsgID: {id + ".x"}}}
				ack, err := js.PublishMsg(t.Context(), m)
				if err != nil {
					t.Fatal(err)
				}
				nc, _ := env.Connect("the broker")
				nc.Publish(subjects.GatewayAck(g.ID(), number), []byte(`{"stream":"`+ack.Stream+`","seq":`+strconv.FormatUint(ack.Sequence, 10)+`}`))
				time.Sleep(1500 * time.Millisecond)
				if _, err := s.GetMsg(t.Context(), ack.Sequence); err == nil {
					t.Error("the copy is still there")
				}
				if !ended {
					if _, err := s.GetMsg(t.Context(), info.State.LastSeq); err != nil {
						t.Errorf("the message itself: %v", err)
					}
					free()
					if r := <-answered; r.status != 200 {
						t.Errorf("%d %q", r.status, r.body)
					}
				}
				emptyQueues(t, env)
			})
		})
	}
}
