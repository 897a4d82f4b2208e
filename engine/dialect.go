package engine

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// A Dialect is the way in which an engine reports about itself: the Scraper reads it, and package
// sim speaks it. The zero value is that of an engine which is not known yet.
type Dialect string

// The dialects, named after the engines that have them.
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
	// DialectOpenAI is that of any engine that lists its models and reports nothing more.
	DialectOpenAI Dialect = "openai"
)

// dialects lists all dialects.
func dialects() []Dialect {
	return []Dialect{DialectVLLM, DialectSGLang, DialectTGI, DialectLlamaCpp, DialectOllama, DialectTriton, DialectTRTLLM,
		DialectLlamaSwap, DialectLMStudio, DialectOpenAI}
}

// ParseDialect finds a dialect by its name, in any common spelling: llamacpp, trtllm, vLLM.
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
	return "", fmt.Errorf("%q: must be %s", name, SpellDialects(dialects()))
}

// SpellDialects lists names for a message: "vllm, sglang or tgi".
func SpellDialects(ds []Dialect) string {
	names := make([]string, len(ds))
	for i, d := range ds {
		names[i] = string(d)
	}
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " or " + names[last]
}

// slowly is how often values that seldom change are read: models, slots.
const slowly = 10 * time.Second

// A page is one of an engine's pages, and how to read it.
type page struct {
	path   string
	port   string // if it is not the engine's own
	method string // "": GET
	every  time.Duration
	// notReady is the status below 500 with which a page about the health says that the engine is not ready; 0: none.
	notReady int
	// needless reports whether the pages before this one suffice; nil: never.
	needless func(Status) bool
	// scrape says that this is the Prometheus page, which may be elsewhere.
	scrape bool
	// read stores the page's values; it leaves a value that the page does not have unset. nil: any answer will do.
	read func(body []byte, st *Status) error
}

// fromJSON makes a page.read of a function that stores what a page in JSON has.
func fromJSON[T any](store func(T, *Status)) func([]byte, *Status) error {
	return func(body []byte, st *Status) error {
		var v T
		if err := json.Unmarshal(body, &v); err != nil {
			return err
		}
		store(v, st)
		return nil
	}
}

// fromMetrics makes a page.read of a function that stores the metrics of a family.
func fromMetrics(f family, store func(metrics, *Status)) func([]byte, *Status) error {
	return func(body []byte, st *Status) error {
		store(f.parse(body), st)
		return nil
	}
}

// pages returns the pages on which an engine of this dialect reports: its health, and the rest. If
// two pages report the same value, the first one counts.
func (d Dialect) pages() (health page, rest []page) {
	models := page{path: "/v1/models", every: slowly, read: readModels}
	switch d {
	case DialectVLLM:
		return page{path: "/health"}, []page{{path: "/metrics", scrape: true, read: fromMetrics(vllmMetrics, readVLLM)}, models}
	case DialectSGLang:
		// Its /health generates a token, and queues it behind all other requests.
		return page{path: "/v1/models", read: readModels}, []page{
			{path: "/v1/loads", read: fromJSON(readSGLangLoads)},
			{path: "/metrics", scrape: true, read: fromMetrics(sglangMetrics, readSGLang)},
			{path: "/get_server_info", every: slowly, needless: knowsSlots, read: fromJSON(readSGLangInfo)},
			{path: "/server_info", every: slowly, needless: knowsSlots, read: fromJSON(readSGLangInfo)}, // the newer name
		}
	case DialectTGI:
		return page{path: "/health"}, []page{
			{path: "/metrics", scrape: true, read: fromMetrics(tgiMetrics, readTGI)}, {path: "/info", every: slowly, read: fromJSON(readTGIInfo)}}
	case DialectLlamaCpp:
		return page{path: "/health"}, []page{
			{path: "/metrics", scrape: true, read: fromMetrics(llamacppMetrics, readLlamaCpp)},
			{path: "/slots", needless: knowsLoad, read: fromJSON(readLlamaCppSlots)},
			{path: "/props", every: slowly, read: fromJSON(readLlamaCppProps)},
			models,
		}
	case DialectOllama:
		return page{path: "/api/version"}, []page{
			{path: "/api/ps", read: fromJSON(readOllamaLoaded)}, {path: "/api/tags", every: slowly, read: fromJSON(readOllamaModels)}}
	case DialectTriton:
		return page{path: "/v2/health/ready", notReady: http.StatusBadRequest}, []page{
			{path: "/metrics", scrape: true, read: fromMetrics(tritonMetrics, readTriton)}, // of its OpenAI front end
			{path: "/metrics", port: "8002", scrape: true, needless: knowsLoad, read: fromMetrics(tritonMetrics, readTriton)},
			{path: "/v2/repository/index", method: http.MethodPost, every: slowly, read: fromJSON(readTritonModels)},
		}
	case DialectTRTLLM:
		// Its /metrics is something else, and reading it consumes what other readers would get.
		return page{path: "/health"}, []page{{path: "/prometheus/metrics", scrape: true, read: fromMetrics(trtllmMetrics, readTRTLLM)}, models}
	case DialectLlamaSwap:
		return page{path: "/health"}, []page{
			{path: "/running", read: fromJSON(readLlamaSwapRunning)}, {path: "/v1/models", every: slowly, read: readModelsUnloaded}}
	case DialectLMStudio:
		return page{path: "/v1/models"}, []page{{path: "/api/v0/models", read: readLMStudioModels}}
	}
	return page{path: "/v1/models", read: readModels}, nil
}

func knowsLoad(st Status) bool { return st.Running != nil || st.Waiting != nil }

func knowsSlots(st Status) bool { return st.Slots != nil }
