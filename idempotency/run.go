package idempotency

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	// coalesced is how long what comes of a stream may wait for more that is stored with it.
	coalesced = 50 * time.Millisecond

	piece = 128 << 10 // bytes of a message, at most

	mostRecent = 64 << 10 // bytes of an answer that are kept for those that follow it here

	endWithin = 10 * time.Second // what a run stores when it has ended
	freeAfter = 5 * time.Second  // the parts of an answer that is not kept are removed
)

var (
	errPast     = errors.New("no recent part")
	errSlow     = errors.New("the broker does not answer")
	errNobody   = errors.New("nobody waits for the answer any more")
	errTooLarge = &api.Error{Status: http.StatusInsufficientStorage, Code: "idempotent_answer_too_large", NoRetry: true,
		Message: "the answer is longer than one that can be kept for an Idempotency-Key; send the request without it"}
)

// run is a request that runs here for a key, and the [http.ResponseWriter] of its answer. What comes is stored as it comes.
type run struct {
	// Fixed after begin.
	service  *Service
	subject  string
	tenant   string
	claim    *entry
	cancel   context.CancelCauseFunc
	wake     chan struct{}   // something is to be stored; holds one
	done     chan struct{}   // closed when nothing more is stored
	stopping <-chan struct{} // closed when the gateway stops

	// Owned by the goroutine that runs the request, until it is over.
	header  http.Header
	size    int64
	inspect *api.Inspector // of a stream
	path    string

	// Owned by the goroutine that stores.
	part   int
	kind   kind
	at     position // of what is stored next, in a stream
	last   uint64   // sequence of the last entry
	err    error    // why no end was stored; read by others after done
	stored int64    // bytes of the answer that are stored
	uses   []uint64 // by which the answer counts for the tenant

	mu      sync.Mutex
	recent  []*entry      // the last parts that are stored, the last one at least
	news    chan struct{} // closed when another part is stored
	storing time.Time     // since when a part is being stored; zero: none is
	status  int           // 0: there is no answer yet
	sent    http.Header
	data    []byte // to be stored
	ready   int    // bytes of data that may be stored before the end
	end     end
	clients int       // that wait here
	remote  bool      // others have waited at other gateways
	seen    time.Time // when somebody was last known to wait
}

func (r *run) Header() http.Header { return r.header }

func (r *run) WriteHeader(status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.status != 0 || status < 200 {
		return
	}
	r.status, r.sent = status, r.header.Clone()
	r.inspect = new(api.Inspector)
	r.inspect.Begin(r.path, &http.Response{StatusCode: status, Header: r.sent, ContentLength: -1, ProtoMajor: 2})
}

func (r *run) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.WriteHeader(http.StatusOK)
	}
	if r.size += int64(len(b)); r.size > r.service.cfg.MaxAnswer {
		r.cancel(errTooLarge)
		return 0, errTooLarge
	}
	r.inspect.Observe(b)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.data = append(r.data, b...)
	return len(b), nil
}

// Flush has what was written stored, unless it ends a stream: clients stop reading there.
func (r *run) Flush() {
	if r.inspect == nil || r.inspect.Ended {
		return
	}
	r.mu.Lock()
	r.ready = len(r.data)
	r.mu.Unlock()
	r.poke()
}

func (r *run) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// serve runs the request, until its end is stored.
func (r *run) serve(ctx context.Context, do gateway.Do, req *http.Request, who gateway.Caller) {
	defer close(r.done)
	var storing sync.WaitGroup
	storing.Go(func() { r.store(ctx) })
	whole := r.call(do, req, who)
	r.mu.Lock()
	switch {
	case !whole || r.status == 0:
		r.end = broken
	case r.status >= http.StatusBadRequest, r.header.Get(gateway.BrokenOff) != "", r.inspect.Errored():
		r.end = freed
	default:
		r.end = kept
	}
	r.mu.Unlock()
	r.cancel(nil) // what is left to store has endWithin
	r.poke()
	storing.Wait()
}

// call runs the request, and says whether its answer was not broken off.
func (r *run) call(do gateway.Do, req *http.Request, who gateway.Caller) (whole bool) {
	defer func() {
		if v := recover(); v != nil && v != http.ErrAbortHandler { // as net/http does
			r.service.cfg.Logger.Error("panic in a request with an Idempotency-Key", "panic", v, "stack", string(debug.Stack()))
		}
	}()
	do(r, req, who, "")
	return true
}

// store stores the answer until its end. If it cannot, it cancels the request.
func (r *run) store(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	storing, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	context.AfterFunc(ctx, func() { time.AfterFunc(endWithin, cancel) })
	for {
		select {
		case <-r.wake:
		case now := <-tick.C:
			if r.deserted(now) {
				r.cancel(errNobody)
			}
			continue
		}
		ended, err := r.storeMore(storing, context.Cause(ctx))
		if err != nil {
			r.fail(storing, err)
		}
		if ended || err != nil {
			return
		}
		select { // more may come
		case <-ctx.Done():
		case <-time.After(coalesced):
		}
	}
}

// storeMore stores what has come. why is why the request was cancelled, if it was.
func (r *run) storeMore(ctx context.Context, why error) (ended bool, err error) {
	r.mu.Lock()
	n, end, status, header := r.ready, r.end, r.status, r.sent
	if end == kept || end == freed { // else no client may take what there is for all
		n = len(r.data)
	}
	data := r.data[:n:n]
	r.data, r.ready = r.data[n:], 0
	r.mu.Unlock()
	if end == broken && r.part == 0 && why != nil { // nobody has anything of it
		if e, ok := errors.AsType[*api.Error](why); ok {
			status, header, data, end = e.Status, make(http.Header), nil, freed
			r.explain(e, header, &data)
		}
	}
	for first := true; first || len(data) > 0; first = false {
		if len(data) == 0 && end == running {
			return false, nil
		}
		size := min(len(data), r.piece())
		e := &entry{Owner: r.claim.Owner, Print: r.claim.Print, Run: r.claim.seq, Part: r.part + 1, Until: r.claim.Until, At: r.at, data: data[:size]}
		if e.Part == 1 {
			e.Status, e.Header = status, header
			r.kind = kindOf(header)
		}
		if r.kind != whole {
			r.at.read(r.kind, e.data, math.MaxUint64)
		}
		if data = data[size:]; len(data) == 0 {
			e.End = end
		}
		if r.stored += int64(size); !end.frees() { // before clients may have all of it
			n := 1 + int(r.stored/subjects.IdempotencyUnit) - len(r.uses)
			if err := r.service.store.useMore(r.tenant, n, time.Until(r.claim.Until), &r.uses); err != nil {
				return false, err
			}
		}
		if err := r.append(ctx, e); err != nil {
			return false, err
		}
	}
	if end.frees() {
		if r.part > 1 { // others may be about to read the first parts
			select {
			case <-r.stopping:
			case <-time.After(freeAfter):
			}
		}
		r.service.store.purge(ctx, r.subject, r.last)
		r.service.store.unuse(ctx, r.uses...)
	}
	return end != running, nil
}

// append stores a part. Those that follow the answer here have it then without the broker: at most that part and those before it
// within mostRecent bytes.
func (r *run) append(ctx context.Context, e *entry) error {
	r.mu.Lock()
	r.storing = time.Now()
	r.mu.Unlock()
	err := r.service.store.append(ctx, r.subject, e, r.last)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.storing = time.Time{}
	if err != nil {
		return err
	}
	r.part, r.last = e.Part, e.seq
	r.recent = append(r.recent, e)
	size := 0
	for i, e := range slices.Backward(r.recent) {
		if size += len(e.data); size > mostRecent && i < len(r.recent)-1 {
			r.recent = slices.Delete(r.recent, 0, i+1)
			break
		}
	}
	close(r.news)
	r.news = make(chan struct{})
	return nil
}

// after returns the part after one. The error is errNone if it is not stored yet: news is closed when it is. It is errPast if it
// must be read from the store.
func (r *run) after(part int) (e *entry, news chan struct{}, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	last := 0
	if n := len(r.recent); n > 0 {
		last = r.recent[n-1].Part
	}
	back := last - part // parts that follow
	switch {
	case back > len(r.recent):
		return nil, r.news, errPast
	case back > 0:
		return r.recent[len(r.recent)-back], r.news, nil
	case !r.storing.IsZero() && time.Since(r.storing) > lookEvery:
		return nil, r.news, errSlow
	}
	return nil, r.news, errNone
}

// explain makes an answer of an error.
func (r *run) explain(e *api.Error, header http.Header, data *[]byte) {
	w := &errorWriter{header: header}
	e.Write(w, api.Of(r.path), r.header.Get("X-Request-Id"))
	*data = w.body
}

// errorWriter keeps an error's answer.
type errorWriter struct {
	header http.Header
	body   []byte
}

func (w *errorWriter) Header() http.Header { return w.header }
func (w *errorWriter) WriteHeader(int)     {}
func (w *errorWriter) Write(b []byte) (int, error) {
	w.body = append(w.body, b...)
	return len(b), nil
}

// piece is how many bytes of an answer a message has at most.
func (r *run) piece() int { return int(min(piece, max(r.service.store.nc.MaxPayload()/2, 1<<10))) }

// fail ends a run whose answer cannot be stored.
func (r *run) fail(ctx context.Context, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endWithin)
	defer cancel()
	r.err = err
	r.cancel(err)
	if !errors.Is(err, errChanged) { // nothing says that the key is free but that there is nothing
		r.service.store.purge(ctx, r.subject, r.last+1)
		r.service.store.unuse(ctx, r.uses...)
	}
	r.service.cfg.Logger.Warn("answer by Idempotency-Key cannot be kept", "tenant", r.tenant, "err", err)
}

// deserted says whether nobody has waited for the answer for a while.
func (r *run) deserted(now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	grace := r.service.cfg.Grace
	if r.remote { // they ask now and then
		grace = max(grace, 3*askEvery)
	}
	return r.clients == 0 && now.Sub(r.seen) > grace && r.end == running
}

// join counts n clients more that wait here.
func (r *run) join(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clients += n
	r.seen = time.Now()
}

// asked notes that somebody waits at another gateway.
func (r *run) asked() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.remote, r.seen = true, time.Now()
}

// body is a request's body, which it lets go of when it was read.
type body struct{ rest []byte }

func (b *body) Read(p []byte) (int, error) {
	if len(b.rest) == 0 {
		b.rest = nil
		return 0, io.EOF
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

func (b *body) Close() error { return nil }
