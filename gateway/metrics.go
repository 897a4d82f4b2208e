package gateway

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// metrics are labelled with pools that have had a worker and with tiers, never with what a client chooses.
type metrics struct {
	registry  *prometheus.Registry
	requests  *prometheus.CounterVec
	queue     *prometheus.HistogramVec
	ttft      *prometheus.HistogramVec
	duration  *prometheus.HistogramVec
	refusals  *prometheus.CounterVec
	attempts  *prometheus.CounterVec
	cancelled *prometheus.CounterVec
	broken    *prometheus.CounterVec
	errors    *prometheus.CounterVec
	tokens    *prometheus.CounterVec
	mirrors   *prometheus.CounterVec
	cheap     *prometheus.CounterVec
}

// The buckets are vLLM's, so that panels of both can be laid over each other.
var (
	shortBuckets = []float64{0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160}
	longBuckets  = []float64{0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960}
)

// newMetrics makes the metrics of a gateway; others are collected with them.
func newMetrics(gateway, version string, others ...prometheus.Collector) *metrics {
	histogram := func(name, help string, buckets []float64) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "pulley", Name: name, Help: help, Buckets: buckets}, []string{"pool", "tier"})
	}
	m := &metrics{
		registry:  prometheus.NewRegistry(),
		requests:  counterVec("requests_total", "Requests that ended, by outcome: answered, refused, cancelled, broken.", "pool", "tier", "outcome"),
		queue:     histogram("queue_seconds", "Time from a request's arrival to its claim by a worker.", shortBuckets),
		ttft:      histogram("time_to_first_byte_seconds", "Time from a request's arrival to the first byte of its answer.", shortBuckets),
		duration:  histogram("request_seconds", "Time from a request's arrival to its end.", longBuckets),
		refusals:  counterVec("refused_total", "Requests that a queue refused, by reason.", "pool", "tier", "reason"),
		attempts:  counterVec("attempts_failed_total", "Attempts that failed, by class.", "pool", "class"),
		cancelled: counterVec("cancelled_total", "Requests whose client disconnected, by phase: queued, before_first_byte, answering.", "pool", "window"),
		broken:    counterVec("broken_streams_total", "Streams that ended with an error event.", "pool"),
		errors:    counterVec("errors_total", "Error answers, by code.", "code"),
		tokens:    counterVec("tokens_total", "Tokens that engines reported.", "pool", "tier", "direction"),
		mirrors:   counterVec("mirrored_total", "Copies of requests for mirrors, by outcome: sent, or dropped for lack of capacity.", "pool", "outcome"),
		cheap:     counterVec("cheap_calls_total", "Calls that need no slot, such as to count tokens, by outcome: answered, refused, cancelled, broken, or queued like a request.", "pool", "outcome"),
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "pulley", Name: "build_info", Help: "Always 1, labelled with the version.",
		ConstLabels: prometheus.Labels{"version": version, "gateway": gateway}})
	info.Set(1)
	m.registry.MustRegister(m.requests, m.queue, m.ttft, m.duration, m.refusals, m.attempts, m.cancelled, m.broken, m.errors, m.tokens, m.mirrors, m.cheap,
		info, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.registry.MustRegister(others...)
	return m
}

// counterVec is a counter for each combination of labels.
func counterVec(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "pulley", Name: name, Help: help}, labels)
}

// gaugeFunc is a gauge whose value is asked for at each scrape.
func gaugeFunc(name, help string, value func() float64) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "pulley", Name: name, Help: help}, value)
}

// ended counts a request that was admitted. claimed says that a worker had it, gone that its client disconnected.
func (m *metrics) ended(r *request, ans *answer, claimed, gone bool) {
	at := r.target.Load()
	pool, tier := at.queue.pool, at.tier.Name
	m.duration.WithLabelValues(pool, tier).Observe(time.Since(r.arrived).Seconds())
	m.tokens.WithLabelValues(pool, tier, "input").Add(float64(max(ans.usage.InputTokens, 0)))
	m.tokens.WithLabelValues(pool, tier, "output").Add(float64(max(ans.usage.OutputTokens, 0)))
	outcome := "refused"
	switch {
	case ans.whole:
		outcome = "answered"
	case gone:
		outcome = "cancelled"
		window := "queued"
		if ans.begun {
			window = "answering"
		} else if claimed {
			window = "before_first_byte"
		}
		m.cancelled.WithLabelValues(pool, window).Inc()
	case ans.begun && !ans.refusal:
		outcome = "broken"
	}
	m.requests.WithLabelValues(pool, tier, outcome).Inc()
}
