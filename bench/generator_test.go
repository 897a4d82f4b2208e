package bench_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/bench"
)

func TestClosedLoopKeepsItsConcurrency(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var inFlight, most atomic.Int64
		transport := serve(t, func(w http.ResponseWriter, r *http.Request) {
			most.Store(max(most.Load(), inFlight.Add(1)))
			defer inFlight.Add(-1)
			time.Sleep(100 * time.Millisecond)
			answer(w, 64)
		})
		result := run(t, bench.Config{Transport: transport, Concurrency: 4, Requests: 40})
		if result.Succeeded != 40 || result.Failed != 0 || most.Load() != 4 {
			t.Errorf("%d succeeded, %d failed, %d at once, want 40, 0, 4: %v", result.Succeeded, result.Failed, most.Load(), result.Errors)
		}
		if result.Elapsed != 1 || result.RequestsPerSecond != 40 || result.OutputTokensPerSecond != 40*64 {
			t.Errorf("took %vs, %v requests/s, %v tokens/s, want 1, 40, 2560", result.Elapsed, result.RequestsPerSecond, result.OutputTokensPerSecond)
		}
		near(t, "E2E p50", result.E2E.Percentile(50), 100*time.Millisecond)
		near(t, "E2E max", result.E2E.Max(), 100*time.Millisecond)
	})
}

func TestWarmupIsNotMeasured(t *testing.T) {
	tests := map[string]struct {
		warmup bench.Warmup
		slow   int64 // number of slow requests
		warm   int64
	}{
		"for a time":              {bench.Warmup{Duration: time.Second}, 1, 1},
		"for a number":            {bench.Warmup{Requests: 5}, 5, 5},
		"for both, which is more": {bench.Warmup{Requests: 3, Duration: 2 * time.Second}, 3, 3},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				var n atomic.Int64
				transport := serve(t, func(w http.ResponseWriter, r *http.Request) {
					time.Sleep(10 * time.Millisecond)
					if n.Add(1) <= test.slow {
						time.Sleep(990 * time.Millisecond)
					}
					answer(w, 64)
				})
				result := run(t, bench.Config{Transport: transport, Concurrency: 1, Duration: time.Second, Warmup: test.warmup})
				if result.Warmup != test.warm || result.Succeeded != 100 || result.RequestsPerSecond != 100 {
					t.Errorf("%d warm-up, %d measured, %v/s, want %d, 100, 100",
						result.Warmup, result.Succeeded, result.RequestsPerSecond, test.warm)
				}
				near(t, "E2E max", result.E2E.Max(), 10*time.Millisecond)
			})
		})
	}
}

func TestTraceIsReplayedToTheMoment(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		trace, err := bench.ReadTrace(strings.NewReader("arrival_seconds,input_tokens,output_tokens,session\n" +
			"0.000,3,5,1\n0.500,1,7,1\n0.500,200,0,2\n9.001,12,9,1\n60,1,1,3\n"))
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		var mu sync.Mutex
		var got []bench.Arrival
		transport := serve(t, func(w http.ResponseWriter, r *http.Request) {
			at := time.Since(start)
			body := decode(t, r)
			mu.Lock()
			got = append(got, bench.Arrival{At: at, InputTokens: body.words(), OutputTokens: body.MaxTokens})
			mu.Unlock()
			time.Sleep(10 * time.Second) // arrivals do not wait for answers
			answer(w, body.MaxTokens)
		})
		result := run(t, bench.Config{Transport: transport, Trace: trace.Until(time.Minute), Speedup: 2})
		want := []bench.Arrival{
			{At: 0, InputTokens: 3, OutputTokens: 5},
			{At: 250 * time.Millisecond, InputTokens: 1, OutputTokens: 7},
			{At: 250 * time.Millisecond, InputTokens: 200, OutputTokens: 1},
			{At: 4500500 * time.Microsecond, InputTokens: 12, OutputTokens: 9},
		}
		slices.SortFunc(got, func(a, b bench.Arrival) int {
			if a.At != b.At {
				return int(a.At - b.At)
			}
			return a.InputTokens - b.InputTokens
		})
		if !slices.Equal(got, want) {
			t.Errorf("arrived %v, want %v", got, want)
		}
		if result.Succeeded != 4 || result.Lag.Max() != 0 {
			t.Errorf("%d succeeded with a lag of %v, want 4 and 0: %v", result.Succeeded, result.Lag.Max(), result.Errors)
		}
	})
}

// evenly is a trace of n requests at equal intervals.
func evenly(n int, interval time.Duration) bench.Trace {
	trace := make(bench.Trace, n)
	for i := range trace {
		trace[i] = bench.Arrival{At: time.Duration(i) * interval, InputTokens: 1, OutputTokens: 1}
	}
	return trace
}

// stalling answers in a millisecond, but not between 1 s and 2.005 s.
func stalling(t *testing.T) http.RoundTripper {
	start := time.Now()
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(time.Millisecond)
		if since := time.Since(start); since > time.Second && since < 2005*time.Millisecond {
			time.Sleep(2005*time.Millisecond - since)
		}
		answer(w, 1)
	})
}

func TestStallShowsInEveryRequestThatWasDue(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		result := run(t, bench.Config{Transport: stalling(t), Trace: evenly(1000, 10*time.Millisecond)})
		if result.Succeeded != 1000 {
			t.Fatalf("%d succeeded: %v", result.Succeeded, result.Errors)
		}
		near(t, "E2E p50", result.E2E.Percentile(50), time.Millisecond)
		// 101 of 1000 were due during the stall; they waited 5 ms, 15 ms, … 1005 ms.
		near(t, "E2E p95", result.E2E.Percentile(95), 505*time.Millisecond)
		near(t, "E2E p99", result.E2E.Percentile(99), 905*time.Millisecond)
		near(t, "E2E max", result.E2E.Max(), 1005*time.Millisecond)
	})
}

func TestOpenLoopCountsFromWhenARequestWasDue(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		// A generator that cannot send: its connections take 20 ms to set up, after which they are thrown away.
		transport := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Connection", "close")
			answer(w, 1)
		}).(*http.Transport)
		dial := transport.DialContext
		transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			time.Sleep(20 * time.Millisecond)
			return dial(ctx, network, address)
		}
		result := run(t, bench.Config{Transport: transport, Trace: evenly(10, 5*time.Millisecond)})
		near(t, "E2E p50", result.E2E.Percentile(50), 20*time.Millisecond)
	})
}

func TestMaxInFlightIsAnErrorOfItsOwn(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		result := run(t, bench.Config{Transport: stalling(t), Trace: evenly(300, 10*time.Millisecond), MaxInFlight: 25})
		if result.Succeeded != 224 || result.Failed != 76 || len(result.Errors) != 1 || result.Errors[0].Class != "max in flight" {
			t.Errorf("%d succeeded, errors %v, want 224 and 76 × max in flight", result.Succeeded, result.Errors)
		}
		if len(result.Warnings) != 1 {
			t.Errorf("warnings %q, want one about a load lower than asked for", result.Warnings)
		}
	})
}

func TestPoissonArrivals(t *testing.T) {
	arrivals := func(seed uint64) (times []time.Duration) {
		inBubble(t, func(t *testing.T) {
			start := time.Now()
			var mu sync.Mutex
			transport := serve(t, func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				times = append(times, time.Since(start))
				mu.Unlock()
				answer(w, 64)
			})
			run(t, bench.Config{Transport: transport, Rate: 100, Duration: 20 * time.Second, Seed: seed})
		})
		slices.Sort(times)
		return times
	}
	one, again, other := arrivals(1), arrivals(1), arrivals(2)
	if !slices.Equal(one, again) || slices.Equal(one, other) {
		t.Error("the same seed must give the same arrivals, and another seed others")
	}
	if n := len(one); n < 1800 || n > 2200 {
		t.Errorf("%d arrivals in 20 s at 100/s", n)
	}
	var squares, sum float64
	for i := 1; i < len(one); i++ {
		gap := (one[i] - one[i-1]).Seconds()
		sum, squares = sum+gap, squares+gap*gap
	}
	n := float64(len(one) - 1)
	if cv := math.Sqrt(squares/n-sum/n*sum/n) / (sum / n); cv < 0.9 || cv > 1.1 {
		t.Errorf("the gaps' coefficient of variation is %.2f, want about 1", cv)
	}
}

func TestInterruptReportsWhatWasDone(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		transport := serve(t, func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-time.After(400 * time.Millisecond):
				answer(w, 64)
			case <-r.Context().Done():
			}
		})
		ctx, cancel := context.WithCancelCause(t.Context())
		defer time.AfterFunc(time.Second, func() { cancel(errors.New("enough")) }).Stop()
		start := time.Now()
		result, err := bench.Run(ctx, bench.Config{
			URL: "http://engine", Model: "m", Transport: transport, Concurrency: 3, Duration: time.Hour,
		})
		if err != nil {
			t.Fatal(err)
		}
		if !result.Interrupted || result.Succeeded != 6 || result.Failed != 0 || result.Cancelled != 3 {
			t.Errorf("interrupted %v, %d succeeded, %d failed, %d cancelled, want true, 6, 0, 3: %v",
				result.Interrupted, result.Succeeded, result.Failed, result.Cancelled, result.Errors)
		}
		near(t, "the run", time.Since(start), time.Second)
	})
}

func TestProgressComesOnceASecond(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		transport := serve(t, func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(90 * time.Millisecond)
			answer(w, 64)
		})
		var got []string
		run(t, bench.Config{
			Transport: transport, Name: "engine", Concurrency: 2, Duration: 2500 * time.Millisecond,
			Progress: func(p bench.Progress) { got = append(got, fmt.Sprint(p.Elapsed, p.Succeeded, p.Final)) },
		})
		if want := []string{"1s 22 false", "2s 44 false", "2.52s 56 true"}; !slices.Equal(got, want) {
			t.Errorf("progress %q, want %q", got, want)
		}
	})
}

func TestRealConnections(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { answer(w, 64) }))
	defer server.Close()
	result := run(t, bench.Config{URL: server.URL, Concurrency: 8, Requests: 400, SLOE2E: time.Minute})
	if result.Succeeded != 400 || result.E2E.Count() != 400 || result.E2E.Max() == 0 {
		t.Errorf("%d succeeded, E2E of %d up to %v: %v", result.Succeeded, result.E2E.Count(), result.E2E.Max(), result.Errors)
	}
	if result.SLO == nil || result.SLO.Within != 400 || result.SLO.Share != 1 {
		t.Errorf("SLO %+v, want all 400 within", result.SLO)
	}
	server.Close()
	result = run(t, bench.Config{URL: server.URL, Concurrency: 2, Requests: 10})
	if result.Failed != 10 || result.Errors[0].Class != "connection refused" {
		t.Errorf("errors %v, want 10 × connection refused", result.Errors)
	}
}

func TestConfigErrorsNameTheField(t *testing.T) {
	tests := map[string]bench.Config{
		"model":         {URL: "http://127.0.0.1"},
		"url":           {URL: "127.0.0.1:8080", Model: "m"},
		"endpoint":      {URL: "http://127.0.0.1", Model: "m", Endpoint: "speech"},
		"stream":        {URL: "http://127.0.0.1", Model: "m", Endpoint: api.Embeddings, Stream: true},
		"concurrency":   {URL: "http://127.0.0.1", Model: "m", Concurrency: 1, Rate: 1},
		"input-tokens":  {URL: "http://127.0.0.1", Model: "m", InputTokens: -1},
		"output-tokens": {URL: "http://127.0.0.1", Model: "m", OutputTokens: -1},
		"extra":         {URL: "http://127.0.0.1", Model: "m", Extra: []byte(`{"max_tokens":1}`)},
	}
	for field, cfg := range tests {
		if _, err := bench.Run(t.Context(), cfg); err == nil || !strings.HasPrefix(err.Error(), field) {
			t.Errorf("Run(%+v): %v, want an error that starts with %s", cfg, err, field)
		}
	}
}
