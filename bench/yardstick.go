package bench

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
)

// maxProxied bounds a request body in the yardstick, as Pulley does.
const maxProxied = 64 << 20

// NewYardstick is what Pulley is compared with: a plain [httputil.ReverseProxy] in front of the same engines, round
// robin, flushing every write. It reads a request's body fully before it sends it on, as Pulley does, because a proxy
// that does not cuts some of its streams (golang/go#40747).
func NewYardstick(engines ...string) (http.Handler, error) {
	if len(engines) == 0 {
		return nil, errors.New("engine: at least one is required")
	}
	targets := make([]*url.URL, len(engines))
	for i, engine := range engines {
		target, err := url.Parse(engine)
		if err != nil || target.Host == "" {
			return nil, fmt.Errorf("engine %q: must be http://host:port", engine)
		}
		targets[i] = target
	}
	var next atomic.Uint64
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(targets[next.Add(1)%uint64(len(targets))])
		},
		Transport:     NewTransport(),
		FlushInterval: -1,
	}
	return readBodyFirst(proxy), nil
}

func readBodyFirst(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxProxied))
		if err != nil {
			http.Error(w, "read the request body: "+err.Error(), http.StatusBadRequest)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		r.ContentLength = int64(len(body))
		r.TransferEncoding = nil
		next.ServeHTTP(w, r)
	})
}
