package broker

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A member of a cluster hands over all that it leads: streams, consumers, and the cluster's own log. It leads nothing any more.
func TestHandOver(t *testing.T) {
	members := startCluster(t)
	var urls []string
	for _, b := range members {
		urls = append(urls, b.ClientURL())
	}
	nc, err := nats.Connect(strings.Join(urls, ","), nats.MaxReconnects(-1))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	await := func(what string, try func() error) {
		t.Helper()
		for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			err := try()
			if err == nil {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: not within a minute: %v", what, err)
			}
		}
	}
	const streams = 6
	for i := range streams {
		storage := jetstream.StorageType(i % 2)
		await("create a stream and its consumer", func() error {
			s, err := js.CreateOrUpdateStream(t.Context(), jetstream.StreamConfig{Name: fmt.Sprint("S", i), Subjects: []string{fmt.Sprint("s", i)}, Replicas: 3, Storage: storage})
			if err != nil {
				return err
			}
			_, err = s.CreateOrUpdateConsumer(t.Context(), jetstream.ConsumerConfig{Durable: "C"})
			return err
		})
	}
	leads := func(b *Broker) (n int) {
		s := b.server.Load()
		if s.JetStreamIsLeader() {
			n++
		}
		for i := range streams {
			if s.JetStreamIsStreamLeader("$G", fmt.Sprint("S", i)) {
				n++
			}
			if s.JetStreamIsConsumerLeader("$G", fmt.Sprint("S", i), "C") {
				n++
			}
		}
		return n
	}
	const all = 2*streams + 1
	allLed := func(retired *Broker) error {
		n := 0
		for _, b := range members {
			n += leads(b)
		}
		if n != all || retired != nil && leads(retired) > 0 {
			return fmt.Errorf("of %d groups %d have a leader; the member leads %d of them", all, n, leads(retired))
		}
		return nil
	}
	await("all have a leader", func() error { return allLed(nil) })

	b := members[0]
	for _, m := range members {
		if leads(m) > leads(b) {
			b = m
		}
	}
	if leads(b) == 0 {
		t.Fatal("nobody leads")
	}
	handOver(b.server.Load(), b.cfg.StoreDir)
	await("the others lead", func() error { return allLed(b) })
	for i := range streams {
		await("publish to the new leader", func() error { _, err := js.Publish(t.Context(), fmt.Sprint("s", i), nil); return err })
	}
	groups := raftGroups(b.cfg.StoreDir)
	if len(groups) < all {
		t.Errorf("the store has the groups %v, want %d", groups, all)
	}
	await("it is an observer", func() error {
		for _, g := range groups {
			if node := lookupRaftNode(b.server.Load(), g); node == nil || !node.IsObserver() {
				return fmt.Errorf("group %s: node %v", g, node)
			}
		}
		return nil
	})
}

// startCluster starts three brokers that are a cluster. The names of their stores would be malformed as patterns of file names.
func startCluster(t *testing.T) (members []*Broker) {
	t.Helper()
	var routes []string
	for range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		routes = append(routes, l.Addr().String())
		l.Close()
	}
	for i, addr := range routes {
		b, err := New(Config{
			Listen: "127.0.0.1:0", StoreDir: filepath.Join(t.TempDir(), "a[b"), ServerName: fmt.Sprint("b", i),
			ClusterName: "test", ClusterListen: addr, Routes: routes, SyncInterval: time.Minute,
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- b.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("Run: %v", err)
			}
		})
		select {
		case <-b.Ready():
		case err := <-ended:
			t.Fatalf("Run ended before it was ready: %v", err)
		}
		members = append(members, b)
	}
	return members
}
