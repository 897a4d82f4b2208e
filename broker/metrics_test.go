package broker_test

import (
	"context"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/pulley-lb/pulley/broker"
)

// The metrics of a broker can be scraped before it starts, while it runs, and after it has stopped.
func TestMetrics(t *testing.T) {
	b, err := broker.New(broker.Config{StoreDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(b.Collector())
	want := func(when string, ready, connections float64) {
		t.Helper()
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(when, err)
		}
		got := make(map[string]float64)
		for _, f := range families {
			got[f.GetName()] = f.GetMetric()[0].GetGauge().GetValue()
		}
		if got["pulley_broker_ready"] != ready || got["pulley_broker_connections"] != connections || len(families) != 10 {
			t.Errorf("%s: %v", when, got)
		}
	}
	want("before", 0, 0)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	<-b.Ready()
	nc, err := nats.Connect("", nats.InProcessServer(b))
	if err != nil {
		t.Fatal(err)
	}
	want("while it runs", 1, 1)
	nc.Close()
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	want("after", 0, 0)
}
