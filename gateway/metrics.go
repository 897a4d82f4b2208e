package gateway

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/pulley-lb/pulley/metric"
	"github.com/pulley-lb/pulley/subjects"
)

// metrics are those of requests: see package metric. They are labelled with pools that have had a worker and with tiers, and
// with what a client chooses only if the configuration says so, and then with a bounded number of values.
type metrics struct {
	// Fixed after newMetrics.
	registry   *prometheus.Registry
	requests   *prometheus.CounterVec
	queue      *prometheus.HistogramVec
	firstByte  *prometheus.HistogramVec
	firstToken *prometheus.HistogramVec
	interToken *metric.GapsVec
	duration   *prometheus.HistogramVec
	refusals   *prometheus.CounterVec
	attempts   *prometheus.CounterVec
	retries    *prometheus.CounterVec
	failovers  *prometheus.CounterVec
	dead       *prometheus.CounterVec
	cancelled  *prometheus.CounterVec
	broken     *prometheus.CounterVec
	errors     *prometheus.CounterVec
	tokens     *prometheus.CounterVec
	mirrors    *prometheus.CounterVec
	cheap      *prometheus.CounterVec
	unclaimed  *prometheus.CounterVec
	by         Labels
	models     metric.Bounded
	tenants    metric.Bounded
	prepare    func() // called before each scrape; see Gateway.prepareMetrics

	mu     sync.Mutex
	meters map[meterKey]*meters
	known  map[place]bool // pools and tiers whose counters are there
}

// Labels are those that metrics of requests have beside pool and tier, if the operator wants them: clients choose their
// values, of which each has metric.MaxValues at most, and then metric.Other.
type Labels struct{ Model, Tenant bool }

// ParseLabels parses a list of model and tenant.
func ParseLabels(names []string) (l Labels, err error) {
	for _, n := range names {
		switch strings.TrimSpace(n) {
		case "model":
			l.Model = true
		case "tenant":
			l.Tenant = true
		default:
			return l, fmt.Errorf("%q: must be model or tenant", n)
		}
	}
	return l, nil
}

func (l Labels) names() (names []string) {
	if l.Model {
		names = append(names, "model")
	}
	if l.Tenant {
		names = append(names, "tenant")
	}
	return names
}

func (l Labels) any() bool { return l.Model || l.Tenant }

// place is a pool and a tier.
type place struct{ pool, tier string }

// meterKey is what the metrics of requests are labelled with.
type meterKey struct {
	place
	model, tenant string
}

// meters are the metrics of the requests of a pool and a tier, and of a model and a tenant if there are such labels. They are
// looked up once for each request: what is observed for each token takes no lock.
type meters struct {
	place
	more                                   []string // values of the other labels
	queue, firstByte, firstToken, duration prometheus.Observer
	interToken                             *metric.Gaps
	input, output                          prometheus.Counter
}

// mostMeters bounds metrics.meters, if clients choose labels: what comes after shares those of metric.Other.
const mostMeters = 10 * metric.MaxValues

// newMetrics makes the metrics of a gateway; others are collected with them.
func newMetrics(gateway, version string, by Labels, others ...prometheus.Collector) *metrics {
	m := &metrics{
		registry:   prometheus.NewRegistry(),
		requests:   metric.Requests.CounterVec(by.names()...),
		queue:      metric.QueueTime.HistogramVec(),
		firstByte:  metric.FirstByte.HistogramVec(),
		firstToken: metric.FirstToken.HistogramVec(by.names()...),
		interToken: metric.InterToken.GapsVec(),
		duration:   metric.Duration.HistogramVec(by.names()...),
		refusals:   metric.Refused.CounterVec(),
		attempts:   metric.FailedTries.CounterVec(),
		retries:    metric.Retries.CounterVec(),
		failovers:  metric.Failovers.CounterVec(),
		dead:       metric.DeadLetters.CounterVec(),
		cancelled:  metric.Cancelled.CounterVec(),
		broken:     metric.Broken.CounterVec(),
		errors:     metric.Errors.CounterVec(),
		tokens:     metric.Tokens.CounterVec(by.names()...),
		mirrors:    metric.Mirrored.CounterVec(),
		cheap:      metric.Cheap.CounterVec(),
		unclaimed:  metric.Unclaimed.CounterVec(),
		by:         by,
		prepare:    func() {},
		meters:     make(map[meterKey]*meters),
		known:      make(map[place]bool),
	}
	for _, code := range metric.Codes {
		m.errors.WithLabelValues(code)
	}
	info := metric.Collector{Metrics: []*metric.Metric{metric.BuildInfo}, Values: func(to chan<- prometheus.Metric) {
		metric.BuildInfo.Send(to, 1, version, gateway)
	}}
	m.registry.MustRegister(m, info, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.registry.MustRegister(others...)
	return m
}

// perPool are those that are labelled with a pool, beside interToken.
func (m *metrics) perPool() []*prometheus.MetricVec {
	return []*prometheus.MetricVec{
		m.requests.MetricVec, m.queue.MetricVec, m.firstByte.MetricVec, m.firstToken.MetricVec, m.duration.MetricVec,
		m.refusals.MetricVec, m.attempts.MetricVec, m.retries.MetricVec, m.failovers.MetricVec, m.dead.MetricVec, m.cancelled.MetricVec,
		m.broken.MetricVec, m.tokens.MetricVec, m.mirrors.MetricVec, m.cheap.MetricVec, m.unclaimed.MetricVec,
	}
}

// Describe is of prometheus.Collector.
func (m *metrics) Describe(to chan<- *prometheus.Desc) {
	m.errors.Describe(to)
	m.interToken.Describe(to)
	for _, v := range m.perPool() {
		v.Describe(to)
	}
}

// Collect is of prometheus.Collector. All that a scrape may have at 0 is there before it begins.
func (m *metrics) Collect(to chan<- prometheus.Metric) {
	m.prepare()
	m.errors.Collect(to)
	m.interToken.Collect(to)
	for _, v := range m.perPool() {
		v.Collect(to)
	}
}

// of returns the meters of a request where it is now.
func (m *metrics) of(r *request) *meters {
	at := r.target.Load()
	if known := r.meters.Load(); known != nil && known.pool == at.queue.pool && known.tier == at.tier.Name {
		return known
	}
	key := meterKey{place: place{at.queue.pool, at.tier.Name}}
	if m.by.Model {
		key.model = m.models.Value(r.wire.Model)
	}
	if m.by.Tenant {
		key.tenant = m.tenants.Value(r.wire.Tenant)
	}
	found := m.find(key)
	r.meters.Store(found)
	return found
}

func (m *metrics) find(key meterKey) *meters {
	known, full := m.look(key)
	if known == nil && full {
		if key.model != "" {
			key.model = metric.Other
		}
		if key.tenant != "" {
			key.tenant = metric.Other
		}
		known, _ = m.look(key)
	}
	if known == nil {
		known = m.make(key)
		m.mu.Lock()
		m.meters[key] = known // another one of the same key has the same counters
		m.mu.Unlock()
	}
	return known
}

// look returns the meters of a key, nil if there are none, and whether there are too many to make others.
func (m *metrics) look(key meterKey) (known *meters, full bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.meters[key], m.by.any() && len(m.meters) >= mostMeters
}

// make makes the meters of a key, and the counters that they do not have at hand.
func (m *metrics) make(key meterKey) *meters {
	c := &meters{place: key.place}
	if m.by.Model {
		c.more = append(c.more, key.model)
	}
	if m.by.Tenant {
		c.more = append(c.more, key.tenant)
	}
	queued := []string{key.pool, key.tier}
	more := c.labels(queued...)
	c.queue, c.firstByte, c.interToken = m.queue.WithLabelValues(queued...), m.firstByte.WithLabelValues(queued...), m.interToken.With(queued...)
	c.firstToken, c.duration = m.firstToken.WithLabelValues(more...), m.duration.WithLabelValues(more...)
	c.input, c.output = m.tokens.WithLabelValues(c.labels(key.pool, key.tier, "input")...), m.tokens.WithLabelValues(c.labels(key.pool, key.tier, "output")...)
	for _, o := range usualOutcomes {
		m.requests.WithLabelValues(c.labels(key.pool, key.tier, o.outcome, o.class)...)
	}
	return c
}

// usualOutcomes are those whose counters are there before the first of them. Others are rare.
var usualOutcomes = []struct{ outcome, class string }{
	{"answered", "2xx"}, {"answered", "4xx"}, {"refused", "4xx"}, {"cancelled", "none"}, {"cancelled", "2xx"}, {"failed", "5xx"}, {"failed", "2xx"},
}

func (c *meters) labels(first ...string) []string { return slices.Concat(first, c.more) }

// keep makes the counters of pools and tiers whose first request has not come yet, and drops those of pools that are gone.
// mirrors are the pools of mirrors in the policy.
func (m *metrics) keep(pools, tiers, mirrors []string) {
	here := make(map[string]bool, len(pools))
	for _, pool := range pools {
		here[pool] = true
		for _, tier := range tiers {
			if p := (place{pool, tier}); !m.isKnown(p) {
				m.begin(p)
			}
		}
	}
	for _, pool := range mirrors {
		for _, outcome := range metric.CopyOutcomes {
			m.mirrors.WithLabelValues(pool, outcome)
		}
	}
	for _, pool := range m.forget(here) {
		m.interToken.Delete(pool)
		for _, v := range m.perPool() {
			v.DeletePartialMatch(prometheus.Labels{"pool": pool})
		}
	}
}

func (m *metrics) isKnown(p place) (was bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	was = m.known[p]
	m.known[p] = true
	return was
}

// begin makes the counters of a pool and a tier. Those with labels that clients choose begin with the first request of each.
func (m *metrics) begin(p place) {
	if !m.by.any() {
		m.find(meterKey{place: p})
	}
	m.interToken.With(p.pool, p.tier)
	for _, v := range []*prometheus.HistogramVec{m.queue, m.firstByte} {
		v.WithLabelValues(p.pool, p.tier)
	}
	for _, v := range []*prometheus.CounterVec{m.retries, m.failovers, m.dead} {
		v.WithLabelValues(p.pool, p.tier)
	}
	for _, reason := range metric.Reasons {
		m.refusals.WithLabelValues(p.pool, p.tier, reason)
	}
	for _, class := range metric.Failures {
		m.attempts.WithLabelValues(p.pool, p.tier, class)
	}
	for _, window := range metric.Windows {
		m.cancelled.WithLabelValues(p.pool, window)
	}
	for _, outcome := range metric.CheapOutcomes {
		m.cheap.WithLabelValues(p.pool, outcome)
	}
	m.broken.WithLabelValues(p.pool)
	m.unclaimed.WithLabelValues(p.pool)
}

// forget forgets the pools that are none of these, and returns them.
func (m *metrics) forget(here map[string]bool) (gone []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key := range m.meters {
		if !here[key.pool] {
			gone = append(gone, key.pool)
			delete(m.meters, key)
		}
	}
	for p := range m.known {
		if !here[p.pool] {
			gone = append(gone, p.pool)
			delete(m.known, p)
		}
	}
	slices.Sort(gone)
	return slices.Compact(gone)
}

// ended counts a request that was admitted. claimed says that a worker had it, gone that its client disconnected.
func (m *metrics) ended(r *request, ans *answer, claimed, gone bool) {
	c := m.of(r)
	c.duration.Observe(time.Since(r.arrived).Seconds())
	c.input.Add(float64(max(ans.usage.InputTokens, 0)))
	c.output.Add(float64(max(ans.usage.OutputTokens, 0)))
	outcome := ans.outcome(gone)
	if outcome == Cancelled {
		window := "queued"
		if ans.begun {
			window = "answering"
		} else if claimed {
			window = "before_first_byte"
		}
		m.cancelled.WithLabelValues(c.pool, window).Inc()
	}
	m.requests.WithLabelValues(c.labels(c.pool, c.tier, string(outcome), statusClass(ans.status))...).Inc()
}

// statusClass is the class of a status, such as 4xx; none if there was no status.
func statusClass(status int) string {
	if status < 200 || status > 599 {
		return "none"
	}
	return strconv.Itoa(status/100) + "xx"
}

// failureClass is the class of a failed attempt. lost says that its worker is gone.
func failureClass(class subjects.FailClass, lost bool) string {
	switch {
	case lost:
		return "worker_lost"
	case slices.Contains(metric.Failures, string(class)):
		return string(class)
	}
	return metric.Other // of a newer worker
}

// retried counts that another attempt follows one that failed. moved says that its worker is gone, or that another one should
// have it.
func (m *metrics) retried(r *request, class subjects.FailClass, moved bool) {
	at := r.target.Load()
	m.retries.WithLabelValues(at.queue.pool, at.tier.Name).Inc()
	if moved || class == subjects.FailCrashed || class == subjects.FailStalled {
		m.failovers.WithLabelValues(at.queue.pool, at.tier.Name).Inc()
	}
}

// zeroed makes a counter for each of these values of its one label.
func zeroed(v *prometheus.CounterVec, values []string) *prometheus.CounterVec {
	for _, value := range values {
		v.WithLabelValues(value)
	}
	return v
}
