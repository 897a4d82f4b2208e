package batch

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/subjects"
)

// Config configures a Service. The zero value is usable.
type Config struct {
	// Replicas is how many copies of each stream a cluster keeps. Default 1.
	Replicas int
	// Tier is the tier that lines run in. Default "batch".
	Tier string
	// Disk bounds files and results on the broker's disk, in bytes. Default 10 GiB.
	Disk int64
	// MaxFile bounds the input of a batch, in bytes. Default 200 MiB, and 256 MiB for a batch of messages.
	MaxFile int64
	// MaxLines bounds the requests of a batch. Default 50 000, and 100 000 for a batch of messages.
	MaxLines int
	// Window bounds how many lines of a batch run at once. Default 256.
	Window int
	// Running bounds how many batches one gateway runs at once. Default 16.
	Running int
	// TenantDisk bounds the files of a tenant, in bytes. Default half of Disk.
	TenantDisk int64
	// TenantFiles bounds the number of a tenant's files. Default 1000.
	TenantFiles int
	// TenantBatches bounds the batches of a tenant that have not ended. Default 100.
	TenantBatches int
	// TenantLines bounds the requests of a tenant's batches that are not answered yet. Default 1 000 000.
	TenantLines int
	// TenantTokens bounds the tokens of these requests, by an estimate of their inputs and their longest answers. Default 10 billion.
	TenantTokens int64
	// Late bounds how many requests of late batches run as ordinary calls in one gateway at once. Default 16; below 0: none.
	Late int
	// Logger gets a line when a batch is taken, and when it has ended. Default: silent.
	Logger *slog.Logger

	maxMessagesSize int64 // MaxFile and MaxLines of a batch of messages
	maxMessages     int
}

func (c Config) withDefaults() (Config, error) {
	for name, v := range map[string]int64{
		"replicas": int64(c.Replicas), "batch disk": c.Disk, "batch file": c.MaxFile, "batch requests": int64(c.MaxLines), "batch window": int64(c.Window), "running batches": int64(c.Running),
		"tenant disk": c.TenantDisk, "tenant files": int64(c.TenantFiles), "tenant batches": int64(c.TenantBatches), "tenant requests": int64(c.TenantLines), "tenant tokens": c.TenantTokens,
	} {
		if v < 0 {
			return c, fmt.Errorf("%s: must not be negative", name)
		}
	}
	c.Replicas = cmp.Or(c.Replicas, 1)
	c.Tier = cmp.Or(c.Tier, "batch")
	c.Disk = cmp.Or(c.Disk, 10<<30)
	c.maxMessagesSize, c.maxMessages = cmp.Or(c.MaxFile, 256<<20), cmp.Or(c.MaxLines, 100_000) // as Anthropic's API has it
	c.MaxFile = cmp.Or(c.MaxFile, 200<<20)
	c.MaxLines = cmp.Or(c.MaxLines, 50_000)
	c.Window = cmp.Or(c.Window, 256)
	c.Running = cmp.Or(c.Running, 16)
	c.TenantDisk = cmp.Or(c.TenantDisk, c.Disk/2)
	c.TenantFiles = cmp.Or(c.TenantFiles, 1000)
	c.TenantBatches = cmp.Or(c.TenantBatches, 100)
	c.TenantLines = cmp.Or(c.TenantLines, 1_000_000)
	c.TenantTokens = cmp.Or(c.TenantTokens, 10_000_000_000)
	c.Late = max(cmp.Or(c.Late, 16), 0)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// Service is a gateway.Service for files and batches. Create it with New and give it to one gateway.
type Service struct {
	// Fixed after New.
	id      string
	cfg     Config
	log     *slog.Logger
	store   *store
	mux     *http.ServeMux
	ready   atomic.Bool // the streams exist
	help    *help
	changed chan struct{} // wakes Run: a batch was accepted or cancelled here; holds one

	mu   sync.Mutex
	runs map[string]*run // the batches that this service owns, by id
}

// New checks the configuration. It starts nothing.
func New(cfg Config, nc *nats.Conn) (*Service, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("batches: %w", err)
	}
	s := &Service{
		id: newID(""), cfg: cfg, log: cfg.Logger, store: &store{nc, js}, mux: http.NewServeMux(), changed: make(chan struct{}, 1), runs: make(map[string]*run),
		help: &help{most: cfg.Late, granted: make(map[*run]int)},
	}
	paths := make(map[string]bool) // with any method
	for pattern, h := range map[string]handler{
		"POST /v1/files":               s.createFile,
		"GET /v1/files":                s.listFiles,
		"GET /v1/files/{id}":           s.showFile,
		"DELETE /v1/files/{id}":        s.deleteFile,
		"GET /v1/files/{id}/content":   s.fileContent,
		"POST /v1/batches":             s.createBatch,
		"GET /v1/batches":              s.listBatches,
		"GET /v1/batches/{id}":         s.showBatch,
		"POST /v1/batches/{id}/cancel": s.cancelBatch,

		"POST /v1/messages/batches":             s.createMessages,
		"GET /v1/messages/batches":              s.listMessages,
		"GET /v1/messages/batches/{id}":         s.showMessages,
		"DELETE /v1/messages/batches/{id}":      s.deleteMessages,
		"POST /v1/messages/batches/{id}/cancel": s.cancelMessages,
		"GET /v1/messages/batches/{id}/results": s.messagesResults,

		"/v1/": notHere,
	} {
		s.mux.Handle(pattern, h)
		if _, path, ok := strings.Cut(pattern, " "); ok {
			paths[path] = true
		}
	}
	for path := range paths {
		s.mux.Handle(path, handler(notServed))
	}
	return s, nil
}

// roots are the paths that are the service's, with all below them.
var roots = []string{"/v1/files", "/v1/batches", "/v1/messages/batches"}

// Serves says whether a call is for files or batches.
func (s *Service) Serves(r *http.Request) bool {
	for _, root := range roots {
		if below, ok := strings.CutPrefix(r.URL.Path, root); ok && (below == "" || below[0] == '/') {
			return true
		}
	}
	return false
}

// handler answers a call, or returns an error.
type handler func(w http.ResponseWriter, r *http.Request, who gateway.Caller) error

// call carries the caller and the error of a call through the mux.
type call struct {
	http.ResponseWriter
	who gateway.Caller
	err error
}

func (h handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := w.(*call)
	c.err = h(c.ResponseWriter, r, c.who)
}

// Serve answers a call.
func (s *Service) Serve(w http.ResponseWriter, r *http.Request, who gateway.Caller) error {
	if !s.ready.Load() {
		return api.Unavailable("starting", time.Second, "the storage of files and batches is not available yet")
	}
	c := &call{ResponseWriter: w, who: who}
	s.mux.ServeHTTP(c, r)
	_, told := errors.AsType[*api.Error](c.err)
	switch {
	case c.err == nil, told, r.Context().Err() != nil:
		return c.err
	case errors.Is(c.err, errFull):
		return full("storage_full", "the broker has no room left on its disk")
	}
	s.log.Warn("files and batches", "method", r.Method, "path", r.URL.Path, "err", c.err)
	return api.Unavailable("storage_unavailable", time.Second, "the storage of files and batches does not answer; try again")
}

func notServed(_ http.ResponseWriter, r *http.Request, _ gateway.Caller) error {
	return api.Errorf(http.StatusMethodNotAllowed, "method_not_allowed", "%s is not served on %s", r.Method, api.Quote(r.URL.Path))
}

func notHere(_ http.ResponseWriter, r *http.Request, _ gateway.Caller) error {
	return api.Errorf(http.StatusNotFound, "not_found", "nothing is served at %s", api.Quote(r.URL.Path))
}

func writeJSON(w http.ResponseWriter, v any) error {
	b, err := subjects.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.Write(b)
	return nil
}

// wake makes Run look for work at once.
func (s *Service) wake() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}
