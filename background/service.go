package background

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/subjects"
)

// The defaults of a Config, and the least that Keep may be: clients of OpenAI's API count on that.
const (
	DefaultKeep   = time.Hour
	LeastKeep     = 10 * time.Minute
	DefaultWithin = 24 * time.Hour
)

// Config holds the choices for background responses. All gateways of a fleet should have the same.
type Config struct {
	// Keep is how long a response is kept after its end, and each of its events after it came. Default DefaultKeep.
	Keep time.Duration
	// Within is how long a response may take from its acceptance to its end. Default DefaultWithin.
	Within time.Duration
	// MaxAnswer bounds the answer of one response, in bytes with all its events. Default 16 MiB.
	MaxAnswer int64
	// Store bounds, in bytes, bodies, events and answers of all responses. It counts when the store is created. Default 1 GiB, or
	// what the broker has room for.
	Store int64
	// Pending is how many responses of a tenant may wait or run. It counts when the store is created. Default 1000.
	Pending int64
	// Running is how many responses this gateway runs at the same time. Default 256.
	Running int
	// Replicas of the streams that are created. Default 1.
	Replicas int
	// Logger gets a line for each response that ends. Default: silent.
	Logger *slog.Logger

	id string // of this process
}

// Service is a [gateway.Taker].
type Service struct {
	cfg    Config
	store  *Store
	runner *runner
}

// New checks the configuration. It starts nothing, and creates nothing in the broker before the first response.
func New(cfg Config, nc *nats.Conn) (*Service, error) {
	if cfg.Keep == 0 {
		cfg.Keep = DefaultKeep
	}
	if cfg.Within == 0 {
		cfg.Within = DefaultWithin
	}
	if cfg.Keep < LeastKeep {
		return nil, fmt.Errorf("background keep %v: must be at least %v", cfg.Keep, LeastKeep)
	}
	if cfg.Within < time.Second || cfg.MaxAnswer < 0 || cfg.Store < 0 || cfg.Pending < 0 || cfg.Running < 0 || cfg.Replicas < 0 {
		return nil, errors.New("background: limits must not be negative, and responses need at least 1s")
	}
	for value, usual := range map[*int64]int64{&cfg.MaxAnswer: 16 << 20, &cfg.Store: 1 << 30, &cfg.Pending: 1000} {
		if *value == 0 {
			*value = usual
		}
	}
	cfg.Running, cfg.Replicas = max(cfg.Running, 0), max(cfg.Replicas, 1)
	if cfg.Running == 0 {
		cfg.Running = 256
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.id = rand.Text()
	store, err := OpenStore(nc)
	if err != nil {
		return nil, err
	}
	store.keep, store.life = cfg.Keep, cfg.Within
	store.limits = subjects.BackgroundLimits{Bytes: cfg.Store, Pending: cfg.Pending, Lifetime: cfg.Within + cfg.Keep, Replicas: cfg.Replicas}
	s := &Service{cfg: cfg, store: store}
	s.runner = &runner{cfg: &s.cfg, store: store, running: make(map[string]context.CancelCauseFunc), tenants: make(map[string]int)}
	return s, nil
}

// Run takes and runs responses until ctx ends. Those that it runs then are given back, for other gateways.
func (s *Service) Run(ctx context.Context, do gateway.Do) {
	sub, err := s.store.nc.Subscribe(subjects.BackgroundStops, func(m *nats.Msg) { s.runner.stop(string(m.Data), errStopped) })
	if err != nil {
		s.cfg.Logger.Error("background responses do not run", "err", err)
		return
	}
	defer sub.Unsubscribe()
	s.runner.do = do
	s.runner.pull(ctx)
}

// responseID is the form of a response's id.
var responseID = regexp.MustCompile(`^resp_[0-9a-f]{48}$`)

func newID() string {
	var b [24]byte
	rand.Read(b[:])
	return "resp_" + hex.EncodeToString(b[:])
}

const collection = "/v1/responses"

// Serves says whether a call reads, cancels or deletes a response.
func (s *Service) Serves(r *http.Request) bool {
	rest, ok := strings.CutPrefix(r.URL.Path, collection)
	if !ok || rest != "" && rest[0] != '/' {
		return false
	}
	switch r.Method {
	case http.MethodGet:
		return true
	case http.MethodDelete:
		return strings.Trim(rest, "/") != ""
	}
	return r.Method == http.MethodPost && strings.HasSuffix(rest, "/cancel")
}

// Serve answers such a call.
func (s *Service) Serve(w http.ResponseWriter, r *http.Request, who gateway.Caller) error {
	rest := strings.Trim(strings.TrimPrefix(r.URL.Path, collection), "/")
	if rest == "" {
		return s.list(w, r, who)
	}
	id, action, _ := strings.Cut(rest, "/")
	if !responseID.MatchString(id) {
		return notFound(id)
	}
	if action != "" && (action != "cancel" || r.Method != http.MethodPost) {
		return api.Errorf(http.StatusNotFound, "not_found", "%s %s: a background response is read, deleted, or cancelled with POST …/cancel",
			r.Method, api.Quote(r.URL.Path))
	}
	switch {
	case action == "cancel":
		resp, err := s.store.Cancel(r.Context(), who.Tenant, id)
		if err != nil {
			return s.errorOf(err, id)
		}
		return write(w, http.StatusOK, resp.object)
	case r.Method == http.MethodDelete:
		if err := s.store.Delete(r.Context(), who.Tenant, id); err != nil {
			return s.errorOf(err, id)
		}
		b, _ := with([]byte("{}"), member{"id", text(id)}, member{"object", text("response")}, member{"deleted", yes})
		return write(w, http.StatusOK, b)
	}
	resp, err := s.store.Load(r.Context(), who.Tenant, id)
	if err != nil {
		return s.errorOf(err, id)
	}
	if q := r.URL.Query(); q.Get("stream") == "true" || streamInBody(w, r) {
		after := -1
		if v := q.Get("starting_after"); v != "" {
			if after, err = strconv.Atoi(v); err != nil {
				return api.BadRequest("starting_after", "starting_after %s: must be the sequence_number of an event", api.Quote(v))
			}
		}
		if !resp.isResponses() {
			return api.BadRequest("stream", "the response has no events: it is an answer of %s, which is there when it has ended", api.Quote(resp.Path))
		}
		return s.follow(w, r, resp, after)
	}
	return write(w, http.StatusOK, resp.object)
}

// streamInBody says whether the body of a GET asks for a stream, as OpenAI's SDK for Go does.
func streamInBody(w http.ResponseWriter, r *http.Request) bool {
	if r.ContentLength == 0 {
		return false
	}
	http.NewResponseController(w).SetReadDeadline(time.Now().Add(5 * time.Second))
	body, err := io.ReadAll(io.LimitReader(r.Body, 4<<10))
	return err == nil && get(body, "stream").Kind() == 't'
}

func notFound(id string) error {
	return api.Errorf(http.StatusNotFound, "not_found", "Response with id %s not found.", api.Quote(id))
}

func (s *Service) errorOf(err error, id string) error {
	if errors.Is(err, ErrNotFound) {
		return notFound(id)
	}
	return s.store.unavailable(err)
}

func write(w http.ResponseWriter, status int, body []byte) error {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	w.Write(body)
	return nil
}

// list answers with a page of the tenant's responses, without their content.
func (s *Service) list(w http.ResponseWriter, r *http.Request, who gateway.Caller) error {
	q := r.URL.Query()
	limit := 20
	if v := q.Get("limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > 100 {
			return api.BadRequest("limit", "limit %s: must be 1 to 100", api.Quote(v))
		}
		limit = n
	}
	all, err := s.store.List(r.Context(), who.Tenant, false)
	if err != nil {
		return s.store.unavailable(err)
	}
	if q.Get("order") != "asc" {
		slices.Reverse(all)
	}
	if after := q.Get("after"); after != "" {
		at := slices.IndexFunc(all, func(r *Response) bool { return r.ID == after })
		if at < 0 {
			return notFound(after)
		}
		all = all[at+1:]
	}
	page := all[:min(limit, len(all))]
	data, first, last := []byte("["), null, null
	for i, resp := range page {
		if i > 0 {
			data = append(data, ',')
		}
		item, _ := with([]byte("{}"), member{"id", text(resp.ID)}, member{"object", text("response")}, member{"created_at", seconds(resp.Created)},
			member{"status", text(string(resp.Status))}, member{"background", yes}, member{"model", text(resp.Model)}, member{"path", text(resp.Path)})
		data = append(data, item...)
		last = text(resp.ID)
		if i == 0 {
			first = last
		}
	}
	more := jsontext.Value("false")
	if len(page) < len(all) {
		more = yes
	}
	body, _ := with([]byte("{}"), member{"object", text("list")}, member{"data", append(data, ']')}, member{"first_id", first}, member{"last_id", last}, member{"has_more", more})
	return write(w, http.StatusOK, body)
}

// Takes says whether a call of inference asks for a background response.
func (s *Service) Takes(r *http.Request, body []byte) bool {
	if r.Header[gateway.ResumeHeader] != nil { // it may not run
		return false
	}
	if prefer := r.Header["Prefer"]; prefer != nil && prefers(prefer) {
		return true
	}
	return isResponses(r.URL.Path) && bytes.Contains(body, []byte(`"background"`)) && get(body, "background").Kind() == 't'
}

// prefers says whether a client prefers an asynchronous answer: RFC 7240.
func prefers(header []string) bool {
	for _, line := range header {
		for p := range strings.SplitSeq(line, ",") {
			name, _, _ := strings.Cut(p, ";")
			if strings.EqualFold(strings.TrimSpace(name), "respond-async") {
				return true
			}
		}
	}
	return false
}

var byteOrderMark = []byte("\ufeff")

// Take accepts a response.
func (s *Service) Take(w http.ResponseWriter, r *http.Request, who gateway.Caller, body []byte) error {
	call, err := api.Scan(r, body)
	if err != nil && !errors.Is(err, api.ErrNoModel) { // the gateway may have a default for it
		return err
	}
	now := time.Now()
	resp := &Response{ID: newID(), Tenant: who.Tenant, Key: who.Key, Path: api.RequestURI(r.URL), Model: call.Model, Status: Queued, Created: now}
	j := &job{ID: resp.ID, Tenant: who.Tenant, Key: who.Key, Path: resp.Path, Header: stored(r.Header), Created: now, Deadline: now.Add(s.cfg.Within)}
	asked := false // by the body
	if subjects.MediaType(r.Header) != "multipart/form-data" {
		body = bytes.TrimPrefix(body, byteOrderMark)
		asked = resp.isResponses() && get(body, "background").Kind() == 't'
		if asked && get(body, "store").Kind() == 'f' {
			return api.BadRequest("store", "a background response is stored: store must not be false")
		}
	}
	resp.object = newObject(resp, body)
	if body, err = forEngine(resp, &call, r, body); err != nil {
		return api.BadRequest("", "the body cannot be read: %v", err)
	}
	j.Size = len(body)
	if err := s.store.add(r.Context(), resp, j, body); err != nil {
		return err
	}
	r.Body.Close()
	switch {
	case asked && call.Stream:
		return s.follow(w, r, resp, -1)
	case asked:
		return write(w, http.StatusOK, resp.object)
	}
	w.Header().Set("Preference-Applied", "respond-async")
	w.Header().Set("Location", collection+"/"+resp.ID)
	return write(w, http.StatusAccepted, resp.object)
}

// forEngine is the body as an engine gets it: a response as a stream, so that its events can be stored, and an answer of another
// API as a whole.
func forEngine(resp *Response, call *api.Call, r *http.Request, body []byte) ([]byte, error) {
	switch {
	case subjects.MediaType(r.Header) == "multipart/form-data":
		return body, nil
	case resp.isResponses():
		return with(body, member{"background", nil}, member{"stream", yes})
	case call.Stream:
		return with(body, member{"stream", nil}, member{"stream_options", nil})
	}
	return body, nil
}
