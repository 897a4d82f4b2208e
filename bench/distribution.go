package bench

import (
	"encoding/json"
	"math"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// longest is the longest latency that is recorded; longer ones count as this.
const longest = time.Hour

// percentiles are those that are reported everywhere.
var percentiles = []struct {
	name    string
	percent float64
}{{"p50", 50}, {"p90", 90}, {"p95", 95}, {"p99", 99}, {"p99.9", 99.9}}

// Distribution is a set of latencies with microsecond resolution and three significant digits. The zero value is empty.
// As JSON it is an object of count, and min, mean, p50, p90, p95, p99, p999 and max in milliseconds.
type Distribution struct {
	hist *hdrhistogram.Histogram // in microseconds; nil while empty
}

func (d *Distribution) record(latency time.Duration) {
	if d.hist == nil {
		d.hist = hdrhistogram.New(1, longest.Microseconds(), 3)
	}
	micros := min(max(latency, 0), longest).Round(time.Microsecond).Microseconds()
	if err := d.hist.RecordValue(micros); err != nil {
		panic("bench: latency outside of the histogram's range: " + err.Error())
	}
}

// merge adds the latencies of another distribution.
func (d *Distribution) merge(other Distribution) {
	switch {
	case other.hist == nil:
	case d.hist == nil:
		d.hist = other.hist.Clone()
	default:
		d.hist.Merge(other.hist)
	}
}

// Count is the number of latencies in it.
func (d Distribution) Count() int64 {
	if d.hist == nil {
		return 0
	}
	return d.hist.TotalCount()
}

// IsZero reports whether it is empty; encoding/json leaves such a field out under omitzero.
func (d Distribution) IsZero() bool { return d.Count() == 0 }

// Percentile is the latency that p percent of all do not exceed; 0 of an empty distribution.
func (d Distribution) Percentile(p float64) time.Duration {
	if d.IsZero() {
		return 0
	}
	return time.Duration(d.hist.ValueAtPercentile(p)) * time.Microsecond
}

// Mean is the arithmetic mean; 0 of an empty distribution.
func (d Distribution) Mean() time.Duration {
	if d.IsZero() {
		return 0
	}
	return time.Duration(d.hist.Mean() * float64(time.Microsecond))
}

// Min is the shortest latency; 0 of an empty distribution.
func (d Distribution) Min() time.Duration {
	if d.IsZero() {
		return 0
	}
	return time.Duration(d.hist.Min()) * time.Microsecond
}

// Max is the longest latency; 0 of an empty distribution.
func (d Distribution) Max() time.Duration {
	if d.IsZero() {
		return 0
	}
	return time.Duration(d.hist.Max()) * time.Microsecond
}

// MarshalJSON implements [json.Marshaler].
func (d Distribution) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Count int64   `json:"count"`
		Min   float64 `json:"min_ms"`
		Mean  float64 `json:"mean_ms"`
		P50   float64 `json:"p50_ms"`
		P90   float64 `json:"p90_ms"`
		P95   float64 `json:"p95_ms"`
		P99   float64 `json:"p99_ms"`
		P999  float64 `json:"p999_ms"`
		Max   float64 `json:"max_ms"`
	}{
		d.Count(), milliseconds(d.Min()), milliseconds(d.Mean()), milliseconds(d.Percentile(50)),
		milliseconds(d.Percentile(90)), milliseconds(d.Percentile(95)), milliseconds(d.Percentile(99)),
		milliseconds(d.Percentile(99.9)), milliseconds(d.Max()),
	})
}

// milliseconds is a latency as JSON has it, to the microsecond.
func milliseconds(d time.Duration) float64 {
	return math.Round(float64(d)/float64(time.Microsecond)) / 1000
}
