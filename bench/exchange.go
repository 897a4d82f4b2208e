package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pulley-lb/pulley/api"
)

var (
	errTimeout = errors.New("timeout")
	// errDrained ends the reading of a connection whose answer is already complete.
	errDrained = errors.New("nothing more came after the end of the answer")
)

const (
	// maxErrorBody is how much of an error's body is searched for its code and message.
	maxErrorBody = 64 << 10
	// drainTime is how long a stream may stay open after its terminal event before its connection is closed.
	drainTime = time.Second
)

// client sends requests to one endpoint.
type client struct {
	endpoint  api.API
	stream    bool
	exact     bool
	timeout   time.Duration
	template  *http.Request // shared head; every request is a shallow copy of it
	transport http.RoundTripper
	pool      sync.Pool // of *exchange
}

func newClient(cfg Config) (*client, error) {
	target, err := cfg.target()
	if err != nil {
		return nil, err
	}
	template := &http.Request{
		Method: http.MethodPost, URL: target, Host: target.Host, Header: requestHeader(cfg),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	if host := template.Header.Get("Host"); host != "" {
		template.Host = host
		template.Header.Del("Host")
	}
	c := &client{
		endpoint:  cfg.Endpoint,
		stream:    cfg.Stream,
		exact:     cfg.ExactTokens,
		timeout:   cfg.Timeout,
		template:  template,
		transport: cfg.Transport,
	}
	c.pool.New = func() any { return &exchange{events: newEvents()} }
	return c, nil
}

func requestHeader(cfg Config) http.Header {
	header := cfg.Header.Clone()
	if header == nil {
		header = http.Header{}
	}
	header.Set("Content-Type", "application/json")
	if cfg.Stream {
		header.Set("Accept", "text/event-stream")
	}
	if cfg.Endpoint == api.Messages {
		header.Set("Anthropic-Version", "2023-06-01")
	}
	if cfg.APIKey != "" {
		header.Set("Authorization", "Bearer "+cfg.APIKey)
		if cfg.Endpoint == api.Messages {
			header.Set("X-Api-Key", cfg.APIKey)
		}
	}
	return header
}

// exchange is one request with its result. It is reused: take it from the client's pool and return it.
type exchange struct {
	order

	// The result.
	failure  failure // empty on success
	sent     time.Time
	first    time.Time // first content event or body byte
	last     time.Time // last content event
	end      time.Time
	contents int // content events
	gaps     []time.Duration
	usage    usage
	hasUsage bool
	byModel  bool // the model ended the answer itself
	queue    time.Duration
	hasQueue bool

	events *events
	latest []byte // data of the last event, if it had content
	buffer bytes.Buffer
}

// failure is why a request did not succeed: a class to count under, and a description.
type failure struct{ class, detail string }

// classCancelled marks requests that the end of the run cut off. They are neither successes nor errors.
const classCancelled = "cancelled"

func (x *exchange) reset(o order) {
	*x = exchange{order: o, gaps: x.gaps[:0], events: x.events, latest: x.latest[:0], buffer: x.buffer}
	x.buffer.Reset()
}

// run sends the request and reads its answer to the end. It always sets end.
func (x *exchange) run(ctx context.Context, c *client) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	deadline := time.AfterFunc(c.timeout, func() { cancel(errTimeout) })
	defer deadline.Stop()

	req := c.template.WithContext(ctx)
	body := x.body
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	req.Body, _ = req.GetBody()
	req.ContentLength = int64(len(body))
	x.sent = time.Now()
	if resp, err := c.transport.RoundTrip(req); err != nil {
		x.failure = connectFailure(ctx, err)
	} else {
		x.read(ctx, c, resp, cancel)
		resp.Body.Close()
	}
	if x.end.IsZero() {
		x.end = time.Now()
	}
}

func (x *exchange) read(ctx context.Context, c *client, resp *http.Response, cancel context.CancelCauseFunc) {
	x.readTiming(resp.Header)
	switch {
	case resp.StatusCode < 200 || resp.StatusCode > 299:
		body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
		x.failure = statusFailure(resp.StatusCode, body)
		return
	case c.stream && !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream"):
		x.failure = failure{"not a stream", "content-type " + strconv.Quote(resp.Header.Get("Content-Type"))}
		return
	case c.stream:
		x.readStream(ctx, c, resp.Body, cancel)
	default:
		x.readBody(ctx, resp.Body)
	}
	if !x.hasQueue {
		x.readTiming(resp.Trailer)
	}
	if x.failure.class == "" {
		x.failure = x.checkTokens(c)
	}
}

// readStream reads events until the one that ends the answer.
func (x *exchange) readStream(ctx context.Context, c *client, body io.Reader, cancel context.CancelCauseFunc) {
	ev := x.events
	ev.reset(body)
	defer ev.reset(nil)
	for ev.next() {
		switch judge(c.endpoint, ev.name, ev.data) {
		case eventContent:
			x.content(time.Now())
			x.latest = append(x.latest[:0], ev.data...)
			continue
		case eventError:
			x.failure = eventFailure(ev.data)
			return
		case eventDone:
			x.end = time.Now()
		}
		x.readUsage(x.latest) // some servers report it with the last piece of content; searching all events would cost more than everything else
		x.readUsage(ev.data)
		x.latest = x.latest[:0]
		if !x.end.IsZero() {
			late := time.AfterFunc(drainTime, func() { cancel(errDrained) })
			_, _ = io.Copy(io.Discard, io.LimitReader(ev.reader, maxErrorBody)) // so that the connection can be reused
			late.Stop()
			return
		}
	}
	x.failure = endFailure(ctx, ev.err)
}

func (x *exchange) content(now time.Time) {
	if x.contents == 0 {
		x.first = now
	} else {
		x.gaps = append(x.gaps, now.Sub(x.last))
	}
	x.last = now
	x.contents++
}

// readUsage reads what occurs once in a stream: the usage and the finish reason.
func (x *exchange) readUsage(data []byte) {
	x.hasUsage = x.usage.merge(data) || x.hasUsage
	x.byModel = x.byModel || endedByModel(data)
}

func (x *exchange) readBody(ctx context.Context, body io.Reader) {
	first := firstByte{reader: body}
	_, err := x.buffer.ReadFrom(&first)
	x.first, x.end = first.at, time.Now()
	if err != nil {
		x.failure = endFailure(ctx, err)
		return
	}
	answer := bytes.TrimSpace(x.buffer.Bytes())
	switch {
	case len(answer) == 0 || answer[0] != '{' || answer[len(answer)-1] != '}':
		x.failure = failure{"truncated", fmt.Sprintf("a body of %d bytes that is not a JSON object", len(answer))}
	case isErrorBody(answer):
		x.failure = eventFailure(answer)
	default:
		x.readUsage(answer)
	}
}

// firstByte notes when the first byte came.
type firstByte struct {
	reader io.Reader
	at     time.Time
}

func (f *firstByte) Read(p []byte) (int, error) {
	n, err := f.reader.Read(p)
	if n > 0 && f.at.IsZero() {
		f.at = time.Now()
	}
	return n, err
}

// checkTokens compares the length that the server reports with the requested one.
func (x *exchange) checkTokens(c *client) failure {
	if !x.hasUsage || c.endpoint == api.Embeddings {
		return failure{}
	}
	got := x.usage.output()
	shorter := got < x.asked && x.byModel && !c.exact
	if got == x.asked || shorter {
		return failure{}
	}
	return failure{"token count", fmt.Sprintf("usage says %d output tokens, asked for %d", got, x.asked)}
}

// outputTokens is the answer's length: as reported, otherwise as counted.
func (x *exchange) outputTokens() int {
	if x.hasUsage {
		return x.usage.output()
	}
	return x.contents
}

// readTiming reads the queue time from a server-timing header.
func (x *exchange) readTiming(header http.Header) {
	for _, value := range header["Server-Timing"] {
		if queue, ok := timing(value, "queue"); ok {
			x.queue, x.hasQueue = queue, true
		}
	}
}

// timing finds a metric's duration in the value of a server-timing header: queue;dur=1.25, engine;dur=93.
func timing(value, metric string) (time.Duration, bool) {
	for entry := range strings.SplitSeq(value, ",") {
		name, params, _ := strings.Cut(strings.TrimSpace(entry), ";")
		if strings.TrimSpace(name) != metric {
			continue
		}
		for param := range strings.SplitSeq(params, ";") {
			key, dur, _ := strings.Cut(strings.TrimSpace(param), "=")
			if !strings.EqualFold(key, "dur") {
				continue
			}
			ms, err := strconv.ParseFloat(strings.Trim(dur, `" `), 64)
			if err != nil || !(ms >= 0) || ms > 1e9 {
				return 0, false
			}
			return time.Duration(ms * float64(time.Millisecond)), true
		}
	}
	return 0, false
}
