package keda_test

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/keda"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/keda/externalscaler"
	"github.com/pulley-lb/pulley/gateway"
)

// scaler runs a scaler of the pool m, and returns a client of it, as KEDA is one.
func scaler(t *testing.T, demand *atomic.Pointer[gateway.Demand]) externalscaler.ExternalScalerClient {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := keda.New(func(pool string) gateway.Demand {
		if pool != "m" {
			return gateway.Demand{Measured: true}
		}
		return *demand.Load()
	}, slog.New(slog.DiscardHandler))
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, ln, nil) }()
	conn, err := grpc.NewClient(ln.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop() // while streams are open
		if err := <-ended; err != nil {
			t.Error(err)
		}
		conn.Close()
	})
	return externalscaler.NewExternalScalerClient(conn)
}

func ref(metadata ...string) *externalscaler.ScaledObjectRef {
	r := &externalscaler.ScaledObjectRef{Name: "m", Namespace: "llm", ScalerMetadata: map[string]string{"scalerAddress": "pulley:9090"}}
	for i := 0; i < len(metadata); i += 2 {
		r.ScalerMetadata[metadata[i]] = metadata[i+1]
	}
	return r
}

func TestMetrics(t *testing.T) {
	var demand atomic.Pointer[gateway.Demand]
	demand.Store(new(gateway.Demand))
	client := scaler(t, &demand)
	for _, c := range []struct { // in this order: a pool without workers is measured by the last that it had
		about         string
		demand        gateway.Demand
		metadata      []string
		value, target float64
		active        bool
	}{
		{"nothing", gateway.Demand{Measured: true}, nil, 0, 1, false},
		{"no worker yet", gateway.Demand{Requests: 3}, nil, 3, 1, true},
		{"no worker yet, seconds", gateway.Demand{Requests: 3}, []string{"metric", "outstanding_seconds"}, 67.5, 22.5, true},
		{"slots of a worker", gateway.Demand{Requests: 20, Workers: 2, Slots: 16, Measured: true}, nil, 20, 8, true},
		{"a target", gateway.Demand{Requests: 20, Workers: 2, Slots: 16, Measured: true}, []string{"target", "2.5"}, 20, 2.5, true},
		{"seconds of one worker", gateway.Demand{Requests: 20, Seconds: 7.25, Workers: 2, Slots: 16, Measured: true}, []string{"metric", "outstanding_seconds"}, 14.5, 22.5, true},
		{"a target of seconds", gateway.Demand{Requests: 20, Seconds: 7.25, Workers: 2, Slots: 16, Measured: true}, []string{"metric", "outstanding_seconds", "target", "30"}, 14.5, 30, true},
		{"not measured", gateway.Demand{Requests: 16, Workers: 2, Slots: 16}, []string{"metric", "outstanding_seconds"}, 45, 22.5, true},
		{"no worker any more", gateway.Demand{Requests: 4}, nil, 4, 8, true},
		{"idle", gateway.Demand{Measured: true, Workers: 1, Slots: 8}, nil, 0, 8, false},
		{"another pool", gateway.Demand{Requests: 4}, []string{"pool", "other"}, 0, 1, false},
	} {
		demand.Store(&c.demand)
		r, metric := ref(append([]string{"pool", "m"}, c.metadata...)...), keda.Slots
		if m := r.ScalerMetadata["metric"]; m != "" {
			metric = m
		}
		spec, err := client.GetMetricSpec(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if s := spec.MetricSpecs; len(s) != 1 || s[0].MetricName != metric || s[0].TargetSizeFloat != c.target || s[0].TargetSize != 0 {
			t.Errorf("%s: spec %v, want %v", c.about, s, c.target)
		}
		got, err := client.GetMetrics(t.Context(), &externalscaler.GetMetricsRequest{ScaledObjectRef: r, MetricName: metric})
		if err != nil {
			t.Fatal(err)
		}
		if v := got.MetricValues; len(v) != 1 || v[0].MetricName != metric || v[0].MetricValueFloat != c.value || v[0].MetricValue != 0 {
			t.Errorf("%s: %v, want %v", c.about, v, c.value)
		}
		active, err := client.IsActive(t.Context(), r)
		if err != nil || active.Result != c.active {
			t.Errorf("%s: active %v, %v", c.about, active, err)
		}
	}
}

// A stream says at once what is, and then each change.
func TestStreams(t *testing.T) {
	var demand atomic.Pointer[gateway.Demand]
	demand.Store(&gateway.Demand{Measured: true})
	client := scaler(t, &demand)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	active, err := client.StreamIsActive(ctx, ref("pool", "m"))
	if err != nil {
		t.Fatal(err)
	}
	specs, err := client.StreamMetricSpec(ctx, ref("pool", "m"))
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct {
		demand gateway.Demand
		active bool
		target float64
	}{
		{gateway.Demand{Measured: true}, false, 1}, {gateway.Demand{Requests: 100, Workers: 1, Slots: 4}, true, 4}, {gateway.Demand{Measured: true, Workers: 1, Slots: 6}, false, 6},
	} {
		demand.Store(&c.demand)
		if got, err := active.Recv(); err != nil || got.Result != c.active {
			t.Errorf("%d: active %v, %v", i, got, err)
		}
		got, err := specs.Recv()
		if err != nil || len(got.MetricSpecs) != 1 || got.MetricSpecs[0].TargetSizeFloat != c.target {
			t.Errorf("%d: spec %v, %v", i, got, err)
		}
	}
}

func TestMetadataThatAreWrong(t *testing.T) {
	var demand atomic.Pointer[gateway.Demand]
	demand.Store(new(gateway.Demand))
	client := scaler(t, &demand)
	for about, c := range map[string]struct {
		ref  *externalscaler.ScaledObjectRef
		want string
	}{
		"no pool":         {ref(), "lack pool"},
		"nothing":         {nil, "lack pool"},
		"no such metric":  {ref("pool", "m", "metric", "queue"), `metric "queue": must be slots_demand or outstanding_seconds`},
		"no number":       {ref("pool", "m", "target", "many"), `target "many": must be a number above 0`},
		"no target":       {ref("pool", "m", "target", "0"), `target "0": must be a number above 0`},
		"not a number":    {ref("pool", "m", "target", "NaN"), `target "NaN": must be a number above 0`},
		"without a bound": {ref("pool", "m", "target", "Inf"), `target "Inf": must be a number above 0`},
	} {
		_, err := client.GetMetricSpec(t.Context(), c.ref)
		_, err2 := client.GetMetrics(t.Context(), &externalscaler.GetMetricsRequest{ScaledObjectRef: c.ref})
		_, err3 := client.IsActive(t.Context(), c.ref)
		stream, err4 := client.StreamIsActive(t.Context(), c.ref)
		if err4 == nil {
			_, err4 = stream.Recv()
		}
		for i, err := range []error{err, err2, err3, err4} {
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(status.Convert(err).Message(), c.want) {
				t.Errorf("%s: call %d: %v", about, i, err)
			}
		}
	}
}
