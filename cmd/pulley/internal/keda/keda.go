// Package keda is an external scaler for KEDA (https://keda.sh): it tells an autoscaler of Kubernetes whether a pool has work, and how
// much, for all gateways together. docs/autoscaling.md says how to use it.
package keda

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/keda/externalscaler"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
)

//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative externalscaler/externalscaler.proto

// The metrics that a trigger may choose.
const (
	Slots   = "slots_demand"        // how many slots the requests that wait or run would fill
	Seconds = "outstanding_seconds" // the seconds of one worker's time that they take: see policy.Demand.Seconds
)

const (
	// pollEvery is how often a stream looks for a change: so late KEDA learns that a pool has its first request.
	pollEvery = 250 * time.Millisecond

	// secondsOfWorker is the target of Seconds unless a trigger sets another: a worker of which three quarters are in use. In replays
	// of production traffic (docs/autoscaling.md) those with more made first tokens late whenever a burst came.
	secondsOfWorker = 0.75 * policy.DemandAhead
)

// Scaler serves KEDA. It is safe for concurrent use.
type Scaler struct {
	externalscaler.UnimplementedExternalScalerServer
	demand func(pool string) gateway.Demand
	log    *slog.Logger

	mu    sync.Mutex
	slots map[string]float64 // of a worker of each pool, when there was one last
}

// New makes a scaler that follows the demand of pools; log may not be nil.
func New(demand func(pool string) gateway.Demand, log *slog.Logger) *Scaler {
	return &Scaler{demand: demand, log: log, slots: make(map[string]float64)}
}

// Run serves gRPC on ln, with TLS if secure is not nil, until ctx is done. It closes ln.
func (s *Scaler) Run(ctx context.Context, ln net.Listener, secure *tls.Config) error {
	opts := []grpc.ServerOption{grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true})}
	if secure != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(secure)))
	}
	server := grpc.NewServer(opts...)
	externalscaler.RegisterExternalScalerServer(server, s)
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }() // ends with Stop
	s.log.Info("KEDA scaler started", "listen", ln.Addr().String())
	select {
	case err := <-served:
		return fmt.Errorf("keda: %w", err)
	case <-ctx.Done():
		server.Stop()
		<-served
		return nil
	}
}

// trigger is what the metadata of a ScaledObject's trigger ask for.
type trigger struct {
	pool, metric string
	target       float64 // 0: the default
}

func parse(ref *externalscaler.ScaledObjectRef) (t trigger, err error) {
	meta := ref.GetScalerMetadata()
	t = trigger{pool: meta["pool"], metric: Slots}
	if v := meta["metric"]; v != "" {
		t.metric = v
	}
	switch {
	case t.pool == "":
		return t, status.Error(codes.InvalidArgument, "the metadata of the trigger lack pool: the name of the pool to scale")
	case t.metric != Slots && t.metric != Seconds:
		return t, status.Errorf(codes.InvalidArgument, "metric %q: must be %s or %s", t.metric, Slots, Seconds)
	}
	if v := meta["target"]; v != "" {
		if t.target, err = strconv.ParseFloat(v, 64); err != nil || !(t.target > 0) || t.target > 1e12 {
			return t, status.Errorf(codes.InvalidArgument, "target %q: must be a number above 0: what one worker should have of %s", v, t.metric)
		}
	}
	return t, nil
}

// IsActive says whether a pool has requests.
func (s *Scaler) IsActive(_ context.Context, ref *externalscaler.ScaledObjectRef) (*externalscaler.IsActiveResponse, error) {
	t, err := parse(ref)
	if err != nil {
		return nil, err
	}
	return &externalscaler.IsActiveResponse{Result: s.demand(t.pool).Requests > 0}, nil
}

// StreamIsActive sends whether a pool has requests: at once, and when that changes.
func (s *Scaler) StreamIsActive(ref *externalscaler.ScaledObjectRef, to grpc.ServerStreamingServer[externalscaler.IsActiveResponse]) error {
	t, err := parse(ref)
	if err != nil {
		return err
	}
	return follow(to.Context(), func() bool { return s.demand(t.pool).Requests > 0 }, func(active bool) error {
		s.log.Info("pool active for KEDA", "pool", t.pool, "active", active)
		return to.Send(&externalscaler.IsActiveResponse{Result: active})
	})
}

// GetMetricSpec returns what one worker should have.
func (s *Scaler) GetMetricSpec(_ context.Context, ref *externalscaler.ScaledObjectRef) (*externalscaler.GetMetricSpecResponse, error) {
	t, err := parse(ref)
	if err != nil {
		return nil, err
	}
	return spec(t.metric, s.target(t, s.demand(t.pool))), nil
}

// StreamMetricSpec sends what GetMetricSpec returns: at once, and when it changes.
func (s *Scaler) StreamMetricSpec(ref *externalscaler.ScaledObjectRef, to grpc.ServerStreamingServer[externalscaler.GetMetricSpecResponse]) error {
	t, err := parse(ref)
	if err != nil {
		return err
	}
	return follow(to.Context(), func() float64 { return s.target(t, s.demand(t.pool)) }, func(target float64) error { return to.Send(spec(t.metric, target)) })
}

// GetMetrics returns the demand of a pool, of all gateways together.
func (s *Scaler) GetMetrics(_ context.Context, r *externalscaler.GetMetricsRequest) (*externalscaler.GetMetricsResponse, error) {
	t, err := parse(r.GetScaledObjectRef())
	if err != nil {
		return nil, err
	}
	d := s.demand(t.pool)
	value := float64(d.Requests)
	if t.metric == Seconds {
		if value = d.Seconds * float64(d.Workers); !d.Measured || d.Workers == 0 && d.Requests > 0 { // unknown: as many slots as there is work for
			value = float64(d.Requests) / s.slotsOf(t.pool, d) * s.target(t, d)
		}
	}
	return &externalscaler.GetMetricsResponse{MetricValues: []*externalscaler.MetricValue{{MetricName: t.metric, MetricValueFloat: value}}}, nil
}

func spec(metric string, target float64) *externalscaler.GetMetricSpecResponse {
	return &externalscaler.GetMetricSpecResponse{MetricSpecs: []*externalscaler.MetricSpec{{MetricName: metric, TargetSizeFloat: target}}}
}

// target is what one worker should have of a trigger's metric.
func (s *Scaler) target(t trigger, d gateway.Demand) float64 {
	switch {
	case t.target > 0:
		return t.target
	case t.metric == Seconds:
		return secondsOfWorker
	}
	return s.slotsOf(t.pool, d)
}

// slotsOf is how many slots a worker of a pool has on average; without a worker, as the last ones; 1 before there was one.
func (s *Scaler) slotsOf(pool string, d gateway.Demand) float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.Workers > 0 && d.Slots > 0 {
		s.slots[pool] = float64(d.Slots) / float64(d.Workers)
	}
	return max(s.slots[pool], 1)
}

// follow sends a value at once, and when it has changed, until ctx is done.
func follow[T comparable](ctx context.Context, read func() T, send func(T) error) error {
	last := read()
	if err := send(last); err != nil {
		return err
	}
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if now := read(); now != last {
			last = now
			if err := send(now); err != nil {
				return err
			}
		}
	}
}
