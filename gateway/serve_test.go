package gateway

import (
	"context"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/subjects"
)

// Operators ask for the requests, and Prometheus for the metrics, while requests are claimed, fail, are answered and are
// given up by their clients. The race detector watches.
func TestAskedWhileRequestsRun(t *testing.T) {
	g := runGateway(t, func() [][]subjects.Frame {
		time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond)
		if rand.IntN(4) == 0 {
			return [][]subjects.Frame{{{Kind: subjects.KindFail, Fail: &subjects.Fail{Class: subjects.FailRefused, Reason: "no slot"}}}}
		}
		return streamAnswer()
	})
	done := make(chan struct{})
	var asking, clients sync.WaitGroup
	ask := func(f func()) {
		asking.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					f()
				}
			}
		})
	}
	ask(func() {
		if resp, err := g.client.Get("http://admin/metrics"); err == nil {
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	})
	ask(func() {
		m, err := g.nc.Request(subjects.AskRequests, nil, time.Second)
		if err != nil {
			return
		}
		var list []subjects.RequestInfo
		subjects.Unmarshal(m.Data, &list)
		for _, i := range list {
			g.nc.Publish(subjects.AskRequest, subjects.MustMarshal(subjects.RequestQuery{ID: i.ID, Body: true}))
		}
	})
	answered := make(chan struct{}, 1000)
	for range 16 {
		clients.Go(func() {
			for range 30 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+rand.IntN(200))*time.Millisecond)
				if status, _, err := g.chat(ctx, true); status == 200 && err == nil {
					answered <- struct{}{}
				}
				cancel()
			}
		})
	}
	clients.Wait()
	close(done)
	asking.Wait()
	if len(answered) == 0 {
		t.Error("no request was answered in time")
	}
}

// BenchmarkServe is a whole request with a client, a broker and a worker that takes no time, all in this process.
func BenchmarkServe(b *testing.B) {
	for _, kind := range []struct {
		name   string
		stream bool
		answer func() [][]subjects.Frame
	}{{"plain", false, plainAnswer}, {"stream", true, streamAnswer}} {
		b.Run(kind.name, func(b *testing.B) {
			g := runGateway(b, kind.answer)
			for range 200 {
				g.chat(b.Context(), kind.stream)
			}
			b.ReportAllocs()
			for b.Loop() {
				if status, body, err := g.chat(b.Context(), kind.stream); status != 200 || err != nil {
					b.Fatal(status, body, err)
				}
			}
		})
	}
}

// BenchmarkTokens is a stream of 1000 tokens, a message each, from a worker in this process to a client.
func BenchmarkTokens(b *testing.B) {
	const tokens = 1000
	token := []byte(`data: {"choices":[{"delta":{"content":"token"}}]}` + "\n\n")
	g := runGateway(b, func() [][]subjects.Frame {
		messages := streamAnswer()
		end := messages[1]
		messages = messages[:1]
		for range tokens {
			messages = append(messages, []subjects.Frame{{Kind: subjects.KindData, Data: token}})
		}
		return append(messages, end)
	})
	for range 20 {
		g.chat(b.Context(), true)
	}
	b.ReportAllocs()
	for b.Loop() {
		if status, body, err := g.chat(b.Context(), true); status != 200 || err != nil {
			b.Fatal(status, body, err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/tokens, "ns/token")
}
