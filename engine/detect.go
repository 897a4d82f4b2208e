package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// detect asks an engine which dialect it has. It takes at most two seconds, and reads only pages that cost an engine
// nothing. Engines answer each other's paths: SGLang, llama.cpp and others have some of Ollama's, and LM Studio answers
// 200 to everything. So the first of these decides that identifies the engine:
//
//  1. the owner that /v1/models names: vLLM, SGLang, llama.cpp, TensorRT-LLM and llama-swap name themselves
//  2. the header Server, for llama.cpp
//  3. the prefix of its metrics
//  4. a page that only this kind of engine has, with the fields that only this kind has
//
// An engine that lists its models but is none of these, or does not identify itself in time, is
// DialectOpenAI. inTime reports whether there was time to ask for everything.
func detect(ctx context.Context, a asker) (d Dialect, inTime bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	p := &prober{asker: a}
	err = p.list(ctx)
	d, sure := p.identify(ctx)
	if !sure && err != nil {
		return "", false, fmt.Errorf("detect engine: %w", err)
	}
	return d, sure || ctx.Err() == nil, nil
}

// A prober finds out what one engine is.
type prober struct {
	asker
	models []string // as /v1/models lists them
	owner  string   // the owner of one of them
	server string   // the Server header

	simulated bool // one of package sim's engines
}

func (p *prober) list(ctx context.Context) error {
	var buf bytes.Buffer
	resp, err := p.ask(ctx, http.MethodGet, p.base+"/v1/models", &buf)
	if resp != nil {
		p.server, p.simulated = resp.Header.Get("Server"), resp.Header.Get(simHeader) != ""
	}
	if err != nil {
		return err
	}
	var list modelList
	if err := json.Unmarshal(buf.Bytes(), &list); err != nil {
		return notJSON("get "+p.base+"/v1/models", buf.Bytes(), err)
	}
	if list.Data == nil {
		return fmt.Errorf("%s/v1/models is not a list of models", p.base)
	}
	for _, m := range list.Data {
		p.models = append(p.models, m.ID)
		if m.OwnedBy != "" {
			p.owner = m.OwnedBy
		}
	}
	if list.ServedBy != "" {
		p.owner = list.ServedBy
	}
	return nil
}

// owners maps the owners that engines name in /v1/models. Those without a dialect of their own are
// listed because they also answer Ollama's paths.
var owners = map[string]Dialect{
	"vllm":         DialectVLLM,
	"sglang":       DialectSGLang,
	"llamacpp":     DialectLlamaCpp,
	"tensorrt_llm": DialectTRTLLM,
	"llama-swap":   DialectLlamaSwap,
	"koboldcpp":    DialectOpenAI,
	"lemonade":     DialectOpenAI,
	"pulley":       DialectOpenAI, // a gateway, whose metrics are named as vLLM's
}

// identify returns the dialect; ok reports whether it is certain.
func (p *prober) identify(ctx context.Context) (d Dialect, ok bool) {
	if d, ok := owners[p.owner]; ok {
		return d, true
	}
	if p.server == "llama.cpp" {
		return DialectLlamaCpp, true
	}
	if d, ok := p.identifyByMetrics(ctx, "/metrics"); ok {
		return d, true
	}
	for _, c := range characters {
		if p.has(ctx, c.path, c.fields) && (c.also == "" || p.has(ctx, c.also, c.alsoFields)) {
			return c.dialect, true
		}
	}
	if d, ok := p.identifyByMetrics(ctx, "/prometheus/metrics"); ok {
		return d, true
	}
	return DialectOpenAI, false
}

// identifyByMetrics identifies an engine by the metrics that a page has. Triton's page may include
// those of the engines behind it.
func (p *prober) identifyByMetrics(ctx context.Context, path string) (Dialect, bool) {
	var buf bytes.Buffer
	if _, err := p.ask(ctx, http.MethodGet, p.base+path, &buf); err != nil {
		return "", false
	}
	for _, f := range []struct {
		family
		dialect Dialect
	}{
		{newFamily("nv_inference"), DialectTriton}, {newFamily("nv_trt_llm"), DialectTriton},
		{vllmMetrics, DialectVLLM}, {sglangMetrics, DialectSGLang}, {tgiMetrics, DialectTGI},
		{llamacppMetrics, DialectLlamaCpp}, {trtllmMetrics, DialectTRTLLM},
	} {
		if f.owns(buf.Bytes()) {
			return f.dialect, true
		}
	}
	return "", false
}

// characters are the pages that only one kind of engine has, identified by fields and the first
// bytes of their values. The more other engines imitate one, the later it comes.
var characters = []struct {
	dialect    Dialect
	path       string
	fields     map[string]string
	also       string
	alsoFields map[string]string
}{
	{dialect: DialectTGI, path: "/info", fields: map[string]string{"model_id": `"`, "max_concurrent_requests": "", "max_best_of": ""}},
	{dialect: DialectTriton, path: "/v2", fields: map[string]string{"name": `"triton"`, "extensions": "["}},
	{dialect: DialectLlamaCpp, path: "/props", fields: map[string]string{"total_slots": ""}},
	{dialect: DialectSGLang, path: "/get_model_info", fields: map[string]string{"model_path": `"`, "is_generation": ""}},
	{dialect: DialectSGLang, path: "/model_info", fields: map[string]string{"model_path": `"`, "is_generation": ""}},
	{dialect: DialectSGLang, path: "/get_server_info", fields: map[string]string{"max_running_requests": ""}},
	{dialect: DialectSGLang, path: "/server_info", fields: map[string]string{"max_running_requests": ""}},
	{dialect: DialectLMStudio, path: "/api/v0/models", fields: map[string]string{"data": "["}},
	{dialect: DialectLlamaSwap, path: "/running", fields: map[string]string{"running": "["}},
	{dialect: DialectOllama, path: "/api/version", fields: map[string]string{"version": `"`},
		also: "/api/ps", alsoFields: map[string]string{"models": "["}},
}

// has reports whether the page at path is a JSON object with these fields, each value starting with the given text.
func (p *prober) has(ctx context.Context, path string, want map[string]string) bool {
	var fields map[string]json.RawMessage
	if p.get(ctx, path, &fields) != nil {
		return false
	}
	for name, begin := range want {
		if v, ok := fields[name]; !ok || !strings.HasPrefix(string(v), begin) {
			return false
		}
	}
	return true
}
