package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	traces "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
)

// receiver is an OTLP collector.
type receiver struct {
	collector.UnimplementedTraceServiceServer
	t testing.TB

	mu     sync.Mutex
	got    []*traces.ResourceSpans
	header http.Header // of the last call
	path   string
}

func (r *receiver) take(got []*traces.ResourceSpans, header http.Header, path string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got, r.header, r.path = append(r.got, got...), header, path
}

// ServeHTTP takes a call of OTLP over HTTP.
func (r *receiver) ServeHTTP(w http.ResponseWriter, call *http.Request) {
	var body io.Reader = call.Body
	if call.Header.Get("Content-Encoding") == "gzip" {
		var err error
		if body, err = gzip.NewReader(body); err != nil {
			r.t.Error(err)
		}
	}
	b, err := io.ReadAll(body)
	var export collector.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(b, &export)
	}
	if err != nil || call.Header.Get("Content-Type") != "application/x-protobuf" {
		r.t.Errorf("%v, a body of type %s", err, call.Header.Get("Content-Type"))
	}
	r.take(export.ResourceSpans, call.Header, call.URL.Path)
	w.Header().Set("Content-Type", "application/x-protobuf")
	b, _ = proto.Marshal(new(collector.ExportTraceServiceResponse))
	w.Write(b)
}

// Export takes a call of OTLP over gRPC.
func (r *receiver) Export(ctx context.Context, export *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	h := make(http.Header)
	for k, v := range md {
		h[http.CanonicalHeaderKey(k)] = v
	}
	r.take(export.ResourceSpans, h, "")
	return new(collector.ExportTraceServiceResponse), nil
}

// overHTTP starts a receiver and returns its URL.
func overHTTP(t testing.TB) (*receiver, string) {
	r := &receiver{t: t}
	s := httptest.NewServer(r)
	t.Cleanup(s.Close)
	return r, s.URL
}

func overGRPC(t testing.TB) (*receiver, string) {
	r := &receiver{t: t}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	collector.RegisterTraceServiceServer(s, r)
	ended := make(chan struct{})
	go func() { s.Serve(l); close(ended) }() // until the test has ended
	t.Cleanup(func() { s.Stop(); <-ended })
	return r, "http://" + l.Addr().String()
}

// attr is an attribute as text; "" if there is none of that key.
func attr(of []*common.KeyValue, key string) string {
	for _, a := range of {
		if a.Key == key {
			return a.Value.GetStringValue()
		}
	}
	return ""
}

// spans are those that have come, by name, and the resource of the first.
func (r *receiver) spans() (byName map[string]*traces.Span, resource []*common.KeyValue, count int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	byName = make(map[string]*traces.Span)
	for _, rs := range r.got {
		resource = rs.Resource.Attributes
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				byName[s.Name] = s
				count++
			}
		}
	}
	return byName, resource, count
}

// chatWith sends a short request to a gateway, as a part of the trace that a header names.
func chatWith(t *testing.T, url, traceparent string) {
	t.Helper()
	r, err := http.NewRequest("POST", url+"/v1/chat/completions", strings.NewReader(`{"model":"m","max_tokens":2,"messages":[{"role":"user","content":"x"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if traceparent != "" {
		r.Header.Set("Traceparent", traceparent)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		t.Fatalf("status %d: %s", resp.StatusCode, b)
	}
}

// oneEngine is an engine of the model m. It returns its URL, and what headers it got.
func oneEngine(t *testing.T) (url string, asked chan http.Header) {
	asked = make(chan http.Header, 16)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.Path {
		case "/v1/models":
			io.WriteString(w, `{"object":"list","data":[{"id":"m","object":"model"}]}`)
		case "/v1/chat/completions":
			asked <- r.Header.Clone()
			io.WriteString(w, `{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"x"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2}}`)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL, asked
}

// The whole process exports whole traces, by both protocols, as flags or the standard variables say.
func TestTracesReachACollector(t *testing.T) {
	const id, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	for about, c := range map[string]struct {
		receiver func(testing.TB) (*receiver, string)
		args     string
		env      []string
		want     map[string]string // attributes of the resource
		header   string            // the value of x-token
		path     string
	}{
		"flags": {
			receiver: overHTTP, args: "--otlp-endpoint URL --trace-ratio 0", path: "/v1/traces",
			want: map[string]string{"service.name": "pulley", "telemetry.sdk.language": "go"},
		},
		"a path of its own, by Pulley's variables": {receiver: overHTTP, env: []string{"PULLEY_OTLP_ENDPOINT=URL/otlp/x", "PULLEY_TRACE_RATIO=0"}, path: "/otlp/x"},
		"flags for gRPC": {receiver: overGRPC, args: "--otlp-endpoint URL --otlp-protocol grpc"},
		"standard variables": {
			receiver: overHTTP, path: "/v1/traces", header: "t1",
			env: []string{
				"OTEL_EXPORTER_OTLP_ENDPOINT=URL", "OTEL_EXPORTER_OTLP_HEADERS=x-token=t1", "OTEL_EXPORTER_OTLP_COMPRESSION=gzip", "OTEL_SERVICE_NAME=ours",
				"OTEL_RESOURCE_ATTRIBUTES=deployment.environment.name=test", "OTEL_TRACES_SAMPLER=parentbased_always_off",
			},
			want: map[string]string{"service.name": "ours", "deployment.environment.name": "test"},
		},
		"standard variables for gRPC": {
			receiver: overGRPC, header: "t2",
			env:  []string{"OTEL_TRACES_EXPORTER=otlp", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=URL", "OTEL_EXPORTER_OTLP_PROTOCOL=grpc", "OTEL_EXPORTER_OTLP_TRACES_HEADERS=x-token=t2"},
			want: map[string]string{"service.name": "pulley"},
		},
	} {
		t.Run(about, func(t *testing.T) {
			got, at := c.receiver(t)
			engine, asked := oneEngine(t)
			for i, v := range c.env {
				c.env[i] = strings.ReplaceAll(v, "URL", at)
			}
			_, url, stop := upProcess(t, c.env, "--nvml off --engine "+engine+",name=e1 "+strings.ReplaceAll(c.args, "URL", at))
			chatWith(t, url, "00-"+id+"-"+parent+"-01")
			engineSaw := strings.Split((<-asked).Get("Traceparent"), "-")
			if log := stop(); strings.Contains(log, "traces") { // what is left is exported then
				t.Errorf("it logged %s", log)
			}
			spans, resource, _ := got.spans()
			root, call := spans["POST /v1/chat/completions"], spans["chat m"]
			if root == nil || call == nil {
				t.Fatalf("got %v", spans)
			}
			for _, name := range []string{"admission", "queue", "attempt", "prefill", "decode", "claim"} {
				if s := spans[name]; s == nil || hex.EncodeToString(s.TraceId) != id {
					t.Errorf("%s is %v", name, s)
				}
			}
			if hex.EncodeToString(root.TraceId) != id || hex.EncodeToString(root.ParentSpanId) != parent || !bytes.Equal(call.ParentSpanId, root.SpanId) {
				t.Errorf("the gateway's span is %v, the worker's %v", root, call)
			}
			if len(engineSaw) != 4 || engineSaw[1] != id || engineSaw[2] != hex.EncodeToString(call.SpanId) {
				t.Errorf("the engine got %v", engineSaw)
			}
			for k, want := range c.want {
				if got := attr(resource, k); got != want {
					t.Errorf("the resource has %s=%s, want %s", k, got, want)
				}
			}
			if got.header.Get("X-Token") != c.header || got.path != c.path {
				t.Errorf("the collector got the header %q at %s", got.header.Get("X-Token"), got.path)
			}
		})
	}
}

// Without a collector there is no trace, and with one that is away requests go on, and the loss is said.
func TestTracesWithoutACollector(t *testing.T) {
	away := "http://127.0.0.1:1"
	for about, c := range map[string]struct {
		env  []string
		says string
	}{
		"nothing is set":          {},
		"the SDK is off":          {env: []string{"OTEL_SDK_DISABLED=true", "OTEL_EXPORTER_OTLP_ENDPOINT=" + away}},
		"the exporter is none":    {env: []string{"OTEL_TRACES_EXPORTER=none", "OTEL_EXPORTER_OTLP_ENDPOINT=" + away}},
		"the collector is away":   {env: []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + away, "OTEL_BSP_SCHEDULE_DELAY=50", "OTEL_EXPORTER_OTLP_TIMEOUT=300"}, says: "traces are lost"},
		"a gRPC collector is too": {env: []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + away, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc", "OTEL_BSP_SCHEDULE_DELAY=50", "OTEL_EXPORTER_OTLP_TIMEOUT=300"}, says: "traces are lost"},
	} {
		t.Run(about, func(t *testing.T) {
			engine, asked := oneEngine(t)
			_, url, stop := upProcess(t, c.env, "--nvml off --engine "+engine+",name=e1")
			for range 3 {
				chatWith(t, url, "")
				h := <-asked
				if traced := h.Get("Traceparent") != ""; traced != (c.says != "") {
					t.Errorf("the engine got the context %q", h.Get("Traceparent"))
				}
			}
			if log := stop(); strings.Contains(log, "traces") != (c.says != "") || !strings.Contains(log, c.says) {
				t.Errorf("it logged %q", log)
			}
		})
	}
}

func TestTraceFlags(t *testing.T) {
	for _, c := range []struct{ env, args, says string }{
		{args: "--otlp-endpoint 127.0.0.1:4318", says: "must be a URL"},
		{args: "--otlp-endpoint ftp://x", says: "must be a URL"},
		{args: "--otlp-endpoint http://127.0.0.1:4318 --otlp-protocol http/json", says: "must be http/protobuf or grpc"},
		{args: "--otlp-endpoint http://127.0.0.1:4318 --trace-ratio 1.5", says: "must be from 0 to 1"},
		{env: "OTEL_TRACES_EXPORTER=zipkin", says: "must be otlp or none"},
		{env: "OTEL_EXPORTER_OTLP_PROTOCOL=http/json", args: "--otlp-endpoint http://127.0.0.1:4318", says: "must be http/protobuf or grpc"},
	} {
		if name, value, ok := strings.Cut(c.env, "="); ok {
			t.Setenv(name, value)
		}
		for _, verb := range []string{"up", "gateway", "worker --engine http://127.0.0.1:1"} {
			code, _, stderr := clitest.Run(newRootCommand(), strings.Fields(verb+" "+c.args)...)
			if code != 2 || !strings.Contains(stderr, c.says) {
				t.Errorf("%s %s %s: exit code %d, %s", c.env, verb, c.args, code, stderr)
			}
		}
		if name, _, ok := strings.Cut(c.env, "="); ok {
			t.Setenv(name, "")
		}
	}
}
