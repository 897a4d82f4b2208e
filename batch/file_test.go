package batch

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/testenv"
)

// An upload that keeps coming, a little at a time, ends before the first of its pieces could expire.
func TestUploadWithoutAnEnd(t *testing.T) {
	testenv.Run(t, func(t *testing.T, env *testenv.Env) {
		s := serviceOn(t, env, "a")
		s.ready.Store(true)
		listener := testenv.NewListener()
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := s.Serve(w, r, gateway.Caller{Tenant: "acme"}); err != nil {
				w.WriteHeader(api.AsError(err).Status)
			}
		})}
		go server.Serve(listener) // until Close
		defer server.Close()
		begun, body := time.Now(), &trickle{begin: "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n"}
		req, _ := http.NewRequestWithContext(t.Context(), "POST", "http://gateway/v1/files", body)
		req.Header.Set("Content-Type", "multipart/form-data; boundary=b")
		transport := &http.Transport{DialContext: listener.DialContext}
		defer transport.CloseIdleConnections()
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if took := time.Since(begun); resp.StatusCode != http.StatusRequestTimeout || took < longestUpload-time.Minute || took > longestUpload+time.Minute {
			t.Errorf("status %d after %v", resp.StatusCode, took)
		}
		time.Sleep(time.Minute) // the client notices that the connection is closed
		if info, err := s.store.used(context.Background()); err != nil || info != 0 {
			t.Errorf("%d bytes are left, %v", info, err)
		}
	})
}

// trickle is a body that has no end, and takes its time.
type trickle struct{ begin string }

func (r *trickle) Read(p []byte) (int, error) {
	if r.begin != "" {
		n := copy(p, r.begin)
		r.begin = r.begin[n:]
		return n, nil
	}
	time.Sleep(23 * time.Second)
	return copy(p, strings.Repeat("x", 10_000)), nil
}
