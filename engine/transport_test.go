package engine_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/testenv"
)

// rawEngine reads requests and answers with given bytes.
type rawEngine struct {
	url   string
	conns atomic.Int64  // connections so far
	gone  chan struct{} // receives a value for each connection that ended
}

// newRawEngine serves answers: answer returns the bytes, and whether the connection is closed after
// them.
func newRawEngine(t testing.TB, answer func(r *http.Request) (raw string, closes bool)) *rawEngine {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveRaw(t, ln, answer)
}

func serveRaw(t testing.TB, ln net.Listener, answer func(r *http.Request) (raw string, closes bool)) *rawEngine {
	e := &rawEngine{url: "http://" + ln.Addr().String(), gone: make(chan struct{}, 100)}
	var serving sync.WaitGroup
	var mu sync.Mutex
	open := make(map[net.Conn]bool)
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			e.conns.Add(1)
			mu.Lock()
			open[c] = true
			mu.Unlock()
			serving.Go(func() {
				defer func() { c.Close(); e.gone <- struct{}{} }()
				br := bufio.NewReader(c)
				for {
					r, err := http.ReadRequest(br)
					if err != nil {
						return
					}
					if _, err := io.Copy(io.Discard, r.Body); err != nil {
						return
					}
					raw, closes := answer(r)
					if _, err := io.WriteString(c, raw); err != nil || closes {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		serving.Wait()
	})
	return e
}

func newTransport(t testing.TB, url string, std *http.Transport) *engine.Transport {
	t.Helper()
	std.DisableCompression = true
	transport := engine.NewTransport(url, std)
	t.Cleanup(transport.CloseIdleConnections)
	return transport
}

func newPost(t testing.TB, ctx context.Context, url, body string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// outcome is the result of a call.
type outcome struct {
	failed  bool // before the answer started
	status  int
	proto   string
	header  http.Header
	length  int64
	chunked bool
	close   bool
	body    string
	broken  bool // before the answer ended
	trailer http.Header
}

func call(rt http.RoundTripper, r *http.Request) outcome {
	resp, err := rt.RoundTrip(r)
	if err != nil {
		return outcome{failed: true}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return outcome{
		status: resp.StatusCode, proto: resp.Proto, header: resp.Header, length: resp.ContentLength, close: resp.Close,
		chunked: len(resp.TransferEncoding) > 0, body: string(body), broken: err != nil, trailer: resp.Trailer,
	}
}

func (o outcome) equal(p outcome) bool {
	same := maps.EqualFunc(o.header, p.header, func(a, b []string) bool { return fmt.Sprint(a) == fmt.Sprint(b) })
	return same && fmt.Sprint(o) == fmt.Sprint(p)
}

// oddAnswers are answers that engines should not give, among some that they may.
var oddAnswers = []string{
	"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Type: text/plain\r\n\r\nhello",
	"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
	"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhello",
	"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
	"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 4\r\n\r\nhello",
	"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nhello",
	"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
	"HTTP/1.1 200 OK\r\n\r\nhello",
	"HTTP/1.0 200 OK\r\n\r\nhello",
	"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello",
	"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 7\r\n\r\n",
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;ext=1\r\nhello\r\n0\r\n\r\n",
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello",
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
	"HTTP/1.1 204 No Content\r\n\r\n",
	"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
	"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
	"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
	"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
	"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
	"HTTP/1.1 100 Continue\r\n\r\n",
	"HTTP/1.1 099 Low\r\nContent-Length: 5\r\n\r\nhello",
	"HTTP/1.1 999 High\r\nContent-Length: 5\r\n\r\nhello",
	"HTTP/1.1 20 Short\r\n\r\n",
	"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello",
	"HTTP/1.1  200 OK\r\nContent-Length: 5\r\n\r\nhello",
	"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
	"HTTP/1.1 200 OK\r\nX-A: 1\r\nX-A: 2\r\nx-a: 3\r\nContent-Length: 5\r\n\r\nhello",
	"HTTP/1.1 200 OK\r\nX-A: 1\r\n folded\r\nContent-Length: 5\r\n\r\nhello",
	"HTTP/1.1 200 OK\r\nX A: 1\r\nContent-Length: 5\r\n\r\nhello",
	"HTTP/1.1 200 OK\r\nX-A : 1\r\nContent-Length: 5\r\n\r\nhello",
	"HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 5\r\n\r\nhello",
	"HTTP/1.1 200 OK\r\nX-A: \xff\x00\r\nContent-Length: 5\r\n\r\nhello",
	"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n",
	"HTTP/1.1 200 O\xff\r\nContent-Length: 5\r\n\r\nhello",
	"HTTP/2.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
	"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 5\r\n\r\nhello",
	"hello",
	"",
	"\r\n",
}

// TestTransportAnswersAsNetHTTP: whatever an engine answers, the result is that of net/http's own
// transport.
func TestTransportAnswersAsNetHTTP(t *testing.T) {
	for _, raw := range oddAnswers {
		sameAnswer(t, raw)
	}
}

func FuzzTransportAnswersAsNetHTTP(f *testing.F) {
	for _, raw := range oddAnswers {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw string) { sameAnswer(t, raw) })
}

func sameAnswer(t *testing.T, raw string) {
	t.Helper()
	ln := testenv.NewListener()
	e := serveRaw(t, ln, func(*http.Request) (string, bool) { return raw, true })
	std := &http.Transport{DialContext: ln.DialContext, DisableCompression: true}
	want := call(std, newPost(t, t.Context(), e.url, "{}"))
	if want.status == http.StatusSwitchingProtocols { // net/http passes it on, Transport does not: it was not asked for
		return
	}
	if got := call(newTransport(t, e.url, std), newPost(t, t.Context(), e.url, "{}")); !got.equal(want) {
		t.Errorf("answer %q:\n got %+v\nwant %+v", raw, got, want)
	}
}

// TestTransportSendsAsNetHTTP: engines cannot see a difference.
func TestTransportSendsAsNetHTTP(t *testing.T) {
	var got []string
	e := newRawEngine(t, func(r *http.Request) (string, bool) {
		got = append(got, fmt.Sprintln(r.Method, r.RequestURI, r.Proto, r.Host, r.Header, r.ContentLength, r.TransferEncoding))
		return "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false
	})
	std := &http.Transport{DisableCompression: true}
	defer std.CloseIdleConnections()
	transport := newTransport(t, e.url, &http.Transport{})
	for name, request := range map[string]func() (*http.Request, error){
		"post": func() (*http.Request, error) {
			return http.NewRequest("POST", e.url+"/v1/x?a=b%20c", strings.NewReader("{}"))
		},
		"empty":   func() (*http.Request, error) { return http.NewRequest("POST", e.url, strings.NewReader("")) },
		"no body": func() (*http.Request, error) { return http.NewRequest("DELETE", e.url+"/a%2Fb", nil) },
		"get":     func() (*http.Request, error) { return http.NewRequest("GET", e.url+"/health", nil) },
		"long": func() (*http.Request, error) {
			return http.NewRequest("POST", e.url, strings.NewReader(strings.Repeat("x", 1<<20)))
		},
		"length untold": func() (*http.Request, error) {
			return http.NewRequest("POST", e.url, io.MultiReader(strings.NewReader("x")))
		},
		"header": func() (*http.Request, error) {
			r, err := http.NewRequest("POST", e.url, strings.NewReader("{}"))
			if err == nil {
				r.Header = http.Header{"X-A": {"1", "2"}, "User-Agent": {"sdk/1"}, "Accept": {"*/*"}, "Accept-Encoding": {"gzip"}}
			}
			return r, err
		},
	} {
		t.Run(name, func(t *testing.T) {
			got = nil
			for _, rt := range []http.RoundTripper{std, transport} {
				r, err := request()
				if err != nil {
					t.Fatal(err)
				}
				if o := call(rt, r); o.status != 200 {
					t.Fatalf("%T: %+v", rt, o)
				}
			}
			if len(got) != 2 || got[0] != got[1] {
				t.Errorf("the engine got\n%s", strings.Join(got, ""))
			}
		})
	}
}

// TestTransportKeepsConnections: a connection is used again only after an answer that leaves it in
// order.
func TestTransportKeepsConnections(t *testing.T) {
	const whole = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
	for name, c := range map[string]struct {
		first  string
		closes bool
		expire time.Duration
		early  bool // close the first answer before its end
		want   int64
	}{
		"whole":                {first: whole, want: 1},
		"chunked":              {first: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", want: 1},
		"without a body":       {first: "HTTP/1.1 204 No Content\r\n\r\n", want: 1},
		"HTTP/1.0, kept":       {first: "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello", want: 1},
		"HTTP/1.0":             {first: "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", want: 2},
		"connection: close":    {first: "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello", want: 2},
		"more than its length": {first: whole + whole, want: 2},
		"closed by the engine": {first: whole, closes: true, want: 2},
		"not read to its end":  {first: whole, early: true, want: 2},
		"idle for too long":    {first: whole, expire: 1, want: 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			calls := 0
			e := newRawEngine(t, func(*http.Request) (string, bool) {
				if calls++; calls == 1 {
					return c.first, c.closes
				}
				return whole, false
			})
			transport := newTransport(t, e.url, &http.Transport{IdleConnTimeout: c.expire})
			resp, err := transport.RoundTrip(newPost(t, t.Context(), e.url, "{}"))
			if err != nil {
				t.Fatal(err)
			}
			if !c.early {
				if _, err := io.ReadAll(resp.Body); err != nil {
					t.Fatal(err)
				}
			}
			resp.Body.Close()
			if c.closes {
				<-e.gone
			}
			if o := call(transport, newPost(t, t.Context(), e.url, "{}")); o.body != "hello" || o.broken {
				t.Errorf("second answer: %+v", o)
			}
			if n := e.conns.Load(); n != c.want {
				t.Errorf("%d connections, want %d", n, c.want)
			}
		})
	}
}

// TestTransportBoundsIdleConnections: after many calls at once, no more connections stay open than
// configured.
func TestTransportBoundsIdleConnections(t *testing.T) {
	const calls, most = 8, 3
	var all sync.WaitGroup
	all.Add(calls)
	e := newRawEngine(t, func(*http.Request) (string, bool) {
		all.Done()
		all.Wait()
		return "HTTP/1.1 204 No Content\r\n\r\n", false
	})
	transport := newTransport(t, e.url, &http.Transport{MaxIdleConnsPerHost: most})
	var wg sync.WaitGroup
	for range calls {
		wg.Go(func() {
			if o := call(transport, newPost(t, t.Context(), e.url, "{}")); o.status != 204 {
				t.Errorf("answer: %+v", o)
			}
		})
	}
	wg.Wait()
	for range calls - most {
		<-e.gone
	}
	transport.CloseIdleConnections()
	for range most {
		<-e.gone
	}
}

// TestTransportCancel: the engine notices a cancelled call at once, in every phase, and the caller
// gets the cause.
func TestTransportCancel(t *testing.T) {
	enough := errors.New("enough")
	for name, answer := range map[string]string{
		"before the answer":     "",
		"in its header":         "HTTP/1.1 200 OK\r\nContent-",
		"in its body":           "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
		"in a stream":           "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
		"in a body without end": "HTTP/1.1 200 OK\r\n\r\nhello",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			asked := make(chan struct{}, 1)
			e := newRawEngine(t, func(*http.Request) (string, bool) {
				asked <- struct{}{}
				return answer, false
			})
			ctx, cancel := context.WithCancelCause(t.Context())
			go func() {
				<-asked
				if !strings.Contains(answer, "hello") {
					cancel(enough)
				}
			}()
			resp, err := newTransport(t, e.url, &http.Transport{}).RoundTrip(newPost(t, ctx, e.url, "{}"))
			if err == nil {
				defer resp.Body.Close()
				if _, err := io.ReadFull(resp.Body, make([]byte, 5)); err != nil {
					t.Fatal(err)
				}
				cancel(enough)
				_, err = io.ReadAll(resp.Body)
				if _, again := resp.Body.Read(make([]byte, 1)); !errors.Is(again, enough) {
					t.Errorf("reading on: %v", again)
				}
				if !errors.Is(err, enough) {
					t.Errorf("got %v, want the cause", err)
				}
			} else if !errors.Is(err, enough) {
				t.Errorf("got %v, want the cause", err)
			}
			<-e.gone
		})
	}
}

// TestTransportCancelledBefore: a call that is cancelled beforehand does not reach the engine.
func TestTransportCancelledBefore(t *testing.T) {
	asked := 0
	e := newRawEngine(t, func(*http.Request) (string, bool) {
		asked++
		return "HTTP/1.1 204 No Content\r\n\r\n", false
	})
	transport := newTransport(t, e.url, &http.Transport{})
	call(transport, newPost(t, t.Context(), e.url, "{}"))
	enough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(enough)
	if _, err := transport.RoundTrip(newPost(t, ctx, e.url, "{}")); !errors.Is(err, enough) {
		t.Errorf("got %v, want the cause", err)
	}
	if o := call(transport, newPost(t, t.Context(), e.url, "{}")); o.status != 204 || asked != 2 || e.conns.Load() != 1 {
		t.Errorf("%+v; %d calls by %d connections, want 2 by 1", o, asked, e.conns.Load())
	}
}

// TestTransportStaleConnection: an engine closes a connection just when the next request comes. A request without a body is
// sent again; one with a body fails, because it may have been served.
func TestTransportStaleConnection(t *testing.T) {
	for method, want := range map[string]int{http.MethodGet: 204, http.MethodPost: 0} {
		calls := 0
		e := newRawEngine(t, func(*http.Request) (string, bool) {
			if calls++; calls == 2 {
				return "", true
			}
			return "HTTP/1.1 204 No Content\r\n\r\n", false
		})
		transport := newTransport(t, e.url, &http.Transport{})
		for _, want := range []int{204, want} {
			var body io.Reader
			if method == http.MethodPost {
				body = strings.NewReader("{}")
			}
			r, err := http.NewRequest(method, e.url, body)
			if err != nil {
				t.Fatal(err)
			}
			if o := call(transport, r); o.status != want {
				t.Errorf("%s: %+v, want status %d", method, o, want)
			}
		}
	}
}

// turnsDown is a connection to an engine that has answered and accepts no more.
type turnsDown struct {
	net.Conn
	answer io.Reader
}

func (c turnsDown) Read(p []byte) (int, error)      { return c.answer.Read(p) }
func (c turnsDown) Write([]byte) (int, error)       { return 0, errors.New("connection reset by peer") }
func (c turnsDown) SetReadDeadline(time.Time) error { return nil }
func (c turnsDown) Close() error                    { return nil }

// TestTransportEarlyRefusal: the answer of an engine that answers before it has the whole request,
// and closes, is returned.
func TestTransportEarlyRefusal(t *testing.T) {
	for answer, want := range map[string]int{"HTTP/1.1 413 Too Long\r\nContent-Length: 8\r\n\r\ntoo long": 413, "HTTP/1.1 4": 0} {
		transport := newTransport(t, "http://engine", &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
			return turnsDown{answer: strings.NewReader(answer)}, nil
		}})
		resp, err := transport.RoundTrip(newPost(t, t.Context(), "http://engine", "{}"))
		switch {
		case want == 0:
			if err == nil || !strings.Contains(err.Error(), "reset") {
				t.Errorf("answer %q: %v, want what came of writing", answer, err)
			}
		case err != nil:
			t.Errorf("answer %q: %v", answer, err)
		default:
			if body, err := io.ReadAll(resp.Body); resp.StatusCode != want || string(body) != "too long" || err != nil {
				t.Errorf("got %d %q, %v", resp.StatusCode, body, err)
			}
		}
	}
}

// TestTransportKeepsCallsApart: with many calls at once, some of them cancelled, each gets its own
// answer or none.
func TestTransportKeepsCallsApart(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		for i := range 3 {
			fmt.Fprintf(w, "%s %d\n", body, i)
			w.(http.Flusher).Flush()
		}
	}))
	defer srv.Close()
	transport := newTransport(t, srv.URL, &http.Transport{MaxIdleConnsPerHost: 4})
	var wg sync.WaitGroup
	var whole atomic.Int64
	for i := range 8 {
		wg.Go(func() {
			for j := range 200 {
				name := fmt.Sprintf("call %d of %d", j, i)
				ctx, cancel := context.WithCancel(t.Context())
				if j%3 == 0 {
					go cancel()
				}
				o := call(transport, newPost(t, ctx, srv.URL, name))
				cancel()
				want := fmt.Sprintf("%[1]s 0\n%[1]s 1\n%[1]s 2\n", name)
				switch {
				case o.failed || o.broken && strings.HasPrefix(want, o.body):
					if j%3 != 0 {
						t.Errorf("%s: %+v", name, o)
					}
				case o.body != want:
					t.Errorf("%s: got %q", name, o.body)
				default:
					whole.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if whole.Load() < 1000 {
		t.Errorf("%d whole answers", whole.Load())
	}
}

// TestTransportLongBody: the answer of an engine that refuses a long request without reading it is
// returned.
func TestTransportLongBody(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "too long", http.StatusRequestEntityTooLarge)
	}))
	defer srv.Close()
	o := call(newTransport(t, srv.URL, &http.Transport{}), newPost(t, t.Context(), srv.URL, strings.Repeat("x", 8<<20)))
	if o.status != http.StatusRequestEntityTooLarge || o.body != "too long\n" {
		t.Errorf("got %+v", o)
	}
}

// An answer that comes faster than it is read arrives whole, however its chunks and its reads are cut, and its connection serves
// the next call.
func TestTransportBurst(t *testing.T) {
	var want strings.Builder
	for i := range 20_000 {
		fmt.Fprintf(&want, "data: %d\n\n", i)
	}
	for _, chunk := range []int{1, 37, 160, 4094, 4096, 5000, 40_000} {
		raw := []byte("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
		for rest := want.String(); rest != ""; {
			n := min(chunk, len(rest))
			raw = fmt.Appendf(raw, "%x\r\n%s\r\n", n, rest[:n])
			rest = rest[n:]
		}
		raw = append(raw, "0\r\n\r\n"...)
		e := newRawEngine(t, func(*http.Request) (string, bool) { return string(raw), false })
		transport := newTransport(t, e.url, &http.Transport{})
		for range 3 {
			resp, err := transport.RoundTrip(newPost(t, t.Context(), e.url, "{}"))
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if _, err = io.CopyBuffer(struct{ io.Writer }{&got}, struct{ io.Reader }{resp.Body}, make([]byte, 2<<10)); err != nil || got.String() != want.String() {
				t.Fatalf("chunks of %d: %v, %d bytes of %d", chunk, err, got.Len(), want.Len())
			}
			resp.Body.Close()
		}
		if n := e.conns.Load(); n != 1 {
			t.Errorf("chunks of %d: %d connections for calls one after the other", chunk, n)
		}
	}
}

func TestTransportErrors(t *testing.T) {
	e := newRawEngine(t, func(r *http.Request) (string, bool) {
		if strings.HasPrefix(r.URL.Path, "/switch") {
			return "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", true
		}
		return "HTTP/1.1 200 OK\r\nX-Long: " + strings.Repeat("x", 8<<10) + "\r\n\r\n", true
	})
	transport := newTransport(t, e.url, &http.Transport{MaxResponseHeaderBytes: 4 << 10})
	_, err := transport.RoundTrip(newPost(t, t.Context(), e.url, "{}"))
	if err == nil || !strings.Contains(err.Error(), "header") {
		t.Errorf("a long header: %v", err)
	}
	_, err = transport.RoundTrip(newPost(t, t.Context(), e.url+"/switch", "{}"))
	if err == nil || !strings.Contains(err.Error(), "protocols") {
		t.Errorf("an answer that switches protocols: %v", err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	unused := "http://" + ln.Addr().String()
	if _, err := newTransport(t, unused, &http.Transport{}).RoundTrip(newPost(t, t.Context(), unused, "{}")); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("no listener: %v", err)
	}
}

// TestTransportLeavesTheRest: other calls go through net/http's transport.
func TestTransportLeavesTheRest(t *testing.T) {
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Host) })
	plain, other, secure := httptest.NewServer(answer), httptest.NewServer(answer), httptest.NewTLSServer(answer)
	for _, s := range []*httptest.Server{plain, other, secure} {
		defer s.Close()
	}
	std := secure.Client().Transport.(*http.Transport)
	for _, url := range []string{plain.URL, other.URL, secure.URL} {
		for _, of := range []string{plain.URL, secure.URL, "", "://"} {
			if o := call(newTransport(t, of, std), newPost(t, t.Context(), url, "{}")); o.body != strings.SplitN(url, "//", 2)[1] {
				t.Errorf("transport for %q, call of %s: %+v", of, url, o)
			}
		}
	}
	proxied := ""
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { proxied = r.URL.String() }))
	defer proxy.Close()
	std = &http.Transport{Proxy: func(*http.Request) (*url.URL, error) { return url.Parse(proxy.URL) }}
	if o := call(newTransport(t, "http://engine:8000", std), newPost(t, t.Context(), "http://engine:8000", "{}")); o.status != 200 || proxied != "http://engine:8000/v1/chat/completions" {
		t.Errorf("by a proxy: %+v, it was asked for %q", o, proxied)
	}
}

// BenchmarkTransport compares small calls, 16 at a time, through Transport and through net/http's.
func BenchmarkTransport(b *testing.B) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Write([]byte(`{"object":"chat.completion"}`))
	}))
	defer srv.Close()
	std := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64}
	body := bytes.Repeat([]byte("x"), 300)
	for name, rt := range map[string]http.RoundTripper{"net-http": std, "pulley": engine.NewTransport(srv.URL, std)} {
		b.Run(name, func(b *testing.B) {
			b.SetParallelism(8)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					r, err := http.NewRequestWithContext(b.Context(), "POST", srv.URL+"/v1/x", bytes.NewReader(body))
					if err != nil {
						b.Fatal(err)
					}
					if o := call(rt, r); o.status != 200 {
						b.Fatalf("%+v", o)
					}
				}
			})
		})
	}
	std.CloseIdleConnections()
}
