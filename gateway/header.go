package gateway

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/pulley-lb/pulley/subjects"
)

// notForEngine are request headers that do not go to the engine, beside those of one connection: they are secrets, are meant
// for the gateway, or tell some servers to take the call for another one, or where to run it.
var notForEngine = map[string]bool{
	"Host": true, "Content-Length": true, "Accept-Encoding": true, "Expect": true, "Origin": true, "Referer": true, "X-Request-Timeout": true,
	"Authorization": true, "Cookie": true, "Cookie2": true, "Api-Key": true, "Apikey": true, "X-Apikey": true, "X-Csrf-Token": true, "X-Amz-Security-Token": true,
	"X-Original-Url": true, "X-Original-Uri": true, "X-Original-Host": true, "X-Original-Method": true, "X-Rewrite-Url": true,
	"X-Http-Method": true, "X-Http-Method-Override": true, "X-Method-Override": true,
	"X-Data-Parallel-Rank": true, "X-Prefiller-Host-Port": true, "X-Gateway-Destination-Endpoint": true, // which rank or engine runs it
}

// forwarded are headers in which proxies say where a call comes from, beside X-Forwarded-*.
var forwarded = map[string]bool{
	"Forwarded": true, "X-Real-Ip": true, "X-Client-Ip": true, "X-Cluster-Client-Ip": true, "True-Client-Ip": true, "Cf-Connecting-Ip": true,
	"X-Envoy-External-Address": true,
}

// passesToEngine says whether a request header goes to the engine. proxied says that a trusted proxy has sent it.
func passesToEngine(name string, proxied bool) bool {
	if strings.Contains(name, "_") { // the same as "-" for some servers
		name = http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-"))
	}
	switch {
	case notForEngine[name], strings.HasPrefix(name, "Nats-"), strings.HasPrefix(name, "X-Pulley-"), strings.HasPrefix(name, "Sec-"):
		return false
	case strings.HasSuffix(name, "-Key"):
		return !strings.HasSuffix(name, "-Api-Key") && !strings.HasSuffix(name, "-Subscription-Key")
	case strings.HasSuffix(name, "-Token"):
		return !strings.HasSuffix(name, "-Auth-Token") && !strings.HasSuffix(name, "-Access-Token")
	case strings.HasSuffix(name, "-Authorization"):
		return false
	}
	return proxied || !strings.HasPrefix(name, "X-Forwarded-") && !forwarded[name]
}

func forEngine(h http.Header, id []string, proxied bool) http.Header {
	out := make(http.Header, len(h))
	for k, v := range h {
		if passesToEngine(k, proxied) {
			out[k] = v
		}
	}
	subjects.EndToEnd(out)
	out["X-Request-Id"] = id
	return out
}

// answerHeaders are the headers of engines' answers that clients get. It does not change.
//
// Engines are not trusted with more than the answer: what a browser or a proxy does with the gateway's origin, its cookies
// and its connections is not theirs to say.
type answerHeaders struct {
	names    map[string]bool
	prefixes []string
}

// engineHeaders are those that always pass: the content, when to come back, what official APIs and engines tell about the
// call, and traces.
var engineHeaders = []string{
	"Content-Type", "Content-Length", "Content-Encoding", "Content-Language", "Content-Disposition", "Content-Range", "Content-Digest", "Content-Md5",
	"Repr-Digest", "Digest", "Accept-Ranges", "Cache-Control", "Expires", "Pragma", "Etag", "Last-Modified", "Age", "Vary", "X-Content-Type-Options",
	"Inference-Header-Content-Length", // where KServe's binary data begins
	"X-Accel-Buffering",               // asks proxies before the gateway to pass a stream on at once
	"Retry-After", "Retry-After-Ms", "X-Should-Retry",
	"Request-Id", "X-Correlation-Id", // X-Request-Id is the gateway's
	"Openai-*", "Anthropic-*", "X-Ratelimit-*", "Ratelimit", "Ratelimit-*",
	"Traceparent", "Tracestate", "Traceresponse", "Server-Timing", "Warning", "Deprecation", "Sunset",
	"X-Compute-Type", "X-Compute-Time", "X-Compute-Characters", "X-Compute-Tokens", "X-Total-Time", "X-Validation-Time", "X-Queue-Time", // TGI, TEI
	"X-Inference-Time", "X-Time-Per-Token", "X-Prompt-Tokens", "X-Generated-Tokens", "X-Tokenization-Time",
	"X-Sim-Name", // Pulley's simulated engine
}

// neverPass are the headers that no configuration lets pass.
var neverPass = []string{
	"Set-Cookie", "Set-Cookie2", "Location", "Content-Location", "Refresh", "Strict-Transport-Security", "Public-Key-Pins", "Alt-Svc", "Clear-Site-Data",
	"Access-Control-*", "Www-Authenticate", "Authentication-Info", "X-Request-Id", "X-Pulley-*", "X-Service-Tier", "X-Client-Request-Id",
}

// newAnswerHeaders returns what passes: the usual ones, and more. A name in it may end in *, which stands for any rest.
func newAnswerHeaders(more []string) (*answerHeaders, error) {
	h := &answerHeaders{names: make(map[string]bool)}
	for _, name := range engineHeaders {
		h.add(name)
	}
	never := new(answerHeaders)
	never.names = make(map[string]bool)
	for _, name := range neverPass {
		never.add(name)
	}
	for _, name := range more {
		stem, any := strings.CutSuffix(name, "*")
		canonical := http.CanonicalHeaderKey(stem)
		hop := http.Header{canonical: {""}}
		subjects.EndToEnd(hop)
		switch {
		case !isToken(stem), any && len(stem) < 3:
			return nil, fmt.Errorf("response header %q: must be a name, or the beginning of one and *", name)
		case len(hop) == 0:
			return nil, fmt.Errorf("response header %q: is of one connection, and never passes", name)
		case never.has(canonical), any && slices.ContainsFunc(neverPass, func(n string) bool { return strings.HasPrefix(n, canonical) }):
			return nil, fmt.Errorf("response header %q: never passes from an engine to a client", name)
		case any:
			h.add(canonical + "*")
		default:
			h.add(canonical)
		}
	}
	return h, nil
}

func (h *answerHeaders) add(name string) {
	if stem, any := strings.CutSuffix(name, "*"); any {
		h.prefixes = append(h.prefixes, stem)
	} else {
		h.names[name] = true
	}
}

func (h *answerHeaders) has(name string) bool {
	return h.names[name] || slices.ContainsFunc(h.prefixes, func(p string) bool { return strings.HasPrefix(name, p) })
}

// passes says whether a header of an engine's answer passes to a client. limited says that the client's key has limits:
// then those of the engine do not pass.
func (h *answerHeaders) passes(name string, limited bool) bool {
	if !h.has(name) || name == "Openai-Processing-Ms" {
		return false
	}
	return !limited || !strings.HasPrefix(name, "X-Ratelimit-") && !strings.HasPrefix(name, "Anthropic-Ratelimit-") && !strings.HasPrefix(name, "Ratelimit")
}

// isToken says that s can be a header's name.
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune("\"(),/:;<=>?@[\\]{}", r)
	})
}
