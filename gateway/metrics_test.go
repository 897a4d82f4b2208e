package gateway

import (
	"fmt"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/metric"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// A scrape takes the locks of the metrics, and asks for the number of requests under them. The first request of a new
// queue needs both, too.
func TestQueuesAppearWhileScraped(t *testing.T) {
	requests, queues := newRequests(), newQueues()
	metrics := newMetrics("g", "dev", Labels{}, metric.InFlight.Func(func() float64 { return float64(requests.count()) }))
	appear := func(name string) {
		at := target{queue: queues.get(name, "standard"), tier: policy.Tier{Name: "standard"}}
		r := newRequest(&spec{wire: new(subjects.Request), admitted: at}, nil)
		requests.add(r)
		metrics.of(r).queue.Observe(1)
		metrics.ended(r, new(answer), true, false)
		requests.remove(r)
	}
	for i := range 500 {
		appear(fmt.Sprint("old", i))
	}
	admin := newAdminPort(new(Config), nil).handler(metrics.registry, func() readiness { return readiness{} })
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 500 {
			appear(fmt.Sprint("new", i))
		}
	})
	for range 10 {
		admin.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/metrics", nil))
	}
	wg.Wait()
}

// Each code of an error that a client may get has a counter from the first scrape on.
func TestErrorCodesAreKnown(t *testing.T) {
	codes := regexp.MustCompile(`(?:Code: +|Errorf\([\w.]+, |Unavailable\(|tooManyWrongKeys = )"([a-z_]+)"`)
	used := make(map[string]bool)
	for _, dir := range []string{".", "../api"} {
		files, err := filepath.Glob(dir + "/*.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range codes.FindAllSubmatch(text, -1) {
				used[string(m[1])] = true
			}
		}
	}
	if got := slices.Sorted(maps.Keys(used)); !slices.Equal(got, slices.Sorted(slices.Values(metric.Codes))) {
		t.Errorf("the code has\n%q\nand package metric\n%q", got, metric.Codes)
	}
}

// A pool that is gone takes its counters with it, and has them at 0 when it comes back.
func TestCountersOfAPoolGoWithIt(t *testing.T) {
	m := newMetrics("g", "dev", Labels{})
	pools := []string{"a", "b"}
	m.prepare = func() { m.keep(pools, []string{"standard"}, nil) }
	counters := func() map[string]int {
		got := make(map[string]int)
		families, err := m.registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, s := range f.GetMetric() {
				for _, l := range s.GetLabel() {
					if l.GetName() == "pool" {
						got[l.GetValue()]++
					}
				}
			}
		}
		return got
	}
	first := counters()
	if first["a"] == 0 || first["a"] != first["b"] {
		t.Fatalf("got %v", first)
	}
	pools = pools[:1]
	if got := counters(); got["a"] != first["a"] || got["b"] != 0 {
		t.Errorf("without pool b: %v", got)
	}
	pools = pools[:2]
	if got := counters(); got["b"] != first["b"] {
		t.Errorf("with pool b again: %v", got)
	}
}

// BenchmarkObserveToken is what the time between two tokens costs.
func BenchmarkObserveToken(b *testing.B) {
	at := target{queue: newQueues().get("m", "standard"), tier: policy.Tier{Name: "standard"}}
	r := newRequest(&spec{wire: new(subjects.Request), admitted: at}, nil)
	a := (&server{metrics: newMetrics("g", "dev", Labels{})}).newAnswer(nil, r)
	a.stream, a.begun = true, true
	a.gaps = a.server.metrics.of(r).interToken
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		a.pieces++
		now = now.Add(20 * time.Millisecond)
		a.observeGap(now)
	}
}
