package gateway

import (
	"fmt"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// A scrape takes the locks of the metrics, and asks for the number of requests under them. The first request of a new
// queue needs both, too.
func TestQueuesAppearWhileScraped(t *testing.T) {
	requests, queues := newRequests(), newQueues()
	metrics := newMetrics("g", "dev", gaugeFunc("requests_in_flight", "", func() float64 { return float64(requests.count()) }))
	appear := func(name string) {
		at := target{queue: queues.get(name, "standard"), tier: policy.Tier{Name: "standard"}}
		r := newRequest(&spec{wire: new(subjects.Request), admitted: at}, nil)
		requests.add(r)
		metrics.queue.WithLabelValues(name, "standard").Observe(1)
		metrics.ended(r, new(answer), true, false)
		requests.remove(r)
	}
	for i := range 500 {
		appear(fmt.Sprint("old", i))
	}
	admin := adminHandler(metrics.registry, func() readiness { return readiness{} })
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
