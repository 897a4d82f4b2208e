package sim

import (
	"net/http"
	"strings"
	"time"

	"github.com/pulley-lb/pulley/engine"
)

// turnedAway answers what the engine does not let in: while it starts, and without its key.
func (s *Engine) turnedAway(w http.ResponseWriter, r *http.Request) bool {
	path := r.URL.Path
	if strings.HasPrefix(path, "/sim/") {
		return false
	}
	if s.cfg.StartTime > 0 && time.Since(s.begun) < s.cfg.StartTime && s.starting(w, r) {
		return true
	}
	if s.cfg.APIKey == "" || s.open(r) || s.hasKey(r.Header) {
		return false
	}
	s.unauthorized().write(w, strings.HasPrefix(path, "/v1/messages"))
	return true
}

// starting answers as an engine does that has not loaded its model yet. Engines that listen only when they have loaded it
// close the connection.
func (s *Engine) starting(w http.ResponseWriter, r *http.Request) bool {
	path := r.URL.Path
	switch s.cfg.Dialect {
	case engine.DialectLlamaCpp:
		llamacppSaid(http.StatusServiceUnavailable, "unavailable_error", "Loading model", nil).write(w, false)
		return true
	case engine.DialectSGLang:
		if path == "/health" || path == "/health_generate" {
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		return false
	case engine.DialectTriton:
		if path == "/v2/health/ready" {
			w.WriteHeader(http.StatusBadRequest)
			return true
		}
		if path == "/v1/models" {
			writeJSON(w, http.StatusOK, object{"object": "list", "data": []object{}})
			return true
		}
		if strings.HasPrefix(path, "/v1/") {
			s.said(http.StatusBadRequest, "", "Unknown model: "+s.cfg.Models[0]).write(w, false)
			return true
		}
		return false
	}
	panic(http.ErrAbortHandler)
}

// keyless are the dialects of engines that have no keys of their own.
var keyless = map[engine.Dialect]bool{engine.DialectOllama: true, engine.DialectTRTLLM: true}

// open says whether a request needs no key.
func (s *Engine) open(r *http.Request) bool {
	path := r.URL.Path
	switch s.cfg.Dialect {
	case engine.DialectVLLM:
		return !strings.HasPrefix(path, "/v1/")
	case engine.DialectTGI:
		return r.Method == http.MethodGet
	case engine.DialectSGLang:
		return strings.HasPrefix(path, "/health") || strings.HasPrefix(path, "/metrics")
	case engine.DialectTriton:
		return !strings.HasPrefix(path, "/v1/") || r.Method == http.MethodGet
	case engine.DialectLMStudio:
		return false
	}
	return path == "/health"
}

func (s *Engine) hasKey(h http.Header) bool {
	key, isBearer := strings.CutPrefix(h.Get("Authorization"), "Bearer ")
	return isBearer && key == s.cfg.APIKey || h.Get("X-Api-Key") == s.cfg.APIKey
}

func (s *Engine) unauthorized() *apiError {
	switch s.cfg.Dialect {
	case engine.DialectVLLM, engine.DialectSGLang:
		e := errorOf(http.StatusUnauthorized, "Unauthorized")
		e.body = object{"error": "Unauthorized"}
		return e
	case engine.DialectTGI:
		return plain(http.StatusUnauthorized, "")
	case engine.DialectLlamaCpp:
		return llamacppSaid(http.StatusUnauthorized, "authentication_error", "Invalid API Key", nil)
	case engine.DialectLMStudio:
		e := errorOf(http.StatusUnauthorized, "An LM Studio API token is required to make requests to this server")
		e.kind, e.code = "invalid_request", new("invalid_api_key")
		return e
	case engine.DialectTriton:
		e := errorOf(http.StatusUnauthorized, "the API key is missing or wrong")
		e.body = object{"error": object{"message": e.message, "type": "authentication_error", "code": "invalid_auth"}}
		return e
	case engine.DialectLlamaSwap:
		return swapSaid(http.StatusUnauthorized, "authentication_error", "unauthorized", "unauthorized: invalid or missing API key")
	}
	e := errorOf(http.StatusUnauthorized, "Incorrect API key provided.")
	e.code = new("invalid_api_key")
	return e
}
