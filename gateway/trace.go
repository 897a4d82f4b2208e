package gateway

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/tracing"
)

// maxTries bounds the attempts of a request that have spans of their own: refusals may be many.
const maxTries = 32

// tracer makes a trace of each call: see callTrace. A nil tracer makes none.
type tracer struct {
	gateway string
	spans   trace.Tracer
	doors   *api.Doors
}

func newTracer(cfg *Config, gateway string, doors *api.Doors) *tracer {
	if cfg.TracerProvider == nil {
		return nil
	}
	return &tracer{gateway: gateway, doors: doors, spans: cfg.TracerProvider.Tracer(tracing.Scope, trace.WithInstrumentationVersion(cfg.Version))}
}

// callTrace is the trace of one call: a span for the whole, which is the parent of the workers' spans, and when the call ends one
// for its admission, and for each attempt one for the wait in the queue and one for the attempt, with its prefill and its decode.
// The times of those are noted meanwhile, so that the path of a token has no span. The goroutine that serves the call owns it. A
// nil callTrace is none.
type callTrace struct {
	of   *tracer
	span trace.Span

	admitted time.Time // zero: it was refused before
	tries    []try     // that failed
}

// try is an attempt that has ended.
type try struct {
	*attempt
	ended time.Time
	class string // of its failure; "" if it did not fail
}

// begin begins the trace of a call, below the span that its header names.
func (t *tracer) begin(r *http.Request, now time.Time) *callTrace {
	if t == nil {
		return nil
	}
	_, span := t.spans.Start(tracing.Extract(context.Background(), r.Header), http.MethodPost, trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(now))
	return &callTrace{of: t, span: span}
}

// recording says whether the trace is kept: only then it needs to know more.
func (t *callTrace) recording() bool { return t != nil && t.span.IsRecording() }

// inject makes the header of a request for workers name the call's span.
func (rec *record) inject(h http.Header) {
	if rec != nil && rec.trace != nil {
		tracing.Inject(rec.trace.span, h)
	}
}

// enters notes that the call was admitted.
func (rec *record) enters() {
	if rec != nil && rec.trace.recording() {
		rec.trace.admitted = time.Now()
	}
}

// attemptFailed notes that an attempt has failed.
func (rec *record) attemptFailed(a *attempt, class string) {
	if rec != nil && rec.trace.recording() && len(rec.trace.tries) < maxTries {
		rec.trace.tries = append(rec.trace.tries, try{a, time.Now(), class})
	}
}

// moved notes that the request waits elsewhere.
func (rec *record) moved(to *target) {
	if rec != nil && rec.trace.recording() {
		rec.trace.span.AddEvent("moved", trace.WithAttributes(tracing.Pool.String(to.queue.pool), tracing.Tier.String(to.tier.Name), tracing.Lane.String(to.lane)))
	}
}

// exemplar names the call's trace beside a metric; nil if the trace is not kept.
func (rec *record) exemplar() prometheus.Labels {
	if id := rec.traceID(); id != "" {
		return prometheus.Labels{"trace_id": id}
	}
	return nil
}

// traceID is the id of the call's trace; "" if that is not kept.
func (rec *record) traceID() string {
	if rec == nil || !rec.trace.recording() || !rec.trace.span.SpanContext().IsSampled() {
		return ""
	}
	return rec.trace.span.SpanContext().TraceID().String()
}

// observe adds a time to a histogram, with an exemplar if there is one.
func observe(o prometheus.Observer, d time.Duration, exemplar prometheus.Labels) {
	if exemplar != nil {
		o.(prometheus.ExemplarObserver).ObserveWithExemplar(d.Seconds(), exemplar)
		return
	}
	o.Observe(d.Seconds())
}

// end ends the trace of a call whose record is complete.
func (t *callTrace) end(rec *record, id string, now time.Time) {
	if t == nil {
		return
	}
	if t.span.IsRecording() {
		t.describe(rec, id)
		t.children(rec, now)
	}
	t.span.End(trace.WithTimestamp(now))
}

// describe sets the attributes of the span of the whole call.
func (t *callTrace) describe(rec *record, id string) {
	known := []attribute.KeyValue{
		tracing.Method.String(methodName(rec.method)), tracing.Path.String(shortened(rec.path)), tracing.Scheme.String(rec.scheme),
		tracing.Status.Int(rec.status), tracing.RequestID.String(id), tracing.Gateway.String(t.of.gateway),
		tracing.Attempts.Int(rec.attempts), tracing.Outcome.String(string(rec.outcome)),
	}
	text := func(key attribute.Key, value string) {
		if value != "" {
			known = append(known, key.String(shortened(value)))
		}
	}
	path := rec.path
	if rec.request != nil { // it is normal, and has its escapes
		path, _, _ = strings.Cut(rec.request.Path, "?")
	}
	route := t.of.route(path)
	t.span.SetName(methodName(rec.method))
	if route != "" {
		t.span.SetName(methodName(rec.method) + " " + route)
	}
	text(tracing.Route, route)
	text(tracing.Tenant, rec.tenant)
	text(tracing.Key, rec.key)
	text(tracing.Pool, rec.pool)
	text(tracing.Tier, rec.tier)
	text(tracing.GenAIModel, rec.model)
	if rec.method == http.MethodPost && route != "" {
		text(tracing.GenAIOperation, tracing.Operation(path))
	}
	if rec.request != nil {
		known = append(known, tracing.GenAIStream.Bool(rec.request.Stream))
		if n := rec.request.MaxOutput; n > 0 {
			known = append(known, tracing.GenAIMaxTokens.Int(n))
		}
	}
	if rec.firstByte >= 0 && rec.stream() {
		known = append(known, tracing.GenAIFirstChunk.Float64(rec.firstByte.Seconds()))
	}
	if rec.input > 0 {
		known = append(known, tracing.GenAIInputTokens.Int(rec.input))
	}
	if rec.output > 0 {
		known = append(known, tracing.GenAIOutputTokens.Int(rec.output))
	}
	if rec.isError() {
		text(tracing.ErrorType, rec.errorType())
		if rec.status >= http.StatusInternalServerError || rec.outcome == Failed {
			t.span.SetStatus(codes.Error, "")
		}
	}
	t.span.SetAttributes(known...)
}

// children makes the spans below that of the whole call.
func (t *callTrace) children(rec *record, now time.Time) {
	below := trace.ContextWithSpan(context.Background(), t.span)
	if t.admitted.IsZero() {
		t.child(below, "admission", rec.began, now, rec.code)
		return
	}
	t.child(below, "admission", rec.began, t.admitted, "")
	waits := t.admitted // since when the request waits for a worker
	for _, a := range t.tries {
		t.child(below, "queue", waits, a.began, "")
		t.attempt(below, rec, a)
		waits = a.ended
	}
	switch last := rec.last; {
	case last == nil && rec.outcome == "answered": // a call that is over without an attempt
	case last == nil:
		t.child(below, "queue", waits, now, rec.errorType())
	case len(t.tries) > 0 && t.tries[len(t.tries)-1].attempt == last: // it has failed, and there is no other
	default:
		t.child(below, "queue", waits, last.began, "")
		failed := ""
		if rec.isError() {
			failed = rec.errorType()
		}
		t.attempt(below, rec, try{last, now, failed})
	}
}

// attempt makes the spans of an attempt. Only the last one can have had a first byte.
func (t *callTrace) attempt(below context.Context, rec *record, a try) {
	ctx, span := t.of.spans.Start(below, "attempt", trace.WithTimestamp(a.began), trace.WithAttributes(
		tracing.Attempt.Int(a.number), tracing.Worker.String(a.name), tracing.WorkerID.String(a.worker), tracing.Rung.Int(a.rung),
		tracing.Pool.String(rec.pool), tracing.Tier.String(rec.tier)))
	first := rec.firstByteAt
	switch {
	case a.attempt != rec.last || first.IsZero():
		t.child(ctx, "prefill", a.began, a.ended, a.class)
	default:
		t.child(ctx, "prefill", a.began, first, "")
		t.child(ctx, "decode", first, a.ended, a.class)
	}
	if a.class != "" {
		span.SetAttributes(tracing.ErrorType.String(a.class))
		span.SetStatus(codes.Error, "")
	}
	span.End(trace.WithTimestamp(a.ended))
}

// child makes a span that is over. failed is why it failed; "" if it did not.
func (t *callTrace) child(ctx context.Context, name string, from, to time.Time, failed string) {
	_, span := t.of.spans.Start(ctx, name, trace.WithTimestamp(from))
	if failed != "" {
		span.SetAttributes(tracing.ErrorType.String(failed))
		span.SetStatus(codes.Error, "")
	}
	span.End(trace.WithTimestamp(to))
}

// route is the pattern that a path matches, of those that are served; "" if there is none.
func (t *tracer) route(path string) string {
	switch {
	case path == "/v1/models":
		return path
	case ownPath(path):
		return "/v1/models/*"
	}
	return t.doors.Route(path)
}

// methodName bounds the methods in names of spans, as the conventions say.
func methodName(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return method
	}
	return "_OTHER"
}
