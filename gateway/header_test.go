package gateway

import (
	"bufio"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// headerOf reads header lines as net/http does.
func headerOf(text string) (http.Header, bool) {
	h, err := textproto.NewReader(bufio.NewReader(strings.NewReader(text + "\r\n\r\n"))).ReadMIMEHeader()
	for name := range h {
		if !isToken(name) { // net/http answers 400
			return nil, false
		}
	}
	return http.Header(h), err == nil
}

// hopByHop says, slowly, whether a header is of one connection only, by RFC 9110 and what proxies drop.
func hopByHop(h http.Header, name string) bool {
	var names strings.Builder
	names.WriteString("connection,keep-alive,proxy-authenticate,proxy-authorization,proxy-connection,te,trailer,transfer-encoding,upgrade")
	for _, v := range h["Connection"] {
		names.WriteString("," + strings.ToLower(v))
	}
	return slices.ContainsFunc(strings.Split(names.String(), ","), func(n string) bool {
		return strings.TrimSpace(n) == strings.ToLower(name)
	})
}

// passes says, slowly, whether a header of an engine passes to a client, or is the gateway's own; in lower case.
func passes(name string) bool {
	for _, prefix := range []string{"openai-", "anthropic-", "x-ratelimit-", "ratelimit-"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return slices.Contains(strings.Fields(`
		content-type content-length content-encoding content-language content-disposition content-range content-digest content-md5 repr-digest digest
		accept-ranges cache-control expires pragma etag last-modified age vary x-content-type-options inference-header-content-length x-accel-buffering
		retry-after retry-after-ms x-should-retry request-id x-correlation-id x-request-id x-service-tier ratelimit
		traceparent tracestate traceresponse server-timing warning deprecation sunset
		x-compute-type x-compute-time x-compute-characters x-compute-tokens x-total-time x-validation-time x-queue-time x-inference-time x-time-per-token
		x-prompt-tokens x-generated-tokens x-tokenization-time x-sim-name`), name)
}

// kept matches, in lower case and with "-" for "_", the headers of clients that no engine gets.
var kept = regexp.MustCompile(`^(host|content-length|accept-encoding|expect|origin|referer|x-request-timeout|authorization|cookie2?|(x-)?api-?key|x-csrf-token|x-amz-security-token` +
	`|x-original-(url|uri|host|method)|x-rewrite-url|x-http-method(-override)?|x-method-override|x-data-parallel-rank|x-prefiller-host-port|x-gateway-destination-endpoint` +
	`|.*-(api|subscription)-key|.*-(auth|access)-token|.*-authorization|forwarded|x-forwarded-.*|(x-real|x-client|x-cluster-client|true-client|cf-connecting)-ip|x-envoy-external-address` +
	`|nats-.*|x-pulley-.*|sec-.*)$`)

// FuzzHeaders passes any header to the engine and any header back. To the engine all passes but what is of one connection,
// secret, or the gateway's; back what is known to be harmless. The values are the same, in the same order.
func FuzzHeaders(f *testing.F) {
	for _, s := range []string{
		"Content-Type: application/json\r\nX-A: 1\r\nx-a: 2", "Authorization: Bearer x\r\nCookie: a=b\r\nConnection: x-a, Keep-Alive\r\nX-A: 1",
		"X-Pulley-Explain: 1\r\nX-Stainless-Lang: python\r\nSec-Fetch-Mode: cors\r\nNats-TTL: 1s", "Te: trailers\r\nX-Request-Timeout: 3\r\nAnthropic-Beta: a,b\r\nAnthropic-Beta: c",
		"Location: http://10.0.0.1:8000/x?y=z\r\nVary: Origin\r\nServer-Timing: a;dur=1", "Set-Cookie: a=b\r\nStrict-Transport-Security: max-age=1\r\nServer: x\r\nAlt-Svc: h2\r\nOpenai-Version: 1\r\nX-Compute-Time: 3", "X-Request-Id: a\r\nOpenai-Processing-Ms: 7\r\nX-Ratelimit-Limit-Requests: 1\r\nAccess-Control-Allow-Origin: *",
		"X-Goog-Api-Key: x\r\nX-Auth-Token: x\r\nX_Auth_Token: x\r\nX-Forwarded-For: 1.2.3.4\r\nX-Original-URL: /sleep\r\nX-Data-Parallel-Rank: 3\r\nsession_id: a\r\nX-Session-Token: b",
		"X-Latin: caf\xe9\r\nX-Empty:\r\nX-Space:  a  b ",
	} {
		f.Add(s)
	}
	cfg, err := Config{}.withDefaults()
	if err != nil {
		f.Fatal(err)
	}
	headers, err := newAnswerHeaders(nil)
	if err != nil {
		f.Fatal(err)
	}
	s := &server{cfg: &cfg, metrics: newMetrics("g", "v", Labels{}), headers: headers}
	tier := policy.Default().Tiers[0]
	at := target{queue: newQueues().get("m", tier.Name), tier: tier, lane: subjects.Shared}
	f.Fuzz(func(t *testing.T, text string) {
		h, ok := headerOf(text)
		if !ok {
			return
		}
		was := h.Clone()
		got := forEngine(h, []string{"the-id"}, false)
		if !reflect.DeepEqual(h, was) {
			t.Fatalf("the client's own header became %q, was %q", h, was)
		}
		want := http.Header{"X-Request-Id": {"the-id"}}
		for name, values := range was {
			lower := strings.ToLower(name)
			if lower != "x-request-id" && !hopByHop(was, name) && !kept.MatchString(strings.ReplaceAll(lower, "_", "-")) {
				want[name] = values
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%q: the engine gets %q, want %q", text, got, want)
		}

		// Back: the worker drops what is of its connection, and the gateway adds its own.
		h, _ = headerOf(text)
		subjects.EndToEnd(h)
		w := httptest.NewRecorder()
		w.Header()["X-Request-Id"] = []string{"the-id"}
		r := newRequest(&spec{wire: &subjects.Request{Pool: "m", Tier: tier.Name}, api: api.Chat, caller: anonymous, arrived: time.Now(), admitted: at}, nil)
		r.give("w", "w", time.Now())
		a := s.newAnswer(w, r)
		if err := a.head(&subjects.Head{Status: 200, Header: h.Clone(), Length: 0}); err != nil {
			t.Fatal(err)
		}
		a.begin(0)
		back := w.Header()
		for name, values := range was {
			lower := strings.ToLower(name)
			switch {
			case hopByHop(was, name), !passes(lower):
				if back[name] != nil {
					t.Errorf("%q: the client gets %s %q", text, name, back[name])
				}
			case lower == "x-request-id", lower == "openai-processing-ms", lower == "x-service-tier", lower == "content-length":
				if len(back[name]) != 1 {
					t.Errorf("%q: the client gets %s %q, want the gateway's", text, name, back[name])
				}
			case lower == "server-timing":
				if len(back[name]) != len(values)+1 {
					t.Errorf("%q: the client gets %s %q, want the engine's and the gateway's", text, name, back[name])
				}
			default:
				if !reflect.DeepEqual(back[name], values) {
					t.Errorf("%q: the client gets %s %q, want %q", text, name, back[name], values)
				}
			}
		}
	})
}

func TestAnswerHeaders(t *testing.T) {
	for about, c := range map[string]struct {
		more, pass, stop []string
		limited          bool
	}{
		"by itself": {
			pass: []string{"Content-Type", "Openai-Version", "Anthropic-Organization-Id", "Anthropic-Ratelimit-Requests-Limit", "X-Ratelimit-Limit-Requests", "Retry-After", "X-Should-Retry", "Server-Timing", "Traceresponse", "Request-Id"},
			stop: []string{"Set-Cookie", "Location", "Strict-Transport-Security", "Access-Control-Allow-Origin", "Server", "Alt-Svc", "Clear-Site-Data", "X-Custom", "Openai-Processing-Ms", "X-Request-Id", "X-Pulley-Worker", "X-Powered-By", "Link", "Content-Security-Policy", "Date", "Via"},
		},
		"with limits of the key": {limited: true,
			pass: []string{"Content-Type", "Retry-After"},
			stop: []string{"X-Ratelimit-Limit-Requests", "X-Ratelimit-Remaining-Tokens", "Anthropic-Ratelimit-Requests-Limit", "Ratelimit", "Ratelimit-Policy"},
		},
		"with more": {more: []string{"x-custom", "X-Vllm-*", "server"},
			pass: []string{"X-Custom", "X-Vllm-Spec-Decoding", "Server", "Content-Type"},
			stop: []string{"X-Custom-2", "X-Vll", "Set-Cookie"},
		},
	} {
		h, err := newAnswerHeaders(c.more)
		if err != nil {
			t.Errorf("%s: %v", about, err)
			continue
		}
		for _, name := range c.pass {
			if !h.passes(name, c.limited) {
				t.Errorf("%s: %s does not pass", about, name)
			}
		}
		for _, name := range c.stop {
			if h.passes(name, c.limited) {
				t.Errorf("%s: %s passes", about, name)
			}
		}
	}
	for _, name := range []string{
		"", "*", "X*", "X-*", "a b", "a:", "Set-Cookie", "set-cookie", "Set-*", "Location", "Content-*", "Loc*", "Access-Control-Allow-Origin", "access-*", "Access-Control-Max*",
		"Strict-Transport-Security", "Connection", "Transfer-Encoding", "X-Request-Id", "X-Pulley-Worker", "X-Pul*", "Clear-Site-Data", "Alt-Svc", "Www-Authenticate",
	} {
		if _, err := newAnswerHeaders([]string{name}); err == nil {
			t.Errorf("%q may pass", name)
		}
	}
}

func TestForwardedHeaders(t *testing.T) {
	for name, fromProxy := range map[string]bool{
		"X-Forwarded-For": true, "X-Forwarded-Host": true, "X-Forwarded-Proto": true, "Forwarded": true, "X-Real-Ip": true,
		"X-Forwarded-Access-Token": false, "X-Auth-Token": false, "Cookie": false, "X-Rewrite-Url": false,
	} {
		h := http.Header{name: {"x"}}
		if forEngine(h, nil, false)[name] != nil {
			t.Errorf("%s of a client passes", name)
		}
		if got := forEngine(h, nil, true)[name] != nil; got != fromProxy {
			t.Errorf("%s of a trusted proxy passes: %t, want %t", name, got, fromProxy)
		}
	}
}
