package sim_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/engine/sim"
)

func modelBody(model string, tokens int) string {
	return fmt.Sprintf(`{"model":%q,"max_tokens":%d,"messages":[{"role":"user","content":"one"}]}`, model, tokens)
}

func TestSimSwapsModels(t *testing.T) {
	type ask struct {
		at     time.Duration
		model  string
		tokens int // each a tenth of a second
		leaves time.Duration
		want   time.Duration // when the answer is ready
	}
	const s = time.Second
	tests := map[string]struct {
		loaded  int
		dialect engine.Dialect
		asks    []ask
		loads   int64
	}{
		"the first load, and then none": {1, engine.DialectOllama, []ask{
			{0, "a", 1, 0, 5 * s}, {6 * s, "a", 1, 0, 6 * s}}, 1},
		"another model waits for what runs, and its load": {1, engine.DialectOllama, []ask{
			{0, "a", 21, 0, 7 * s}, {6 * s, "b", 1, 0, 12 * s}}, 2},
		"two that fit do not wait for each other": {2, engine.DialectOllama, []ask{
			{0, "a", 101, 0, 15 * s}, {6 * s, "b", 1, 0, 11 * s}}, 2},
		"what was asked for longest ago goes": {2, engine.DialectOllama, []ask{
			{0, "a", 1, 0, 5 * s}, {6 * s, "b", 1, 0, 11 * s}, {12 * s, "a", 1, 0, 12 * s},
			{13 * s, "c", 1, 0, 18 * s}, {19 * s, "a", 1, 0, 19 * s}, {20 * s, "b", 1, 0, 25 * s}}, 4},
		"ollama: nothing passes": {1, engine.DialectOllama, []ask{
			{0, "a", 21, 0, 7 * s}, {6 * s, "b", 1, 0, 12 * s}, {6100 * time.Millisecond, "a", 1, 0, 17 * s}, {6200 * time.Millisecond, "b", 1, 0, 22 * s}}, 4},
		"llama-swap: those of a model go together": {1, engine.DialectLlamaSwap, []ask{
			{0, "a", 21, 0, 7 * s}, {6 * s, "b", 1, 0, 12 * s}, {6100 * time.Millisecond, "a", 1, 0, 17 * s}, {6200 * time.Millisecond, "b", 1, 0, 12 * s}}, 3},
		"who leaves before its load is not loaded for": {1, engine.DialectOllama, []ask{
			{0, "a", 41, 0, 9 * s}, {6 * s, "b", 1, 7 * s, 0}, {6100 * time.Millisecond, "a", 1, 0, 7 * s}}, 1},
	}
	for what, test := range tests {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, sim.Config{Models: []string{"a", "b", "c"}, Loaded: test.loaded, LoadTime: 5 * s,
					Dialect: test.dialect, ITLBase: s / 10})
				var wg sync.WaitGroup
				for _, a := range test.asks {
					wg.Go(func() {
						time.Sleep(a.at)
						ctx, cancel := t.Context(), context.CancelFunc(func() {})
						if a.leaves > 0 {
							ctx, cancel = context.WithTimeout(ctx, a.leaves-a.at)
						}
						defer cancel()
						resp, err := r.post(ctx, "/v1/chat/completions", "", modelBody(a.model, a.tokens))
						if err == nil {
							resp.Body.Close()
						}
						if gone := a.leaves > 0; gone != (err != nil) {
							t.Errorf("%s at %v: %v", a.model, a.at, err)
						} else if at := r.since(); !gone && at != a.want {
							t.Errorf("%s at %v: answered at %v, want %v", a.model, a.at, at, a.want)
						}
					})
				}
				wg.Wait()
				if loads := r.sim.Stats().Loads; loads != test.loads {
					t.Errorf("%d loads, want %d", loads, test.loads)
				}
			})
		})
	}
}

func TestSimTellsWhatIsLoaded(t *testing.T) {
	for _, dialect := range []engine.Dialect{engine.DialectOllama, engine.DialectLlamaSwap} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, sim.Config{Models: []string{"a", "b"}, Loaded: 1, LoadTime: 5 * time.Second, Dialect: dialect})
			s, err := engine.NewScraper(engine.ScraperConfig{URL: "http://sim", Client: r.client})
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() { s.Run(ctx) })
			tells := func(want ...string) {
				t.Helper()
				time.Sleep(time.Second)
				st := s.Latest()
				if got := st.Loaded(); st.Dialect != dialect || len(st.Models) != 2 || !slices.Equal(got, want) {
					t.Errorf("%s: loaded %q of %v, want %q", st.Dialect, got, st.Models, want)
				}
			}
			tells()
			wg.Go(func() { r.answer("/v1/chat/completions", "", modelBody("b", 1)) })
			if dialect == engine.DialectOllama { // it lists a model from the start of its load
				tells("b")
			} else {
				tells()
			}
			time.Sleep(5 * time.Second)
			tells("b")
			r.answer("/v1/chat/completions", "", modelBody("a", 1))
			tells("a")
			stop()
			wg.Wait()
		})
	}
}

// An engine loads a model without a request, starts cold, and unloads what is not used.
func TestSimLoadsWithoutARequest(t *testing.T) {
	const s = time.Second
	for what, test := range map[string]struct {
		cfg  sim.Config
		load func(r *rig) int // the status
	}{
		"ollama": {sim.Config{Dialect: engine.DialectOllama}, func(r *rig) int { return r.status("POST", "/api/generate", `{"model":"a"}`) }},
		"ollama, with its tag": {sim.Config{Dialect: engine.DialectOllama},
			func(r *rig) int { return r.status("POST", "/api/generate", `{"model":"a:latest","stream":false}`) }},
		"llama-swap": {sim.Config{Dialect: engine.DialectLlamaSwap}, func(r *rig) int { return r.status("GET", "/upstream/a/health", "") }},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := test.cfg
				cfg.Models, cfg.Cold, cfg.LoadTime, cfg.KeepAlive = []string{"a", "b"}, true, 5*s, 60*s
				r := newRig(t, cfg)
				took := func(do func()) time.Duration { begun := time.Now(); do(); return time.Since(begun) }
				ask := func() { r.answer("/v1/chat/completions", "", modelBody("a", 1)) }
				for range 2 {
					if d := took(func() { test.load(r) }); d != 5*s {
						t.Errorf("the load took %v", d)
					}
					if d := took(func() { test.load(r); ask() }); d != 0 {
						t.Errorf("it is loaded, and took %v", d)
					}
					time.Sleep(59 * s)
					if d := took(ask); d != 0 {
						t.Errorf("in use, and took %v", d)
					}
					time.Sleep(61 * s)
				}
				if d := took(ask); d != 5*s {
					t.Errorf("not used for long, and took %v", d)
				}
				if st := r.sim.Stats(); st.Loads != 3 || st.Received != 5 {
					t.Errorf("%d loads, %d requests", st.Loads, st.Received)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sim.Config{Dialect: engine.DialectOllama, Models: []string{"a"}, Cold: true, LoadTime: s})
		for _, order := range []struct {
			body   string
			status int
			loads  int64
		}{
			{`{"model":"nosuch"}`, 404, 0}, {`{}`, 404, 0}, {`[]`, 400, 0}, {`{"model":"a","prompt":"hello"}`, 501, 0},
			{`{"model":"a"}`, 200, 1}, {`{"model":"a"}`, 200, 1}, {`{"model":"a","keep_alive":0}`, 200, 1}, {`{"model":"a"}`, 200, 2},
		} {
			if status := r.status("POST", "/api/generate", order.body); status != order.status || r.sim.Stats().Loads != order.loads {
				t.Errorf("%s: %d and %d loads, want %d and %d", order.body, status, r.sim.Stats().Loads, order.status, order.loads)
			}
		}
	})
}

// status sends a request and returns the status of its answer.
func (r *rig) status(method, path, body string) int {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, "http://sim"+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}
