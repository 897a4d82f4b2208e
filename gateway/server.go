package gateway

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/rs/cors"

	"github.com/pulley-lb/pulley/subjects"
)

// errBreakOff ends a response by closing its connection: a part of an answer
// must not pass for the whole.
var errBreakOff = errors.New("answer broken off")

// handler is the ingress's routes.
func (g *Gateway) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /v1/models", g.answering(g.listModels))
	mux.Handle("GET /v1/models/{id...}", g.answering(g.showModel))
	mux.Handle("GET /healthz", http.HandlerFunc(healthz))
	mux.Handle("POST /", g.answering(g.infer))
	mux.Handle("/", g.answering(notHere))
	return g.withCORS(mux)
}

// answering gives a request its id, and turns what a handler returns into the
// client's words.
func (g *Gateway) answering(serve func(http.ResponseWriter, *http.Request, subjects.ID) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		id := subjects.NewID()
		w.Header()["X-Request-Id"] = []string{id.String()}
		if v := r.Header.Get("X-Client-Request-Id"); v != "" && len(v) <= 128 {
			w.Header().Set("X-Client-Request-Id", v)
		}
		err := serve(w, r, id)
		switch {
		case err == nil && !g.log.Enabled(r.Context(), slog.LevelDebug):
		case err == nil:
			g.log.Debug("request", "id", id, "path", r.URL.Path, "took", time.Since(began))
		case errors.Is(err, errClientGone):
			g.log.Info("request", "id", id, "path", r.URL.Path, "status", 499, "took", time.Since(began))
			panic(http.ErrAbortHandler)
		case errors.Is(err, errBreakOff):
			g.log.Info("request", "id", id, "path", r.URL.Path, "outcome", "broken off", "took", time.Since(began))
			panic(http.ErrAbortHandler)
		default:
			e := asError(err)
			if e.Status == http.StatusInternalServerError {
				g.log.Error("request", "id", id, "path", r.URL.Path, "err", err)
			} else {
				g.log.Info("request", "id", id, "path", r.URL.Path, "status", e.Status, "code", e.Code, "took", time.Since(began))
			}
			g.metrics.answeredError(e)
			if e.Status == http.StatusRequestEntityTooLarge || e.Status == http.StatusRequestTimeout {
				w.Header().Set("Connection", "close") // the rest of the body is not read
			}
			w.Header().Set("Openai-Processing-Ms", strconv.FormatInt(time.Since(began).Milliseconds(), 10))
			http.NewResponseController(w).SetWriteDeadline(time.Now().Add(g.cfg.SlowClient))
			e.write(w, dialectOf(r.URL.Path), id.String())
		}
	})
}

func notHere(w http.ResponseWriter, r *http.Request, _ subjects.ID) error {
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	if !read || strings.HasPrefix(r.URL.Path, "/v1/") {
		allow := http.MethodPost
		if r.URL.Path == "/healthz" || r.URL.Path == "/v1/models" || strings.HasPrefix(r.URL.Path, "/v1/models/") {
			allow = "GET, HEAD"
		}
		w.Header().Set("Allow", allow)
		return &Error{Status: http.StatusMethodNotAllowed, Code: "method_not_allowed", Message: r.Method + " is not served on " + quote(r.URL.Path) + ": inference calls are POST, and GET is for /v1/models"}
	}
	return &Error{Status: http.StatusNotFound, Code: "not_found", Message: "there is nothing at " + quote(r.URL.Path) + "; the API begins with /v1/"}
}

func (g *Gateway) withCORS(h http.Handler) http.Handler {
	if len(g.cfg.CORSOrigins) == 0 {
		return h
	}
	return cors.New(cors.Options{
		AllowedOrigins: g.cfg.CORSOrigins,
		AllowedMethods: []string{http.MethodGet, http.MethodPost},
		AllowedHeaders: []string{"*"},
		ExposedHeaders: []string{"X-Request-Id", "Openai-Processing-Ms", "Server-Timing", "Retry-After", "X-Service-Tier"},
		MaxAge:         600,
	}).Handler(h)
}

type model struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"`
	OwnedBy string `json:"owned_by"`
}

func asModel(name string) model { return model{ID: name, Object: "model", OwnedBy: "pulley"} }

// listModels tells what live workers serve.
func (g *Gateway) listModels(w http.ResponseWriter, r *http.Request, _ subjects.ID) error {
	list := struct {
		Object string  `json:"object"`
		Data   []model `json:"data"`
	}{"list", []model{}}
	for _, name := range g.fleet.models() {
		list.Data = append(list.Data, asModel(name))
	}
	return writeJSON(w, http.StatusOK, list)
}

func (g *Gateway) showModel(w http.ResponseWriter, r *http.Request, _ subjects.ID) error {
	id := r.PathValue("id")
	for _, name := range g.fleet.models() {
		if name == id {
			return writeJSON(w, http.StatusOK, asModel(name))
		}
	}
	return g.unknownModel(id)
}

func writeJSON(w http.ResponseWriter, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	w.Write(b)
	return nil
}

func healthz(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Write([]byte("ok\n"))
}
