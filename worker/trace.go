package worker

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/tracing"
)

// tracer makes a span for each attempt, below the one that its request's header names: of the gateway, or if that makes none, of
// the client. The engine's own spans are below it. A nil tracer makes none.
type tracer struct {
	spans            trace.Tracer
	worker, id, kind string // its name and id; what people call the engine, if that is known
}

func newTracer(cfg *Config, id string) *tracer {
	if cfg.TracerProvider == nil {
		return nil
	}
	return &tracer{
		spans:  cfg.TracerProvider.Tracer(tracing.Scope, trace.WithInstrumentationVersion(cfg.Version)),
		worker: cfg.Name, id: id, kind: cfg.EngineName,
	}
}

// begin begins the span of an attempt, at its delivery.
func (t *tracer) begin(a *attempt) {
	if t == nil {
		return
	}
	operation := tracing.Operation(a.req.Path)
	name := a.req.Method
	if operation != "" {
		name = operation + " " + a.task.model
	}
	parent := tracing.Extract(context.Background(), a.req.Header)
	_, a.span = t.spans.Start(parent, name, trace.WithSpanKind(trace.SpanKindClient), trace.WithTimestamp(a.started))
	if !a.span.IsRecording() {
		if trace.SpanContextFromContext(parent).IsValid() {
			a.span = nil // the engine gets the context as it came: its spans are below the parent, or not kept either
		}
		return
	}
	a.span.SetAttributes(tracing.RequestID.String(a.req.ID.String()), tracing.Worker.String(t.worker), tracing.WorkerID.String(t.id),
		tracing.Pool.String(a.task.pool), tracing.GenAIModel.String(a.task.model), tracing.GenAIStream.Bool(a.req.Stream))
	if operation != "" {
		a.span.SetAttributes(tracing.GenAIOperation.String(operation))
	}
	if t.kind != "" {
		a.span.SetAttributes(tracing.GenAIProvider.String(t.kind))
	}
}

// claimed makes the span of an attempt's claim, which has been sent, and where it had to be, answered.
func (t *tracer) claimed(a *attempt, granted bool) {
	if a.span == nil || !a.span.IsRecording() {
		return
	}
	_, span := t.spans.Start(trace.ContextWithSpan(context.Background(), a.span), "claim", trace.WithTimestamp(a.started))
	if !granted {
		span.SetAttributes(tracing.ErrorType.String("refused"))
	}
	span.End()
}

// end ends the span of an attempt. Tokens are not among its attributes: they are in the gateway's span, and must not count twice.
func (t *tracer) end(a *attempt, now time.Time) {
	if a.span == nil {
		return
	}
	if a.span.IsRecording() {
		if a.firstByte.isSet() {
			first := a.firstByte.at(a.started)
			a.span.AddEvent("first token", trace.WithTimestamp(first))
			if a.req.Stream {
				a.span.SetAttributes(tracing.GenAIFirstChunk.Float64(first.Sub(a.started).Seconds()))
			}
		}
		if why := a.whyFailed(); why != "" {
			a.span.SetAttributes(tracing.ErrorType.String(why))
			a.span.SetStatus(codes.Error, "")
		}
	}
	a.span.End(trace.WithTimestamp(now))
}

// whyFailed is a word for the failure of an attempt that is over; "" if it did not fail.
func (a *attempt) whyFailed() string {
	switch cause := context.Cause(a.ctx); {
	case errors.Is(cause, errCancelled):
		return "cancelled"
	case errors.Is(cause, errRefused):
		return "claim_refused"
	case errors.Is(cause, errGatewayGone):
		return "gateway_gone"
	case errors.Is(cause, errDraining):
		return string(subjects.FailDraining)
	case errors.Is(cause, errStalled):
		return string(subjects.FailStalled)
	}
	return string(a.failed)
}
