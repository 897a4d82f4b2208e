package gateway

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/subjects"
)

// In a cluster, the leader of a consumer may take with it what it was told, and the next one confirms what comes later. Each
// delivery counts as settled when it is confirmed itself. A single broker is asked once for all.
func TestEachSettledDeliveryIsConfirmed(t *testing.T) {
	for name, c := range map[string]struct {
		replicated bool
		lost       int // deliveries that are looked for
	}{"single broker": {false, 0}, "cluster": {true, 1}} {
		t.Run(name, func(t *testing.T) {
			b := startBroker(t)
			consumer, nc := b.connect(), b.connect()
			first, second := subjects.AckSubject("S", "C", 1, 1), subjects.AckSubject("S", "C", 2, 2)
			told := make(chan string, 10)
			if _, err := consumer.Subscribe("$JS.ACK.S.C.>", func(m *nats.Msg) {
				if m.Reply != "" && m.Subject == second {
					m.Respond(nil)
				}
				told <- m.Subject
			}); err != nil {
				t.Fatal(err)
			}
			if err := consumer.Flush(); err != nil {
				t.Fatal(err)
			}
			bus := &bus{id: "g", nc: nc}
			bus.replicated.Store(c.replicated)
			s := newSettlements(bus)
			confirmed := make(chan struct{}, 10)
			if _, err := nc.Subscribe(subjects.Gateway("g")+".>", func(m *nats.Msg) {
				s.onConfirmed(m.Subject[strings.LastIndexByte(m.Subject, '.')+1:], m)
				confirmed <- struct{}{}
			}); err != nil {
				t.Fatal(err)
			}
			lost, kept := subjects.NewID(), subjects.NewID()
			s.settle(lost, first, subjects.Ack)
			s.settle(kept, second, subjects.Ack)
			<-told
			<-told
			now := time.Now()
			for number, ack := range s.ask(now) {
				nc.PublishRequest(ack, subjects.GatewaySettled("g", number), subjects.Ack)
			}
			<-confirmed
			due := s.due(now.Add(confirmWithin))
			if _, looked := due[unwanted{lost, "S", 1}]; len(due) != c.lost || looked != (c.lost > 0) {
				t.Errorf("%v is looked for, want %d deliveries", due, c.lost)
			}
		})
	}
}
