package scenarios

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/worker"
)

// unlike are five engines of three kinds, the fastest about nine times as capable as the slowest.
func unlike() []sim.Config {
	kind := func(name string, slots int, prefill float64, base, per time.Duration) sim.Config {
		return sim.Config{Name: name, Models: []string{"m"}, Slots: slots, PrefillRate: prefill,
			ITLBase: base, ITLPerRequest: per, TokensPerEvent: 64}
	}
	return []sim.Config{
		kind("fast-1", 64, 20000, 10*time.Millisecond, 200*time.Microsecond),
		kind("fast-2", 64, 20000, 10*time.Millisecond, 200*time.Microsecond),
		kind("middle", 32, 8000, 20*time.Millisecond, 500*time.Microsecond),
		kind("slow-1", 16, 3000, 35*time.Millisecond, 1200*time.Microsecond),
		kind("slow-2", 16, 3000, 35*time.Millisecond, 1200*time.Microsecond),
	}
}

// TestPullByPrice replays a production trace through all of Pulley over five unlike engines that
// its workers know nothing of, and compares the clients' latencies with those of routers that know
// more.
func TestPullByPrice(t *testing.T) {
	if testing.Short() {
		t.Skip("replays minutes of a trace")
	}
	trace := readTrace(t, "testdata/azure_conv_slice.csv")
	if raceEnabled {
		trace = trace[:600] // the race detector looks for races; the figures mean little
	}
	engines := unlike()
	var weights []float64
	for _, e := range engines {
		weights = append(weights, capacity(e, trace))
	}
	_, meanOutput := means(trace)

	for _, load := range []float64{0.4, 0.8} {
		t.Run(fmt.Sprintf("load %.0f%%", 100*load), func(t *testing.T) {
			scaled := atLoad(load, trace, engines)
			best := figuresOf(replayModel(scaled, engines, oracle(meanOutput)))
			wlc := figuresOf(replayModel(scaled, engines, leastConnections(weights)))
			central := figuresOf(replayModel(scaled, engines, fifo))
			inMostRuns(t, func() (claims []claim) {
				pulley := figuresOf(replayPulley(t, scaled, engines, func(cfg sim.Config) worker.Config { return worker.Config{Slots: cfg.Slots} }))
				noSlots := figuresOf(replayPulley(t, scaled, engines, func(sim.Config) worker.Config { return worker.Config{} }))
				t.Logf("%d requests at %.0f %% of capacity\n"+
					"seconds              TTFT p50     p95     p99   E2E p50     p95     p99\n"+
					"pulley                %v\npulley, no slots set  %v\noracle                %v\nweighted least conn.  %v\ncentral FIFO queue    %v",
					len(scaled), 100*load, pulley, noSlots, best, wlc, central)
				if raceEnabled {
					return nil
				}
				const p99 = 2
				for _, c := range []struct {
					what string
					f    figures
				}{{"", pulley}, {"no slots set: ", noSlots}} {
					if load == 0.4 {
						claims = append(claims, atMost(c.what+"E2E p99, relative to the oracle", c.f.e2e[p99], 1.15*best.e2e[p99]),
							atMost(c.what+"E2E p99, relative to weighted least connections", c.f.e2e[p99], wlc.e2e[p99]/1.5))
					} else {
						claims = append(claims, atMost(c.what+"E2E p99, relative to a central queue", c.f.e2e[p99], central.e2e[p99]),
							atMost(c.what+"TTFT p99, relative to a central queue", c.f.ttft[p99], 1.35*central.ttft[p99]))
					}
				}
				return claims
			})
		})
	}
}

// TestModelAgreesWithTheSimulator replays a trace on one engine, in the model and in virtual time.
func TestModelAgreesWithTheSimulator(t *testing.T) {
	engines := unlike()[2:3]
	trace := atLoad(1.1, readTrace(t, "testdata/azure_conv_slice.csv")[:200], engines)
	for i := range trace[1:] { // of two that arrive at once, either may be first
		trace[i+1].at = max(trace[i+1].at, trace[i].at+1e-6)
	}
	want := replayModel(trace, engines, fifo)
	run(t, func(t *testing.T, env *Env) {
		e := env.Engine(engines[0])
		client := &http.Client{Transport: e.Transport}
		for i, got := range replayHTTP(t, trace, client, e.URL) {
			if math.Abs(got.ttft-want[i].ttft) > 1e-6 || math.Abs(got.e2e-want[i].e2e) > 1e-6 {
				t.Fatalf("request %d: got %v, the model says %v", i, got, want[i])
			}
		}
	})
}

// replayPulley runs a trace through a gateway, a broker and a worker for each engine.
func replayPulley(t *testing.T, trace []traced, engines []sim.Config, like func(sim.Config) worker.Config) (ls []latency) {
	t.Helper()
	run(t, func(t *testing.T, env *Env) {
		g, es, _ := pairWith(t, env, like, engines...)
		g.Client.Transport.(*http.Transport).MaxIdleConnsPerHost = 1000
		ls = replayHTTP(t, trace, g.Client, "http://gateway")
		for _, e := range es {
			s := e.Stats()
			t.Logf("%s: %d requests, at most %d at once", s.Name, s.Finished, s.MaxRunning)
		}
	})
	return ls
}

// replayHTTP sends each request of a trace at its time, whatever happened to those before it.
func replayHTTP(t *testing.T, trace []traced, client *http.Client, url string) []latency {
	ls := make([]latency, len(trace))
	begun := time.Now()
	var wg sync.WaitGroup
	for i, r := range trace {
		time.Sleep(time.Until(begun.Add(seconds(r.at))))
		wg.Go(func() {
			var err error
			if ls[i], err = stream(client, url, r); err != nil {
				t.Errorf("request %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	return ls
}

func seconds(s float64) time.Duration { return time.Duration(math.Round(s * float64(time.Second))) }

// prompts is a prompt longer than any in the trace. Every token is four bytes, which a gateway
// estimates as one token.
var prompts = strings.Repeat("abc ", 16<<10)

// stream requests one answer and times it.
func stream(client *http.Client, url string, r traced) (latency, error) {
	body := fmt.Sprintf(`{"model":"m","stream":true,"stream_options":{"include_usage":true},"max_tokens":%d,"messages":[{"role":"user","content":"%s"}]}`,
		r.output, prompts[:4*r.input])
	begun := time.Now()
	resp, err := client.Post(url+"/v1/chat/completions", "application/json", strings.NewReader(body))
	if err != nil {
		return latency{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(resp.Body)
		return latency{}, fmt.Errorf("%s: %s", resp.Status, text)
	}
	var l latency
	var last []byte
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if !bytes.HasPrefix(lines.Bytes(), []byte("data:")) {
			continue
		}
		if l.ttft == 0 {
			l.ttft = time.Since(begun).Seconds()
		}
		last = append(last[:0], lines.Bytes()...)
	}
	l.e2e = time.Since(begun).Seconds()
	if err := lines.Err(); err != nil {
		return l, err
	}
	if string(last) != "data: [DONE]" {
		return l, fmt.Errorf("the stream ends with %q", last)
	}
	return l, nil
}

// readTrace reads arrival_seconds,input_tokens,output_tokens.
func readTrace(t testing.TB, file string) []traced {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	var trace []traced
	for _, row := range rows[1:] {
		at, err1 := strconv.ParseFloat(row[0], 64)
		input, err2 := strconv.Atoi(row[1])
		output, err3 := strconv.Atoi(row[2])
		if err1 != nil || err2 != nil || err3 != nil {
			t.Fatalf("%s: %q", file, row)
		}
		trace = append(trace, traced{at, input, max(output, 1)})
	}
	return trace
}
