// Package tracing is what gateways and workers have in common for traces: how a trace's context travels in a request's header,
// and the names of attributes. It uses the API of OpenTelemetry alone; cmd/pulley has the SDK and its exporters.
//
// GenAI attributes, whose conventions still change, are in genai.go and nowhere else.
package tracing

import (
	"context"
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// Scope is the name under which Pulley makes spans.
const Scope = "github.com/pulley-lb/pulley"

// Attributes of Pulley's own.
const (
	RequestID = attribute.Key("pulley.request.id")
	Gateway   = attribute.Key("pulley.gateway")
	Tenant    = attribute.Key("pulley.tenant")
	Key       = attribute.Key("pulley.key") // the id of an API key
	Pool      = attribute.Key("pulley.pool")
	Tier      = attribute.Key("pulley.tier")
	Lane      = attribute.Key("pulley.lane")
	Worker    = attribute.Key("pulley.worker") // its name
	WorkerID  = attribute.Key("pulley.worker.id")
	Attempt   = attribute.Key("pulley.attempt")  // counts from 1
	Attempts  = attribute.Key("pulley.attempts") // how many there were
	Outcome   = attribute.Key("pulley.outcome")
	Rung      = attribute.Key("pulley.rung") // of the bid that the request answered
)

// Attributes of OpenTelemetry's stable conventions for HTTP and errors, as of version 1.43.0.
const (
	Method    = attribute.Key("http.request.method")
	Route     = attribute.Key("http.route")
	Path      = attribute.Key("url.path")
	Scheme    = attribute.Key("url.scheme")
	Status    = attribute.Key("http.response.status_code")
	ErrorType = attribute.Key("error.type")
)

var propagator propagation.TraceContext

// Extract returns ctx with the W3C trace context of a header, if it has a valid one.
func Extract(ctx context.Context, h http.Header) context.Context {
	return propagator.Extract(ctx, propagation.HeaderCarrier(h))
}

// Inject puts the context of a span into a header, in place of what it has.
func Inject(span trace.Span, h http.Header) {
	if span.SpanContext().IsValid() {
		delete(h, "Tracestate")
		propagator.Inject(trace.ContextWithSpan(context.Background(), span), propagation.HeaderCarrier(h))
	}
}
