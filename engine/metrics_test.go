package engine_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/engine"
)

// vllmSays is a vLLM metrics page with its expected values.
func vllmSays(t testing.TB, body string) engine.Status {
	t.Helper()
	found, _ := engine.ReadPages(engine.DialectVLLM, []byte(body))
	return found[0]
}

func TestOddLines(t *testing.T) {
	for name, c := range map[string]struct{ line, running string }{
		"plain":                         {"vllm:num_requests_running 3\n", "3"},
		"no newline at the end":         {"vllm:num_requests_running 3", "3"},
		"CRLF":                          {"vllm:num_requests_running 3\r\n", "3"},
		"a time":                        {"vllm:num_requests_running{a=\"b\"} 3 1726845512000\n", "3"},
		"an exemplar":                   {"vllm:num_requests_running{a=\"b\"} 3 # {trace_id=\"x\"} 0.5\n", "3"},
		"spaces":                        {"vllm:num_requests_running \t { a = \"b\" , } \t 3.0\n", "3"},
		"brace in a label":              {"vllm:num_requests_running{model_name=\"a}b\\\"}\"} 3\n", "3"},
		"engines, with spaces":          {"vllm:num_requests_running{ engine = \"0\" , } 3\nvllm:num_requests_running{engine= \"1\"} 4\n", "7"},
		"engines":                       {"vllm:num_requests_running{engine=\"0\"} 3\nvllm:num_requests_running{engine=\"1\"} 4\n", "7"},
		"engines after odd labels":      {"vllm:num_requests_running{x=\"engine=\\\"\",engine=\"0\"} 3\nvllm:num_requests_running{x=\"\\\\\",engine=\"1\"} 4\n", "7"},
		"one engine twice":              {"vllm:num_requests_running{engine=\"0\",pid=\"1\"} 3\nvllm:num_requests_running{engine=\"0\",pid=\"2\"} 4\n", "4"},
		"exponent":                      {"vllm:num_requests_running 1e2\n", "100"},
		"NaN":                           {"vllm:num_requests_running NaN\n", "-"},
		"infinite":                      {"vllm:num_requests_running +Inf\n", "-"},
		"negative":                      {"vllm:num_requests_running -1\n", "-"},
		"too large":                     {"vllm:num_requests_running 1e300\n", "-"},
		"no value":                      {"vllm:num_requests_running\n", "-"},
		"no value after labels":         {"vllm:num_requests_running{a=\"b\"}\n", "-"},
		"no number":                     {"vllm:num_requests_running three\n", "-"},
		"open brace":                    {"vllm:num_requests_running{a=\"b 3\n", "-"},
		"a comment":                     {"# vllm:num_requests_running 3\n", "-"},
		"a longer name":                 {"vllm:num_requests_running_total 3\n", "-"},
		"another's":                     {"sglang:num_requests_running 3\n", "-"},
		"nothing":                       {"", "-"},
		"the prefix alone":              {"vllm:\n", "-"},
		"a page of something else":      {"<html><body>vllm:num_requests_running 3</body></html>", "-"},
		"good after bad":                {"vllm:num_requests_running x\nvllm:num_requests_running 3\n", "3"},
		"a sample that is not a number": {"vllm:num_requests_running{engine=\"0\"} NaN\nvllm:num_requests_running{engine=\"1\"} 4\n", "4"},
	} {
		if got := or(vllmSays(t, c.line).Running); got != c.running {
			t.Errorf("%s: %q: got %s, want %s", name, c.line, got, c.running)
		}
	}
}

// FuzzPages has each dialect read arbitrary pages. Every value must be one that an engine can mean.
func FuzzPages(f *testing.F) {
	files, err := filepath.Glob("testdata/metrics/*.txt")
	if err != nil || len(files) == 0 {
		f.Fatal(files, err)
	}
	for _, name := range files {
		body, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	for _, body := range []string{listOfOne, tgiInfo, ollamaPs, `[{"is_processing":true,"state":-1}]`, `{"running":[{}]}`,
		`{"loads":[{"num_running_reqs":1e308},{"num_running_reqs":1e308}]}`, "vllm:cache_config_info{num_gpu_blocks=\"99999999\",block_size=\"9999\"} 1"} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, d := range engine.Dialects() {
			found, _ := engine.ReadPages(d, body)
			for _, st := range found {
				for _, n := range []*int{st.Slots, st.Running, st.Waiting} {
					if n != nil && *n < 0 {
						t.Errorf("%s: %s of %q", d, describe(st), body)
					}
				}
				for _, n := range []*int64{st.KVTotal, st.KVUsed, st.Preemptions, st.Generated, st.PrefixHits, st.PrefixQueries} {
					if n != nil && *n < 0 {
						t.Errorf("%s: %s of %q", d, describe(st), body)
					}
				}
				if u := st.KVUsage; u != nil && !(*u >= 0 && *u <= 1) {
					t.Errorf("%s: %s of %q", d, describe(st), body)
				}
				if st.Slots != nil && *st.Slots == 0 || st.KVTotal != nil && *st.KVTotal == 0 {
					t.Errorf("%s: no capacity in %s of %q", d, describe(st), body)
				}
			}
		}
	})
}

// BenchmarkPage reads a vLLM page with as many lines as two engines behind one server produce.
func BenchmarkPage(b *testing.B) {
	var body bytes.Buffer
	body.WriteString(page(b, "vllm-0.10.txt"))
	for i := 0; bytes.Count(body.Bytes(), []byte("\n")) < 1000; i++ {
		fmt.Fprintf(&body, "vllm:request_inference_time_seconds_bucket{engine=\"0\",le=\"%d.0\",model_name=\"Qwen/Qwen3-30B-A3B\"} %d.0\n", i, i*i)
	}
	b.SetBytes(int64(body.Len()))
	b.ReportAllocs()
	for b.Loop() {
		engine.ReadPages(engine.DialectVLLM, body.Bytes())
	}
	if st := vllmSays(b, body.String()); or(st.Running) != "32" {
		b.Fatal(strings.TrimSpace(describe(st)))
	}
}

// llama.cpp counts the prompt tokens that it computed, with the time for them; its older versions and other engines do not.
func TestCountersOfPrompts(t *testing.T) {
	for file, want := range map[string]string{
		"llamacpp-0.5.txt": "5120 6.31s", "llamacpp-2026.txt": "5120 6.31s", "llamacpp-2024.txt": "- -",
	} {
		found, _ := engine.ReadPages(engine.DialectLlamaCpp, []byte(page(t, file)))
		if got := or(found[0].Prefilled) + " " + or(found[0].PrefillTime); got != want {
			t.Errorf("%s: %s, want %s", file, got, want)
		}
	}
	for _, value := range []string{"-1", "NaN", "+Inf", "1e30"} {
		found, _ := engine.ReadPages(engine.DialectLlamaCpp, []byte("llamacpp:prompt_tokens_total 5\nllamacpp:prompt_seconds_total "+value+"\n"))
		if found[0].PrefillTime != nil || found[0].Prefilled != nil {
			t.Errorf("%s: %v", value, found[0].PrefillTime)
		}
	}
}
