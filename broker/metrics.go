package broker

import (
	"github.com/nats-io/nats-server/v2/server"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/pulley-lb/pulley/metric"
)

// Collector has the broker's metrics for Prometheus. It may be asked at any time.
func (b *Broker) Collector() prometheus.Collector {
	return metric.Collector{Metrics: []*metric.Metric{
		metric.NodeReady, metric.NodeConnections, metric.NodeMessages, metric.NodeBytes, metric.NodeSlow, metric.NodeRoutes, metric.NodeMemory,
		metric.NodeStore, metric.NodeErrors, metric.NodeLeader,
	}, Values: b.collect}
}

// NotReady is why the broker does not accept connections; empty if it does.
func (b *Broker) NotReady() string {
	select {
	case <-b.ready:
		if s := b.server.Load(); s != nil && s.Running() {
			return ""
		}
		return "stopped, or starting again"
	default:
		return "starting"
	}
}

func (b *Broker) collect(to chan<- prometheus.Metric) {
	ready := b.NotReady() == ""
	s := b.server.Load() // there is one once the broker was ready
	metric.NodeReady.Send(to, metric.Truth(ready))
	var v server.Varz
	var js server.JSInfo
	if ready {
		if now, err := s.Varz(nil); err == nil {
			v = *now
		}
		if now, err := s.Jsz(nil); err == nil {
			js = *now
		}
	}
	metric.NodeConnections.Send(to, float64(v.Connections))
	metric.NodeMessages.Send(to, float64(v.InMsgs), "in")
	metric.NodeMessages.Send(to, float64(v.OutMsgs), "out")
	metric.NodeBytes.Send(to, float64(v.InBytes), "in")
	metric.NodeBytes.Send(to, float64(v.OutBytes), "out")
	metric.NodeSlow.Send(to, float64(v.SlowConsumers))
	metric.NodeRoutes.Send(to, float64(v.Routes))
	metric.NodeMemory.Send(to, float64(js.Memory), "used")
	metric.NodeMemory.Send(to, float64(max(js.Config.MaxMemory, 0)), "max")
	metric.NodeStore.Send(to, float64(js.Store), "used")
	metric.NodeStore.Send(to, float64(max(js.Config.MaxStore, 0)), "max")
	metric.NodeErrors.Send(to, float64(js.API.Errors))
	metric.NodeLeader.Send(to, metric.Truth(ready && s.JetStreamIsLeader()))
}
