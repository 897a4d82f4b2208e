package sim

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pulley-lb/pulley/engine"
)

// Config describes a simulated engine. The probabilities are per request, exclude each other, and add up to at most 1.
type Config struct {
	// Name identifies this engine in x-sim-name and system_fingerprint. Default "sim".
	Name string
	// Models are the names of the models that it serves; at least one.
	Models []string
	// Slots is how many requests run at once. Default 8.
	Slots int
	// MaxQueue is how many requests may wait; the next one is refused. Default 0, no limit.
	MaxQueue int
	// PrefillRate is in prompt tokens per second. Default 0, infinitely fast.
	PrefillRate float64
	// PrefillBatch is how many prompt tokens are prefilled together, vLLM's max_num_batched_tokens: prompts beyond that
	// wait in the queue, without a slot. It changes what the engine reports, but no times. Default 8192.
	PrefillBatch int
	// ITLBase is the part of the inter-token time that does not depend on the batch. Default 0.
	ITLBase time.Duration
	// ITLPerRequest is the part of the inter-token time that each request in the batch adds. Default 0.
	ITLPerRequest time.Duration
	// PrefixCache is how many prompt tokens are kept for later prompts with the same start, in
	// whole blocks of 16. Default 0, none.
	PrefixCache int
	// TTFT is added after the prefill, before the first token. Default 0.
	TTFT time.Duration
	// TokensPerEvent is how many tokens an event of a stream carries; the first one carries one. Default 1.
	TokensPerEvent int
	// Fail is the probability of an answer with status 500. Default 0.
	Fail float64
	// Hang is the probability of no answer until the client disconnects. Default 0.
	Hang float64
	// Cut is the probability that the connection is cut after CutAfter tokens. Default 0.
	Cut float64
	// CutAfter is the number of tokens before a Cut. Default 0, before the first token.
	CutAfter int
	// Refuse is the probability of a refusal. Default 0.
	Refuse float64
	// RefuseStatus is the status of a refusal, 429 or 503. Default 429.
	RefuseStatus int
	// RetryAfter is the retry-after of a refusal, in whole seconds. Default 1s.
	RetryAfter time.Duration
	// KVTokens is the size of the KV cache in tokens: prompts wait until there is room, and when answers outgrow it,
	// the last request is preempted. Default 65536 per slot, which is hardly ever used up.
	KVTokens int
	// Loaded is how many of the models it holds at once: a request for another one waits for its load, and for the
	// running requests of the model that is evicted for it. Default 0, all of them.
	Loaded int
	// Cold says that no model is loaded at first, even if all of them can be at once. Default false.
	Cold bool
	// LoadTime is the duration of a load. Default 0.
	LoadTime time.Duration
	// KeepAlive is after how long without a request a model is unloaded, as Ollama's OLLAMA_KEEP_ALIVE. Default 0, never.
	KeepAlive time.Duration
	// Context is the length of a prompt with its answer, in tokens. What does not fit is refused, or cut, as the dialect's
	// engine does. Default 0, no limit.
	Context int
	// APIKey is the key that the engine asks for, in its dialect's way and on its dialect's paths. Default "", none.
	APIKey string
	// StartTime is how long after New the engine is still starting, and behaves as its dialect's engine does meanwhile.
	// Default 0, not at all.
	StartTime time.Duration
	// Dialect is the engine that it behaves like: in the pages on which it reports its state, in the names of models that it
	// takes, and in its words for what it refuses. What it generates is answered as OpenAI's specification says with every
	// dialect, except that engine.DialectOllama ignores max_completion_tokens and repeats the role in every chunk.
	// Default engine.DialectVLLM.
	Dialect engine.Dialect
	// Seed seeds the draws of misbehaviours. Default 1.
	Seed uint64
}

func (c Config) withDefaults() Config {
	c.Name = cmp.Or(c.Name, "sim")
	c.Slots = cmp.Or(c.Slots, 8)
	c.PrefillBatch = cmp.Or(c.PrefillBatch, 8192)
	c.TokensPerEvent = cmp.Or(c.TokensPerEvent, 1)
	c.RefuseStatus = cmp.Or(c.RefuseStatus, http.StatusTooManyRequests)
	c.RetryAfter = cmp.Or(c.RetryAfter, time.Second)
	c.KVTokens = cmp.Or(c.KVTokens, 65536*c.Slots)
	c.Dialect = cmp.Or(c.Dialect, engine.DialectVLLM)
	if d, err := engine.ParseDialect(string(c.Dialect)); err == nil {
		c.Dialect = d
	}
	c.Seed = cmp.Or(c.Seed, 1)
	c.Models = slices.Clone(c.Models)
	return c
}

// A ConfigError reports an invalid field of a configuration.
type ConfigError struct {
	Field  string // name of the field in Config
	Reason string
}

func (e *ConfigError) Error() string { return e.Field + ": " + e.Reason }

func (c Config) check() error {
	bad := func(field, format string, args ...any) error {
		return &ConfigError{Field: field, Reason: fmt.Sprintf(format, args...)}
	}
	if strings.ContainsFunc(c.Name, func(r rune) bool { return r <= ' ' || r > '~' || r == ',' }) {
		return bad("Name", "%q: only printable ASCII without spaces and commas", c.Name)
	}
	if len(c.Models) == 0 || slices.Contains(c.Models, "") {
		return bad("Models", "at least one name is required, and none may be empty")
	}
	for _, f := range []struct {
		field string
		value float64
		least float64
	}{
		{"Slots", float64(c.Slots), 1},
		{"MaxQueue", float64(c.MaxQueue), 0},
		{"PrefillRate", c.PrefillRate, 0},
		{"PrefillBatch", float64(c.PrefillBatch), 1},
		{"PrefixCache", float64(c.PrefixCache), 0},
		{"KVTokens", float64(c.KVTokens), 1},
		{"Loaded", float64(c.Loaded), 0},
		{"LoadTime", float64(c.LoadTime), 0},
		{"KeepAlive", float64(c.KeepAlive), 0},
		{"Context", float64(c.Context), 0},
		{"StartTime", float64(c.StartTime), 0},
		{"ITLBase", float64(c.ITLBase), 0},
		{"ITLPerRequest", float64(c.ITLPerRequest), 0},
		{"TTFT", float64(c.TTFT), 0},
		{"TokensPerEvent", float64(c.TokensPerEvent), 1},
		{"CutAfter", float64(c.CutAfter), 0},
		{"RetryAfter", float64(c.RetryAfter), 0},
		{"Fail", c.Fail, 0}, {"Hang", c.Hang, 0}, {"Cut", c.Cut, 0}, {"Refuse", c.Refuse, 0},
	} {
		if !(f.value >= f.least) || math.IsInf(f.value, 0) {
			return bad(f.field, "must be %v or more", f.least)
		}
	}
	sum := 0.0
	for _, p := range []struct {
		field string
		value float64
	}{{"Fail", c.Fail}, {"Hang", c.Hang}, {"Cut", c.Cut}, {"Refuse", c.Refuse}} {
		if sum += p.value; p.value > 1 {
			return bad(p.field, "%v is not a probability", p.value)
		} else if sum > 1+1e-9 {
			return bad(p.field, "the probabilities of misbehaviours add up to more than 1")
		}
	}
	if c.RefuseStatus != http.StatusTooManyRequests && c.RefuseStatus != http.StatusServiceUnavailable {
		return bad("RefuseStatus", "%d: must be 429 or 503", c.RefuseStatus)
	}
	if !slices.Contains(Dialects(), c.Dialect) {
		return bad("Dialect", "%q: must be %s", c.Dialect, engine.SpellDialects(Dialects()))
	}
	if c.APIKey != "" && keyless[c.Dialect] {
		return bad("APIKey", "%s has no keys of its own", c.Dialect)
	}
	return nil
}

// An Engine is a simulated engine. It is an http.Handler that owns no goroutine: its work happens
// in the handlers of its requests and, while time passes for them, in one timer. It cuts a
// connection by panicking with http.ErrAbortHandler, as net/http expects.
type Engine struct {
	// Fixed after New.
	cfg        Config
	mux        *http.ServeMux
	batch      *batch
	loader     *loader // nil: all models are always loaded
	begun      time.Time
	methods    map[string]bool // paths that some method has
	nameHeader []string

	lastID   atomic.Uint64
	received atomic.Int64
	finished atomic.Int64
	aborted  atomic.Int64
	refused  atomic.Int64
	failed   atomic.Int64
	tokensIn atomic.Int64
	tokens   atomic.Int64

	drawMu sync.Mutex // guards draws
	draws  *rand.Rand
}

// New checks cfg and starts nothing. The error is a *ConfigError for the first invalid field.
func New(cfg Config) (*Engine, error) {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	s := &Engine{
		cfg:        cfg,
		batch:      newBatch(cfg),
		loader:     newLoader(cfg),
		begun:      time.Now(),
		nameHeader: []string{cfg.Name},
		draws:      rand.New(rand.NewPCG(cfg.Seed, 0)),
	}
	s.mux = s.routes()
	return s, nil
}

func (s *Engine) routes() *http.ServeMux {
	mux := http.NewServeMux()
	s.methods = make(map[string]bool)
	mux.HandleFunc("/", s.nothingThere)
	mux.Handle("POST /v1/chat/completions", s.handle(chatEndpoint))
	mux.Handle("POST /v1/completions", s.handle(completionEndpoint))
	mux.Handle("POST /v1/responses", s.handle(responsesEndpoint))
	mux.Handle("POST /v1/messages", s.handle(messagesEndpoint))
	mux.Handle("POST /v1/embeddings", s.handle(embeddingsEndpoint))
	mux.Handle("POST /v1/rerank", s.handle(rerankEndpoint))
	mux.Handle("POST /v1/images/generations", s.handle(imagesEndpoint))
	mux.Handle("POST /v1/audio/transcriptions", s.handle(transcriptionEndpoint))
	mux.Handle("POST /v1/audio/speech", s.handle(speechEndpoint))
	mux.Handle("POST /v2/models/{model}/infer", s.handle(inferEndpoint))
	for _, path := range []string{
		"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings", "/v1/rerank", "/v1/images/generations",
		"/v1/audio/transcriptions", "/v1/audio/speech", "/v1/models",
	} {
		s.methods[path] = true
	}
	mux.HandleFunc("GET /v1/models", s.listModels)
	mux.HandleFunc("GET /v1/models/{id...}", s.showModel)
	mux.HandleFunc("GET /sim/stats", s.showStats)
	mux.HandleFunc("POST /sim/clock", s.orderClock)
	if s.cfg.Dialect != engine.DialectOllama { // which has none
		for path, answer := range tokenCounts {
			mux.HandleFunc(path, s.countTokens(answer, path == "POST /v1/messages/count_tokens"))
		}
	}
	for path, show := range s.pages() {
		mux.HandleFunc(path, show)
		if _, path, ok := strings.Cut(path, " "); ok {
			s.methods[path] = true
		}
	}
	return mux
}

// ServeHTTP answers one request; see the package documentation.
func (s *Engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header()["X-Sim-Name"] = s.nameHeader
	if s.cfg.Dialect == engine.DialectLlamaCpp {
		w.Header()["Server"] = serverHeader
	}
	if !s.turnedAway(w, r) {
		s.mux.ServeHTTP(w, r)
	}
}

var serverHeader = []string{"llama.cpp"}

// handle serves an inference request: read, check, apply orders, run, answer.
func (s *Engine) handle(e endpoint) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := s.infer(w, r, e)
		if refusal, ok := errors.AsType[*apiError](err); ok {
			refusal.write(w, e.anthropic)
		}
	})
}

func (s *Engine) infer(w http.ResponseWriter, r *http.Request, e endpoint) error {
	s.received.Add(1)
	b, err := e.read(w, r)
	if refusal, ok := errors.AsType[*apiError](err); ok {
		return s.unreadable(refusal)
	}
	if err != nil {
		return err
	}
	if e.needed != nil && !e.needed(b) {
		return s.missing(e.needs, b.Model)
	}
	wk, err := s.newWork(r, e, b)
	if err != nil {
		return err
	}
	o, err := s.orders(r.Header)
	if err != nil {
		return err
	}
	switch {
	case o.close:
		s.failed.Add(1)
		panic(http.ErrAbortHandler)
	case o.refuse != 0:
		return s.refusal(o.refuse)
	case o.fail != 0:
		s.failed.Add(1)
		return errorOf(o.fail, "this failure was requested")
	}
	return s.run(w, r, wk, e.answer(b, wk), o)
}

// refusal counts a refusal and returns it.
func (s *Engine) refusal(status int) *apiError {
	s.refused.Add(1)
	err := errorOf(status, "the engine has no capacity for another request")
	err.retryAfter = strconv.Itoa(int(math.Ceil(s.cfg.RetryAfter.Seconds())))
	return err
}

// Stats counts the requests of an Engine.
type Stats struct {
	Name       string `json:"name"`
	Slots      int    `json:"slots"`
	Running    int    `json:"running"`     // have a slot
	Waiting    int    `json:"waiting"`     // in the engine's queue
	MaxRunning int    `json:"max_running"` // highest number that ran at once
	Received   int64  `json:"received"`    // inference requests received, answered or not
	Started    int64  `json:"started"`     // got a slot
	Finished   int64  `json:"finished"`    // computed to their end for a client that was still connected
	Aborted    int64  `json:"aborted"`     // disconnected before that, waiting or running
	Refused    int64  `json:"refused"`     // 429 or 503, because the queue was full or on request
	Failed     int64  `json:"failed"`      // 500, closed or cut, on request
	Preempted  int64  `json:"preempted"`   // preemptions for lack of KV cache
	Queried    int64  `json:"queried"`     // prompt tokens looked up in the prefix cache
	Cached     int64  `json:"cached"`      // prompt tokens found there
	Computed   int64  `json:"computed"`    // prompt tokens prefilled
	// PrefillTime is the time for these.
	PrefillTime time.Duration `json:"prefill_time"`
	Loads       int64         `json:"loads"` // loads of models
	Clock       float64       `json:"clock"` // see SetClock
}

// Stats returns a snapshot. A client that has its whole answer is counted as finished.
func (s *Engine) Stats() Stats { return s.state().Stats }

func (s *Engine) showStats(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, s.Stats())
}

// minClock is the slowest clock that can be set: a token takes hours.
const minClock = 1e-6

// SetClock sets the speed of prefill and decoding relative to the configuration, from now on and also in the middle of
// a token, as a GPU's clocks do: 0.5 is half as fast, 1 is as configured. Less than 0.000001 is refused.
func (s *Engine) SetClock(factor float64) error {
	if !(factor >= minClock) || math.IsInf(factor, 0) {
		return fmt.Errorf("clock %v: must be at least %v", factor, minClock)
	}
	s.batch.setClock(factor)
	return nil
}

// orderClock serves SetClock with the parameter factor, from the query or a form.
func (s *Engine) orderClock(w http.ResponseWriter, r *http.Request) {
	factor, err := strconv.ParseFloat(r.FormValue("factor"), 64)
	if err == nil {
		err = s.SetClock(factor)
	}
	if err != nil {
		badRequest("factor", "%v", err).write(w, false)
		return
	}
	s.showStats(w, r)
}
