package idempotency

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/plain"
	"github.com/pulley-lb/pulley/subjects"
)

// The defaults of a Config, and the least that Keep may be: requests that take longer would outlive their keys.
const (
	DefaultKeep  = 24 * time.Hour
	LeastKeep    = time.Minute
	DefaultGrace = 10 * time.Second
)

const (
	keyHeader   = "Idempotency-Key"
	retryHeader = "X-Stainless-Retry-Count"

	// Replayed is a header of answers that are those of an earlier request: from the store, or as they come.
	Replayed = "Idempotent-Replayed"

	longestKey = 255 // bytes

	claimWithin = 15 * time.Second // a claim that the broker does not answer

	retryKeep = 2 * time.Minute // how long a first request without a key, and its answer, are there for retries
)

// Config holds the choices. All gateways of a fleet should have the same.
type Config struct {
	// Keep is how long a key and its answer are kept after the first request with it came. Default DefaultKeep.
	Keep time.Duration
	// Grace is how long a request runs on when nobody waits for its answer any more. Default DefaultGrace.
	Grace time.Duration
	// MaxAnswer bounds an answer, in bytes. Default 16 MiB.
	MaxAnswer int64
	// Store bounds, in bytes, the answers of all tenants. It counts when the store is created. Default 1 GiB, or what the broker has
	// room for.
	Store int64
	// Tenant bounds, in bytes, the answers of a tenant; each counts for subjects.IdempotencyUnit at least. It counts when the store is
	// created. Default half of Store.
	Tenant int64
	// Retries has retries of SDKs, which say so in a header, join the first request with the same body while that runs, without a key.
	Retries bool
	// Replicas of the streams that are created. Default 1.
	Replicas int
	// Logger gets warnings. Default: silent.
	Logger *slog.Logger
}

// Service is a [gateway.Taker]. It must come before others that take calls of inference: what they answer is kept too.
type Service struct {
	cfg   Config
	id    string // of this process
	store *store

	mu   sync.Mutex
	do   gateway.Do      // nil while Run does not
	life context.Context // Run's: a request outlives the call that brought it
	runs map[string]*run // by owner
	made int             // runs so far
	wg   sync.WaitGroup  // the runs; no more are added when life has ended
}

// New checks the configuration. It starts nothing, and creates nothing in the broker before the first key.
func New(cfg Config, nc *nats.Conn) (*Service, error) {
	if cfg.Keep == 0 {
		cfg.Keep = DefaultKeep
	}
	if cfg.Grace == 0 {
		cfg.Grace = DefaultGrace
	}
	if cfg.Keep < LeastKeep {
		return nil, fmt.Errorf("idempotency keep %v: must be at least %v", cfg.Keep, LeastKeep)
	}
	if cfg.Grace < 0 || cfg.MaxAnswer < 0 || cfg.Store < 0 || cfg.Tenant < 0 || cfg.Replicas < 0 {
		return nil, errors.New("idempotency: limits must not be negative")
	}
	if cfg.MaxAnswer == 0 {
		cfg.MaxAnswer = 16 << 20
	}
	if cfg.Store == 0 {
		cfg.Store = 1 << 30
	}
	if cfg.Tenant == 0 {
		cfg.Tenant = cfg.Store / 2
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	store, err := newStore(nc, subjects.IdempotencyLimits{Bytes: cfg.Store, Tenant: cfg.Tenant, Replicas: max(cfg.Replicas, 1)})
	if err != nil {
		return nil, err
	}
	return &Service{cfg: cfg, id: rand.Text(), store: store, runs: make(map[string]*run)}, nil
}

// Serves says that no path is the service's own.
func (s *Service) Serves(*http.Request) bool { return false }

// Serve is never called.
func (s *Service) Serve(http.ResponseWriter, *http.Request, gateway.Caller) error {
	return api.Errorf(http.StatusNotFound, "not_found", "nothing is served here")
}

// Run answers other gateways, and runs the requests of the calls that it takes, until ctx ends.
func (s *Service) Run(ctx context.Context, do gateway.Do) {
	sub, err := s.store.nc.Subscribe(subjects.IdempotencyOwner(s.id), s.onAsk)
	if err != nil {
		s.cfg.Logger.Error("requests with an Idempotency-Key are refused", "err", err)
		return
	}
	defer sub.Unsubscribe()
	s.mu.Lock()
	s.do, s.life = do, ctx
	s.mu.Unlock()
	<-ctx.Done()
	s.mu.Lock()
	s.do = nil
	s.mu.Unlock()
	s.wg.Wait()
}

// onAsk answers whether a run runs here, for somebody who waits for its answer.
func (s *Service) onAsk(m *nats.Msg) {
	runs := "0"
	if r := s.local(string(m.Data)); r != nil {
		r.asked()
		runs = "1"
	}
	m.Respond([]byte(runs))
}

// local is the run of an owner, if it runs here.
func (s *Service) local(owner string) *run {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.runs[owner]
}

// Takes says whether a call has a key, resumes a stream, or may be a retry of one that runs.
func (s *Service) Takes(r *http.Request, _ []byte) bool {
	return r.Header[keyHeader] != nil || r.Header[gateway.ResumeHeader] != nil || s.cfg.Retries && r.Header[retryHeader] != nil
}

// Take answers a call: with what is stored, what runs, or by having it run.
func (s *Service) Take(w http.ResponseWriter, r *http.Request, who gateway.Caller, sent []byte) error {
	if r.Header[gateway.ResumeHeader] != nil {
		return s.resume(w, r, who, sent)
	}
	c := &call{keep: s.cfg.Keep, print: fingerprint(r, sent)}
	if keys := r.Header[keyHeader]; keys != nil {
		if err := check(keys); err != nil {
			return err
		}
		c.key, c.subject = keys[0], subjects.IdempotencyKey(who.Tenant, hash("key", keys[0]))
	} else {
		n, err := strconv.Atoi(r.Header.Get(retryHeader))
		c.first = err != nil || n <= 0
		c.keep, c.subject = retryKeep, subjects.IdempotencyKey(who.Tenant, hash("retries of", c.print))
	}
	claim, mine, err := s.claim(r.Context(), c)
	if err == nil && !mine {
		r.Body.Close()
	}
	switch {
	case errors.Is(err, errRuns):
		return s.pass(w, r, who, sent)
	case err != nil:
		return s.refusal(err)
	}
	var own *run
	if mine {
		if own, err = s.begin(r, who, c, claim, sent); err != nil {
			return s.refusal(err)
		}
	} else if own = s.local(claim.Owner); own != nil {
		own.join(1)
	}
	if own != nil {
		defer own.join(-1)
	}
	f := &follower{
		service: s, ctx: r.Context(), w: w, rc: http.NewResponseController(w), subject: c.subject, claim: claim.run(), owner: claim.Owner,
		last: claim.run(), run: own, replays: !mine,
	}
	return f.follow()
}

// check returns an error if a key cannot be used.
func check(keys []string) error {
	bad := func(why string) error {
		return api.Errorf(http.StatusBadRequest, "invalid_idempotency_key", "%s: %s", keyHeader, why)
	}
	switch key := keys[0]; {
	case len(keys) > 1:
		return bad("it was sent more than once")
	case strings.TrimSpace(key) == "":
		return bad("it is empty")
	case len(key) > longestKey:
		return bad(fmt.Sprintf("it has %d bytes, and may have %d", len(key), longestKey))
	}
	return nil
}

// hash is a name of texts that nobody finds other texts for.
func hash(texts ...string) string {
	h := sha256.New()
	for _, t := range texts {
		fmt.Fprintf(h, "%d %s", len(t), t)
	}
	return hex.EncodeToString(h.Sum(nil)[:20])
}

// fingerprint is a hash of a call's path and body. Parts of a form are separated by what the client has chosen at random.
func fingerprint(r *http.Request, body []byte) string {
	h := sha256.New()
	kind, params, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	fmt.Fprintf(h, "%q %q ", api.RequestURI(r.URL), kind)
	if boundary := params["boundary"]; boundary != "" {
		for part := range bytes.SplitSeq(body, []byte(boundary)) {
			fmt.Fprintf(h, "%d ", len(part))
			h.Write(part)
		}
	} else {
		h.Write(body)
	}
	return hex.EncodeToString(h.Sum(nil)[:20])
}

// call is what is known of a call by its header.
type call struct {
	key     string // empty: it has none, and may be a retry
	first   bool   // it has no key, and is no retry
	subject string
	print   string
	keep    time.Duration
}

// errRuns says that a request like a first one runs.
var errRuns = errors.New("another request with the same body runs")

// claim finds the request whose answer a call gets, by an entry of it. mine: it is the call's own, which is to run.
func (s *Service) claim(ctx context.Context, c *call) (found *entry, mine bool, err error) {
	if _, _, err := s.running(); err != nil {
		return nil, false, err
	}
	ctx, cancel := context.WithTimeout(ctx, claimWithin)
	defer cancel()
	for after := uint64(0); ; {
		e := &entry{Owner: s.newOwner(), Print: c.print, Until: time.Now().Add(c.keep)}
		if err := s.store.append(ctx, c.subject, e, after); err == nil {
			if after > 0 {
				s.store.purge(ctx, c.subject, e.seq)
			}
			return e, true, nil
		} else if !errors.Is(err, errChanged) {
			return nil, false, err
		}
		last, err := s.store.last(ctx, c.subject)
		if errors.Is(err, errNone) {
			after = 0
			continue
		}
		if err != nil {
			return nil, false, err
		}
		free, err := s.isFree(ctx, c, last)
		switch {
		case err != nil:
			return nil, false, err
		case free:
			after = last.seq
		case last.Print != c.print:
			return nil, false, reused(c.key)
		case c.first:
			return nil, false, errRuns
		default:
			return last, false, nil
		}
	}
}

// reused is the error of a call whose key has another request.
func reused(key string) *api.Error {
	return &api.Error{Status: http.StatusConflict, Code: "idempotency_key_reused", NoRetry: true,
		Message: fmt.Sprintf("%s %s was used before for a request with another path or body; use a new key for each request", keyHeader, api.Quote(key))}
}

// isFree says whether a key whose last entry is given can be claimed.
func (s *Service) isFree(ctx context.Context, c *call, last *entry) (bool, error) {
	switch {
	case last.End.frees():
		return true, nil
	case last.End == kept:
		if c.first {
			return true, nil
		}
		e, err := s.store.next(ctx, c.subject, last.Run)
		if err == nil && e.seq == last.Run || err != nil && !errors.Is(err, errNone) {
			return false, err
		}
		return true, nil // the rest expires too
	}
	for tries := 0; ; tries++ {
		switch s.ask(ctx, last.Owner) {
		case runs, silent:
			return false, nil
		}
		if tries == 3 { // it has not just lost its connection
			return true, nil
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(250 * time.Millisecond):
		}
		now, err := s.store.last(ctx, c.subject)
		if errors.Is(err, errNone) {
			return true, nil
		}
		if err != nil || now.seq != last.seq { // it has ended meanwhile, or goes on
			return false, err
		}
	}
}

// answers to the question whether a gateway runs a request.
type sign int

const (
	gone   sign = iota // it does not, or is not there
	silent             // it does not answer
	runs
)

// ask asks the owner of a run whether it still runs, and says that somebody waits.
func (s *Service) ask(ctx context.Context, owner string) sign {
	at, _, _ := strings.Cut(owner, ".")
	if at == s.id {
		if s.local(owner) != nil {
			return runs
		}
		return gone
	}
	ctx, cancel := context.WithTimeout(ctx, askEvery)
	defer cancel()
	m, err := s.store.nc.RequestWithContext(ctx, subjects.IdempotencyOwner(at), []byte(owner))
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return gone
	case err != nil:
		return silent
	case string(m.Data) == "1":
		return runs
	}
	return gone
}

// newOwner is a name for the next run here.
func (s *Service) newOwner() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.made++
	return s.id + "." + strconv.Itoa(s.made)
}

var errStopping = api.Unavailable("gateway_stopping", time.Second, "the gateway is starting or stopping")

// running returns what Run was given.
func (s *Service) running() (gateway.Do, context.Context, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.do == nil {
		return nil, nil, errStopping
	}
	return s.do, s.life, nil
}

// begin runs a request for a claim. Its caller is the first who waits for the answer.
func (s *Service) begin(r *http.Request, who gateway.Caller, c *call, claim *entry, sent []byte) (*run, error) {
	use, err := s.store.use(r.Context(), who.Tenant, c.keep)
	if err == nil {
		n := &run{
			service: s, subject: c.subject, tenant: who.Tenant, claim: claim, uses: []uint64{use}, last: claim.seq, wake: make(chan struct{}, 1), done: make(chan struct{}), news: make(chan struct{}),
			header: make(http.Header), path: r.URL.Path, clients: 1,
		}
		if err = s.start(n, r, who, sent); err == nil {
			return n, nil
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), endWithin)
	defer cancel()
	s.store.purge(ctx, c.subject, claim.seq+1)
	s.store.unuse(ctx, use)
	return nil, err
}

// start runs a request, unless the gateway stops.
func (s *Service) start(n *run, r *http.Request, who gateway.Caller, sent []byte) error {
	r.Body.Close() // do counts it again
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.do == nil {
		return errStopping
	}
	ctx, cancel := context.WithCancelCause(s.life)
	n.cancel, n.stopping = cancel, s.life.Done()
	req, do := requestOf(ctx, r, sent), s.do
	s.runs[n.claim.Owner] = n
	s.wg.Go(func() {
		n.serve(ctx, do, req, who)
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.runs, n.claim.Owner)
	})
	return nil
}

// requestOf is the request of a call as it runs, whose answer others get too.
func requestOf(ctx context.Context, r *http.Request, sent []byte) *http.Request {
	req := r.Clone(ctx)
	for _, name := range []string{keyHeader, retryHeader, "Accept-Encoding", "Expect", "Origin"} {
		req.Header.Del(name)
	}
	req.Body, req.ContentLength, req.TransferEncoding = &body{sent}, int64(len(sent)), nil
	return req
}

// pass runs a request as if it had not been taken.
func (s *Service) pass(w http.ResponseWriter, r *http.Request, who gateway.Caller, sent []byte) error {
	do, _, err := s.running()
	if err != nil {
		return err
	}
	r.Body.Close() // do counts it again
	do(passed{w}, requestOf(r.Context(), r, sent), who, "")
	return nil
}

// passed is a [http.ResponseWriter] without a read deadline: the body was read from the connection before.
type passed struct{ http.ResponseWriter }

func (p passed) FlushError() error { return http.NewResponseController(p.ResponseWriter).Flush() }

func (p passed) SetWriteDeadline(t time.Time) error {
	return http.NewResponseController(p.ResponseWriter).SetWriteDeadline(t)
}

// refusal is the error of a call that cannot be served.
func (s *Service) refusal(err error) error {
	if e, ok := errors.AsType[*api.Error](err); ok {
		return e
	}
	full := &api.Error{Status: http.StatusInsufficientStorage, Code: "idempotency_store_full", NoRetry: true}
	switch {
	case strings.Contains(err.Error(), "maximum messages per subject exceeded"):
		full.Message = fmt.Sprintf("the tenant's share of the store for answers by %s is full, %d bytes: it has room again when older keys expire. The request did not run", keyHeader, s.cfg.Tenant)
		return full
	case isFull(err):
		full.Message = fmt.Sprintf("the store for answers by %s is full: it has room again when older keys expire. The request did not run", keyHeader)
		return full
	case errors.Is(err, context.Canceled):
		return err
	}
	return api.Unavailable("idempotency_unavailable", time.Second, "the store for answers by %s does not answer: %s", keyHeader, plain.Error(err))
}
