package worker

import (
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/pulley-lb/pulley/brokerconn"
	"github.com/pulley-lb/pulley/metric"
	"github.com/pulley-lb/pulley/subjects"
)

// Metrics are the Prometheus metrics of the workers of a process. Workers whose Config has them fill them.
type Metrics struct {
	firstToken, answer *prometheus.HistogramVec
	interToken         *metric.GapsVec

	mu      sync.Mutex
	workers map[string]*meters // by the worker's id
	gpus    *metric.GPUHistory
}

// meters are those of one worker. What is observed for each token takes no lock.
type meters struct {
	id, name, host     string
	gpus               *metric.GPUHistory
	firstToken, answer prometheus.Observer
	interToken         *metric.Gaps

	mu   sync.Mutex
	conn *brokerconn.Watch
	nc   *nats.Conn
	beat *subjects.Heartbeat // the last one; nil: there was none
}

// NewMetrics makes the metrics of workers. Nobody sees them until collectors are registered.
func NewMetrics() *Metrics {
	return &Metrics{
		firstToken: metric.WorkerFirst.HistogramVec(), interToken: metric.WorkerInterToken.GapsVec(), answer: metric.WorkerAnswer.HistogramVec(),
		workers: make(map[string]*meters), gpus: metric.NewGPUHistory(),
	}
}

// Collectors are all that an admin port of the workers alone serves.
func (m *Metrics) Collectors() []prometheus.Collector {
	return append(m.Own(), metric.Fleet{Beats: m.heartbeats, GPUs: m.gpus})
}

// Own are those that a gateway does not have of a worker, for an admin port that both share.
func (m *Metrics) Own() []prometheus.Collector {
	return []prometheus.Collector{m.firstToken, m.interToken, m.answer, metric.Collector{
		Metrics: []*metric.Metric{metric.WorkerConnected, metric.WorkerReconnects}, Values: m.collectConnections,
	}}
}

// of makes the meters of a worker. Its histograms are there at once.
func (m *Metrics) of(id, name, host string) *meters {
	w := &meters{
		id: id, name: name, host: host, gpus: m.gpus, firstToken: m.firstToken.WithLabelValues(name, host),
		interToken: m.interToken.With(name, host), answer: m.answer.WithLabelValues(name, host),
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.workers[id] = w
	return w
}

// drop forgets a worker that has left.
func (m *Metrics) drop(w *meters) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.workers, w.id)
}

// all are the meters of the workers, by their names, each name once.
func (m *Metrics) all() map[string]*meters {
	m.mu.Lock()
	defer m.mu.Unlock()
	named := make(map[string]*meters, len(m.workers))
	for _, w := range m.workers {
		named[w.name] = w
	}
	return named
}

func (m *Metrics) heartbeats() (beats []*subjects.Heartbeat) {
	for _, w := range m.all() {
		if h := w.last(); h != nil {
			beats = append(beats, h)
		}
	}
	return beats
}

func (m *Metrics) collectConnections(to chan<- prometheus.Metric) {
	now := time.Now()
	for _, w := range m.all() {
		if conn, nc := w.connection(); nc != nil {
			metric.WorkerConnected.Send(to, metric.Truth(conn.Hears(now)), w.name, w.host)
			metric.WorkerReconnects.Send(to, float64(nc.Stats().Reconnects), w.name, w.host)
		}
	}
}

// NotReady is why none of the workers can take requests; empty if one can.
func (m *Metrics) NotReady() (why string) {
	why = "no worker"
	for _, h := range m.heartbeats() {
		if h.Live() {
			return ""
		}
		why = "worker " + h.Name + ": " + string(h.State)
		if h.Reason != "" {
			why += ": " + h.Reason
		}
	}
	return why
}

func (w *meters) watch(conn *brokerconn.Watch, nc *nats.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conn, w.nc = conn, nc
}

func (w *meters) connection() (*brokerconn.Watch, *nats.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.conn, w.nc
}

// onHeartbeat takes in a heartbeat, which must not be changed afterwards.
func (w *meters) onHeartbeat(h *subjects.Heartbeat, now time.Time) {
	w.gpus.OnHeartbeat(h, now)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.beat = h
}

func (w *meters) last() *subjects.Heartbeat {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.beat
}
