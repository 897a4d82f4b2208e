package scenarios

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/metric"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// family is a metric on a page: its type and the labels of its series.
type family struct {
	kind   string
	labels map[string]bool
}

// families are the metrics of a page, those of the client library left out.
func families(page string) map[string]family {
	all := make(map[string]family)
	for line := range strings.Lines(page) {
		if of, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, kind, _ := strings.Cut(strings.TrimSpace(of), " ")
			all[name] = family{kind, make(map[string]bool)}
			continue
		}
		name, rest, labelled := strings.Cut(line, "{")
		if strings.HasPrefix(line, "#") || !labelled {
			continue
		}
		f, ok := all[name]
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if h, is := all[strings.TrimSuffix(name, suffix)]; !ok && is {
				f = h
			}
		}
		labels, _, _ := strings.Cut(rest, "} ")
		for pair := range strings.SplitSeq(labels, `",`) {
			if l, _, _ := strings.Cut(pair, "="); l != "" && l != "}" && l != "le" && f.labels != nil {
				f.labels[l] = true
			}
		}
	}
	for name := range all {
		if strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_") {
			delete(all, name)
		}
	}
	return all
}

// page is what a part's own admin port serves.
func page(t *testing.T, collectors ...prometheus.Collector) string {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(collectors...)
	got, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, f := range got {
		fmt.Fprintf(&b, "# TYPE %s %s\n", f.GetName(), strings.ToLower(f.GetType().String()))
		for _, m := range f.GetMetric() {
			var pairs []string
			for _, l := range m.GetLabel() {
				pairs = append(pairs, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			v := m.GetGauge().GetValue() + m.GetCounter().GetValue()
			fmt.Fprintf(&b, "%s{%s} %v\n", f.GetName(), strings.Join(pairs, ","), v)
		}
	}
	return b.String()
}

// fullBoard is a GPU that reports everything.
func fullBoard(t *testing.T) *board {
	b := h100.board(t)
	b.set(func(s *gpu.Snapshot) {
		s.Memory.Reserved = new(uint64(1 << 30))
		s.Temperature, s.MemoryTemperature = new(60), new(70)
		s.Power, s.PowerLimit, s.SMClock, s.MemoryClock = new(600.0), new(700.0), new(1980), new(2619)
		s.ECC, s.Rows = &gpu.ECC{Uncorrected: new(uint64(0))}, new(gpu.Rows)
	})
	return b
}

// Each metric of the table appears in a run, and each that appears is in the table, with its type and labels: at gateways,
// workers and brokers.
func TestMetricsAreAsDocumented(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{AccessLog: gateway.AccessLog{Writer: io.Discard}})
		env.SetPolicy(func(p *policy.Policy) {
			p.Routes = map[string]policy.Route{"m": {To: []policy.Target{{Pool: "m", Weight: 1}}, Mirror: []policy.Mirror{{Pool: "shadow", Percent: 1}}}}
		})
		b, metrics := fullBoard(t), worker.NewMetrics()
		newHost(t, env, steady("a"), b, worker.Config{Metrics: metrics})
		g.Serves(t, "m")
		if r := ask(t, g, chat("m", true, 5), ""); r.status != 200 {
			t.Fatalf("%d %s", r.status, r.body)
		}
		b.xid(31)
		time.Sleep(3 * time.Second)
		for part, text := range map[metric.Part]string{
			metric.OfGateway: metricsOf(t, g),
			metric.OfWorker:  page(t, metrics.Collectors()...),
			metric.OfBroker:  page(t, env.Broker().Collector()),
		} {
			got := families(text)
			for name, f := range got {
				m := metric.Find(name)
				if m == nil || !slices.Contains(m.Parts, part) {
					t.Errorf("%s: %s is not documented", part, name)
					continue
				}
				if string(m.Kind) != f.kind {
					t.Errorf("%s: %s is a %s, and not a %s as documented", part, name, f.kind, m.Kind)
				}
				for l := range f.labels {
					if !slices.Contains(m.Labels, l) {
						t.Errorf("%s: %s has an undocumented label %s", part, name, l)
					}
				}
				for _, l := range m.Labels {
					if !f.labels[l] {
						t.Errorf("%s: %s has no label %s", part, name, l)
					}
				}
			}
			for _, m := range metric.All() {
				if _, ok := got[m.Name]; !ok && slices.Contains(m.Parts, part) {
					t.Errorf("%s: %s is documented, but is not there", part, m.Name)
				}
			}
		}
	})
}

// Counters of words that are known before are there at 0 before the first request, for each pool and tier.
func TestCountersAreThereFromTheFirstScrape(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		env.Worker(env.Engine(sim.Config{Name: "a", Models: []string{"m"}}), worker.Config{Name: "a"})
		g.Serves(t, "m")
		text := metricsOf(t, g)
		for _, m := range metric.All() {
			last := len(m.Labels) - 1
			if m.Kind == metric.Gauge || last < 0 || !slices.Contains(m.Labels, "pool") || m == metric.Mirrored || m == metric.Requests {
				continue
			}
			if m.Kind == metric.Histogram {
				for _, tier := range []string{"priority", "standard", "batch"} {
					if want := fmt.Sprintf("%s_count{pool=\"m\",tier=%q} 0\n", m.Name, tier); !strings.Contains(text, want) {
						t.Errorf("no %s", want)
					}
				}
				continue
			}
			for _, v := range append(m.Values[m.Labels[last]], "") {
				if v == "" && len(m.Values) > 0 {
					continue
				}
				n := 0
				for line := range strings.Lines(text) {
					if strings.HasPrefix(line, m.Name+"{") && strings.HasSuffix(line, " 0\n") && (v == "" || strings.Contains(line, fmt.Sprintf("%s=%q", m.Labels[last], v))) {
						n++
					}
				}
				if want := map[bool]int{true: 3, false: 1}[slices.Contains(m.Labels, "tier")]; n != want {
					t.Errorf("%s of %q: %d counters at 0, want %d", m.Name, v, n, want)
				}
			}
		}
		for _, want := range []string{`pulley_requests_total{class="2xx",outcome="answered",pool="m",tier="batch"} 0`, `pulley_errors_total{code="queue_full"} 0`,
			`pulley_auth_refused_total{reason="expired"} 0`, `pulley_rate_limited_total{limit="tokens"} 0`} {
			if !strings.Contains(text, want+"\n") {
				t.Errorf("no %s", want)
			}
		}
	})
}

// stateOf is the state of a worker by the one-hot gauge; it fails unless that is exactly one.
func stateOf(t *testing.T, g *Gateway, name string) (state string) {
	t.Helper()
	hot, all := 0, 0
	for line := range strings.Lines(metricsOf(t, g)) {
		if !strings.HasPrefix(line, "pulley_worker_state{") || !strings.Contains(line, fmt.Sprintf("worker=%q", name)) {
			continue
		}
		all++
		if strings.HasSuffix(line, " 1\n") {
			hot++
			_, state, _ = strings.Cut(line, `state="`)
			state, _, _ = strings.Cut(state, `"`)
		}
	}
	if all > 0 && (hot != 1 || all != len(metric.States)) {
		t.Errorf("worker %s is in %d of %d states", name, hot, all)
	}
	return state
}

// What happens to a worker shows in its state within 3 s, and what accepts nothing has no free capacity.
func TestMetricsShowTheStateOfWorkers(t *testing.T) {
	for name, c := range map[string]struct {
		happens func(env *Env, en *testenv.Engine, w *Worker, b *board)
		state   string
		credits string // the beginning of the line; empty: there is none
	}{
		"the engine dies":    {func(_ *Env, en *testenv.Engine, _ *Worker, _ *board) { en.Kill() }, "down", `pulley_worker_credits{bound="down",`},
		"the worker is lost": {func(_ *Env, en *testenv.Engine, w *Worker, _ *board) { w.Kill(en) }, "lost", ""},
		"a GPU fails":        {func(_ *Env, _ *testenv.Engine, _ *Worker, b *board) { b.xid(79) }, "fenced", `pulley_worker_credits{bound="fence",`},
		"it is cordoned": {func(env *Env, _ *testenv.Engine, _ *Worker, _ *board) {
			env.SetPolicy(func(p *policy.Policy) { p.Workers = map[string]policy.Worker{"a": {Cordoned: true}} })
		}, "cordoned", `pulley_worker_credits{bound="cordoned",`},
		"it leaves": {func(_ *Env, _ *testenv.Engine, w *Worker, _ *board) { w.Process.Stop() }, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g := env.Gateway(gateway.Config{})
				en, b := env.Engine(steady("a")), h100.board(t)
				w := env.Worker(en, worker.Config{Name: "a", NVML: b})
				g.Serves(t, "m")
				if s := stateOf(t, g, "a"); s != "ready" {
					t.Fatalf("it is %q at first", s)
				}
				c.happens(env, en, w, b)
				time.Sleep(3 * time.Second)
				if s := stateOf(t, g, "a"); s != c.state {
					t.Errorf("it is %q, want %q", s, c.state)
				}
				var credits strings.Builder
				for line := range strings.Lines(metricsOf(t, g)) {
					if strings.HasPrefix(line, "pulley_worker_credits{") {
						credits.WriteString(line)
					}
				}
				if c.credits == "" && credits.String() != "" || c.credits != "" && (!strings.HasPrefix(credits.String(), c.credits) || !strings.HasSuffix(credits.String(), " 0\n")) {
					t.Errorf("capacity %q, want %q", credits.String(), c.credits)
				}
			})
		})
	}
}

// The queue, failures and their consequences show as they are.
func TestMetricsOfQueuesAndFailures(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		cfg := steady("a")
		cfg.Slots = 1
		a := env.Engine(cfg)
		env.Worker(a, worker.Config{Name: "a", Slots: 1})
		g.Serves(t, "m")
		stream := func() (leave context.CancelFunc) {
			ctx, cancel := context.WithCancel(t.Context())
			go func() { // ends when the client leaves
				resp, err := post(ctx, g, "/v1/chat/completions", chat("m", true, 1000), "")
				if err == nil {
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			}()
			time.Sleep(time.Second)
			return cancel
		}
		runs, waits, waitsToo := stream(), stream(), stream()
		defer runs()
		defer waits()
		defer waitsToo()
		time.Sleep(4 * time.Second)
		wantMetrics(t, g, `pulley_queue_waiting_requests{pool="m",tier="standard"} 2`, `pulley_queue_in_flight_requests{pool="m",tier="standard"} 1`,
			`pulley_queue_waiting_requests{pool="m",tier="batch"} 0`, `vllm:num_requests_running{model_name="m"} 1`, `vllm:num_requests_waiting{model_name="m"} 2`)
		if oldest := countOf(t, g, `pulley_queue_oldest_wait_seconds{pool="m",tier="standard"}`); oldest < 6 || oldest > 6.1 {
			t.Errorf("the oldest waits for %v s, want 6", oldest)
		}
		waits()
		waitsToo()
		time.Sleep(time.Second)
		runs()
		time.Sleep(3 * time.Second)
		wantMetrics(t, g, `pulley_queue_waiting_requests{pool="m",tier="standard"} 0`, `pulley_queue_oldest_wait_seconds{pool="m",tier="standard"} 0`,
			`pulley_cancelled_total{pool="m",window="queued"} 2`, `pulley_cancelled_total{pool="m",window="answering"} 1`,
			`pulley_requests_total{class="2xx",outcome="cancelled",pool="m",tier="standard"} 1`, `pulley_requests_total{class="none",outcome="cancelled",pool="m",tier="standard"} 2`)
		ask(t, g, chat("m", true, 20), "")
		wantMetrics(t, g, `pulley_requests_total{class="2xx",outcome="answered",pool="m",tier="standard"} 1`)
		if n := countOf(t, g, `pulley_tokens_total{direction="output",pool="m",tier="standard"}`); n < 20 {
			t.Errorf("%v tokens, want 20 and those of events without one", n)
		}
		if n := countOf(t, g, `pulley_inter_token_seconds_count{pool="m",tier="standard"}`); n < 19 {
			t.Errorf("%v inter-token times of 20 tokens", n)
		}
		if r := ask(t, g, chat("m", true, 20), "fail"); r.status < 500 {
			t.Fatalf("%d %s", r.status, r.body)
		}
		wantMetrics(t, g, `pulley_requests_total{class="5xx",outcome="failed",pool="m",tier="standard"} 1`, `pulley_dead_letters_total{pool="m",tier="standard"} 1`,
			`pulley_retries_total{pool="m",tier="standard"} 2`, `pulley_failovers_total{pool="m",tier="standard"} 0`, `pulley_attempts_failed_total{class="engine",pool="m",tier="standard"} 3`)
		ended := make(chan int, 1)
		go func() { ended <- ask(t, g, chat("m", false, 60), "").status }()
		time.Sleep(time.Second)
		env.Worker(env.Engine(steady("b")), worker.Config{Name: "b"})
		time.Sleep(time.Second)
		a.Kill()
		if status := <-ended; status != 200 {
			t.Errorf("%d after its engine died", status)
		}
		wantMetrics(t, g, `pulley_failovers_total{pool="m",tier="standard"} 1`, `pulley_retries_total{pool="m",tier="standard"} 3`)
	})
}

// What an autoscaler follows grows with the work that waits, in requests and in seconds of the workers there are, and goes
// with it.
func TestMetricsOfDemand(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		cfg := steady("a")
		cfg.Slots = 4
		env.Worker(env.Engine(cfg), worker.Config{Name: "a", Slots: 4})
		g.Serves(t, "m")
		wantMetrics(t, g, `pulley_pool_demand_slots{pool="m"} 0`, `pulley_pool_demand_seconds{pool="m"} 0`)
		var clients sync.WaitGroup
		load := func(n int) {
			for range n {
				clients.Go(func() { ask(t, g, chat("m", true, 50), "") })
			}
		}
		for range 3 { // the worker measures
			load(4)
			clients.Wait()
		}
		// Four at once take 50 · (70 + 4·2) ms: 4 s. They have all of the worker in use.
		seconds := func() float64 { return countOf(t, g, `pulley_pool_demand_seconds{pool="m"}`) }
		for _, rounds := range []int{2, 5, 10} {
			load(4 * rounds)
			time.Sleep(time.Second)
			wantMetrics(t, g, fmt.Sprintf(`pulley_pool_demand_slots{pool="m"} %d`, 4*rounds))
			if got, want := seconds()-policy.DemandAhead, 4*float64(rounds-1); got < 0.7*want || got > 1.3*want {
				t.Errorf("%d requests: %v s of work beside what runs, want about %v", 4*rounds, got, want)
			}
			clients.Wait()
		}
		time.Sleep(time.Second)
		wantMetrics(t, g, `pulley_pool_demand_slots{pool="m"} 0`, `pulley_pool_demand_seconds{pool="m"} 0`)
	})
}

// countOf is the value of a series.
func countOf(t *testing.T, g *Gateway, series string) (v float64) {
	t.Helper()
	for line := range strings.Lines(metricsOf(t, g)) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			fmt.Sscan(value, &v)
		}
	}
	return v
}

// A gateway whose broker is away says so, as long as that lasts, and of no stream that it has a leader.
func TestMetricsShowThatTheBrokerIsAway(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		metrics := worker.NewMetrics()
		w := env.Worker(env.Engine(steady("a")), worker.Config{Name: "a", Metrics: metrics})
		g.Serves(t, "m")
		wantMetrics(t, g, "pulley_broker_connected 1", "pulley_gateway_ready 1", `pulley_stream_has_leader{stream="PULLEY_REQ_STANDARD"} 1`, "pulley_policy_stale 0")
		g.Link.Freeze()
		w.Link.Freeze()
		time.Sleep(3 * time.Second)
		wantMetrics(t, g, "pulley_broker_connected 0")
		if text := page(t, metrics.Own()...); !strings.Contains(text, "pulley_worker_broker_connected{") || !strings.Contains(text, `worker="a"} 0`) {
			t.Errorf("the worker says\n%s", text)
		}
		time.Sleep(20 * time.Second)
		wantMetrics(t, g, `pulley_stream_has_leader{stream="PULLEY_REQ_STANDARD"} 0`, "pulley_policy_stale 1")
		g.Link.Thaw()
		w.Link.Thaw()
		time.Sleep(10 * time.Second)
		wantMetrics(t, g, "pulley_broker_connected 1", `pulley_stream_has_leader{stream="PULLEY_REQ_STANDARD"} 1`, "pulley_policy_stale 0")
	})
}

// With labels that clients choose, each of their values has a thousand series at most.
func TestMetricLabelsOfClients(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{MetricLabels: gateway.Labels{Model: true, Tenant: true}})
		env.SetPolicy(func(p *policy.Policy) {
			p.Routes = map[string]policy.Route{"any-*": {To: []policy.Target{{Pool: "m", Weight: 1}}}}
		})
		env.Worker(env.Engine(steady("a")), worker.Config{Name: "a"})
		g.Serves(t, "m")
		key := env.AddKey("acme")
		time.Sleep(2 * time.Second)
		for i := range metric.MaxValues + 5 {
			if r := askAt(t, g, "/v1/embeddings", fmt.Sprintf(`{"model":"any-%d","input":"a"}`, i), "", "Authorization", "Bearer "+key); r.status != 200 {
				t.Fatalf("%d %s", r.status, r.body)
			}
		}
		wantMetrics(t, g, `pulley_requests_total{class="2xx",model="any-999",outcome="answered",pool="m",tenant="acme",tier="standard"} 1`,
			`pulley_requests_total{class="2xx",model="other",outcome="answered",pool="m",tenant="acme",tier="standard"} 5`)
	})
}

// A router in front of a gateway finds what it asks of an engine: its health, its load and its metrics.
func TestAGatewayAsAnEngine(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		cfg := steady("a")
		cfg.Slots = 4
		env.Worker(env.Engine(cfg), worker.Config{Name: "a", Slots: 4})
		g.Serves(t, "m")
		get := func(path string, header ...string) (int, string) {
			t.Helper()
			r, _ := http.NewRequest("GET", "http://gateway"+path, nil)
			for _, h := range header {
				name, value, _ := strings.Cut(h, ": ")
				r.Header.Set(name, value)
			}
			resp, err := g.Client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, _ := io.ReadAll(resp.Body)
			return resp.StatusCode, string(b)
		}
		if status, body := get("/load"); status != 200 || body != `{"server_load":0}` {
			t.Errorf("%d %s", status, body)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for range 6 {
			go post(ctx, g, "/v1/chat/completions", chat("m", true, 1000), "")
		}
		time.Sleep(3 * time.Second)
		if status, body := get("/load"); status != 200 || body != `{"server_load":6}` {
			t.Errorf("%d %s", status, body)
		}
		status, body := get("/metrics")
		got := families(body)
		if status != 200 || len(got) != 3 {
			t.Errorf("%d %s", status, body)
		}
		for _, want := range []string{`vllm:num_requests_running{model_name="m"} 4`, `vllm:num_requests_waiting{model_name="m"} 2`, `vllm:kv_cache_usage_perc{model_name="m"} `} {
			if !strings.Contains(body, "\n"+want) {
				t.Errorf("no %s in\n%s", want, body)
			}
		}
		if status, _ := get("/health"); status != 200 {
			t.Errorf("health %d", status)
		}
		key := env.AddKey("acme")
		time.Sleep(2 * time.Second)
		for path, want := range map[string]int{"/load": 401, "/metrics": 401, "/health": 200, "/healthz": 200} {
			if status, body := get(path); status != want {
				t.Errorf("%s without a key: %d %s", path, status, body)
			}
			if status, body := get(path, "Authorization: Bearer "+key); status != 200 {
				t.Errorf("%s with a key: %d %s", path, status, body)
			}
		}
	})
}
