package bench_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/bench"
	"github.com/pulley-lb/pulley/engine/sim"
)

// script writes a stream: each line is an event's data, a comment (:), a pause (@20ms) or an event's name (!name).
func script(w http.ResponseWriter, lines ...string) {
	w.Header().Set("Content-Type", "text/event-stream")
	flush := http.NewResponseController(w).Flush
	for _, line := range lines {
		switch line[0] {
		case '@':
			pause, _ := time.ParseDuration(line[1:])
			time.Sleep(pause)
		case ':':
			fmt.Fprintf(w, "%s\n\n", line)
		case '!':
			fmt.Fprintf(w, "event: %s\n", line[1:])
		default:
			fmt.Fprintf(w, "data: %s\n\n", line)
		}
		_ = flush()
	}
}

const (
	role  = `{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":null}`
	token = `{"choices":[{"delta":{"content":" \"content\":\"x"},"finish_reason":null}],"usage":null}`
	last  = `{"choices":[{"delta":{},"finish_reason":"length"}],"usage":null}`
	count = `{"choices":[],"usage": {"prompt_tokens":7,"completion_tokens":3}}`
	done  = `[DONE]`
)

func TestStreamIsTimedByItsContent(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		transport := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Server-Timing", `cache, queue;desc="in Pulley";dur=12.5, engine;dur=90`)
			script(w, ": waiting", "@10ms", role, "@20ms", token, "@30ms", token, "@50ms", token, last, count, "@5ms", done, "@300ms")
		})
		result := run(t, bench.Config{Transport: transport, Stream: true, Requests: 2, OutputTokens: 3})
		if result.Succeeded != 2 || result.OutputTokens != 6 || result.InputTokens != 14 {
			t.Fatalf("%d succeeded, %d tokens in, %d out, want 2, 14, 6: %v",
				result.Succeeded, result.InputTokens, result.OutputTokens, result.Errors)
		}
		near(t, "TTFT", result.TTFT.Max(), 30*time.Millisecond)
		near(t, "inter-token", result.InterToken.Max(), 40*time.Millisecond)
		near(t, "shortest gap", result.Gap.Min(), 30*time.Millisecond)
		near(t, "longest gap", result.Gap.Max(), 50*time.Millisecond)
		near(t, "E2E", result.E2E.Max(), 115*time.Millisecond)
		near(t, "queue", result.Queue.Max(), 12500*time.Microsecond)
		if result.Gap.Count() != 4 || result.InterToken.Count() != 2 {
			t.Errorf("%d gaps, %d means, want 4 and 2", result.Gap.Count(), result.InterToken.Count())
		}
	})
}

func TestBodyIsTimedByItsFirstByteAndItsEnd(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		transport := serve(t, func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(20 * time.Millisecond)
			_, _ = io.WriteString(w, `{"usage":`)
			_ = http.NewResponseController(w).Flush()
			time.Sleep(30 * time.Millisecond)
			_, _ = io.WriteString(w, `{"completion_tokens":64}}`)
		})
		result := run(t, bench.Config{Transport: transport, Requests: 1})
		near(t, "TTFT", result.TTFT.Max(), 20*time.Millisecond)
		near(t, "E2E", result.E2E.Max(), 50*time.Millisecond)
	})
}

func TestFailuresAreCountedByClass(t *testing.T) {
	abort := func() { panic(http.ErrAbortHandler) }
	tests := map[string]struct {
		stream  bool
		handler func(w http.ResponseWriter, r *http.Request)
		class   string
	}{
		"a stream that ends without [DONE]": {true, func(w http.ResponseWriter, r *http.Request) {
			script(w, role, token, token)
		}, "truncated"},
		"a stream whose connection breaks": {true, func(w http.ResponseWriter, r *http.Request) {
			script(w, role, token)
			abort()
		}, "cut"},
		"an error event": {true, func(w http.ResponseWriter, r *http.Request) {
			script(w, role, token, `{"error":{"message":"gone","type":"server_error","param":null,"code":"upstream_lost"}}`)
		}, "error event upstream_lost"},
		"a stream of another length": {true, func(w http.ResponseWriter, r *http.Request) {
			script(w, role, token, token, last, count, done)
		}, "token count"},
		"a stream that stops": {true, func(w http.ResponseWriter, r *http.Request) {
			script(w, role, token)
			<-r.Context().Done()
		}, "timeout"},
		"JSON where a stream was asked for": {true, func(w http.ResponseWriter, r *http.Request) { answer(w, 5) }, "not a stream"},
		"a body that is cut": {false, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = io.WriteString(w, `{"usage":`)
			_ = http.NewResponseController(w).Flush()
			abort()
		}, "cut"},
		"a body that is not JSON": {false, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, `{"usage":`)
		}, "truncated"},
		"a body that is an error": {false, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, `{"error":{"message":"no","type":"server_error"}}`)
		}, "error event server_error"},
		"too many tokens": {false, func(w http.ResponseWriter, r *http.Request) { answer(w, 6) }, "token count"},
		"a refusal": {false, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusTooManyRequests)
			_, _ = io.WriteString(w, `{"error":{"message":"later","type":"requests","param":null,"code":"queue_full"}}`)
		}, "http 429 queue_full"},
		"a refusal in plain text": {true, func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, "bad gateway", http.StatusBadGateway)
		}, "http 502"},
		"a connection that is closed at once": {false, func(w http.ResponseWriter, r *http.Request) { abort() }, "connection reset"},
		"no answer": {false, func(w http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
		}, "timeout"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				result := run(t, bench.Config{
					Transport: serve(t, test.handler), Stream: test.stream, Requests: 3, OutputTokens: 5, Timeout: time.Minute,
				})
				if result.Succeeded != 0 || result.Failed != 3 || len(result.Errors) != 1 || result.Errors[0].Class != test.class {
					t.Errorf("%d succeeded, errors %+v, want 3 × %s", result.Succeeded, result.Errors, test.class)
				}
				if !result.E2E.IsZero() {
					t.Error("a failed request has a latency")
				}
			})
		})
	}
}

func TestModelMayEndItsAnswer(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		transport := serve(t, func(w http.ResponseWriter, r *http.Request) {
			script(w, role, token, strings.Replace(last, "length", "stop", 1), count, done)
		})
		cfg := bench.Config{Transport: transport, Stream: true, Requests: 1, OutputTokens: 100}
		if result := run(t, cfg); result.Succeeded != 1 || result.OutputTokens != 3 {
			t.Errorf("%d succeeded with %d tokens, want 1 with 3: %v", result.Succeeded, result.OutputTokens, result.Errors)
		}
		cfg.ExactTokens = true
		if result := run(t, cfg); result.Failed != 1 || result.Errors[0].Class != "token count" {
			t.Errorf("errors %v, want token count", result.Errors)
		}
	})
}

func TestLongEventsAndOddLineEnds(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		transport := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
			long := strings.Replace(token, " ", strings.Repeat("x", 200_000), 1)
			fmt.Fprintf(w, "data:%s\r\n\r\nid: 1\ndata: %s\n\n:%s\n\ndata: [DONE]\n", token, long, strings.Repeat("-", 50_000))
		})
		result := run(t, bench.Config{Transport: transport, Stream: true, Requests: 1})
		if result.Succeeded != 1 || result.OutputTokens != 2 {
			t.Errorf("%d succeeded with %d tokens, want 1 with 2: %v", result.Succeeded, result.OutputTokens, result.Errors)
		}
	})
}

// TestEveryEndpointAgainstTheSimulator reads what a whole engine writes, in its own times.
func TestEveryEndpointAgainstTheSimulator(t *testing.T) {
	for _, endpoint := range bench.Endpoints {
		for _, stream := range []bool{false, true} {
			if stream && endpoint == api.Embeddings {
				continue
			}
			t.Run(fmt.Sprintf("%s stream=%v", endpoint, stream), func(t *testing.T) {
				inBubble(t, func(t *testing.T) {
					eng, err := sim.New(sim.Config{
						Models: []string{"m"}, Slots: 8, PrefillRate: 1000, ITLBase: 20 * time.Millisecond,
					})
					if err != nil {
						t.Fatal(err)
					}
					result := run(t, bench.Config{
						Transport: serve(t, eng.ServeHTTP), Endpoint: endpoint, Stream: stream, Requests: 4,
						InputTokens: 100, OutputTokens: 11, ExactTokens: true,
					})
					if result.Succeeded != 4 || result.InputTokens != 400 {
						t.Fatalf("%d succeeded, %d tokens in, want 4 and 400: %+v", result.Succeeded, result.InputTokens, result.Errors)
					}
					if endpoint == api.Embeddings {
						return
					}
					if result.OutputTokens != 44 {
						t.Errorf("%d tokens out, want 44", result.OutputTokens)
					}
					if stream {
						near(t, "inter-token p50", result.InterToken.Percentile(50), 20*time.Millisecond)
						if result.Gap.Count() != 40 {
							t.Errorf("%d gaps, want 40", result.Gap.Count())
						}
						near(t, "E2E - TTFT", result.E2E.Max()-result.TTFT.Max(), 200*time.Millisecond)
					}
				})
			})
		}
	}
}

func TestBodiesAreWhatTheAPIWants(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var paths, prompts []string
		var body map[string]any
		transport := serve(t, func(w http.ResponseWriter, r *http.Request) {
			paths = append(paths, r.URL.Path)
			body = map[string]any{}
			if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
				t.Error(err)
			}
			if r.Header.Get("Authorization") != "Bearer key" || r.Header.Get("X-Tenant") != "a" || r.Header.Get("Accept-Encoding") != "" {
				t.Errorf("header %v", r.Header)
			}
			if prompt, ok := body["prompt"].(string); ok {
				prompts = append(prompts, prompt)
			}
			answer(w, 9)
		})
		cfg := bench.Config{
			Transport: transport, Endpoint: api.Completions, Requests: 3, InputTokens: 30, OutputTokens: 9, Tier: "flex",
			APIKey: "key", Header: http.Header{"X-Tenant": {"a"}}, Extra: json.RawMessage(`{"ignore_eos":true}`),
		}
		for _, url := range []string{"http://e", "http://e/", "http://e/v1", "http://e/base/v1/", "http://e/v1/completions"} {
			cfg.URL = url
			run(t, cfg)
		}
		if got := slices.Compact(slices.Sorted(slices.Values(paths))); !slices.Equal(got, []string{"/base/v1/completions", "/v1/completions"}) {
			t.Errorf("paths %q", got)
		}
		delete(body, "prompt")
		want := map[string]any{"model": "m", "max_tokens": 9.0, "service_tier": "flex", "ignore_eos": true}
		if fmt.Sprint(body) != fmt.Sprint(want) {
			t.Errorf("body %v, want %v", body, want)
		}
		first := map[string]bool{}
		for _, prompt := range prompts[:3] {
			words := strings.Fields(prompt)
			first[words[0]] = true
			if len(words) != 30 {
				t.Errorf("a prompt of %d words, want 30", len(words))
			}
		}
		if len(first) != 3 {
			t.Errorf("prompts of a run start alike: %v", first)
		}
	})
}
