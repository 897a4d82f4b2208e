package gateway

import (
	"fmt"
	"net/http/httptest"
	"sync"
	"testing"
	"time"
)

// A scrape takes the locks of the metrics and asks for the gateway's. A queue that
// is new needs both too.
func TestQueuesAppearWhileScraped(t *testing.T) {
	g := &Gateway{bus: new(bus), cfg: Config{SlowClient: time.Minute}}
	g.requests = newRequests()
	g.metrics = newMetrics("g", "dev", gaugeFunc("requests_in_flight", "", func() float64 { return float64(g.requests.count()) }))
	g.queues = newQueues(g.metrics)
	for i := range 500 {
		g.queues.get(fmt.Sprint("old", i), "standard")
	}
	admin := g.adminHandler()
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 500 {
			g.queues.get(fmt.Sprint("new", i), "standard")
		}
	})
	for range 10 {
		admin.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/metrics", nil))
	}
	wg.Wait()
}
