package engine

import (
	"fmt"
	"net/http"
	"strings"
	"time"
)

// A Dialect is how an engine tells of itself: the Scraper reads it, and package sim speaks it. Its zero value is that of an
// engine not known yet.
type Dialect string

// Dialects, by the name of the engine that has them.
const (
	DialectVLLM      Dialect = "vllm"
	DialectSGLang    Dialect = "sglang"
	DialectTGI       Dialect = "tgi"
	DialectLlamaCpp  Dialect = "llama.cpp"
	DialectOllama    Dialect = "ollama"
	DialectTriton    Dialect = "triton"
	DialectTRTLLM    Dialect = "tensorrt-llm"
	DialectLlamaSwap Dialect = "llama-swap"
	DialectLMStudio  Dialect = "lmstudio"
	// DialectOpenAI is that of anything that lists its models and says no more.
	DialectOpenAI Dialect = "openai"
)

// dialects are all that there are.
func dialects() []Dialect {
	return []Dialect{DialectVLLM, DialectSGLang, DialectTGI, DialectLlamaCpp, DialectOllama, DialectTriton, DialectTRTLLM,
		DialectLlamaSwap, DialectLMStudio, DialectOpenAI}
}

// ParseDialect knows a dialect by its name, as people spell it too: llamacpp, trtllm, vLLM.
func ParseDialect(name string) (Dialect, error) {
	plain := strings.NewReplacer("-", "", ".", "", "_", "", " ", "").Replace(strings.ToLower(name))
	switch plain {
	case "llamaserver":
		plain = "llamacpp"
	case "trtllm", "trtllmserve", "tensorrtllmserve":
		plain = "tensorrtllm"
	}
	for _, d := range dialects() {
		if strings.NewReplacer("-", "", ".", "").Replace(string(d)) == plain {
			return d, nil
		}
	}
	return "", fmt.Errorf("%q: want %s", name, SpellDialects(dialects()))
}

// SpellDialects lists names for a message: "vllm, sglang or tgi".
func SpellDialects(ds []Dialect) string {
	var s strings.Builder
	for i, d := range ds {
		switch {
		case i == len(ds)-1:
			s.WriteString(" or ")
		case i > 0:
			s.WriteString(", ")
		}
		s.WriteString(string(d))
	}
	return s.String()
}

// slowly is how often that is asked for which seldom changes: models, slots.
const slowly = 10 * time.Second

// A page is one of an engine's, and how to read it.
type page struct {
	path   string
	port   string // where it is not the engine's own
	method string // "": GET
	every  time.Duration
	// needless says that the pages before this one have told enough; nil: never.
	needless func(Status) bool
	// scrape says that the page is the one for Prometheus, which may be elsewhere.
	scrape bool
	// read takes what the page says. Of what it does not say it leaves no trace. nil: an answer is all.
	read func(body []byte, st *Status) error
}

// pages are where an engine of this dialect tells of itself: how it is, and then the rest. Of what two pages tell the
// first one's word holds.
func (d Dialect) pages() (health page, rest []page) {
	models := page{path: "/v1/models", every: slowly, read: readModels}
	switch d {
	case DialectVLLM:
		return page{path: "/health"}, []page{{path: "/metrics", scrape: true, read: readVLLM}, models}
	case DialectSGLang:
		// Its /health generates a token, and waits for it behind all others.
		return page{path: "/v1/models", read: readModels}, []page{
			{path: "/v1/loads", read: readSGLangLoads},
			{path: "/metrics", scrape: true, read: readSGLang},
			{path: "/get_server_info", every: slowly, needless: knowsSlots, read: readSGLangInfo},
			{path: "/server_info", every: slowly, needless: knowsSlots, read: readSGLangInfo}, // its newer name
		}
	case DialectTGI:
		return page{path: "/health"}, []page{
			{path: "/metrics", scrape: true, read: readTGI}, {path: "/info", every: slowly, read: readTGIInfo}}
	case DialectLlamaCpp:
		return page{path: "/health"}, []page{
			{path: "/metrics", scrape: true, read: readLlamaCpp},
			{path: "/slots", needless: knowsLoad, read: readLlamaCppSlots},
			{path: "/props", every: slowly, read: readLlamaCppProps},
			models,
		}
	case DialectOllama:
		return page{path: "/api/version"}, []page{
			{path: "/api/ps", read: readOllamaLoaded}, {path: "/api/tags", every: slowly, read: readOllamaModels}}
	case DialectTriton:
		return page{path: "/v2/health/ready"}, []page{
			{path: "/metrics", scrape: true, read: readTriton}, // of its OpenAI front end
			{path: "/metrics", port: "8002", scrape: true, needless: knowsLoad, read: readTriton},
			{path: "/v2/repository/index", method: http.MethodPost, every: slowly, read: readTritonModels},
		}
	case DialectTRTLLM:
		// Its /metrics is another thing, and reading it takes it away from who else reads it.
		return page{path: "/health"}, []page{{path: "/prometheus/metrics", scrape: true, read: readTRTLLM}, models}
	case DialectLlamaSwap:
		return page{path: "/health"}, []page{
			{path: "/running", read: readLlamaSwapRunning}, {path: "/v1/models", every: slowly, read: readModelsUnloaded}}
	case DialectLMStudio:
		return page{path: "/v1/models"}, []page{{path: "/api/v0/models", read: readLMStudioModels}}
	}
	return page{path: "/v1/models", read: readModels}, nil
}

func knowsLoad(st Status) bool { return st.Running != nil || st.Waiting != nil }

func knowsSlots(st Status) bool { return st.Slots != nil }
