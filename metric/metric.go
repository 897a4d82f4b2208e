// Package metric has the Prometheus metrics of all parts: the table that says what each is called, counts and means, and the
// collector of what workers say of themselves and their GPUs in heartbeats, which gateways and workers both serve.
//
// Whoever measures makes the collector of a metric from its entry in the table. So what is documented and what is exported
// have one source; docs/metrics.md is generated from it (go generate ./metric), and so are the alerts and the dashboard in
// deploy.
package metric

//go:generate go test ../docs ../deploy -run Generated -update

import (
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Kind is the Prometheus type of a metric.
type Kind string

// The kinds.
const (
	Counter   Kind = "counter"
	Gauge     Kind = "gauge"
	Histogram Kind = "histogram"
)

// Part is a part of Pulley that has an admin port.
type Part string

// The parts. Pulley up serves the metrics of all its parts on one port, those of workers as a gateway has them.
const (
	OfGateway Part = "gateway"
	OfWorker  Part = "worker"
	OfBroker  Part = "broker"
)

// Metric is an entry of the table. It does not change.
type Metric struct {
	Name   string // with the prefix
	Kind   Kind
	Unit   string // of the value; empty: a number without a unit, such as a state of 0 or 1
	Labels []string
	Help   string // what it means; the values of labels that are fixed words are in Values
	Values map[string][]string
	Parts  []Part
	When   string // on what its presence depends; empty: it is always there, once its labels are known

	section string
	buckets []float64
	desc    *prometheus.Desc
}

// all is the table, in the order of the page.
var all []*Metric

// All returns the table. It must not be changed.
func All() []*Metric { return all }

// Find returns the entry of a name; nil if there is none.
func Find(name string) *Metric {
	if i := slices.IndexFunc(all, func(m *Metric) bool { return m.Name == name }); i >= 0 {
		return all[i]
	}
	return nil
}

func define(m Metric) *Metric {
	m.desc = prometheus.NewDesc(m.Name, m.Help, m.Labels, nil)
	all = append(all, &m)
	return &m
}

// CounterVec makes a counter for each combination of labels. more are labels beside those of the table.
func (m *Metric) CounterVec(more ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: m.Name, Help: m.Help}, m.labels(more))
}

// HistogramVec makes a histogram for each combination of labels: with buckets, and as a native histogram for scrapers that
// ask for one.
func (m *Metric) HistogramVec(more ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: m.Name, Help: m.Help, Buckets: m.buckets,
		NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 160, NativeHistogramMinResetDuration: time.Hour,
	}, m.labels(more))
}

// Func makes a gauge or counter without labels whose value is asked for at each scrape.
func (m *Metric) Func(value func() float64) prometheus.Collector {
	if m.Kind == Counter {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: m.Name, Help: m.Help}, value)
	}
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: m.Name, Help: m.Help}, value)
}

func (m *Metric) labels(more []string) []string { return slices.Concat(m.Labels, more) }

// Send gives a scrape a value, with the values of the labels in their order. They are made valid UTF-8: workers choose some.
func (m *Metric) Send(to chan<- prometheus.Metric, value float64, labels ...string) {
	kind := prometheus.GaugeValue
	if m.Kind == Counter {
		kind = prometheus.CounterValue
	}
	for i, l := range labels {
		labels[i] = strings.ToValidUTF8(l, "?")
	}
	to <- prometheus.MustNewConstMetric(m.desc, kind, value, labels...)
}

// Collector asks for the values of some metrics at each scrape.
type Collector struct {
	Metrics []*Metric
	Values  func(to chan<- prometheus.Metric) // sends values of these metrics
}

// Describe is of prometheus.Collector.
func (c Collector) Describe(to chan<- *prometheus.Desc) {
	for _, m := range c.Metrics {
		to <- m.desc
	}
}

// Collect is of prometheus.Collector.
func (c Collector) Collect(to chan<- prometheus.Metric) { c.Values(to) }

// Truth is 1 or 0.
func Truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
