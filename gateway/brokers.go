package gateway

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/subjects"
)

// brokers knows which members of the brokers' cluster the others hear, from what the leaders of streams say of their replicas.
type brokers struct {
	mu   sync.Mutex
	seen map[string]*brokerState // by its name; empty without a cluster
}

// brokerState is of one broker of a cluster.
type brokerState struct {
	silent bool
	since  time.Time // when it was last heard, while it is silent
	at     time.Time // when a leader last told of it
}

// brokerForgotten is after how long without a word of any leader a broker is no member any more.
const brokerForgotten = time.Minute

// observe takes in what leaders say at one time. It returns an event for each broker that has fallen silent, or is heard again.
func (bs *brokers) observe(clusters []*jetstream.ClusterInfo, now time.Time) (events []subjects.Event) {
	heard, silent := make(map[string]bool), make(map[string]time.Duration)
	for _, c := range clusters {
		heard[c.Leader] = true
		for _, p := range c.Replicas {
			if s := subjects.SilentMember(p); s > 0 {
				silent[p.Name] = max(silent[p.Name], s)
			} else if p.Active > 0 {
				heard[p.Name] = true
			}
		}
	}
	delete(heard, "")
	bs.mu.Lock()
	defer bs.mu.Unlock()
	if bs.seen == nil {
		bs.seen = make(map[string]*brokerState)
	}
	of := func(name string) *brokerState {
		m := bs.seen[name]
		if m == nil {
			m = new(brokerState)
			bs.seen[name] = m
		}
		m.at = now
		return m
	}
	for _, name := range slices.Sorted(maps.Keys(heard)) {
		m := of(name)
		if silent[name] == 0 && m.silent { // while leaders differ, it is silent
			m.silent = false
			events = append(events, subjects.Event{Kind: subjects.EventBroker, Text: fmt.Sprintf("broker %s is heard again", name)})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(silent)) {
		m := of(name)
		if m.since = now.Add(-silent[name]); !m.silent {
			m.silent = true
			events = append(events, subjects.Event{Kind: subjects.EventBroker, Text: fmt.Sprintf("broker %s is silent: the others do not hear it", name)})
		}
	}
	maps.DeleteFunc(bs.seen, func(_ string, m *brokerState) bool { return now.Sub(m.at) > brokerForgotten })
	return events
}

// silent returns for how many milliseconds each broker is silent that is.
func (bs *brokers) silent(now time.Time) map[string]int64 {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	var silent map[string]int64
	for name, m := range bs.seen {
		if m.silent {
			if silent == nil {
				silent = make(map[string]int64)
			}
			silent[name] = now.Sub(m.since).Milliseconds()
		}
	}
	return silent
}

// up says of each broker of the cluster whether it is heard.
func (bs *brokers) up() map[string]bool {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	up := make(map[string]bool, len(bs.seen))
	for name, m := range bs.seen {
		up[name] = !m.silent
	}
	return up
}
