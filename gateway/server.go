package gateway

import (
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rs/cors"

	"github.com/pulley-lb/pulley/api"
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
			e := api.AsError(err)
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
			e.Write(w, api.Of(r.URL.Path), id.String())
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
		return &api.Error{Status: http.StatusMethodNotAllowed, Code: "method_not_allowed", Message: r.Method + " is not served on " + api.Quote(r.URL.Path) + ": inference calls are POST, and GET is for /v1/models"}
	}
	return &api.Error{Status: http.StatusNotFound, Code: "not_found", Message: "there is nothing at " + api.Quote(r.URL.Path) + "; the API begins with /v1/"}
}

func (g *Gateway) withCORS(h http.Handler) http.Handler {
	if len(g.cfg.CORSOrigins) == 0 {
		return h
	}
	return cors.New(cors.Options{
		AllowedOrigins: g.cfg.CORSOrigins,
		AllowedMethods: []string{http.MethodGet, http.MethodPost},
		AllowedHeaders: []string{"*"},
		ExposedHeaders: []string{
			"X-Request-Id", "Openai-Processing-Ms", "Server-Timing", "Retry-After", "Retry-After-Ms", "X-Service-Tier",
			"X-Ratelimit-Limit-Requests", "X-Ratelimit-Remaining-Requests", "X-Ratelimit-Reset-Requests",
			"X-Ratelimit-Limit-Tokens", "X-Ratelimit-Remaining-Tokens", "X-Ratelimit-Reset-Tokens",
		},
		MaxAge: 600,
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
	models, err := g.modelsFor(r)
	if err != nil {
		return err
	}
	for _, name := range models {
		list.Data = append(list.Data, asModel(name))
	}
	return writeJSON(w, http.StatusOK, list)
}

func (g *Gateway) showModel(w http.ResponseWriter, r *http.Request, _ subjects.ID) error {
	id := r.PathValue("id")
	models, err := g.modelsFor(r)
	if err != nil {
		return err
	}
	if slices.Contains(models, id) {
		return writeJSON(w, http.StatusOK, asModel(id))
	}
	return g.unknownModel(id)
}

// modelsFor is what the one who asks may ask for.
func (g *Gateway) modelsFor(r *http.Request) ([]string, error) {
	who, err := g.keys.authenticate(r.Header, time.Now())
	if err != nil {
		return nil, err
	}
	models := g.Models()
	if who.key != nil {
		models = slices.DeleteFunc(models, func(m string) bool { return !who.key.AllowsModel(m) })
	}
	return models, nil
}

// Models are the names that requests may ask for now: what live workers serve,
// and what routes lead there.
func (g *Gateway) Models() []string {
	live := g.fleet.models()
	names := make(map[string]bool)
	for _, m := range live {
		names[m] = true
	}
	for name, r := range g.rules.Load().Policy.Routes {
		if strings.Contains(name, "*") {
			continue
		}
		for _, t := range r.To {
			if _, there := slices.BinarySearch(live, t.Pool); there && t.Weight > 0 {
				names[name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// KeysRequired says whether clients need a key now.
func (g *Gateway) KeysRequired() bool { return g.keys.required() }

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
