package gateway

import (
	"bufio"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"net/url"
	"reflect"
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

// FuzzHeaders passes any header to the engine and any header back: all passes but what is of one connection, secret, or
// the gateway's, and with the same values in the same order.
func FuzzHeaders(f *testing.F) {
	for _, s := range []string{
		"Content-Type: application/json\r\nX-A: 1\r\nx-a: 2", "Authorization: Bearer x\r\nCookie: a=b\r\nConnection: x-a, Keep-Alive\r\nX-A: 1",
		"X-Pulley-Explain: 1\r\nX-Stainless-Lang: python\r\nSec-Fetch-Mode: cors\r\nNats-TTL: 1s", "Te: trailers\r\nX-Request-Timeout: 3\r\nAnthropic-Beta: a,b\r\nAnthropic-Beta: c",
		"Location: http://10.0.0.1:8000/x?y=z\r\nVary: Origin\r\nServer-Timing: a;dur=1", "X-Request-Id: a\r\nOpenai-Processing-Ms: 7\r\nX-Ratelimit-Limit-Requests: 1\r\nAccess-Control-Allow-Origin: *",
		"X-Latin: caf\xe9\r\nX-Empty:\r\nX-Space:  a  b ",
	} {
		f.Add(s)
	}
	cfg, err := Config{}.withDefaults()
	if err != nil {
		f.Fatal(err)
	}
	s := &server{cfg: &cfg, metrics: newMetrics("g", "v")}
	tier := policy.Default().Tiers[0]
	at := target{queue: newQueues().get("m", tier.Name), tier: tier, lane: subjects.Shared}
	f.Fuzz(func(t *testing.T, text string) {
		h, ok := headerOf(text)
		if !ok {
			return
		}
		was := h.Clone()
		got := forEngine(h, []string{"the-id"})
		if !reflect.DeepEqual(h, was) {
			t.Fatalf("the client's own header became %q, was %q", h, was)
		}
		want := http.Header{"X-Request-Id": {"the-id"}}
		for name, values := range was {
			lower := strings.ToLower(name)
			secret := slices.Contains([]string{"host", "content-length", "accept-encoding", "expect", "authorization", "x-api-key", "api-key", "cookie", "origin", "referer", "x-request-timeout", "x-request-id"}, lower)
			if !secret && !hopByHop(was, name) && !strings.HasPrefix(lower, "nats-") && !strings.HasPrefix(lower, "x-pulley-") && !strings.HasPrefix(lower, "sec-") {
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
			case hopByHop(was, name), strings.HasPrefix(lower, "x-pulley-"):
				if back[name] != nil {
					t.Errorf("%q: the client gets %s %q", text, name, back[name])
				}
			case lower == "x-request-id", lower == "openai-processing-ms", lower == "x-service-tier", lower == "content-length":
				if len(back[name]) != 1 {
					t.Errorf("%q: the client gets %s %q, want the gateway's", text, name, back[name])
				}
			case lower == "location", lower == "content-location":
				for _, v := range back[name] {
					if u, err := url.Parse(v); err != nil || u.Host != "" {
						t.Errorf("%q: the client gets %s %q", text, name, v)
					}
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
