package metric

import (
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Gaps is a histogram of times between tokens, with buckets and as a native histogram. Unlike those of the client library
// it takes several equal times at once, and an observation is a few additions to numbers of its own: it costs about a fifth.
type Gaps struct {
	bounds  []float64       // of the buckets
	buckets []atomic.Uint64 // and one for what is above them
	zero    atomic.Uint64   // below leastKey
	native  [mostKey - leastKey + 1]atomic.Uint64
	sum     atomic.Int64 // nanoseconds
}

// The buckets of the native histogram: key k is of the times above 2^((k-1)/8) s, up to 2^(k/8) s. That is schema 3, with a
// factor of 1.09 between buckets, as the others have.
const (
	schema   = 3
	perPower = 1 << schema
	leastKey = -20*perPower + 1 // of the first bucket above 1 µs
	mostKey  = 13 * perPower    // of all above two hours, too
)

// fractions are the lower bounds of the buckets from 0.5 to 1.
var fractions = func() (f [perPower]float64) {
	for i := range f {
		f[i] = math.Exp2(float64(i)/perPower - 1)
	}
	return f
}()

// Observe counts n times of d. It takes no lock.
func (h *Gaps) Observe(d time.Duration, n int) {
	v, more := d.Seconds(), uint64(n)
	fraction, power := math.Frexp(v)
	key := (power - 1) * perPower
	for i := 0; i < perPower && fraction > fractions[i]; i++ {
		key++
	}
	if v <= 0 || key < leastKey {
		h.zero.Add(more)
	} else {
		h.native[min(key, mostKey)-leastKey].Add(more)
	}
	h.sum.Add(int64(d) * int64(n))
	i := 0
	for i < len(h.bounds) && v > h.bounds[i] {
		i++
	}
	h.buckets[i].Add(more) // last: a scrape reads these first, so that it never finds more of them than in all
}

func (h *Gaps) write(to *dto.Histogram) {
	below := uint64(0)
	for i, bound := range h.bounds {
		below += h.buckets[i].Load()
		to.Bucket = append(to.Bucket, &dto.Bucket{CumulativeCount: new(below), UpperBound: new(bound)})
	}
	count, before, gap := h.zero.Load(), int64(0), 0
	to.ZeroCount, to.ZeroThreshold, to.Schema = new(count), new(math.Exp2(-20)), new(int32(schema))
	for i := range h.native {
		n := h.native[i].Load()
		if n == 0 {
			gap++
			continue
		}
		if last := len(to.PositiveSpan) - 1; last >= 0 && gap == 0 {
			*to.PositiveSpan[last].Length++
		} else {
			if last < 0 {
				gap += leastKey
			}
			to.PositiveSpan = append(to.PositiveSpan, &dto.BucketSpan{Offset: new(int32(gap)), Length: new(uint32(1))})
		}
		to.PositiveDelta = append(to.PositiveDelta, int64(n)-before)
		count, before, gap = count+n, int64(n), 0
	}
	to.SampleCount, to.SampleSum = &count, new(float64(h.sum.Load())/1e9)
}

// GapsVec has a histogram for each combination of labels.
type GapsVec struct {
	metric *Metric

	mu   sync.Mutex
	with map[string]*labelled
}

type labelled struct {
	Gaps
	of     *Metric
	values []string
	labels []*dto.LabelPair
}

// Desc and Write are of prometheus.Metric.
func (l *labelled) Desc() *prometheus.Desc { return l.of.desc }

func (l *labelled) Write(to *dto.Metric) error {
	to.Label, to.Histogram = l.labels, new(dto.Histogram)
	l.write(to.Histogram)
	return nil
}

// GapsVec makes the histograms of times between tokens.
func (m *Metric) GapsVec() *GapsVec {
	return &GapsVec{metric: m, with: make(map[string]*labelled)}
}

// With returns the histogram with these values of the labels, in the order of the table.
func (v *GapsVec) With(values ...string) *Gaps {
	key := strings.Join(values, "\xff") // which is in no text
	v.mu.Lock()
	defer v.mu.Unlock()
	l := v.with[key]
	if l == nil {
		l = &labelled{of: v.metric, values: slices.Clone(values)}
		l.bounds, l.buckets = v.metric.buckets, make([]atomic.Uint64, len(v.metric.buckets)+1)
		for i, value := range values {
			l.labels = append(l.labels, &dto.LabelPair{Name: &v.metric.Labels[i], Value: new(strings.ToValidUTF8(value, "?"))})
		}
		slices.SortFunc(l.labels, func(a, b *dto.LabelPair) int { return strings.Compare(*a.Name, *b.Name) })
		v.with[key] = l
	}
	return &l.Gaps
}

// Delete forgets the histograms whose first label has a value.
func (v *GapsVec) Delete(first string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for key, l := range v.with {
		if l.values[0] == first {
			delete(v.with, key)
		}
	}
}

// Describe is of prometheus.Collector.
func (v *GapsVec) Describe(to chan<- *prometheus.Desc) { to <- v.metric.desc }

// Collect is of prometheus.Collector.
func (v *GapsVec) Collect(to chan<- prometheus.Metric) {
	for _, l := range v.all() {
		to <- l
	}
}

func (v *GapsVec) all() (list []*labelled) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, l := range v.with {
		list = append(list, l)
	}
	return list
}
