package natsconf_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/natsconf"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// BenchmarkAccounts measures what it costs that a worker has an account: a request that a bid waits for, with its ack, and
// 100 messages on a link of a worker. The worker's user is the gateway's where there is none for it.
func BenchmarkAccounts(b *testing.B) {
	dir := b.TempDir()
	p := plan()
	p.Tiers = []string{policy.DefaultTier}
	public := make(map[string]string)
	for _, name := range p.Users() {
		public[name], _, _ = natsconf.UserKey(filepath.Join(dir, name+".nk"))
	}
	for name, text := range map[string]string{"accounts.conf": p.AccountsConfig(public), "nats.conf": p.ServerConfig(0, "accounts.conf")} {
		if err := natsconf.WriteSecret(filepath.Join(dir, name), []byte(text)); err != nil {
			b.Fatal(err)
		}
	}
	for _, c := range []struct{ name, conf, user string }{{"without", "", ""}, {"with", filepath.Join(dir, "nats.conf"), "worker-gpu-1"}} {
		br, err := broker.New(broker.Config{Listen: "127.0.0.1:0", StoreDir: b.TempDir(), ConfigFile: c.conf, SyncInterval: time.Minute})
		if err != nil {
			b.Fatal(err)
		}
		ctx, stop := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- br.Run(ctx) }()
		b.Cleanup(func() { stop(); <-ended })
		<-br.Ready()
		connect := func(user string) *nats.Conn {
			var opts []nats.Option
			if c.conf != "" {
				key, err := nats.NkeyOptionFromSeed(filepath.Join(dir, user+".nk"))
				if err != nil {
					b.Fatal(err)
				}
				opts = append(opts, key)
			}
			nc, err := nats.Connect(br.ClientURL(), opts...)
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(nc.Close)
			return nc
		}
		gateway, worker := connect("gateway"), connect("worker-gpu-1")
		js, err := jetstream.New(gateway)
		if err != nil {
			b.Fatal(err)
		}
		if err := subjects.EnsureStreams(ctx, js, []policy.Tier{{Name: policy.DefaultTier}}, 1); err != nil {
			b.Fatal(err)
		}
		if err := subjects.EnsureConsumer(ctx, js, policy.DefaultTier, "m", subjects.Shared); err != nil {
			b.Fatal(err)
		}
		const id = "gpu-1.0"
		in, err := worker.SubscribeSync(subjects.Worker(id) + ".>")
		if err != nil {
			b.Fatal(err)
		}
		worker.Flush()
		bid := subjects.MustMarshal(subjects.Bid{Batch: 1, Expires: int64(time.Minute), Group: subjects.PriorityGroup})
		b.Run("pull/"+c.name, func(b *testing.B) {
			for n := 0; b.Loop(); n++ {
				worker.PublishRequest(subjects.BidSubject(policy.DefaultTier, "m", subjects.Shared), fmt.Sprint(subjects.WorkerBids(id), ".", n), bid)
				worker.Flush()
				gateway.Publish(subjects.Req(policy.DefaultTier, "m", subjects.Shared), []byte("{}"))
				m, err := in.NextMsg(5 * time.Second)
				if err != nil {
					b.Fatal(err)
				}
				worker.Publish(m.Reply, subjects.Ack)
			}
		})
		got := make(chan struct{}, 100)
		if _, err := gateway.Subscribe(subjects.Gateway("gw")+".>", func(*nats.Msg) { got <- struct{}{} }); err != nil {
			b.Fatal(err)
		}
		gateway.Flush()
		msg := make([]byte, 150)
		b.Run("100 messages/"+c.name, func(b *testing.B) {
			for b.Loop() {
				for range 100 {
					worker.Publish(subjects.GatewayLink("gw", id), msg)
				}
				for range 100 {
					<-got
				}
			}
		})
	}
}
