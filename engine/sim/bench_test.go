package sim_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine/sim"
)

// discard is a ResponseWriter without cost, to measure the engine alone.
type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(b []byte) (int, error) { return len(b), nil }
func (d discard) WriteHeader(int)             {}
func (d discard) Flush()                      {}

func BenchmarkHandler(b *testing.B) {
	for name, c := range map[string]struct {
		rest string
		itl  time.Duration
	}{
		"whole":     {`,"max_tokens":8`, 0},
		"stream100": {`,"max_tokens":100,"stream":true`, 0},
		"timed100":  {`,"max_tokens":100,"stream":true`, time.Nanosecond},
	} {
		b.Run(name, func(b *testing.B) {
			eng := newSim(b, sim.Config{ITLBase: c.itl})
			body := []byte(chatBody(words(20), c.rest))
			b.ReportAllocs()
			for b.Loop() {
				req, _ := http.NewRequest(http.MethodPost, "/v1/chat/completions", bytes.NewReader(body))
				eng.ServeHTTP(discard{http.Header{}}, req)
			}
		})
	}
}

// BenchmarkHTTP includes net/http on both sides of a loopback connection.
func BenchmarkHTTP(b *testing.B) {
	for name, rest := range map[string]string{
		"whole":     `,"max_tokens":8`,
		"stream100": `,"max_tokens":100,"stream":true`,
	} {
		b.Run(name, func(b *testing.B) {
			srv := httptest.NewServer(newSim(b, sim.Config{}))
			defer srv.Close()
			body := []byte(chatBody(words(20), rest))
			b.ReportAllocs()
			for b.Loop() {
				resp, err := srv.Client().Post(srv.URL+"/v1/chat/completions", "application/json", bytes.NewReader(body))
				if err != nil {
					b.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
}

// BenchmarkLargeBody is a request with 16 MiB of image.
func BenchmarkLargeBody(b *testing.B) {
	eng := newSim(b, sim.Config{})
	image := bytes.Repeat([]byte("QUJD"), 4<<20)
	body := `{"model":"m","max_tokens":1,"messages":[{"role":"user","content":[{"type":"text","text":"see"},` +
		`{"type":"image_url","image_url":{"url":"data:image/png;base64,` + string(image) + `"}}]}]}`
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		req, _ := http.NewRequest(http.MethodPost, "/v1/chat/completions", bytes.NewReader([]byte(body)))
		eng.ServeHTTP(discard{http.Header{}}, req)
	}
}
