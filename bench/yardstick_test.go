package bench_test

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/pulley-lb/pulley/bench"
)

func TestYardstickSharesAndPassesStreams(t *testing.T) {
	var served [2]atomic.Int64
	var urls []string
	for i := range served {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			served[i].Add(1)
			_ = http.NewResponseController(w).EnableFullDuplex()
			script(w, role) // before the request was read, which cuts streams in a proxy that is still sending
			decode(t, r)
			script(w, token, token, token, last, count, done)
		}))
		t.Cleanup(server.Close)
		urls = append(urls, server.URL)
	}
	yardstick, err := bench.NewYardstick(urls...)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(yardstick)
	t.Cleanup(server.Close)
	result := run(t, bench.Config{
		URL: server.URL, Stream: true, Concurrency: 8, Requests: 400, InputTokens: 500, OutputTokens: 3, ExactTokens: true,
	})
	if result.Succeeded != 400 {
		t.Errorf("%d of 400 succeeded: %+v", result.Succeeded, result.Errors)
	}
	if a, b := served[0].Load(), served[1].Load(); a != 200 || b != 200 {
		t.Errorf("the engines served %d and %d, want 200 each", a, b)
	}
	if _, err := bench.NewYardstick(); err == nil {
		t.Error("a yardstick without engines was accepted")
	}
}
