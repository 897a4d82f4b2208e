package gateway

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// Service serves paths of its own at the ingress: work that outlives its connection. It has the gateway run the requests
// of that work.
type Service interface {
	// Serves says whether a call is the service's. It does not read the body.
	Serves(r *http.Request) bool
	// Serve answers a call. The body is unread, and no longer than the client makes it. An error that it returns is answered
	// in the form of the call's API; it must not have written anything then.
	Serve(w http.ResponseWriter, r *http.Request, who Caller) error
	// Run works until ctx ends, and then returns soon. do runs requests: see Do.
	Run(ctx context.Context, do Do)
}

// Taker is a Service that also takes calls of inference, by their headers or bodies, before they are admitted.
type Taker interface {
	Service
	// Takes says whether a call of inference is the service's. Each of them is shown to it, and waits
	// meanwhile: it must be fast. It must not change r or body.
	Takes(r *http.Request, body []byte) bool
	// Take answers a call as Serve does. Its body has been read, and must not be changed. r.Body.Close says that it is needed no
	// more, or that Do is about to have it: it counts for the gateway's memory until then.
	Take(w http.ResponseWriter, r *http.Request, who Caller, body []byte) error
}

// takenBody is the body of a call that a service has taken.
type takenBody struct{ memory *hold }

func (b takenBody) Read([]byte) (int, error) { return 0, io.EOF }

func (b takenBody) Close() error {
	b.memory.give()
	return nil
}

// Caller is a tenant, by one of its keys.
type Caller struct {
	Tenant string
	Key    string // its id; empty if the gateway asked for none
}

// Do runs a request for a caller as if it had come to the ingress: its limits, routes and retries are the same, and so is the
// answer. It returns when the answer is written, or r's context has ended; see also [Watched]. It panics with [http.ErrAbortHandler]
// where an answer is broken off, as handlers do. tier is the name of a tier, or [TierOfKey]; empty: what the request and the key ask
// for. A stream that waits gets no comments, so that an answer that fails before its first byte has a status.
//
// It answers 401 if the caller's key exists no more, or has expired. A stream that ends with an error after it has begun sets the
// header BrokenOff, too late for clients.
type Do func(w http.ResponseWriter, r *http.Request, who Caller, tier string)

// BrokenOff is a header by which a Service knows that an answer is not whole, though it ends as one.
const BrokenOff = "X-Pulley-Broken-Off"

// ResumeHeader is a header of calls that want the rest of a stream whose request has come before. A call with it never runs a request.
const ResumeHeader = "X-Pulley-Resume"

// errNoResume is the answer if no service takes such a call.
var errNoResume = api.Errorf(http.StatusBadRequest, "invalid_resume",
	"%s: this gateway stores no streams (--no-idempotency); send the request again without the header, and it runs again", ResumeHeader)

// forCaller is the key of a context's *caller, which is taken for who sends the call.
type forCaller struct{}

// do is a Do.
func (in *ingress) do(w http.ResponseWriter, r *http.Request, who Caller, tier string) {
	watch, _ := r.Context().Value(watching{}).(*Watch)
	ctx := context.WithValue(r.Context(), forCaller{}, serviceCaller{who, tier, watch})
	in.records.of(in.answering(in.infer)).ServeHTTP(w, r.WithContext(ctx))
}

// serviceCaller is for whom a service runs a request.
type serviceCaller struct {
	Caller
	tier  string
	watch *Watch // nil: the service does not watch the request
}

// serviceOf returns the service that answers a call; nil if none does.
func (in *ingress) serviceOf(r *http.Request) Service {
	if wantsWebSocket(r) {
		return nil
	}
	for _, s := range in.cfg.Services {
		if s.Serves(r) {
			return s
		}
	}
	return nil
}

// serveService answers a call of a service.
func (in *ingress) serveService(s Service) http.Handler {
	return in.answering(func(w http.ResponseWriter, r *http.Request, _ subjects.ID) error {
		who, err := in.identify(w, r, time.Now())
		recordOf(w).identified(who)
		if err != nil {
			return unreadError{err}
		}
		if err := told(r, s.Serve(w, r, who.asCaller())); err != nil {
			return unreadError{err} // as far as is known
		}
		return nil
	})
}

// told is what a service's error means: one that is not for the client comes of the client's leaving, if it has left.
func told(r *http.Request, err error) error {
	if _, ok := errors.AsType[*api.Error](err); err != nil && !ok && r.Context().Err() != nil {
		return errClientGone
	}
	return err
}

// asCaller is c for services.
func (c *caller) asCaller() Caller {
	if c.key == nil {
		return Caller{Tenant: c.tenant}
	}
	return Caller{c.tenant, c.key.ID}
}

// takersOf are those of the services that take calls of inference.
func takersOf(services []Service) (takers []Taker) {
	for _, s := range services {
		if t, ok := s.(Taker); ok {
			takers = append(takers, t)
		}
	}
	return takers
}

// takerOf returns the service that takes a call of inference; nil if none does.
func (in *ingress) takerOf(r *http.Request, body []byte) Taker {
	for _, t := range in.takers {
		if t.Takes(r, body) {
			return t
		}
	}
	return nil
}

// callerOf returns the caller for whom a service runs a request.
func (k *keyring) callerOf(c serviceCaller, now time.Time) (*caller, error) {
	if c.Key == "" {
		if k.required() {
			return nil, k.refuse("missing", "the work was accepted without an API key, and the gateway asks for one now")
		}
		return &caller{tenant: c.Tenant, tier: c.tier, quiet: true, watch: c.watch}, nil
	}
	keys := k.keys.Load()
	if keys == nil {
		return nil, errKeysStarting
	}
	key := (*keys)[c.Key]
	if key == nil || key.Tenant != c.Tenant {
		return nil, k.refuse("wrong", "the API key of the work has been revoked")
	}
	if !key.Expires.IsZero() && !now.Before(key.Expires) {
		return nil, k.refuse("expired", "the API key of the work expired on "+key.Expires.UTC().Format(time.RFC3339))
	}
	return &caller{key: key, tenant: key.Tenant, tier: c.tier, quiet: true, watch: c.watch}, nil
}

// forcedTier is the tier that a service runs a request in.
func forcedTier(name string, tiers []policy.Tier) (policy.Tier, error) {
	for _, t := range tiers {
		if t.Name == name {
			return t, nil
		}
	}
	return policy.Tier{}, api.BadRequest("service_tier", "there is no service tier %s now", api.Quote(name))
}
