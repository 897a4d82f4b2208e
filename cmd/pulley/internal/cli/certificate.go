package cli

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"
)

// files are what was made of some files, and is made of them again when they have changed. While that fails it stays as it
// was: certificates are replaced one file after the other.
type files[T any] struct {
	// Fixed after readFiles.
	what  string // for the log
	paths []string
	build func() (T, error)
	log   *slog.Logger

	mu      sync.Mutex
	value   T
	of      []fileState
	failing string // the last error, while there is one
}

// fileState tells one content of a file from another.
type fileState struct {
	size int64
	at   time.Time
}

func readFiles[T any](what string, log *slog.Logger, build func() (T, error), paths ...string) (*files[T], error) {
	f := &files[T]{what: what, paths: paths, build: build, log: log, of: states(paths)}
	value, err := build()
	f.value = value
	return f, err
}

func states(paths []string) (s []fileState) {
	for _, p := range paths {
		var state fileState
		if i, err := os.Stat(p); err == nil {
			state = fileState{i.Size(), i.ModTime()}
		}
		s = append(s, state)
	}
	return s
}

func (f *files[T]) get() T {
	now := states(f.paths)
	if value, ok := f.current(now); ok {
		return value
	}
	made, err := f.build()
	value, news := f.replace(made, now, err)
	switch {
	case news && err != nil:
		f.log.Warn(f.what+" not read; the last ones are used", "err", err)
	case news:
		f.log.Info(f.what + " read again")
	}
	return value
}

// current returns the value, and whether it is of the files as they are now.
func (f *files[T]) current(now []fileState) (T, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.value, slices.Equal(f.of, now)
}

// replace puts a new value in place, unless there is an error. It says whether that should be logged.
func (f *files[T]) replace(made T, now []fileState, err error) (value T, news bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		news = err.Error() != f.failing
		f.failing = err.Error()
		return f.value, news
	}
	news = !slices.Equal(f.of, now)
	f.value, f.of, f.failing = made, now, ""
	return made, news
}

func readAuthorities(path string) (*x509.CertPool, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s has no certificate in PEM", path)
	}
	return pool, nil
}

// ServerTLS returns the TLS settings of a listener with a certificate and its key. If clientCA is not empty, clients need a
// certificate of one of the authorities in it. All are PEM files, and read again when they have changed: for the next
// connection.
func ServerTLS(cert, key, clientCA string, log *slog.Logger) (*tls.Config, error) {
	paths := []string{cert, key}
	if clientCA != "" {
		paths = append(paths, clientCA)
	}
	f, err := readFiles("certificates of the listener", log, func() (*tls.Config, error) {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, err
		}
		// A session that is resumed would outlive the certificates of both sides.
		cfg := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}, SessionTicketsDisabled: true}
		if clientCA != "" {
			if cfg.ClientCAs, err = readAuthorities(clientCA); err != nil {
				return nil, err
			}
			cfg.ClientAuth = tls.RequireAndVerifyClientCert
		}
		return cfg, nil
	}, paths...)
	if err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return f.get(), nil }}, nil
}
