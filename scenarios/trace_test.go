package scenarios

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/worker"
)

// spanLog collects the spans of gateways and workers.
type spanLog struct {
	t        testing.TB
	exporter *tracetest.InMemoryExporter
	provider trace.TracerProvider
}

func newSpanLog(t testing.TB, sampler sdktrace.Sampler) *spanLog {
	e := tracetest.NewInMemoryExporter()
	return &spanLog{t, e, sdktrace.NewTracerProvider(sdktrace.WithSyncer(e), sdktrace.WithSampler(sampler))}
}

// tree is a span with those below it.
type tree struct {
	tracetest.SpanStub
	below []*tree
}

// take returns the trees of the spans that have come, and forgets them. Each root is one whose parent is not among them. Left out
// are claims that were refused: how many workers try depends on who is quicker.
func (tr *spanLog) take() (roots []*tree) {
	spans := tr.exporter.GetSpans()
	tr.exporter.Reset()
	refused := make(map[trace.SpanID]bool)
	for _, s := range spans {
		if (&tree{SpanStub: s}).attr("error.type") == "claim_refused" {
			refused[s.SpanContext.SpanID()] = true
		}
	}
	spans = slices.DeleteFunc(spans, func(s tracetest.SpanStub) bool { return refused[s.SpanContext.SpanID()] || refused[s.Parent.SpanID()] })
	byID := make(map[trace.SpanID]*tree)
	for _, s := range spans {
		byID[s.SpanContext.SpanID()] = &tree{SpanStub: s}
	}
	for _, s := range spans {
		n := byID[s.SpanContext.SpanID()]
		if parent := byID[s.Parent.SpanID()]; parent != nil && s.Parent.TraceID() == s.SpanContext.TraceID() {
			parent.below = append(parent.below, n)
		} else {
			roots = append(roots, n)
		}
	}
	for _, n := range byID {
		slices.SortStableFunc(n.below, func(a, b *tree) int {
			return cmp.Or(a.StartTime.Compare(b.StartTime), a.EndTime.Compare(b.EndTime), strings.Compare(a.Name, b.Name))
		})
	}
	return roots
}

// one returns the only tree that has come.
func (tr *spanLog) one() *tree {
	tr.t.Helper()
	time.Sleep(time.Second)
	roots := tr.take()
	if len(roots) != 1 {
		tr.t.Fatalf("%d roots, want 1: %v", len(roots), roots)
	}
	return roots[0]
}

func (n *tree) String() string {
	name := n.Name
	if n.Status.Code == codes.Error {
		name += "!"
	}
	if len(n.below) == 0 {
		return name
	}
	return name + fmt.Sprint(n.below)
}

// attr is an attribute as text; "" if the span has none of that key.
func (n *tree) attr(key string) string {
	for _, a := range n.Attributes {
		if string(a.Key) == key {
			return a.Value.String()
		}
	}
	return ""
}

// all returns the spans of a name.
func (n *tree) all(name string) (out []*tree) {
	if n.Name == name {
		out = append(out, n)
	}
	for _, b := range n.below {
		out = append(out, b.all(name)...)
	}
	return out
}

func (n *tree) took() time.Duration { return n.EndTime.Sub(n.StartTime) }

// want fails the test unless the span has these attributes, as text.
func (n *tree) want(t testing.TB, want map[string]string) {
	t.Helper()
	for k, v := range want {
		if got := n.attr(k); got != v {
			t.Errorf("%s: %s is %q, want %q", n.Name, k, got, v)
		}
	}
}

// An engine gets the context of its worker's span, below that of the gateway, below that of the client.
func TestTraceFromClientToEngine(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		tr := newSpanLog(t, sdktrace.ParentBased(sdktrace.NeverSample()))
		var mu sync.Mutex
		var got http.Header
		answer := using(7, 3, func(context.Context) { time.Sleep(2 * time.Second) })
		env.Worker(env.Handler("a", engineOf(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			got = r.Header.Clone()
			mu.Unlock()
			answer(w, r)
		}, "m")), worker.Config{Name: "a", EngineName: "vllm", TracerProvider: tr.provider})
		g := env.Gateway(gateway.Config{TracerProvider: tr.provider})
		g.Serves(t, "m")
		tr.take()
		const id, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
		for sampled, flags := range map[bool]string{true: "01", false: "00"} {
			ask(t, g, chat("m", false, 3), "", "Traceparent", "00-"+id+"-"+parent+"-"+flags, "Tracestate", "vendor=x")
			mu.Lock()
			h := got
			mu.Unlock()
			parts := strings.Split(h.Get("Traceparent"), "-")
			if len(parts) != 4 || parts[1] != id || parts[2] == parent || parts[3] != flags || h.Get("Tracestate") != "vendor=x" {
				t.Errorf("sampled %t: the engine got %q, %q", sampled, h.Get("Traceparent"), h.Get("Tracestate"))
			}
			if !sampled {
				if roots := tr.take(); len(roots) != 0 {
					t.Errorf("spans of a trace that its client does not want: %v", roots)
				}
				continue
			}
			root := tr.one()
			if root.Parent.SpanID().String() != parent || root.SpanContext.TraceID().String() != id || root.SpanKind != trace.SpanKindServer {
				t.Errorf("the gateway's span is a %v below %v", root.SpanKind, root.Parent)
			}
			if want := "POST /v1/chat/completions[admission chat m[claim] queue attempt[prefill decode]]"; !sameTree(root, want) {
				t.Errorf("got %v, want %s", root, want)
			}
			calls := root.all("chat m")
			if len(calls) != 1 || calls[0].SpanContext.SpanID().String() != parts[2] || calls[0].SpanKind != trace.SpanKindClient {
				t.Fatalf("the engine is below %s, not below one of %v", parts[2], calls)
			}
			root.want(t, map[string]string{
				"http.request.method": "POST", "http.route": "/v1/chat/completions", "url.path": "/v1/chat/completions", "http.response.status_code": "200",
				"gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.request.max_tokens": "3", "gen_ai.request.stream": "false",
				"gen_ai.usage.input_tokens": "7", "gen_ai.usage.output_tokens": "3", "pulley.pool": "m", "pulley.tier": "standard", "pulley.attempts": "1",
				"pulley.outcome": "answered", "error.type": "",
			})
			calls[0].want(t, map[string]string{
				"gen_ai.operation.name": "chat", "gen_ai.provider.name": "vllm", "gen_ai.request.model": "m", "pulley.worker": "a", "error.type": "",
				"gen_ai.usage.input_tokens": "", "gen_ai.usage.output_tokens": "", // else they count twice
				"pulley.request.id": root.attr("pulley.request.id"),
			})
			if took := root.all("prefill")[0].took(); took < 1900*time.Millisecond || took > 2100*time.Millisecond {
				t.Errorf("the prefill took %v, want 2s", took)
			}
		}
	})
}

// sameTree compares a tree with its text, whatever the order of spans that begin at the same time.
func sameTree(n *tree, want string) bool {
	sorted := func(s string) []string {
		words := strings.FieldsFunc(s, func(r rune) bool { return r == ' ' || r == '[' || r == ']' })
		slices.Sort(words)
		return words
	}
	return slices.Equal(sorted(n.String()), sorted(want))
}

// What becomes of requests, in spans.
func TestTracesOfOutcomes(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		tr := newSpanLog(t, sdktrace.AlwaysSample())
		g := env.Gateway(gateway.Config{TracerProvider: tr.provider})
		cfg := slow("a")
		cfg.Slots = 1
		env.Worker(env.Engine(cfg), worker.Config{Name: "a", Slots: 1, TracerProvider: tr.provider})
		g.Serves(t, "m")
		time.Sleep(time.Second)
		tr.take()

		// A stream.
		ask(t, g, chat("m", true, 6), "ttft=3s")
		root := tr.one()
		if want := "POST /v1/chat/completions[admission queue attempt[prefill decode] chat m[claim]]"; !sameTree(root, want) {
			t.Errorf("a stream: got %v, want %s", root, want)
		}
		prefill, decode := root.all("prefill")[0].took(), root.all("decode")[0].took()
		if prefill < 3*time.Second || prefill > 3500*time.Millisecond || decode < 400*time.Millisecond || decode > time.Second {
			t.Errorf("a stream: prefill %v, decode %v", prefill, decode)
		}
		if first := root.attr("gen_ai.response.time_to_first_chunk"); !strings.HasPrefix(first, "3.") {
			t.Errorf("a stream: the first chunk came after %q", first)
		}

		// One that waits for another.
		var busy sync.WaitGroup
		busy.Go(func() { ask(t, g, chat("m", true, 50), "") })
		time.Sleep(time.Second)
		ask(t, g, chat("m", true, 1), "")
		busy.Wait()
		time.Sleep(time.Second)
		roots := tr.take()
		slices.SortFunc(roots, func(a, b *tree) int { return a.StartTime.Compare(b.StartTime) })
		if len(roots) != 2 {
			t.Fatalf("%d roots: %v", len(roots), roots)
		}
		if waited := roots[1].all("queue")[0].took(); waited < 3*time.Second || waited > 5*time.Second {
			t.Errorf("waited %v for another, which takes 5s and began 1s before", waited)
		}

		// A client that leaves while it waits, and one that leaves during its answer.
		busy.Go(func() { ask(t, g, chat("m", true, 50), "") })
		time.Sleep(time.Second)
		leave(t, g, chat("m", true, 1), time.Second)
		busy.Wait()
		time.Sleep(time.Second)
		roots = slices.DeleteFunc(tr.take(), func(n *tree) bool { return n.attr("http.response.status_code") == "200" })
		if len(roots) != 1 || !sameTree(roots[0], "POST /v1/chat/completions[admission queue!]") {
			t.Fatalf("left while it waited: %v", roots)
		}
		roots[0].want(t, map[string]string{"http.response.status_code": "499", "pulley.outcome": "cancelled", "error.type": "cancelled"})
		leave(t, g, chat("m", true, 50), 2*time.Second)
		root = tr.one()
		if want := "POST /v1/chat/completions[admission queue attempt![prefill decode!] chat m![claim]]"; !sameTree(root, want) {
			t.Errorf("left during its answer: got %v, want %s", root, want)
		}
		root.all("chat m")[0].want(t, map[string]string{"error.type": "cancelled"})

		// Those that are refused.
		ask(t, g, chat("nosuch", true, 1), "")
		root = tr.one()
		if !sameTree(root, "POST /v1/chat/completions[admission!]") {
			t.Errorf("refused: %v", root)
		}
		root.want(t, map[string]string{"http.response.status_code": "404", "error.type": "model_not_found", "gen_ai.request.model": "nosuch", "pulley.outcome": "refused"})
		askAt(t, g, "/whatever/"+strings.Repeat("x", 1000), "{}", "")
		if root = tr.one(); root.Name != "POST" || len(root.attr("url.path")) > 300 {
			t.Errorf("a path that is not served: %q, %q", root.Name, root.attr("url.path"))
		}

		// A stream that breaks off, and one without an answer.
		ask(t, g, chat("m", true, 9), "cut-after=4")
		root = tr.one()
		if want := "POST /v1/chat/completions![admission queue attempt![prefill decode!] chat m![claim]]"; !sameTree(root, want) {
			t.Errorf("broke off: got %v, want %s", root, want)
		}
		root.want(t, map[string]string{"error.type": "upstream_lost", "pulley.outcome": "failed"})
		ask(t, g, chat("m", false, 9), "fail")
		root = tr.one()
		attempts := root.all("attempt")
		if len(attempts) != 3 || len(root.all("queue")) != 3 || len(root.all("chat m")) != 3 || len(root.all("decode")) != 0 {
			t.Errorf("every attempt fails: %v", root)
		}
		for i, a := range attempts {
			a.want(t, map[string]string{"pulley.attempt": fmt.Sprint(i + 1), "pulley.worker": "a", "error.type": "engine"})
		}
		root.want(t, map[string]string{"pulley.attempts": "3", "http.response.status_code": "500", "pulley.outcome": "failed"})

		// A list of models, and a health check.
		for _, path := range []string{"/v1/models", "/v1/models/m", "/healthz"} {
			resp, err := g.Client.Get("http://gateway" + path)
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		time.Sleep(time.Second)
		var names []string
		for _, n := range tr.take() {
			names = append(names, n.Name)
		}
		if !slices.Equal(names, []string{"GET /v1/models", "GET /v1/models/*"}) {
			t.Errorf("got %q", names)
		}
	})
}

// leave asks, and leaves after a while.
func leave(t testing.TB, g *Gateway, body string, after time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), after)
	defer cancel()
	if resp, err := post(ctx, g, "/v1/chat/completions", body, ""); err == nil {
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
}

// A request that fails on one worker and is answered by another has spans of both attempts, and of both engine calls.
func TestTraceOfARetry(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		tr := newSpanLog(t, sdktrace.AlwaysSample())
		g := env.Gateway(gateway.Config{TracerProvider: tr.provider})
		fast, other := slow("a"), slow("b")
		fast.ITLBase = time.Millisecond
		for _, cfg := range []string{"a", "b"} {
			en := fast
			if cfg == "b" {
				en = other
			}
			env.Worker(env.Engine(en), worker.Config{Name: cfg, TracerProvider: tr.provider})
		}
		g.Serves(t, "m")
		for range 20 { // until their prices differ
			ask(t, g, chat("m", true, 20), "")
		}
		time.Sleep(time.Second)
		for range 10 {
			tr.take()
			ask(t, g, chat("m", true, 2), "fail, on=a")
			root := tr.one()
			attempts := root.all("attempt")
			if len(attempts) == 1 { // the other one had it first
				continue
			}
			if want := "POST /v1/chat/completions[admission queue attempt![prefill!] chat m![claim] queue attempt[prefill decode] chat m[claim]]"; !sameTree(root, want) {
				t.Errorf("got %v, want %s", root, want)
			}
			attempts[0].want(t, map[string]string{"pulley.worker": "a", "pulley.attempt": "1", "error.type": "engine"})
			attempts[1].want(t, map[string]string{"pulley.worker": "b", "pulley.attempt": "2", "error.type": ""})
			root.want(t, map[string]string{"pulley.attempts": "2", "pulley.outcome": "answered", "error.type": ""})
			for i, call := range root.all("chat m") {
				call.want(t, map[string]string{"pulley.worker": []string{"a", "b"}[i]})
			}
			return
		}
		t.Error("no request was tried twice")
	})
}

// With traces of the gateway alone, the engine is below its span; with those of a worker alone, below the worker's.
func TestTracesOfOnePartAlone(t *testing.T) {
	for about, at := range map[string]struct{ gateway, worker bool }{"gateway": {gateway: true}, "worker": {worker: true}, "none": {}} {
		runBoth(t, func(t *testing.T, env *Env) {
			tr := newSpanLog(t, sdktrace.AlwaysSample())
			var gc gateway.Config
			wc := worker.Config{Name: "a"}
			if at.gateway {
				gc.TracerProvider = tr.provider
			}
			if at.worker {
				wc.TracerProvider = tr.provider
			}
			got := make(chan string, 1)
			answer := using(1, 1, func(context.Context) {})
			env.Worker(env.Handler("a", engineOf(func(w http.ResponseWriter, r *http.Request) {
				got <- r.Header.Get("Traceparent")
				answer(w, r)
			}, "m")), wc)
			g := env.Gateway(gc)
			g.Serves(t, "m")
			tr.take()
			const sent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
			ask(t, g, chat("m", false, 1), "", "Traceparent", sent)
			seen := <-got
			if about == "none" {
				if seen != sent {
					t.Errorf("without traces the engine got %q", seen)
				}
				return
			}
			root := tr.one()
			at := root
			if about == "worker" && root.Name != "chat m" || about == "gateway" && len(root.all("chat m")) > 0 {
				t.Errorf("%s: got %v", about, root)
			}
			if want := "00-" + at.SpanContext.TraceID().String() + "-" + at.SpanContext.SpanID().String() + "-01"; seen != want || root.Parent.SpanID().String() != sent[36:52] {
				t.Errorf("%s: the engine got %q, want %q, below %s", about, seen, want, root.Parent.SpanID())
			}
		})
	}
}

// Of traces that begin here, a share is kept, whole; and what is not kept reaches neither the log nor the metrics.
func TestTraceRatio(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		tr := newSpanLog(t, sdktrace.ParentBased(sdktrace.TraceIDRatioBased(0.5)))
		w := newLogWriter()
		g := env.Gateway(gateway.Config{TracerProvider: tr.provider, AccessLog: gateway.AccessLog{Writer: w, JSON: true}})
		env.Worker(env.Engine(slow("a")), worker.Config{Name: "a", TracerProvider: tr.provider})
		g.Serves(t, "m")
		tr.take()
		w.objects(t)
		for range 64 { // all alike with a chance of 1 in 10^19
			ask(t, g, chat("m", true, 1), "")
		}
		time.Sleep(time.Second)
		kept := make(map[string]bool)
		for _, root := range tr.take() {
			kept[root.SpanContext.TraceID().String()] = true
			if !sameTree(root, "POST /v1/chat/completions[admission queue attempt[prefill decode] chat m[claim]]") {
				t.Errorf("a part of a trace: %v", root)
			}
		}
		if len(kept) == 0 || len(kept) == 64 {
			t.Errorf("%d of 64 are kept", len(kept))
		}
		logged := 0
		for _, line := range w.objects(t) {
			if id, ok := line["trace_id"].(string); ok {
				logged++
				if !kept[id] {
					t.Errorf("the log names the trace %s, which is not kept", id)
				}
			}
		}
		if logged != len(kept) {
			t.Errorf("the log names %d traces, %d are kept", logged, len(kept))
		}
		r, _ := http.NewRequest("GET", "http://admin/metrics", nil)
		r.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
		resp, err := g.Client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		exemplars := 0
		for line := range strings.Lines(string(b)) {
			_, rest, ok := strings.Cut(line, ` # {trace_id="`)
			if !ok {
				continue
			}
			exemplars++
			if id, _, _ := strings.Cut(rest, `"`); !kept[id] || !strings.HasPrefix(line, "pulley_time_to_first_token_seconds_bucket") {
				t.Errorf("exemplar %s", line)
			}
		}
		if exemplars == 0 {
			t.Error("the time to the first token has no exemplar")
		}
	})
}

// Spans have no prompt, no answer and no secret.
func TestTracesHaveNoContent(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		tr := newSpanLog(t, sdktrace.AlwaysSample())
		g := env.Gateway(gateway.Config{TracerProvider: tr.provider})
		env.Worker(env.Engine(slow("a")), worker.Config{Name: "a", TracerProvider: tr.provider})
		g.Serves(t, "m")
		key := keysOf(t, env).put(policy.Key{ID: "aaaaaaaaaa", Tenant: "acme"})
		time.Sleep(inForce)
		tr.take()
		answer := content(t, ask(t, g, chat("m", true, 3), "", key...).body)
		askAt(t, g, "/v1/chat/completions?api_key=geheim", chat("m", true, 3), "fail", key...)
		time.Sleep(time.Second)
		spans := tr.exporter.GetSpans()
		if len(spans) < 10 {
			t.Errorf("%d spans", len(spans))
		}
		var keys []attribute.KeyValue
		for _, s := range spans {
			keys = append(keys, s.Attributes...)
			for _, ev := range s.Events {
				keys = append(keys, ev.Attributes...)
			}
			for _, secret := range []string{"one two three", keyText("aaaaaaaaaa"), "geheim", strings.TrimSpace(answer)} {
				if text := fmt.Sprint(s); strings.Contains(text, secret) {
					t.Errorf("a span has %q: %s", secret, text)
				}
			}
		}
		if !slices.ContainsFunc(keys, func(a attribute.KeyValue) bool { return a.Key == "pulley.key" && a.Value.AsString() == "aaaaaaaaaa" }) {
			t.Error("no span has the id of the key")
		}
	})
}
