package metric

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// written is what a scrape gets of a metric.
func written(t *testing.T, m prometheus.Metric) *dto.Histogram {
	t.Helper()
	var out dto.Metric
	if err := m.Write(&out); err != nil {
		t.Fatal(err)
	}
	return out.Histogram
}

// keys are the counts of a native histogram by key.
func keys(h *dto.Histogram) map[int]int64 {
	counts := make(map[int]int64)
	key, n, at := 0, int64(0), 0
	for _, s := range h.PositiveSpan {
		key += int(s.GetOffset())
		for range s.GetLength() {
			n += h.PositiveDelta[at]
			counts[key] = n
			key++
			at++
		}
	}
	return counts
}

// A histogram of times between tokens says the same as one of the client library.
func TestGapsAgreeWithTheLibrary(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	ours := InterToken.GapsVec()
	theirs := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "x", Buckets: InterToken.buckets, NativeHistogramBucketFactor: 1.1, NativeHistogramZeroThreshold: math.Exp2(-20)})
	observe := func(d time.Duration, n int) {
		ours.With("m", "standard").Observe(d, n)
		for range n {
			theirs.Observe(d.Seconds())
		}
	}
	for range 2000 {
		observe(time.Duration(math.Exp2(random.Float64()*32)*1000), 1+random.IntN(3)) // 1 µs to 71 min
	}
	for _, d := range []time.Duration{0, 1, 500, time.Microsecond, 10 * time.Millisecond, 25 * time.Millisecond, 125 * time.Millisecond, time.Second, 80 * time.Second, 81 * time.Second, 3600 * time.Second} {
		observe(d, 1)
	}
	var list []prometheus.Metric
	for _, l := range ours.all() {
		list = append(list, l)
	}
	got, want := written(t, list[0]), written(t, theirs)
	if got.GetSampleCount() != want.GetSampleCount() || math.Abs(got.GetSampleSum()/want.GetSampleSum()-1) > 1e-9 || got.GetZeroCount() != want.GetZeroCount() || got.GetSchema() != want.GetSchema() {
		t.Errorf("got %d times, %v s, %d at zero, schema %d, want %d, %v, %d, %d", got.GetSampleCount(), got.GetSampleSum(), got.GetZeroCount(), got.GetSchema(),
			want.GetSampleCount(), want.GetSampleSum(), want.GetZeroCount(), want.GetSchema())
	}
	for i, b := range want.Bucket {
		if g := got.Bucket[i]; g.GetCumulativeCount() != b.GetCumulativeCount() || g.GetUpperBound() != b.GetUpperBound() {
			t.Errorf("bucket %v: got %v", b, g)
		}
	}
	if g, w := fmt.Sprint(keys(got)), fmt.Sprint(keys(want)); g != w {
		t.Errorf("native histogram\n got %s\nwant %s", g, w)
	}
}

// Times that are longer than the last bucket of the native histogram are in it.
func TestGapsOfAnyTime(t *testing.T) {
	v := InterToken.GapsVec()
	for _, d := range []time.Duration{-time.Second, 0, 1000 * time.Hour, math.MaxInt64 / 4} {
		v.With("m", "standard").Observe(d, 1)
	}
	h := written(t, v.all()[0])
	if h.GetSampleCount() != 4 || h.GetZeroCount() != 2 || keys(h)[mostKey] != 2 {
		t.Errorf("got %v", h)
	}
	v.Delete("other")
	v.With("n", "batch")
	v.Delete("m")
	if all := v.all(); len(all) != 1 || all[0].values[0] != "n" {
		t.Errorf("%d histograms are left", len(all))
	}
}

func BenchmarkGaps(b *testing.B) {
	h := InterToken.GapsVec().With("m", "standard")
	for b.Loop() {
		h.Observe(20*time.Millisecond, 1)
	}
}

func BenchmarkGapsOfTheLibrary(b *testing.B) {
	h := InterToken.HistogramVec().WithLabelValues("m", "standard")
	for b.Loop() {
		h.Observe(0.02)
	}
}
