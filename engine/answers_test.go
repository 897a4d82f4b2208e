package engine_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/testenv"
)

// replay answers what was recorded: of answers to the same question the first one, unless its name is in instead.
func replay(r testenv.Recording, instead ...string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if name, value, ok := strings.Cut(r.Header, ": "); ok {
			w.Header().Set(name, value)
		}
		var found *testenv.Answer
		for i, a := range r.Answers {
			asked := a.Method == req.Method && a.Path == req.URL.Path
			for _, name := range instead {
				if asked && a.Name == name {
					found = &r.Answers[i]
				}
			}
			if asked && found == nil {
				found = &r.Answers[i]
			}
		}
		switch {
		case found != nil:
			w.Header().Set("Content-Type", found.Type)
			w.WriteHeader(found.Status)
			fmt.Fprint(w, found.Body)
		case r.Dialect == engine.DialectLMStudio:
			fmt.Fprint(w, `{"error":"Unexpected endpoint or method."}`)
		default:
			http.NotFound(w, req)
		}
	})
}

// TestRecordedEnginesAreRecognized finds each engine by what it answers, and those that say more than one thing of
// themselves also when the list of models does not name them.
func TestRecordedEnginesAreRecognized(t *testing.T) {
	owners := strings.NewReplacer(`"owned_by":"vllm"`, `"owned_by":"us"`, `"owned_by":"sglang"`, `"owned_by":"us"`, `"owned_by":"llamacpp"`, `"owned_by":"us"`,
		`"owned_by":"tensorrt_llm"`, `"owned_by":"us"`, `"owned_by":"llama-swap"`, `"owned_by":"us"`)
	for _, r := range testenv.Recordings(t, "testdata/answers") {
		if got, err := engine.Detect(t.Context(), clientOf(replay(r)), "http://engine"); err != nil || got != r.Dialect {
			t.Errorf("%s: got %q, %v", r.Engine, got, err)
		}
		r.Header = ""
		for i := range r.Answers {
			r.Answers[i].Body = owners.Replace(r.Answers[i].Body)
		}
		if got, err := engine.Detect(t.Context(), clientOf(replay(r)), "http://engine"); err != nil || got != r.Dialect {
			t.Errorf("%s under another owner's name: got %q, %v", r.Engine, got, err)
		}
	}
}

func TestRecordedEnginesTell(t *testing.T) {
	want := map[engine.Dialect]string{
		engine.DialectVLLM:      "slots -, running 12, waiting 3, kv 32768 of 131072 = 0.25, preempted 2, made 61234, prefix 3200 of 8000, models Qwen/Qwen3-8B+",
		engine.DialectSGLang:    "slots 16, running 12, waiting 3, kv 32768 of 131072 = 0.25, preempted 50, made 1000, prefix 2500 of 10000, models Qwen/Qwen3-8B+",
		engine.DialectTGI:       "slots 128, running 6, waiting 2, kv - of - = -, preempted -, made 8123, prefix - of -, models meta-llama/Llama-3.1-8B-Instruct+",
		engine.DialectLlamaCpp:  "slots 4, running 3, waiting 1, kv - of - = -, preempted -, made 1250000, prefix - of -, models qwen3-8b-q4_k_m.gguf+",
		engine.DialectOllama:    "slots -, running -, waiting -, kv - of - = -, preempted -, made -, prefix - of -, models llama3.2:latest+",
		engine.DialectLMStudio:  "slots -, running -, waiting -, kv - of - = -, preempted -, made -, prefix - of -, models qwen/qwen3-8b+",
		engine.DialectTRTLLM:    "slots 64, running 11, waiting 2, kv 48000 of 96000 = 0.5, preempted -, made 123456, prefix 400 of 1000, models nvidia/Qwen3-8B-FP8+",
		engine.DialectTriton:    "slots 512, running 8, waiting 3, kv 99520 of 398080 = 0.25, preempted -, made -, prefix - of -, models llama-3.1-8b-instruct+",
		engine.DialectLlamaSwap: "slots -, running -, waiting -, kv - of - = -, preempted -, made -, prefix - of -, models qwen3-8b+",
	}
	for _, r := range testenv.Recordings(t, "testdata/answers") {
		st := scrapeOnce(t, r.Dialect, replay(r))
		if got := describe(st); got != want[r.Dialect] {
			t.Errorf("%s\ngot  %s\nwant %s", r.Engine, got, want[r.Dialect])
		}
	}
}

// An engine that says that it is not ready is not healthy, in whatever way it says so.
func TestRecordedEnginesThatAreNotReady(t *testing.T) {
	seen := 0
	for _, r := range testenv.Recordings(t, "testdata/answers") {
		for _, name := range []string{"loading health", "unhealthy"} {
			a, ok := r.Find(name)
			if !ok || r.Dialect == engine.DialectSGLang { // whose /health is not asked for
				continue
			}
			seen++
			if st := scrapeOnce(t, r.Dialect, replay(r, name)); st.Healthy || !strings.Contains(st.Reason, fmt.Sprint(a.Status)) {
				t.Errorf("%s, %s: healthy %t, %q", r.Engine, name, st.Healthy, st.Reason)
			}
		}
	}
	if seen < 4 {
		t.Errorf("%d engines were not ready", seen)
	}
}

// What an engine says of a list that it does not give, or of its health, is a part of the reason.
func TestReasonsHaveTheEnginesWords(t *testing.T) {
	for _, r := range testenv.Recordings(t, "testdata/answers") {
		a, ok := r.Find("loading health")
		if !ok || a.Body == "" {
			continue
		}
		h := replay(r, "loading health", "loading models")
		if st := scrapeOnce(t, r.Dialect, h); !strings.HasSuffix(st.Reason, "503 Service Unavailable: Loading model") {
			t.Errorf("%s: %q", r.Engine, st.Reason)
		}
		if l := listOnce(t, h); l.Status != 503 || l.Err == nil || l.Err.Error() != "GET /v1/models: 503 Service Unavailable: Loading model" {
			t.Errorf("%s: %d, %v", r.Engine, l.Status, l.Err)
		}
	}
	for body, want := range map[string]string{
		`{"error":"Unauthorized"}`: ": Unauthorized", `{"detail":"Unknown model: m"}`: ": Unknown model: m", `{"error":{"message":"Invalid API Key"}}`: ": Invalid API Key",
		"": "", "<html>": "", `{"error":{}}`: "", `{"error":7}`: "", `{"detail":[]}`: "", `{"error":"` + strings.Repeat("x", 101) + `"}`: "", `{"error":"a
b"}`: "",
	} {
		h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprint(w, body)
		})
		if l := listOnce(t, h); l.Err == nil || l.Err.Error() != "GET /v1/models: 503 Service Unavailable"+want {
			t.Errorf("%s: %v", body, l.Err)
		}
	}
}

// signals is which values a Status has, and not what they are.
func signals(st engine.Status) string {
	return fmt.Sprint("slots ", st.Slots != nil, ", running ", st.Running != nil, ", waiting ", st.Waiting != nil, ", kv ", st.KVTotal != nil, st.KVUsed != nil, st.KVUsage != nil,
		", preemptions ", st.Preemptions != nil, ", generated ", st.Generated != nil, ", models ", models(st))
}

// TestSimsTellWhatRecordedEnginesTell compares what is read from a simulated engine with what is read from the recording:
// the same values are there, and the same are not. Only prefix caches are left out, which a simulated engine may lack.
func TestSimsTellWhatRecordedEnginesTell(t *testing.T) {
	for _, r := range testenv.Recordings(t, "testdata/answers") {
		eng := newSim(t, sim.Config{Models: []string{r.Model}, Dialect: r.Dialect, Context: r.Context})
		want, got := signals(scrapeOnce(t, r.Dialect, replay(r))), signals(scrapeOnce(t, r.Dialect, eng))
		if got != want {
			t.Errorf("%s\nsim       %s\nrecording %s", r.Engine, got, want)
		}
		facts := func(h http.Handler) (f engine.Facts) {
			l := listOnce(t, h)
			if len(l.Facts) == 1 {
				f = l.Facts[0]
			}
			f.Created = min(f.Created, 1)
			f.MetaTrained = min(f.MetaTrained, 1)
			return f
		}
		if want, got := facts(replay(r)), facts(eng); got != want {
			t.Errorf("%s: the list of models says\nof the sim       %+v\nof the recording %+v", r.Engine, got, want)
		}
	}
}

// listOnce is the first listing of an engine.
func listOnce(t *testing.T, h http.Handler) engine.Listing {
	t.Helper()
	var first atomic.Pointer[engine.Listing]
	synctest.Test(t, func(t *testing.T) {
		watch(t, engine.ScraperConfig{Client: clientOf(h), OnListing: func(l engine.Listing) bool {
			first.CompareAndSwap(nil, &l)
			return true
		}})
		time.Sleep(time.Second)
	})
	if l := first.Load(); l != nil {
		return *l
	}
	return engine.Listing{}
}

// LM Studio says in its own list with which context a model is loaded, and what the others could have at most.
func TestContextsOfLMStudio(t *testing.T) {
	contexts := func(answers http.Handler) string {
		var all []string
		for _, m := range scrapeOnce(t, engine.DialectLMStudio, answers).Models {
			all = append(all, fmt.Sprint(m.Name, " ", m.Context))
		}
		return strings.Join(all, ", ")
	}
	for _, r := range testenv.Recordings(t, "testdata/answers") {
		if r.Dialect != engine.DialectLMStudio {
			continue
		}
		if got, want := contexts(replay(r)), "qwen/qwen3-8b 4096"; got != want {
			t.Errorf("%s: %q, want %q", r.Engine, got, want)
		}
	}
	for list, want := range map[string]string{
		`{"id":"a","state":"loaded","loaded_context_length":8192,"max_context_length":131072}`: "a 8192",
		`{"id":"a","state":"not-loaded","max_context_length":32768}`:                           "a 32768",
		`{"id":"a","state":"loaded"}`:                                                          "a 0",
		`{"id":"a","state":"loaded","loaded_context_length":"4096"},{"id":"b","state":"loaded","loaded_context_length":-1,"max_context_length":2048}`: "a 0, b 2048",
		`{"id":"a","state":"loaded","loaded_context_length":null,"max_context_length":1e99}`:                                                          "a 0",
	} {
		if got := contexts(pages{"/v1/models": listOfOne, "/api/v0/models": `{"data":[` + list + `]}`}); got != want {
			t.Errorf("%s: %q, want %q", list, got, want)
		}
	}
}
