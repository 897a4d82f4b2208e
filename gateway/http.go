package gateway

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/cors"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/subjects"
)

// errBreakOff ends a response by closing its connection, so that no client mistakes a part of an answer for all of it.
var errBreakOff = errors.New("answer broken off")

// ingress is the HTTP API.
type ingress struct {
	cfg       *Config
	bus       *bus
	keys      *keyring
	router    *router
	admission *admission
	mirrors   *mirrors
	server    *server
	cheap     *cheapCalls
	metrics   *metrics
	history   *history
	ledger    *ledger
	bodies    *bodies
	pages     *enginePages
	doors     *api.Doors
	addresses *addresses
	wrongKeys *wrongKeys
	records   *records
	takers    []Taker
}

func (in *ingress) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /v1/models", in.answering(in.listModels))
	mux.Handle("GET /v1/models/{id...}", in.answering(in.showModel))
	mux.Handle("GET /healthz", http.HandlerFunc(healthz))
	mux.HandleFunc("GET /health", in.pages.serveHealth)
	mux.Handle("GET /load", in.answering(in.identified(in.pages.serveLoad)))
	mux.Handle("GET /metrics", in.answering(in.identified(in.pages.serveMetrics)))
	mux.Handle("/", in.answering(notHere))
	infer := in.answering(in.infer)
	all := in.records.of(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r, err := normal(r)
		switch {
		case err != nil:
			in.answering(func(http.ResponseWriter, *http.Request, subjects.ID) error { return unreadError{err} }).ServeHTTP(w, r)
		case len(in.cfg.Services) > 0 && in.serviceOf(r) != nil:
			in.serveService(in.serviceOf(r)).ServeHTTP(w, r)
		case r.Method == http.MethodPost: // not through the mux, whose frame would be on the stack of each stream
			infer.ServeHTTP(w, r)
		default:
			if r.ContentLength != 0 { // nobody reads it but net/http
				http.NewResponseController(w).SetReadDeadline(time.Now().Add(smallFor))
			}
			mux.ServeHTTP(w, r)
		}
	}))
	if len(in.cfg.CORSOrigins) == 0 {
		return all
	}
	return cors.New(cors.Options{
		AllowedOrigins: in.cfg.CORSOrigins,
		AllowedMethods: []string{http.MethodGet, http.MethodPost, http.MethodDelete},
		AllowedHeaders: []string{"*"},
		ExposedHeaders: []string{
			"X-Pulley-Pool", "X-Pulley-Worker", "X-Pulley-Attempts", "X-Pulley-Queue-Ms", "X-Pulley-Rung", "X-Pulley-Affinity",
			"X-Request-Id", "X-Pulley-Request-Id", "Idempotent-Replayed", ResumeHeader, "Openai-Processing-Ms", "Server-Timing", "Retry-After", "Retry-After-Ms", "X-Should-Retry", "X-Service-Tier",
			"X-Ratelimit-Limit-Requests", "X-Ratelimit-Remaining-Requests", "X-Ratelimit-Reset-Requests",
			"X-Ratelimit-Limit-Tokens", "X-Ratelimit-Remaining-Tokens", "X-Ratelimit-Reset-Tokens",
		},
		MaxAge: 600,
	}).Handler(all)
}

// normal gives a request the one spelling of its path, before anything is decided by it, and takes keys out of its query:
// they do not authenticate there, since queries end up in logs, and the engine must not see them.
func normal(r *http.Request) (*http.Request, error) {
	u, err := api.NormalURL(r.URL)
	if err != nil {
		return r, err
	}
	if query := api.WithoutKeys(u.RawQuery); query != u.RawQuery {
		copied := *u
		copied.RawQuery, u = query, &copied
	}
	if u == r.URL {
		return r, nil
	}
	r = r.WithContext(r.Context()) // a copy
	r.URL = u
	return r, nil
}

// answering gives a request its id, and answers with the error that a handler returns. The answer has the client's own id
// if it sent one, and beside it always the gateway's.
func (in *ingress) answering(serve func(http.ResponseWriter, *http.Request, subjects.ID) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		id := subjects.NewID()
		ids := []string{id.String()}
		w.Header()["X-Pulley-Request-Id"] = ids
		if own := r.Header["X-Request-Id"]; len(own) == 1 && isRequestID(own[0]) {
			ids = own
		}
		w.Header()["X-Request-Id"] = ids
		if v := r.Header.Get("X-Client-Request-Id"); v != "" && len(v) <= 128 {
			w.Header().Set("X-Client-Request-Id", v)
		}
		in.end(w, r, id, serve(w, r, id), began)
	})
}

// isRequestID says whether a client's own id of its request is passed on: 1 to 128 printable characters of ASCII, without
// spaces.
func isRequestID(s string) bool {
	return len(s) > 0 && len(s) <= 128 && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

// end logs the end of a request, and answers with the error, if there is one.
func (in *ingress) end(w http.ResponseWriter, r *http.Request, id subjects.ID, err error, began time.Time) {
	recordOf(w).failed(err)
	log := in.bus.log
	switch {
	case err == nil && !log.Enabled(r.Context(), slog.LevelDebug):
	case err == nil:
		log.Debug("request", "id", id, "path", r.URL.Path, "took", time.Since(began))
	case errors.Is(err, errClientGone):
		log.Info("request", "id", id, "path", r.URL.Path, "status", 499, "took", time.Since(began))
		panic(http.ErrAbortHandler)
	case errors.Is(err, errBreakOff):
		log.Info("request", "id", id, "path", r.URL.Path, "outcome", "broken off", "took", time.Since(began))
		panic(http.ErrAbortHandler)
	default:
		e := api.AsError(err)
		if e.RetryAfter > api.LongestRetry(r.Header) {
			w.Header().Set("X-Should-Retry", "false")
		}
		if e.Status == http.StatusInternalServerError {
			log.Error("request", "id", id, "path", r.URL.Path, "err", err)
		} else {
			level := slog.LevelInfo
			if e.Code == tooManyWrongKeys { // as many as somebody likes to send
				level = slog.LevelDebug
			}
			log.Log(r.Context(), level, "request", "id", id, "path", r.URL.Path, "status", e.Status, "code", e.Code, "took", time.Since(began))
		}
		in.metrics.errors.WithLabelValues(strings.ToLower(e.Code)).Inc()
		_, unread := errors.AsType[unreadError](err)
		lingers := unread && e.Status != http.StatusRequestTimeout && mustLinger(r)
		if lingers || e.Status == http.StatusRequestTimeout {
			w.Header().Set("Connection", "close")
		}
		w.Header().Set("Openai-Processing-Ms", strconv.FormatInt(time.Since(began).Milliseconds(), 10))
		rc := http.NewResponseController(w)
		writes := time.Now()
		if unread && r.ContentLength != 0 { // before it writes, net/http reads a body that is small, for as long as that takes
			writes = writes.Add(smallFor)
			rc.SetReadDeadline(writes)
		}
		rc.SetWriteDeadline(writes.Add(in.cfg.SlowClient))
		e.Write(w, api.Of(r.URL.Path), w.Header().Get("X-Request-Id"))
		if lingers {
			linger(w, r)
		}
	}
}

func (in *ingress) infer(w http.ResponseWriter, r *http.Request, id subjects.ID) error {
	req, memory, err := in.admit(w, r, id)
	if err != nil {
		in.history.turnedAway(id, err)
		return err
	}
	if req == nil { // a service took it
		return nil
	}
	defer memory.give()
	if req.cheap {
		return in.cheap.serve(r.Context(), w, req)
	}
	if req.route != nil {
		in.mirrors.send(req)
	}
	return in.server.serve(r.Context(), w, req)
}

// admit makes a request of a call, or returns why not. The caller gives the memory of its body back. It returns neither if a
// service has answered the call.
//
// It is no part of infer, since the frames of infer and of what calls it are on the stack of every open stream: with 240
// bytes more, these stacks stayed at 16 KiB instead of 8, and 2 000 idle streams took 5.4 MiB more.
func (in *ingress) admit(w http.ResponseWriter, r *http.Request, id subjects.ID) (req *request, memory *hold, err error) {
	arrived := time.Now()
	who, err := in.identify(w, r, arrived)
	recordOf(w).identified(who)
	if err == nil {
		err = in.enterDoor(w, r)
	}
	if err != nil {
		return nil, nil, unreadError{err}
	}
	memory = &hold{of: in.bodies, from: in.addresses.of(r)}
	memory.key = who.keyID()
	a := arrival{id: id, http: r, header: w.Header(), caller: who, at: arrived, proxied: in.addresses.fromProxy(r), record: recordOf(w)}
	a.body, err = in.bodies.read(w, r, memory)
	if err != nil {
		err = unreadError{err}
	} else if t := in.takerOf(r, a.body); t != nil {
		r.Body = takenBody{memory}
		err := t.Take(w, r, who.asCaller(), a.body)
		memory.give()
		return nil, nil, told(r, err)
	} else if r.Header[ResumeHeader] != nil {
		err = errNoResume
	} else {
		req, err = in.admission.admit(&a)
	}
	if err != nil {
		memory.give()
		in.ledger.turnedAway(who, a.model, a.tier, a.pool, err)
		return nil, nil, err
	}
	recordOf(w).enters()
	return req, memory, nil
}

// identify returns who sends a call, or why that is not known.
func (in *ingress) identify(w http.ResponseWriter, r *http.Request, now time.Time) (*caller, error) {
	if c, ok := r.Context().Value(forCaller{}).(serviceCaller); ok {
		return in.keys.callerOf(c, now)
	}
	who, err := in.keys.authenticate(r.Header, now)
	if err != errWrongKey {
		return who, err
	}
	if err = in.wrongKeys.refuse(in.addresses.of(r), now); err != errWrongKey {
		w.Header().Set("Connection", "close") // the next one costs the client a connection
	}
	return nil, err
}

// enterDoor returns an error if clients may not use the path of a call.
func (in *ingress) enterDoor(w http.ResponseWriter, r *http.Request) error {
	u := r.URL
	if len(u.Path) > 1 && strings.HasSuffix(u.Path, "/") {
		u.Path, u.RawPath = u.Path[:len(u.Path)-1], strings.TrimSuffix(u.RawPath, "/")
	}
	switch {
	case in.doors.Allows(u):
		return nil
	case ownPath(u.Path):
		return notHere(w, r, subjects.ID{})
	}
	return api.Errorf(http.StatusNotFound, "path_not_allowed",
		"POST %s is not served: it is not among the engine paths that clients may use; the operator of the gateway can add it with --allow-path", api.Quote(u.Path))
}

// ownPath says that the gateway itself serves a path.
func ownPath(path string) bool {
	return path == "/healthz" || path == "/health" || path == "/load" || path == "/metrics" || path == "/v1/models" || strings.HasPrefix(path, "/v1/models/")
}

// model is an entry of a list of models, with what the engines' own lists say.
type model struct {
	ID               string     `json:"id"`
	Object           string     `json:"object"`
	Created          int64      `json:"created"`
	OwnedBy          string     `json:"owned_by"`
	MaxModelLen      int64      `json:"max_model_len,omitempty"`
	ContextLength    int64      `json:"context_length,omitempty"`
	MaxContextLength int64      `json:"max_context_length,omitempty"`
	ContextWindow    int64      `json:"context_window,omitempty"`
	Parent           string     `json:"parent,omitempty"`
	Meta             *modelMeta `json:"meta,omitempty"`
}

// modelMeta is where llama.cpp has these.
type modelMeta struct {
	Context int64 `json:"n_ctx,omitempty"`
	Trained int64 `json:"n_ctx_train,omitempty"`
}

func asModel(name string, said subjects.ListedModel) model {
	m := model{
		ID: name, Object: "model", Created: said.Created, OwnedBy: cmp.Or(said.OwnedBy, "pulley"), MaxModelLen: said.MaxModelLen,
		ContextLength: said.ContextLength, MaxContextLength: said.MaxContextLength, ContextWindow: said.ContextWindow, Parent: said.Parent,
	}
	if meta := (modelMeta{said.MetaContext, said.MetaTrained}); meta != (modelMeta{}) {
		m.Meta = &meta
	}
	return m
}

// listModels lists the models that the caller may ask for.
func (in *ingress) listModels(w http.ResponseWriter, r *http.Request, _ subjects.ID) error {
	list := struct {
		Object   string  `json:"object"`
		Data     []model `json:"data"`
		ServedBy string  `json:"served_by"` // for a worker whose engine this gateway is
	}{"list", []model{}, "pulley"}
	models, err := in.modelsFor(w, r)
	if err != nil {
		return err
	}
	said := in.router.listed(models)
	for _, name := range models {
		list.Data = append(list.Data, asModel(name, said[name]))
	}
	return writeJSON(w, http.StatusOK, list)
}

func (in *ingress) showModel(w http.ResponseWriter, r *http.Request, _ subjects.ID) error {
	id := r.PathValue("id")
	models, err := in.modelsFor(w, r)
	if err != nil {
		return err
	}
	named := in.router.find(in.bus.rules.Load(), id)
	for _, name := range append([]string{id}, named.names...) {
		if slices.Contains(models, name) {
			return writeJSON(w, http.StatusOK, asModel(name, in.router.listed([]string{name})[name]))
		}
	}
	return in.router.unknown(id)
}

// identified serves those who may use the gateway.
func (in *ingress) identified(serve func(http.ResponseWriter, *http.Request) error) func(http.ResponseWriter, *http.Request, subjects.ID) error {
	return func(w http.ResponseWriter, r *http.Request, _ subjects.ID) error {
		if _, err := in.identify(w, r, time.Now()); err != nil {
			return err
		}
		return serve(w, r)
	}
}

// modelsFor are the models that the caller may ask for.
func (in *ingress) modelsFor(w http.ResponseWriter, r *http.Request) ([]string, error) {
	who, err := in.identify(w, r, time.Now())
	if err != nil {
		return nil, err
	}
	return in.admission.mayAskFor(who, in.router.models()), nil
}

func wantsWebSocket(r *http.Request) bool {
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) && strings.EqualFold(r.Header.Get("Upgrade"), "websocket")
}

func notHere(w http.ResponseWriter, r *http.Request, _ subjects.ID) error {
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	if wantsWebSocket(r) { // clients that try it first then use HTTP
		w.Header().Set("Upgrade", "HTTP/1.1")
		w.Header().Set("Connection", "Upgrade")
		return api.Errorf(http.StatusUpgradeRequired, "websocket_not_supported", "WebSocket is not served here; use HTTP: inference calls are POST")
	}
	if !read || strings.HasPrefix(r.URL.Path, "/v1/") {
		allow := http.MethodPost
		if ownPath(r.URL.Path) {
			allow = "GET, HEAD"
		}
		w.Header().Set("Allow", allow)
		return unreadError{api.Errorf(http.StatusMethodNotAllowed, "method_not_allowed",
			"%s is not served on %s: inference calls are POST, and GET is for /v1/models", r.Method, api.Quote(r.URL.Path))}
	}
	return api.Errorf(http.StatusNotFound, "not_found", "nothing is served at %s; the API is under /v1/", api.Quote(r.URL.Path))
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

// idleGrace is how long a connection on which no request has begun stays open while the gateway stops. Browsers open
// such connections ahead of their requests.
const idleGrace = time.Second

// idleConns are the ingress's connections on which no request has begun. [http.Server.Shutdown] waits 5 s for each of
// them; the gateway closes them earlier.
type idleConns struct {
	count atomic.Int64 // length of since: spares each request the lock

	mu    sync.Mutex
	since map[net.Conn]time.Time // when each was accepted
}

func newIdleConns() *idleConns { return &idleConns{since: make(map[net.Conn]time.Time)} }

// track is an [http.Server.ConnState].
func (s *idleConns) track(c net.Conn, state http.ConnState) {
	if state != http.StateNew && s.count.Load() == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if state == http.StateNew {
		s.since[c] = time.Now()
	} else {
		delete(s.since, c)
	}
	s.count.Store(int64(len(s.since)))
}

// closeLoop closes the connections that have been idle for idleGrace, until ctx is done.
func (s *idleConns) closeLoop(ctx context.Context) {
	tick := time.NewTicker(idleGrace / 4)
	defer tick.Stop()
	for ctx.Err() == nil {
		for _, c := range s.old(time.Now()) {
			c.Close()
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

func (s *idleConns) old(now time.Time) []net.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	var old []net.Conn
	for c, since := range s.since {
		if now.Sub(since) >= idleGrace {
			old = append(old, c)
		}
	}
	return old
}
