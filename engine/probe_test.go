package engine_test

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/engine/sim"
)

// fakeEngine answers the given paths; if lax, it answers all others with 200 and an error, like LM
// Studio.
func fakeEngine(t *testing.T, lax bool, paths map[string]string) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, ok := paths[r.URL.Path]
		switch {
		case ok:
			fmt.Fprint(w, body)
		case lax:
			fmt.Fprint(w, `{"error":"Unexpected endpoint or method"}`)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

func TestProbeTellsKinds(t *testing.T) {
	const models = `{"object":"list","data":[{"id":"a","owned_by":"x"},{"id":"b","owned_by":"x"}]}`
	for name, c := range map[string]struct {
		lax   bool
		paths map[string]string
		kind  engine.Dialect
		slots int
	}{
		"Ollama":       {false, map[string]string{"/api/version": `{"version":"0.17.0"}`, "/api/ps": `{"models":[]}`}, engine.DialectOllama, 0},
		"llama.cpp":    {false, map[string]string{"/props": `{"total_slots":4,"model_path":"x"}`}, engine.DialectLlamaCpp, 4},
		"LM Studio":    {true, map[string]string{"/api/v0/models": `{"data":[]}`}, engine.DialectLMStudio, 0},
		"SGLang":       {false, map[string]string{"/get_server_info": `{"model_path":"x","max_running_requests":48,"version":"0.5"}`}, engine.DialectSGLang, 48},
		"newer SGLang": {false, map[string]string{"/server_info": `{"max_running_requests":null}`}, engine.DialectSGLang, 0},
		"SGLang's own": {false, map[string]string{"/get_server_info": `{"max_running_requests":48,"internal_states":[{"effective_max_running_requests_per_dp":9}]}`}, engine.DialectSGLang, 9},
		"TGI":          {false, map[string]string{"/info": tgiInfo}, engine.DialectTGI, 128},
		"vLLM":         {false, map[string]string{"/metrics": "vllm:num_requests_running 0\n"}, engine.DialectVLLM, 0},
		"vLLM by owner": {false, map[string]string{
			"/v1/models": `{"data":[{"id":"a"},{"id":"b","owned_by":"vllm"}]}`}, engine.DialectVLLM, 0},
		"anything": {false, nil, engine.DialectOpenAI, 0},
	} {
		t.Run(name, func(t *testing.T) {
			paths := map[string]string{"/v1/models": models}
			maps.Copy(paths, c.paths)
			url := fakeEngine(t, c.lax, paths)
			want := engine.Info{URL: url, Dialect: c.kind, Models: []string{"a", "b"}, Slots: c.slots}
			for _, suffix := range []string{"", "/", "/v1", "/v1/"} {
				got, err := engine.Probe(t.Context(), http.DefaultClient, url+suffix, "")
				if err != nil || !reflect.DeepEqual(got, want) {
					t.Errorf("got %+v, %v, want %+v", got, err, want)
				}
			}
		})
	}
}

func TestProbeKnowsSims(t *testing.T) {
	for slots, dialect := range sim.Dialects() {
		slots++
		srv := httptest.NewServer(newSim(t, sim.Config{Slots: slots, Dialect: dialect}))
		defer srv.Close()
		got, err := engine.Probe(t.Context(), srv.Client(), srv.URL, "")
		if err != nil || !got.Simulated || got.Name() != "sim" || got.Slots != slots || got.Dialect != dialect {
			t.Errorf("%s: got %+v, %v", dialect, got, err)
		}
	}
}

func TestProbeSaysWhatIsWrong(t *testing.T) {
	for body, want := range map[string]string{
		"<html>":      "an HTML page, not JSON",
		`{"error":1}`: "is not a list of models",
	} {
		_, err := engine.Probe(t.Context(), http.DefaultClient, fakeEngine(t, false, map[string]string{"/v1/models": body}), "")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", body, err, want)
		}
	}
	_, err := engine.Probe(t.Context(), http.DefaultClient, fakeEngine(t, false, nil), "")
	if err == nil || !strings.Contains(err.Error(), "/v1/models: 404 Not Found") {
		t.Error(err)
	}
}

func TestProbeWithKey(t *testing.T) {
	eng := newSim(t, sim.Config{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer secret" {
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		eng.ServeHTTP(w, r)
	}))
	defer srv.Close()
	if _, err := engine.Probe(t.Context(), srv.Client(), srv.URL, ""); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("without a key: %v", err)
	}
	if got, err := engine.Probe(t.Context(), srv.Client(), srv.URL, "secret"); err != nil || len(got.Models) != 1 {
		t.Errorf("with a key: %+v, %v", got, err)
	}
}

func TestLocalLeavesOutWhatIsNoEngine(t *testing.T) {
	addr := func(url string) string { return strings.TrimPrefix(url, "http://") }
	one := httptest.NewServer(newSim(t, sim.Config{Models: []string{"one"}}))
	defer one.Close()
	own := httptest.NewServer(newSim(t, sim.Config{Models: []string{"own"}}))
	defer own.Close()
	gone := httptest.NewServer(nil)
	gone.Close()
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer silent.Close()
	empty := fakeEngine(t, false, map[string]string{"/v1/models": `{"data":[]}`})

	begun := time.Now()
	got := engine.ProbeAll(t.Context(),
		[]string{addr(gone.URL), addr(silent.URL), addr(empty), addr(own.URL), addr(one.URL)},
		func(a string) bool { return a == addr(own.URL) })
	if len(got) != 1 || got[0].Models[0] != "one" || got[0].URL != one.URL {
		t.Errorf("found %+v, want only the engine at %s", got, one.URL)
	}
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("took %v, want about a second", took)
	}
}
