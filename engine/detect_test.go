package engine_test

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/engine/sim"
)

// ownedBy is a model list with an owner.
func ownedBy(owner string) string {
	return fmt.Sprintf(`{"object":"list","data":[{"id":"m","object":"model","created":1,"owned_by":%q}]}`, owner)
}

// TestDetect has engines that answer as the real ones do, including each other's paths.
func TestDetect(t *testing.T) {
	ollamaPaths := pages{"/": "Ollama is running", "/api/version": `{"version":"0.17.0"}`, "/api/tags": ollamaTags, "/api/ps": ollamaPs}
	with := func(ps ...pages) pages {
		all := make(pages)
		for _, p := range ps {
			maps.Copy(all, p)
		}
		return all
	}
	for name, c := range map[string]struct {
		pages pages
		want  engine.Dialect
	}{
		"vLLM": {pages{"/v1/models": ownedBy("vllm"), "/version": `{"version":"0.19.0"}`, "/health": "", "/metrics": page(t, "vllm-0.19.txt"),
			"/load": `{"server_load":0}`, "/server_info": `{"vllm_config":"model='m'"}`}, engine.DialectVLLM},
		"vLLM under another owner's name": {pages{"/v1/models": ownedBy("us"), "/version": `{"version":"0.6.1"}`, "/metrics": page(t, "vllm-0.6.txt")},
			engine.DialectVLLM},
		"SGLang with Ollama's paths": {with(ollamaPaths, pages{"/v1/models": ownedBy("sglang"), "/get_model_info": `{"model_path":"m","is_generation":true}`}),
			engine.DialectSGLang},
		"SGLang without metrics, under another owner's name": {with(ollamaPaths, pages{"/v1/models": ownedBy("us"),
			"/model_info": `{"model_path":"m","tokenizer_path":"m","is_generation":true}`}), engine.DialectSGLang},
		"SGLang that only has metrics": {pages{"/v1/models": ownedBy("us"), "/metrics": page(t, "sglang-renamed.txt")}, engine.DialectSGLang},
		"TGI": {pages{"/v1/models": ownedBy("meta-llama/Llama-3.1-8B-Instruct"), "/info": tgiInfo, "/health": ""},
			engine.DialectTGI},
		"TGI before it listed models": {pages{"/info": tgiInfo, "/health": "", "/metrics": page(t, "tgi-3.txt")}, engine.DialectTGI},
		"Text Embeddings Inference": {pages{"/v1/models": ownedBy("BAAI/bge"), "/metrics": "te_queue_size 0\n",
			"/info": `{"model_id":"BAAI/bge","model_type":{"embedding":{"pooling":"cls"}},"max_concurrent_requests":512,"max_batch_tokens":16384}`},
			engine.DialectOpenAI},
		"llama.cpp with Ollama's paths": {with(ollamaPaths, pages{"/v1/models": ownedBy("llamacpp"), "/props": `{"total_slots":4}`}),
			engine.DialectLlamaCpp},
		"llama.cpp under an alias": {with(ollamaPaths, pages{"/v1/models": ownedBy("us"), "/props": `{"total_slots":4}`}), engine.DialectLlamaCpp},
		"Ollama":                   {with(ollamaPaths, pages{"/v1/models": ownedBy("library")}), engine.DialectOllama},
		"Ollama without a model":   {with(ollamaPaths, pages{"/v1/models": `{"object":"list","data":[]}`}), engine.DialectOllama},
		"KoboldCpp":                {with(ollamaPaths, pages{"/v1/models": ownedBy("koboldcpp")}), engine.DialectOpenAI},
		"a gateway of Pulley": {pages{"/v1/models": `{"object":"list","data":[{"id":"m","owned_by":"vllm"}],"served_by":"pulley"}`, "/metrics": page(t, "vllm-0.19.txt"),
			"/load": `{"server_load":0}`}, engine.DialectOpenAI},
		"a version, as many have": {pages{"/v1/models": ownedBy("us"), "/version": `{"version":"1"}`, "/api/version": `{"version":"1"}`}, engine.DialectOpenAI},
		"Triton": {pages{"/v2": `{"name":"triton","version":"2.62.0","extensions":["classification","model_repository"]}`, "/v2/health/ready": ""},
			engine.DialectTriton},
		"Triton's OpenAI front end": {pages{"/v1/models": ownedBy("Triton Inference Server"), "/metrics": page(t, "triton-trtllm.txt") + page(t, "vllm-0.10.txt")},
			engine.DialectTriton},
		"another server of the same protocol": {pages{"/v1/models": ownedBy("us"), "/v2": `{"name":"mlserver","version":"1.7.0","extensions":[]}`},
			engine.DialectOpenAI},
		"trtllm-serve": {pages{"/v1/models": ownedBy("tensorrt_llm"), "/version": `{"version":"1.3.0"}`, "/metrics": `[{"iter":1}]`},
			engine.DialectTRTLLM},
		"trtllm-serve under another owner's name": {pages{"/v1/models": ownedBy("us"), "/metrics": `[]`, "/prometheus/metrics": page(t, "trtllm-1.1.txt")},
			engine.DialectTRTLLM},
		"llama-swap before llama.cpp": {pages{"/v1/models": ownedBy("llama-swap"), "/running": `{"running":[]}`, "/props": `{"total_slots":4}`},
			engine.DialectLlamaSwap},
		"llama-swap by what runs":      {pages{"/v1/models": ownedBy("us"), "/running": `{"running":[]}`}, engine.DialectLlamaSwap},
		"anything":                     {pages{"/v1/models": ownedBy("us")}, engine.DialectOpenAI},
		"anything with metrics of its": {pages{"/v1/models": ownedBy("us"), "/metrics": "vllmish_requests 1\nprocess_open_fds 9\n"}, engine.DialectOpenAI},
	} {
		t.Run(name, func(t *testing.T) {
			for _, suffix := range []string{"", "/", "/v1"} {
				got, err := engine.Detect(t.Context(), clientOf(c.pages), "http://engine"+suffix)
				if err != nil || got != c.want {
					t.Errorf("got %q, %v, want %q", got, err, c.want)
				}
			}
		})
	}
}

func TestDetectKnowsALoadingLlamaCpp(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Server", "llama.cpp")
		http.Error(w, `{"error":{"message":"Loading model","type":"unavailable_error","code":503}}`, http.StatusServiceUnavailable)
	})
	if got, err := engine.Detect(t.Context(), clientOf(h), "http://engine"); err != nil || got != engine.DialectLlamaCpp {
		t.Errorf("got %q, %v", got, err)
	}
}

// LM Studio answers 200 to everything, with an error in the body.
func TestDetectKnowsLMStudio(t *testing.T) {
	url := fakeEngine(t, true, map[string]string{"/v1/models": ownedBy("organization_owner"), "/api/v0/models": `{"data":[{"id":"m","state":"loaded"}]}`})
	if got, err := engine.Detect(t.Context(), http.DefaultClient, url); err != nil || got != engine.DialectLMStudio {
		t.Errorf("got %q, %v", got, err)
	}
	url = fakeEngine(t, true, map[string]string{"/v1/models": ownedBy("us")})
	if got, err := engine.Detect(t.Context(), http.DefaultClient, url); err != nil || got != engine.DialectOpenAI {
		t.Errorf("one that is just lax: got %q, %v", got, err)
	}
}

func TestDetectKnowsSims(t *testing.T) {
	for _, dialect := range sim.Dialects() {
		srv := httptest.NewServer(newSim(t, sim.Config{Dialect: dialect}))
		defer srv.Close()
		if got, err := engine.Detect(t.Context(), srv.Client(), srv.URL); err != nil || got != dialect {
			t.Errorf("got %q, %v, want %q", got, err, dialect)
		}
	}
}

func TestDetectEndsInTwoSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangs := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		begun := time.Now()
		_, err := engine.Detect(context.Background(), clientOf(hangs), "http://engine")
		if took := time.Since(begun); err == nil || took != 2*time.Second {
			t.Errorf("after %v: %v", took, err)
		}
	})
}

func TestDetectSaysWhatIsWrong(t *testing.T) {
	for body, want := range map[string]string{
		"<html>": "an HTML page, not JSON", "{": "unexpected end of JSON", `{"error":1}`: "is not a list of models", "401": "/v1/models: 401 Unauthorized",
	} {
		_, err := engine.Detect(t.Context(), clientOf(pages{"/v1/models": body}), "http://engine")
		if err == nil || !strings.HasPrefix(err.Error(), "detect engine: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", body, err, want)
		}
	}
}

func TestParseDialect(t *testing.T) {
	for name, want := range map[string]engine.Dialect{
		"vLLM": engine.DialectVLLM, "llamacpp": engine.DialectLlamaCpp, "llama-cpp": engine.DialectLlamaCpp,
		"llama-server": engine.DialectLlamaCpp, "trtllm": engine.DialectTRTLLM, "TensorRT-LLM": engine.DialectTRTLLM,
		"trtllm-serve": engine.DialectTRTLLM, "llama-swap": engine.DialectLlamaSwap, "LM Studio": engine.DialectLMStudio,
	} {
		if got, err := engine.ParseDialect(name); err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, want)
		}
	}
	for _, d := range engine.Dialects() {
		if got, err := engine.ParseDialect(string(d)); err != nil || got != d {
			t.Errorf("%s: got %q, %v", d, got, err)
		}
	}
	if _, err := engine.ParseDialect("klingon"); err == nil || !strings.Contains(err.Error(), "lmstudio or openai") {
		t.Error(err)
	}
	for _, d := range sim.Dialects() {
		if !slices.Contains(engine.Dialects(), d) {
			t.Errorf("a sim speaks %q", d)
		}
	}
}
