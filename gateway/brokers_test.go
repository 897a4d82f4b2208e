package gateway

import (
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// A broker that the others do not hear is one event, and one more when they hear it again, whatever else leaders say of it.
func TestBrokers(t *testing.T) {
	heard := func(name string) *jetstream.PeerInfo {
		return &jetstream.PeerInfo{Name: name, Current: true, Active: 900 * time.Millisecond}
	}
	silent := func(name string, d time.Duration) *jetstream.PeerInfo {
		return &jetstream.PeerInfo{Name: name, Current: true, Active: d}
	}
	of := func(leader string, replicas ...*jetstream.PeerInfo) *jetstream.ClusterInfo {
		return &jetstream.ClusterInfo{Leader: leader, Replicas: replicas}
	}
	var bs brokers
	now := time.Now()
	for i, c := range []struct {
		said   []*jetstream.ClusterInfo
		events string
		up     string
	}{
		{nil, "[]", "map[]"}, // no cluster, or no answer
		{[]*jetstream.ClusterInfo{of("a", heard("b"), heard("c")), of("b", heard("a"), heard("c"))}, "[]", "map[a:true b:true c:true]"},
		{[]*jetstream.ClusterInfo{of("a", heard("b"), silent("c", 2*time.Second))}, "[]", "map[a:true b:true c:true]"},
		{[]*jetstream.ClusterInfo{of("a", heard("b"), silent("c", 3*time.Second)), of("b", heard("a"), heard("c"))},
			"[broker c is silent: the others do not hear it]", "map[a:true b:true c:false]"},
		{[]*jetstream.ClusterInfo{of("a", heard("b"), silent("c", 4*time.Second)), of("b", heard("a"), silent("c", 4200*time.Millisecond))}, "[]", "map[a:true b:true c:false]"},
		{[]*jetstream.ClusterInfo{of("b", heard("a"), &jetstream.PeerInfo{Name: "c"})}, "[]", "map[a:true b:true c:false]"}, // a new leader that has not heard it yet
		{[]*jetstream.ClusterInfo{of("b", heard("a"), &jetstream.PeerInfo{Name: "c", Offline: true})}, "[]", "map[a:true b:true c:false]"},
		{[]*jetstream.ClusterInfo{of("b", heard("a"), heard("c"))}, "[broker c is heard again]", "map[a:true b:true c:true]"},
		{[]*jetstream.ClusterInfo{of("", heard("a"), &jetstream.PeerInfo{Name: "d", Offline: true})}, "[broker d is silent: the others do not hear it]", "map[a:true b:true c:true d:false]"},
	} {
		now = now.Add(time.Second)
		events := []string{}
		for _, e := range bs.observe(c.said, now) {
			events = append(events, e.Text)
		}
		if got := fmt.Sprint(events); got != c.events {
			t.Errorf("%d: %s, want %s", i, got, c.events)
		}
		if got := fmt.Sprint(bs.up()); got != c.up {
			t.Errorf("%d: %s, want %s", i, got, c.up)
		}
	}
	if got := bs.silent(now); len(got) != 1 || got["d"] != 2500 {
		t.Errorf("silent: %v", got)
	}
	bs.observe([]*jetstream.ClusterInfo{of("a", heard("b"))}, now.Add(2*brokerForgotten))
	if got := fmt.Sprint(bs.up()); got != "map[a:true b:true]" {
		t.Errorf("brokers that left the cluster: %s", got)
	}
}
