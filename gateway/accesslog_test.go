package gateway

import (
	"io"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/subjects"
)

// BenchmarkAccessLine is what the access log costs a request: its record, and a line that is put into the buffer.
func BenchmarkAccessLine(b *testing.B) {
	for name, json := range map[string]bool{"text": false, "json": true} {
		b.Run(name, func(b *testing.B) {
			cfg, err := AccessLog{Writer: io.Discard, JSON: json}.withDefaults()
			if err != nil {
				b.Fatal(err)
			}
			l := newAccessLog(cfg, testGateway(b).bus)
			call, w, id := httptest.NewRequest("POST", "/v1/chat/completions", nil), httptest.NewRecorder(), subjects.NewID().String()
			batch := make([]byte, 0, 2*accessBatch)
			b.ReportAllocs()
			for b.Loop() {
				rec := newRecord(w, call)
				rec.status, rec.outcome, rec.model, rec.pool, rec.tier = 200, "answered", "m", "m", "standard"
				rec.worker, rec.attempts, rec.queue, rec.firstByte = "gpu-1", 1, time.Millisecond, time.Second
				l.add(rec, id, time.Now())
				if len(l.lines) > maxAccessLines/2 {
					for len(l.lines) > 0 {
						batch = l.writeBatch(batch[:0])
					}
				}
			}
			if l.lost.Load() > 0 {
				b.Errorf("%d lines lost", l.lost.Load())
			}
		})
	}
}
