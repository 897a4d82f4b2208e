package background_test

import (
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/background"
	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/testenv"
)

// BenchmarkPoll polls one of 500 responses at a time, 200 times a second, as clients that wait do. BenchmarkAccept accepts one after the
// other; each is synced to the disk four times before its client has an answer.
func BenchmarkPoll(b *testing.B) {
	s, accept := service(b)
	var ids []string
	for range 500 {
		ids = append(ids, accept())
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	var took []time.Duration
	for n := 0; b.Loop(); n++ {
		<-tick.C
		begun := time.Now()
		w := httptest.NewRecorder()
		if err := s.Serve(w, httptest.NewRequest("GET", "/v1/responses/"+ids[n%len(ids)], nil), gateway.Caller{Tenant: "acme"}); err != nil || w.Code != 200 {
			b.Fatal(err, w.Body)
		}
		took = append(took, time.Since(begun))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}

func BenchmarkAccept(b *testing.B) {
	_, accept := service(b)
	for b.Loop() {
		accept()
	}
}

// service is one without a gateway: it accepts responses and runs none.
func service(b *testing.B) (s *background.Service, accept func() (id string)) {
	nc := testenv.Broker(b, broker.Config{Listen: "127.0.0.1:0"})
	s, err := background.New(background.Config{Pending: 1 << 20}, nc)
	if err != nil {
		b.Fatal(err)
	}
	n := 0
	return s, func() string {
		n++
		body := fmt.Sprintf(`{"model":"m","input":"%d"}`, n)
		r, w := httptest.NewRequest("POST", "/v1/responses", strings.NewReader(body)), httptest.NewRecorder()
		r.Header.Set("Prefer", "respond-async")
		if err := s.Take(w, r, gateway.Caller{Tenant: "acme"}, []byte(body)); err != nil {
			b.Fatal(err)
		}
		id, ok := strings.CutPrefix(w.Header().Get("Location"), "/v1/responses/")
		if !ok {
			b.Fatalf("accepted with %v", w.Header())
		}
		return id
	}
}
