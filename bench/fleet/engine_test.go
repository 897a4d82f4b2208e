package fleet

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func call(ctx context.Context, t *testing.T, handler http.HandlerFunc, body string) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://engine/v1/x?y=z", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return direct{handler}.RoundTrip(req)
}

func TestDirectAnswers(t *testing.T) {
	tests := map[string]struct {
		handler http.HandlerFunc
		status  int
		body    string
	}{
		"nothing": {func(http.ResponseWriter, *http.Request) {}, 200, ""},
		"status":  {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(429); io.WriteString(w, "no") }, 429, "no"},
		"first status": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(103)
			w.WriteHeader(201)
			w.WriteHeader(500)
		}, 201, ""},
		"echo": {func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			io.WriteString(w, r.URL.RawQuery+" "+string(body))
		}, 200, "y=z hello"},
		"pieces": {func(w http.ResponseWriter, _ *http.Request) {
			for _, piece := range []string{"a", "", "b", "c"} {
				io.WriteString(w, piece)
				http.NewResponseController(w).Flush()
			}
		}, 200, "abc"},
	}
	for name, tt := range tests {
		resp, err := call(t.Context(), t, tt.handler, "hello")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != tt.status || string(body) != tt.body {
			t.Errorf("%s: got %d %q, %v, want %d %q", name, resp.StatusCode, body, err, tt.status, tt.body)
		}
	}
}

// What a handler writes arrives when it is written, and its headers count as of its first write.
func TestDirectStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		resp, err := call(t.Context(), t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-A", "1")
			for range 3 {
				io.WriteString(w, "line\n")
				w.Header().Set("X-A", "2")
				time.Sleep(time.Second)
			}
		}, "")
		if err != nil || resp.Header.Get("X-A") != "1" {
			t.Fatalf("%v, header %v", err, resp.Header)
		}
		defer resp.Body.Close()
		lines := bufio.NewReader(resp.Body)
		for i := range 3 {
			if _, err := lines.ReadString('\n'); err != nil || time.Since(begun) != time.Duration(i)*time.Second {
				t.Errorf("line %d: %v after %v", i, err, time.Since(begun))
			}
		}
		if _, err := lines.ReadByte(); err != io.EOF {
			t.Errorf("after the last line: %v", err)
		}
	})
}

func TestDirectBreaks(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"before the head": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"after it":        func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "a"); panic(http.ErrAbortHandler) },
	} {
		resp, err := call(t.Context(), t, handler, "")
		if err == nil {
			_, err = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("aborted %s: %v, want an unexpected end", name, err)
		}
	}
}

// A caller that gives up ends the handler: before the head, while it reads, and when it closes the body.
func TestDirectIsCancelled(t *testing.T) {
	cause := errors.New("gave up")
	for _, at := range []string{"head", "body", "close"} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			ended := false
			time.AfterFunc(time.Second, func() { cancel(cause) })
			resp, err := call(ctx, t, func(w http.ResponseWriter, r *http.Request) {
				if at != "head" {
					io.WriteString(w, "a")
				}
				<-r.Context().Done()
				ended = true
			}, "")
			switch {
			case at == "head":
			case err != nil:
				t.Fatalf("%s: %v", at, err)
			case at == "close":
				resp.Body.Close()
				err = cause
			default:
				_, err = io.ReadAll(resp.Body)
				resp.Body.Close()
			}
			synctest.Wait()
			if !errors.Is(err, cause) || !ended {
				t.Errorf("%s: %v, handler ended %v", at, err, ended)
			}
			cancel(nil)
		})
	}
}
