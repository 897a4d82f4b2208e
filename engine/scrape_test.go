package engine_test

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/engine/sim"
)

// A pages is an engine that answers these paths, and 404 to all else. A body that is a number is a status. A path may have
// a method before it, and a port.
type pages map[string]string

func (p pages) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, ok := p[r.Method+" "+r.URL.Path]
	if !ok {
		body, ok = p[r.URL.Path]
	}
	if port := r.URL.Port(); port != "" {
		body, ok = p[":"+port+r.URL.Path]
	}
	var status int
	switch _, err := fmt.Sscanf(body, "%d", &status); {
	case !ok:
		http.NotFound(w, r)
	case err == nil && len(body) == 3:
		w.WriteHeader(status)
	default:
		fmt.Fprint(w, body)
	}
}

// clientOf is a client for a handler without a network, so its time is that of a synctest bubble.
func clientOf(h http.Handler) *http.Client { return &http.Client{Transport: handlerTransport{h}} }

type handlerTransport struct{ http.Handler }

func (h handlerTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return w.Result(), nil
}

// watch runs a Scraper until the test ends.
func watch(t *testing.T, cfg engine.ScraperConfig) *engine.Scraper {
	t.Helper()
	if cfg.URL == "" {
		cfg.URL = "http://engine"
	}
	s, err := engine.NewScraper(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return s
}

// scrapeOnce is the first Status of an engine.
func scrapeOnce(t *testing.T, d engine.Dialect, h http.Handler) (st engine.Status) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := watch(t, engine.ScraperConfig{Dialect: d, Client: clientOf(h)})
		synctest.Wait()
		st = s.Latest()
	})
	return st
}

// describe formats a Status; a missing value is a dash.
func describe(st engine.Status) string {
	var b strings.Builder
	if !st.Healthy {
		fmt.Fprintf(&b, "(%s) ", st.Reason)
	}
	fmt.Fprintf(&b, "slots %s, running %s, waiting %s, kv %s of %s = %s, preempted %s, made %s, prefix %s of %s",
		or(st.Slots), or(st.Running), or(st.Waiting), or(st.KVUsed), or(st.KVTotal), or(st.KVUsage),
		or(st.Preemptions), or(st.Generated), or(st.PrefixHits), or(st.PrefixQueries))
	if st.Models != nil {
		fmt.Fprintf(&b, ", models %s", strings.Join(models(st), " "))
	}
	return b.String()
}

// models formats names, with a plus for loaded models.
func models(st engine.Status) []string {
	names := []string{}
	for _, m := range st.Models {
		if m.Loaded {
			m.Name += "+"
		}
		names = append(names, m.Name)
	}
	return names
}

func or[T any](p *T) string {
	if p == nil {
		return "-"
	}
	return fmt.Sprint(*p)
}

func page(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile("testdata/metrics/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

const listOfOne = `{"object":"list","data":[{"id":"m","object":"model","created":1,"owned_by":"x"}]}`

func TestStatusIsWhatTheEngineSays(t *testing.T) {
	for name, c := range map[string]struct {
		dialect engine.Dialect
		pages   pages
		want    string
	}{
		"vLLM 0.6": {engine.DialectVLLM, pages{"/health": "", "/v1/models": listOfOne, "/metrics": page(t, "vllm-0.6.txt")},
			"slots -, running 37, waiting 7, kv 330000 of 440000 = 0.75, preempted 4, made 81234, prefix - of -, models m+"},
		"vLLM 0.10, data-parallel": {engine.DialectVLLM, pages{"/health": "", "/metrics": page(t, "vllm-0.10.txt")},
			"slots -, running 32, waiting 3, kv 144000 of 320000 = 0.44999999999999996, preempted 1, made 130000, prefix 300000 of 800000"},
		"vLLM 0.19, asleep": {engine.DialectVLLM, pages{"/health": "", "/metrics": page(t, "vllm-0.19.txt")},
			"(the engine is asleep) slots -, running 0, waiting 0, kv 0 of 391168 = 0, preempted 0, made 1024, prefix 0 of 40"},
		"vLLM without metrics": {engine.DialectVLLM, pages{"/health": "", "/v1/models": listOfOne},
			"slots -, running -, waiting -, kv - of - = -, preempted -, made -, prefix - of -, models m+"},
		"vLLM that is dead": {engine.DialectVLLM, pages{"/health": "503", "/metrics": page(t, "vllm-0.6.txt")},
			"(get http://engine/health: 503 Service Unavailable) slots -, running -, waiting -, kv - of - = -, preempted -, made -, prefix - of -"},

		"SGLang 0.4": {engine.DialectSGLang, pages{"/v1/models": listOfOne, "/metrics": page(t, "sglang-0.4.txt"), "/get_server_info": `{"max_running_requests":48}`},
			"slots 48, running 16, waiting 1, kv 31200 of - = 0.08, preempted -, made 7557572, prefix - of -, models m+"},
		"SGLang 0.5, data-parallel": {engine.DialectSGLang, pages{"/v1/models": listOfOne, "/metrics": page(t, "sglang-0.5.txt"),
			"/server_info": `{"max_running_requests":64,"internal_states":[{"effective_max_running_requests_per_dp":9},{"effective_max_running_requests_per_dp":9}]}`},
			"slots 18, running 23, waiting 3, kv 60000 of 200000 = 0.3, preempted 50, made 1000, prefix 2500 of 10000, models m+"},
		"SGLang with loads": {engine.DialectSGLang, pages{"/v1/models": listOfOne, "/metrics": page(t, "sglang-0.5.txt"), "/get_server_info": `{"max_running_requests":64}`,
			"/v1/loads": `{"version":"0.5.9","dp_rank_count":2,"loads":[
				{"dp_rank":0,"num_running_reqs":3,"num_waiting_reqs":1,"num_used_tokens":10,"max_total_num_tokens":100,"token_usage":0.1,"max_running_requests":9},
				{"dp_rank":1,"num_running_reqs":4,"num_waiting_reqs":0,"num_used_tokens":30,"max_total_num_tokens":100,"token_usage":0.3,"max_running_requests":9}]}`},
			"slots 18, running 7, waiting 1, kv 40 of 200 = 0.2, preempted 50, made 1000, prefix 2500 of 10000, models m+"},
		"SGLang without --enable-metrics": {engine.DialectSGLang, pages{"/v1/models": listOfOne, "/v1/loads": `{"loads":[{"num_running_reqs":3,"num_waiting_reqs":0}]}`},
			"slots -, running 3, waiting 0, kv - of - = -, preempted -, made -, prefix - of -, models m+"},
		"SGLang, renamed": {engine.DialectSGLang, pages{"/v1/models": listOfOne, "/metrics": page(t, "sglang-renamed.txt")},
			"slots -, running 3, waiting 0, kv - of - = 0.25, preempted -, made -, prefix - of -, models m+"},

		"TGI 3": {engine.DialectTGI, pages{"/health": "", "/metrics": page(t, "tgi-3.txt"), "/info": tgiInfo},
			"slots 128, running 6, waiting 2, kv - of - = -, preempted -, made 8123, prefix - of -, models meta-llama/Llama-3.1-8B-Instruct+"},
		"TGI that cannot generate": {engine.DialectTGI, pages{"/health": "503"},
			"(get http://engine/health: 503 Service Unavailable) slots -, running -, waiting -, kv - of - = -, preempted -, made -, prefix - of -"},

		"llama.cpp 2024": {engine.DialectLlamaCpp, pages{"/health": `{"status":"ok"}`, "/v1/models": listOfOne, "/metrics": page(t, "llamacpp-2024.txt"), "/props": `{"total_slots":4}`},
			"slots 4, running 2, waiting 0, kv 4096 of - = 0.25, preempted -, made 2048, prefix - of -, models m+"},
		"llama.cpp 2026": {engine.DialectLlamaCpp, pages{"/health": `{"status":"ok"}`, "/v1/models": listOfOne, "/metrics": page(t, "llamacpp-2026.txt"), "/props": `{"total_slots":4}`,
			"/slots": `[{"id":0,"is_processing":true},{"id":1,"is_processing":false}]`},
			"slots 4, running 4, waiting 1, kv - of - = -, preempted -, made 1250000, prefix - of -, models m+"},
		"llama.cpp without --metrics": {engine.DialectLlamaCpp, pages{"/health": `{"status":"ok"}`, "/v1/models": listOfOne, "/metrics": "501",
			"/slots": `[{"id":0,"is_processing":true},{"id":1,"is_processing":false}]`},
			"slots 2, running 1, waiting -, kv - of - = -, preempted -, made -, prefix - of -, models m+"},
		"llama.cpp, a router": {engine.DialectLlamaCpp, pages{"/health": `{"status":"ok"}`, "/metrics": "400", "/slots": "400", "/props": `{"role":"router"}`,
			"/v1/models": `{"data":[{"id":"a","status":{"value":"loaded"}},{"id":"b","status":{"value":"unloaded"}}]}`},
			"slots -, running -, waiting -, kv - of - = -, preempted -, made -, prefix - of -, models a+ b"},
		"llama.cpp that loads": {engine.DialectLlamaCpp, pages{"/health": "503"},
			"(get http://engine/health: 503 Service Unavailable) slots -, running -, waiting -, kv - of - = -, preempted -, made -, prefix - of -"},

		"Ollama": {engine.DialectOllama, pages{"/api/version": `{"version":"0.17.0"}`, "/api/tags": ollamaTags, "/api/ps": ollamaPs},
			"slots -, running -, waiting -, kv - of - = -, preempted -, made -, prefix - of -, models llama3.2:latest+ qwen3:8b"},
		"Ollama with nothing loaded": {engine.DialectOllama, pages{"/api/version": `{"version":"0.17.0"}`, "/api/tags": ollamaTags, "/api/ps": `{"models":[]}`},
			"slots -, running -, waiting -, kv - of - = -, preempted -, made -, prefix - of -, models llama3.2:latest qwen3:8b"},

		"Triton with TensorRT-LLM": {engine.DialectTriton, pages{"/v2/health/ready": "", ":8002/metrics": page(t, "triton-trtllm.txt"),
			"POST /v2/repository/index": `[{"name":"ensemble","version":"1","state":"READY"},{"name":"old","state":"UNAVAILABLE","reason":"unloaded"}]`},
			"slots 512, running 8, waiting 3, kv 99520 of 398080 = 0.25, preempted -, made -, prefix - of -, models ensemble+ old"},
		"Triton with TensorRT-LLM 23.11": {engine.DialectTriton, pages{"/v2/health/ready": "", ":8002/metrics": page(t, "triton-trtllm-23.11.txt")},
			"slots 512, running 1, waiting -, kv 99520 of 398080 = 0.25, preempted -, made -, prefix - of -"},
		"Triton's OpenAI front end": {engine.DialectTriton, pages{"/metrics": page(t, "triton-trtllm.txt"), ":8002/metrics": page(t, "triton-onnx.txt")},
			"slots 512, running 8, waiting 3, kv 99520 of 398080 = 0.25, preempted -, made -, prefix - of -"},
		"Triton with others": {engine.DialectTriton, pages{"/v2/health/ready": "", ":8002/metrics": page(t, "triton-onnx.txt")},
			"slots -, running -, waiting 5, kv - of - = -, preempted -, made -, prefix - of -"},

		"trtllm-serve 1.3": {engine.DialectTRTLLM, pages{"/health": "", "/v1/models": listOfOne, "/prometheus/metrics": page(t, "trtllm-1.3.txt")},
			"slots 64, running 11, waiting 2, kv 48000 of 96000 = 0.5, preempted -, made 123456, prefix 400 of 1000, models m+"},
		"trtllm-serve 1.1": {engine.DialectTRTLLM, pages{"/health": "", "/v1/models": listOfOne, "/prometheus/metrics": page(t, "trtllm-1.1.txt")},
			"slots -, running -, waiting -, kv - of - = 0.125, preempted -, made -, prefix - of -, models m+"},

		"llama-swap": {engine.DialectLlamaSwap, pages{"/health": "OK", "/v1/models": `{"data":[{"id":"a","owned_by":"llama-swap"},{"id":"b"},{"id":"c"}]}`,
			"/running": `{"running":[{"model":"b","state":"ready","ttl":0},{"model":"c","state":"starting"}]}`},
			"slots -, running -, waiting -, kv - of - = -, preempted -, made -, prefix - of -, models b+ c a"},
		"LM Studio": {engine.DialectLMStudio, pages{"/v1/models": listOfOne, "/api/v0/models": `{"data":[{"id":"a","state":"loaded"},{"id":"b","state":"not-loaded"}]}`},
			"slots -, running -, waiting -, kv - of - = -, preempted -, made -, prefix - of -, models a+ b"},
		"anything": {engine.DialectOpenAI, pages{"/v1/models": listOfOne, "/metrics": page(t, "vllm-0.6.txt")},
			"slots -, running -, waiting -, kv - of - = -, preempted -, made -, prefix - of -, models m+"},
		"anything, without the key": {engine.DialectOpenAI, pages{"/v1/models": "401"},
			"(get http://engine/v1/models: 401 Unauthorized) slots -, running -, waiting -, kv - of - = -, preempted -, made -, prefix - of -"},
	} {
		t.Run(name, func(t *testing.T) {
			st := scrapeOnce(t, c.dialect, c.pages)
			if got := describe(st); got != c.want || st.Dialect != c.dialect {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

const (
	tgiInfo = `{"model_id":"meta-llama/Llama-3.1-8B-Instruct","model_sha":"0e9e39f2","model_pipeline_tag":"text-generation",
		"max_concurrent_requests":128,"max_best_of":2,"max_stop_sequences":4,"max_input_tokens":4095,"max_total_tokens":4096,
		"validation_workers":2,"max_client_batch_size":4,"router":"text-generation-router","version":"3.3.5","sha":"9f38d930"}`
	ollamaTags = `{"models":[{"name":"llama3.2:latest","model":"llama3.2:latest","size":2019393189,"digest":"a80c4f17"},
		{"name":"qwen3:8b","model":"qwen3:8b","size":5225388164,"digest":"500a1f06"}]}`
	ollamaPs = `{"models":[{"name":"llama3.2:latest","model":"llama3.2:latest","size":3367856128,"digest":"a80c4f17",
		"expires_at":"2026-09-20T14:38:31.83753-07:00","size_vram":3367856128,"context_length":4096}]}`
)

func TestOllamaTellsWhatAModelTakes(t *testing.T) {
	st := scrapeOnce(t, engine.DialectOllama, pages{"/api/version": `{"version":"0.17.0"}`, "/api/tags": ollamaTags, "/api/ps": ollamaPs})
	if got := st.Loaded(); len(got) != 1 || got[0] != "llama3.2:latest" || or(st.Models[0].VRAM) != "3367856128" {
		t.Errorf("loaded %q with %s bytes", got, or(st.Models[0].VRAM))
	}
}

func TestContextOfTheEngine(t *testing.T) {
	for name, c := range map[string]struct {
		dialect engine.Dialect
		pages   pages
		want    string
	}{
		"TGI":           {engine.DialectTGI, pages{"/health": "", "/info": tgiInfo}, "4096"},
		"llama.cpp":     {engine.DialectLlamaCpp, pages{"/health": "{}", "/props": `{"total_slots":4,"default_generation_settings":{"n_ctx":8192}}`}, "8192"},
		"an older one":  {engine.DialectLlamaCpp, pages{"/health": "{}", "/props": `{"total_slots":4}`}, "-"},
		"SGLang":        {engine.DialectSGLang, pages{"/v1/models": `{"data":[]}`, "/get_server_info": `{"context_length":32768,"max_running_requests":64}`}, "32768"},
		"SGLang's none": {engine.DialectSGLang, pages{"/v1/models": `{"data":[]}`, "/get_server_info": `{"context_length":null,"max_running_requests":64}`}, "-"},
	} {
		if st := scrapeOnce(t, c.dialect, c.pages); or(st.Context) != c.want {
			t.Errorf("%s: a context of %s, want %s", name, or(st.Context), c.want)
		}
	}
}

// TestScraperReadsSims has two requests run and one wait in an engine of each dialect.
func TestScraperReadsSims(t *testing.T) {
	for dialect, want := range map[engine.Dialect]string{
		engine.DialectVLLM:     "slots -, running 2, waiting 1, kv %[2]d of 1000 = %[3]v, preempted 0, made %[1]d, prefix 0 of 0, models m+ n+",
		engine.DialectSGLang:   "slots 2, running 2, waiting 1, kv %[2]d of 1000 = %[3]v, preempted 0, made %[1]d, prefix 0 of %[4]d, models m+ n+",
		engine.DialectTGI:      "slots 2, running 2, waiting 1, kv - of - = -, preempted -, made %[1]d, prefix - of -, models m+",
		engine.DialectLlamaCpp: "slots 2, running 2, waiting 1, kv - of - = -, preempted -, made %[1]d, prefix - of -, models m+ n+",
		engine.DialectOllama:   "slots -, running -, waiting -, kv - of - = -, preempted -, made -, prefix - of -, models m+ n+",
		engine.DialectTriton:   "slots 2, running 2, waiting 1, kv %[2]d of 1000 = %[3]v, preempted -, made -, prefix - of -, models m+ n+",
		engine.DialectTRTLLM:   "slots 2, running 2, waiting 1, kv %[2]d of 1000 = %[3]v, preempted -, made %[1]d, prefix - of -, models m+ n+",
		engine.DialectOpenAI:   "slots -, running -, waiting -, kv - of - = -, preempted -, made -, prefix - of -, models m+ n+",
	} {
		t.Run(string(dialect), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := clientOf(newSim(t, sim.Config{Dialect: dialect, Models: []string{"m", "n"}, Slots: 2, KVTokens: 1000, ITLBase: time.Second}))
				var wg sync.WaitGroup
				for range 3 {
					wg.Go(func() {
						prompt := strings.Repeat("word ", 10)
						resp, err := client.Post("http://sim/v1/completions", "application/json", strings.NewReader(`{"model":"m","max_tokens":4,"prompt":"`+prompt+`"}`))
						if err == nil {
							resp.Body.Close()
						}
					})
				}
				synctest.Wait()
				time.Sleep(1500 * time.Millisecond) // two tokens of each running request
				s := watch(t, engine.ScraperConfig{URL: "http://sim/v1", Client: client})
				synctest.Wait()
				st := s.Latest()
				if got, want := describe(st), filledIn(want, 0, 24, 0.024, 0); got != want || st.Dialect != dialect {
					t.Errorf("%s, busy: got  %s\nwant %s", st.Dialect, got, want)
				}
				if st.Age(time.Now()) != 0 && dialect != engine.DialectOpenAI {
					t.Errorf("age %v", st.Age(time.Now()))
				}
				wg.Wait()
				time.Sleep(time.Second)
				idle := strings.NewReplacer("running 2, waiting 1", "running 0, waiting 0").Replace(want)
				if got, want := describe(s.Latest()), filledIn(idle, 12, 0, 0, 30); got != want {
					t.Errorf("%s, idle: got  %s\nwant %s", dialect, got, want)
				}
			})
		})
	}
}

// filledIn fills in the numbers that a format needs.
func filledIn(format string, args ...any) string {
	for i, a := range args {
		for _, verb := range []string{"d", "v"} {
			format = strings.ReplaceAll(format, fmt.Sprintf("%%[%d]%s", i+1, verb), fmt.Sprint(a))
		}
	}
	return format
}

// A changing engine can be changed while it is scraped, and counts its requests.
type changing struct {
	mu    sync.Mutex
	pages pages
	asked map[string]int
	hang  map[string]bool
}

func (c *changing) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	if c.asked == nil {
		c.asked = make(map[string]int)
	}
	c.asked[r.URL.Path]++
	p, hang := c.pages, c.hang[r.URL.Path]
	c.mu.Unlock()
	if hang {
		<-r.Context().Done()
		return
	}
	p.ServeHTTP(w, r)
}

// set changes what paths answer; "" removes a path, a dash makes it hang.
func (c *changing) set(paths pages) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := maps.Clone(c.pages)
	c.hang = make(map[string]bool)
	for path, body := range paths {
		switch body {
		case "":
			delete(p, path)
		case "-":
			c.hang[path] = true
		default:
			p[path] = body
		}
	}
	c.pages = p
}

// count is how often a path was requested since the last call.
func (c *changing) count(path string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.asked[path]
	c.asked[path] = 0
	return n
}

func vllmAt(t testing.TB) *changing {
	return &changing{pages: pages{"/health": "ok", "/v1/models": strings.Replace(listOfOne, `"x"`, `"vllm"`, 1), "/metrics": page(t, "vllm-0.6.txt")}}
}

func TestWhatWasReadGrowsOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := vllmAt(t)
		s := watch(t, engine.ScraperConfig{Client: clientOf(e)})
		time.Sleep(10250 * time.Millisecond)
		if st := s.Latest(); !st.Fresh(time.Now()) || st.Age(time.Now()) != 250*time.Millisecond {
			t.Errorf("age %v of %s", st.Age(time.Now()), describe(st))
		}
		// Its metrics break: the values stay, and are known to be old.
		e.set(pages{"/metrics": "500"})
		time.Sleep(5 * time.Second)
		st := s.Latest()
		if !st.Healthy || or(st.Running) != "37" || st.Fresh(time.Now()) || st.Age(time.Now()) != 5250*time.Millisecond {
			t.Errorf("age %v, %v of %s", st.Age(time.Now()), st.Reason, describe(st))
		}
		// Its metrics disappear, and so do the values.
		e.set(pages{"/metrics": ""})
		time.Sleep(6 * time.Second)
		if st := s.Latest(); !st.Healthy || st.Running != nil || st.KVTotal != nil || !st.At.IsZero() || st.Fresh(time.Now()) || st.Models == nil {
			t.Errorf("at %v: %s", st.At, describe(st))
		}
		// Its metrics come back.
		e.set(pages{"/metrics": page(t, "vllm-0.10.txt")})
		time.Sleep(31 * time.Second)
		if st := s.Latest(); !st.Fresh(time.Now()) || or(st.Running) != "32" {
			t.Errorf("age %v of %s", st.Age(time.Now()), describe(st))
		}
	})
}

func TestAnEngineThatIsAwayIsAskedSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := vllmAt(t)
		var received atomic.Int64
		s := watch(t, engine.ScraperConfig{Client: clientOf(e), OnStatus: func(engine.Status) { received.Add(1) }})
		time.Sleep(10250 * time.Millisecond)
		if h, m, l := e.count("/health"), e.count("/metrics"), e.count("/v1/models"); h != 21 || m != 21 || l != 1+2 {
			t.Errorf("in 10 s asked %d times for its health, %d for metrics, %d for models", h, m, l)
		}
		e.set(pages{"/health": "503"})
		time.Sleep(500 * time.Millisecond)
		synctest.Wait()
		if st := s.Latest(); st.Healthy || !strings.Contains(st.Reason, "503") || st.Checked.IsZero() || received.Load() != 22 {
			t.Errorf("%d statuses, last %s", received.Load(), describe(st))
		}
		time.Sleep(30 * time.Second)
		if h, m := e.count("/health"), e.count("/metrics"); h > 10 || h < 8 || m != 0 {
			t.Errorf("in 30 s asked %d times for its health and %d for metrics", h, m)
		}
		// Another engine takes its place.
		e.set(pages{"/health": "ok", "/metrics": page(t, "llamacpp-2026.txt"), "/v1/models": listOfOne, "/props": `{"total_slots":4}`})
		time.Sleep(5500 * time.Millisecond)
		if st := s.Latest(); !st.Healthy || st.Dialect != engine.DialectLlamaCpp || or(st.Running) != "4" || or(st.Slots) != "4" || !st.Fresh(time.Now()) {
			t.Errorf("%s: %s", st.Dialect, describe(st))
		}
	})
}

func TestOneLateAnswerIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := vllmAt(t)
		s := watch(t, engine.ScraperConfig{Client: clientOf(e), Dialect: engine.DialectVLLM})
		time.Sleep(750 * time.Millisecond)
		e.set(pages{"/health": "-"})
		time.Sleep(1500 * time.Millisecond) // asked at 1s, timed out at 2s
		if st := s.Latest(); !st.Healthy || or(st.Running) != "37" {
			t.Errorf("after one: %s", describe(st))
		}
		time.Sleep(1500 * time.Millisecond)
		if st := s.Latest(); st.Healthy || st.Reason != "no answer to /health within 1s" || or(st.Running) != "37" {
			t.Errorf("after two: %s", describe(st))
		}
		e.set(nil)
		time.Sleep(3 * time.Second)
		if st := s.Latest(); !st.Healthy {
			t.Errorf("after it came back: %s", describe(st))
		}
	})
}

// A page whose answer takes long is asked for seldom, and one that has no answer in time more seldom; the health is checked
// all the same.
func TestASlowPageIsAskedSeldom(t *testing.T) {
	for what, c := range map[string]struct {
		takes time.Duration
		least int
		most  int // in a minute
	}{
		"quick":             {0, 115, 125},
		"a tenth of second": {100 * time.Millisecond, 45, 62},
		"0.4 s":             {400 * time.Millisecond, 12, 16},
		"no answer in time": {2 * time.Second, 5, 7},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := vllmAt(t)
				slow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/metrics" {
						select {
						case <-time.After(c.takes):
						case <-r.Context().Done():
						}
					}
					e.ServeHTTP(w, r)
				})
				s := watch(t, engine.ScraperConfig{Client: clientOf(slow), Dialect: engine.DialectVLLM})
				time.Sleep(time.Minute + time.Millisecond)
				if n := e.count("/metrics"); n < c.least || n > c.most {
					t.Errorf("asked %d times in a minute, want %d to %d", n, c.least, c.most)
				}
				if n := e.count("/health"); n < 80 {
					t.Errorf("asked %d times for its health", n)
				}
				if st := s.Latest(); !st.Healthy || !st.Late.IsZero() {
					t.Errorf("%s, late %v", describe(st), st.Late)
				}
			})
		})
	}
}

// It is known since when an engine answers nothing in time: within two seconds, also if another page was asked for first.
func TestSinceWhenAnEngineIsLate(t *testing.T) {
	for name, pages := range map[string]pages{"its health": {"/health": "-"}, "all": {"/health": "-", "/metrics": "-", "/v1/models": "-"}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := vllmAt(t)
				s := watch(t, engine.ScraperConfig{Client: clientOf(e), Dialect: engine.DialectVLLM})
				time.Sleep(4990 * time.Millisecond)
				e.set(pages)
				mute := time.Now()
				time.Sleep(2 * time.Second)
				if st := s.Latest(); st.Late.Before(mute) || st.Late.Sub(mute) > time.Second {
					t.Errorf("late since %v, it has been since %v", st.Late, mute)
				}
				e.set(nil)
				time.Sleep(6 * time.Second)
				if st := s.Latest(); !st.Late.IsZero() || !st.Healthy {
					t.Errorf("it answers again: late since %v, %s", st.Late, describe(st))
				}
			})
		})
	}
}

func TestADialectThatShowsLateIsLearnt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &changing{pages: pages{"/health": "ok", "/v1/models": listOfOne, "/metrics": page(t, "vllm-0.6.txt")}}
		e.set(pages{"/metrics": "-"})
		s := watch(t, engine.ScraperConfig{Client: clientOf(e)})
		time.Sleep(5 * time.Second)
		if st := s.Latest(); st.Dialect != engine.DialectOpenAI || !st.Healthy {
			t.Errorf("%s: %s", st.Dialect, describe(st))
		}
		e.set(nil)
		time.Sleep(30 * time.Second)
		if st := s.Latest(); st.Dialect != engine.DialectVLLM || or(st.Running) != "37" {
			t.Errorf("%s: %s", st.Dialect, describe(st))
		}
		// A known dialect is kept, even if the engine was away and then does not identify itself.
		e.set(pages{"/health": "503"})
		time.Sleep(time.Second)
		e.set(pages{"/health": "ok", "/metrics": "-"})
		time.Sleep(10 * time.Second)
		if st := s.Latest(); st.Dialect != engine.DialectVLLM || !st.Healthy || or(st.Running) != "37" || st.Fresh(time.Now()) {
			t.Errorf("%s: %s", st.Dialect, describe(st))
		}
	})
}

func TestBeforeTheFirstAnswerNothingIsHealthy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := watch(t, engine.ScraperConfig{Client: clientOf(http.NotFoundHandler())})
		if st := s.Latest(); st.Healthy || st.Reason != "not asked yet" || !st.Checked.IsZero() || st.Fresh(time.Now()) {
			t.Errorf("%+v", st)
		}
		synctest.Wait()
		if st := s.Latest(); st.Healthy || !strings.HasPrefix(st.Reason, "detect engine: ") || st.Dialect != "" {
			t.Errorf("%+v", st)
		}
	})
}

func TestAPageHasItsLimit(t *testing.T) {
	metrics := page(t, "vllm-0.6.txt")
	for size, read := range map[int]bool{4 << 20: true, 4<<20 + 1: false} {
		body := metrics + "#" + strings.Repeat("x", size-len(metrics)-1)
		st := scrapeOnce(t, engine.DialectVLLM, pages{"/health": "", "/metrics": body})
		if !st.Healthy || (st.Running != nil) != read {
			t.Errorf("of %d bytes: %s", size, describe(st))
		}
	}
}

func TestMetricsMayBeElsewhereAndGetNoKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := make(map[string]string)
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			keys[r.URL.Host+r.URL.Path] = r.Header.Get("Authorization")
			if r.URL.Host == "elsewhere" {
				fmt.Fprint(w, page(t, "triton-trtllm.txt"))
			}
		})
		s := watch(t, engine.ScraperConfig{Client: clientOf(h), Dialect: "Triton", APIKey: "secret", MetricsURL: "http://elsewhere/m"})
		synctest.Wait()
		if st := s.Latest(); or(st.Running) != "8" || keys["engine/v2/health/ready"] != "Bearer secret" || keys["elsewhere/m"] != "" {
			t.Errorf("%s, keys %q", describe(st), keys)
		}
		if _, ok := keys["engine:8002/metrics"]; ok {
			t.Error("asked at the usual place")
		}
	})
}

func TestNewScraperNamesTheField(t *testing.T) {
	for field, cfg := range map[string]engine.ScraperConfig{
		"URL":        {URL: "127.0.0.1:8000"},
		"MetricsURL": {URL: "http://127.0.0.1:8000", MetricsURL: "/metrics"},
		"Dialect":    {URL: "http://127.0.0.1:8000", Dialect: "klingon"},
	} {
		if _, err := engine.NewScraper(cfg); err == nil || !strings.HasPrefix(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// All questions together take at most a tenth of an engine's time, and each page is still read; what is quick is asked as usual.
func TestQuestionsTogetherTakeATenth(t *testing.T) {
	const ms = time.Millisecond
	for what, c := range map[string]struct {
		dialect engine.Dialect
		takes   map[string]time.Duration
		least   map[string]int // in two minutes
	}{
		"all are slow":      {engine.DialectVLLM, map[string]time.Duration{"/metrics": 400 * ms, "/health": 400 * ms, "/v1/models": 400 * ms}, map[string]int{"/metrics": 14, "/health": 6, "/v1/models": 3}},
		"all are so so":     {engine.DialectVLLM, map[string]time.Duration{"/metrics": 50 * ms, "/health": 50 * ms, "/v1/models": 50 * ms}, map[string]int{"/metrics": 100, "/health": 50, "/v1/models": 20}},
		"two are slow":      {engine.DialectVLLM, map[string]time.Duration{"/metrics": 300 * ms, "/v1/models": 300 * ms}, map[string]int{"/metrics": 24, "/health": 150, "/v1/models": 8}},
		"the list is slow":  {engine.DialectVLLM, map[string]time.Duration{"/v1/models": 900 * ms}, map[string]int{"/metrics": 200, "/health": 150, "/v1/models": 10}},
		"llama.cpp's slots": {engine.DialectLlamaCpp, map[string]time.Duration{"/metrics": 200 * ms, "/slots": 200 * ms, "/health": 200 * ms}, map[string]int{"/metrics": 20, "/slots": 20, "/health": 10, "/v1/models": 22}},
		"none is":           {engine.DialectVLLM, nil, map[string]int{"/metrics": 230, "/health": 230, "/v1/models": 22}},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				asked, took := make(map[string]int), time.Duration(0)
				answers := pages{"/health": "OK", "/metrics": page(t, "vllm-0.6.txt"), "/v1/models": listOfOne, "/slots": `[{"id":0,"is_processing":false}]`, "/props": `{}`}
				slow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					mu.Lock()
					asked[r.URL.Path]++
					took += c.takes[r.URL.Path]
					mu.Unlock()
					time.Sleep(c.takes[r.URL.Path])
					answers.ServeHTTP(w, r)
				})
				s := watch(t, engine.ScraperConfig{Client: clientOf(slow), Dialect: c.dialect, OnListing: func(engine.Listing) bool { return true }})
				time.Sleep(2 * time.Minute)
				mu.Lock()
				defer mu.Unlock()
				if most := 2*time.Minute/10 + 3*time.Second; took > most { // each page is asked for once before it is known to be slow
					t.Errorf("%v of two minutes, want at most %v: %v", took, most, asked)
				}
				for path, least := range c.least {
					if asked[path] < least {
						t.Errorf("%s was asked for %d times, want %d at least: %v", path, asked[path], least, asked)
					}
				}
				if st := s.Latest(); !st.Healthy || !st.Late.IsZero() {
					t.Errorf("%s, late %v", describe(st), st.Late)
				}
			})
		})
	}
}
