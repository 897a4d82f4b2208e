package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
)

const (
	// tracesFlush bounds the wait for the last spans when a process ends.
	tracesFlush = 3 * time.Second

	// tracesWarn is how often it is said that spans cannot be exported.
	tracesWarn = 30 * time.Second
)

// Values of --otlp-protocol, as in $OTEL_EXPORTER_OTLP_PROTOCOL.
const (
	otlpHTTP = "http/protobuf"
	otlpGRPC = "grpc"
)

// traceFlags are those of traces. What they leave open the OTEL_* environment variables say, which the SDK reads itself.
type traceFlags struct {
	endpoint, protocol string
	ratio              float64
}

func addTraceFlags(cmd *cobra.Command) *traceFlags {
	t := &traceFlags{}
	fs := cmd.Flags()
	fs.StringVar(&t.endpoint, "otlp-endpoint", "", "`URL` of a collector that gets traces by OTLP, such as http://127.0.0.1:4318 (default $OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or $OTEL_EXPORTER_OTLP_ENDPOINT; without any there are no traces)")
	fs.StringVar(&t.protocol, "otlp-protocol", "", "protocol of --otlp-endpoint: http/protobuf or grpc (default $OTEL_EXPORTER_OTLP_PROTOCOL, or http/protobuf)")
	fs.Float64Var(&t.ratio, "trace-ratio", 1, "`share` of the requests that are traced, 0 to 1, where their client did not decide; also $OTEL_TRACES_SAMPLER")
	cli.CompleteFixed(cmd, "otlp-protocol", otlpHTTP, otlpGRPC)
	return t
}

// env is an OTLP variable for traces, or else the one for all signals.
func otlpEnv(name string) string {
	return cmp.Or(os.Getenv("OTEL_EXPORTER_OTLP_TRACES_"+name), os.Getenv("OTEL_EXPORTER_OTLP_"+name))
}

// wanted says whether there are traces.
func (t *traceFlags) wanted() (bool, error) {
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") {
		return false, nil
	}
	switch exporter := os.Getenv("OTEL_TRACES_EXPORTER"); exporter {
	case "none":
		return t.endpoint != "", nil
	case "otlp":
		return true, nil
	case "":
		return t.endpoint != "" || otlpEnv("ENDPOINT") != "", nil
	default:
		return false, cli.Usagef("$OTEL_TRACES_EXPORTER %q: must be otlp or none", exporter)
	}
}

// open returns what makes the traces of a process, nil if there are none, and how to end it. service is the name of the service,
// unless $OTEL_SERVICE_NAME has one.
func (t *traceFlags) open(cmd *cobra.Command, service string) (provider trace.TracerProvider, end func(), err error) {
	end = func() {}
	if wanted, err := t.wanted(); err != nil || !wanted {
		return nil, end, err
	}
	exporter, err := t.exporter(cmd.Context())
	if err != nil {
		return nil, end, err
	}
	options := []sdktrace.TracerProviderOption{sdktrace.WithBatcher(exporter)}
	if cmd.Flags().Changed("trace-ratio") { // else $OTEL_TRACES_SAMPLER
		if !(t.ratio >= 0 && t.ratio <= 1) {
			return nil, end, cli.Usagef("--trace-ratio %v: must be from 0 to 1", t.ratio)
		}
		options = append(options, sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(t.ratio))))
	}
	described, err := resource.New(cmd.Context(),
		resource.WithAttributes(attribute.String("service.name", service), attribute.String("service.version", buildVersion())),
		resource.WithHost(), resource.WithProcessPID(), resource.WithTelemetrySDK(), resource.WithFromEnv()) // the last one counts
	if err != nil {
		return nil, end, cli.Usagef("$OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	log := cli.Logger(cmd.Context())
	otel.SetErrorHandler(&exportErrors{log: log})
	sdk := sdktrace.NewTracerProvider(append(options, sdktrace.WithResource(described))...)
	return sdk, func() {
		ctx, cancel := context.WithTimeout(context.Background(), tracesFlush)
		defer cancel()
		if err := sdk.Shutdown(ctx); err != nil {
			log.Warn("the last traces were lost", "err", err)
		}
	}, nil
}

// exporter connects when there is something to export.
func (t *traceFlags) exporter(ctx context.Context) (sdktrace.SpanExporter, error) {
	if t.endpoint != "" {
		if u, err := url.Parse(t.endpoint); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, cli.Usagef("--otlp-endpoint %q: must be a URL such as http://127.0.0.1:4318", t.endpoint)
		}
	}
	var exporter sdktrace.SpanExporter
	var err error
	switch protocol := cmp.Or(t.protocol, otlpEnv("PROTOCOL"), otlpHTTP); protocol {
	case otlpHTTP:
		var options []otlptracehttp.Option
		if t.endpoint != "" {
			options = append(options, otlptracehttp.WithEndpointURL(tracesURL(t.endpoint)))
		}
		exporter, err = otlptracehttp.New(ctx, options...)
	case otlpGRPC:
		var options []otlptracegrpc.Option
		if t.endpoint != "" {
			options = append(options, otlptracegrpc.WithEndpointURL(t.endpoint))
		}
		exporter, err = otlptracegrpc.New(ctx, options...)
	default:
		return nil, cli.Usagef("--otlp-protocol, $OTEL_EXPORTER_OTLP_PROTOCOL: %q: must be %s or %s", protocol, otlpHTTP, otlpGRPC)
	}
	if err != nil {
		return nil, cli.Usagef("traces: %w", err)
	}
	return exporter, nil
}

// tracesURL adds the usual path to the URL of a collector that has none, as for $OTEL_EXPORTER_OTLP_ENDPOINT.
func tracesURL(endpoint string) string {
	u, err := url.Parse(endpoint)
	if err != nil || strings.Trim(u.Path, "/") != "" {
		return endpoint
	}
	return u.JoinPath("v1", "traces").String()
}

// exportErrors says that spans cannot be exported, now and then: it may be so for each batch.
type exportErrors struct {
	log  *slog.Logger
	last atomic.Int64 // Unix nanoseconds
}

func (e *exportErrors) Handle(err error) {
	now, last := time.Now().UnixNano(), e.last.Load()
	if now-last >= int64(tracesWarn) && e.last.CompareAndSwap(last, now) {
		e.log.Warn("traces are lost", "err", fmt.Sprint(err))
	}
}
