package gateway

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/subjects"
)

// nowhere exports no span.
type nowhere struct{}

func (nowhere) ExportSpans(context.Context, []sdktrace.ReadOnlySpan) error { return nil }
func (nowhere) Shutdown(context.Context) error                             { return nil }

// BenchmarkTrace is what the spans of a call cost the gateway, apart from their export.
func BenchmarkTrace(b *testing.B) {
	doors, err := api.NewDoors(nil)
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		ratio float64
	}{{"dropped", 0}, {"ratio=0.1", 0.1}, {"kept", 1}} {
		b.Run(c.name, func(b *testing.B) {
			provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(nowhere{}), sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(c.ratio))))
			defer provider.Shutdown(context.Background())
			tracer := newTracer(&Config{TracerProvider: provider, Version: "dev"}, "g", doors)
			call, w, id := httptest.NewRequest("POST", "/v1/chat/completions", nil), httptest.NewRecorder(), subjects.NewID().String()
			wire := &subjects.Request{Path: "/v1/chat/completions", Stream: true}
			b.ReportAllocs()
			for b.Loop() {
				rec := newRecord(w, call)
				rec.trace = tracer.begin(call, rec.began)
				rec.inject(http.Header{})
				rec.enters()
				rec.request, rec.status, rec.outcome, rec.model, rec.pool, rec.tier = wire, 200, "answered", "m", "m", "standard"
				rec.attempts, rec.last, rec.firstByteAt, rec.firstByte = 1, &attempt{name: "gpu-1", worker: "gpu-1", number: 1, began: rec.began}, time.Now(), time.Millisecond
				rec.trace.end(rec, id, time.Now())
			}
		})
	}
}
