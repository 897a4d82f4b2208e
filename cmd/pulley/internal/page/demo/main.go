// Command demo serves the live page of a fleet that does not exist, in one of several states. The browser's tests use it, and
// the pictures in docs/ are made of it:
//
//	go run ./cmd/pulley/internal/page/demo -listen 127.0.0.1:8090
//
// Each state has a port, which is printed.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/page"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "`host:port` of the first state; the others have ports of their own")
	token := flag.String("token", "", "`token` that viewers must send; empty: none, and no actions")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *listen, *token); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run serves each state on a port of its own, and prints where.
func run(ctx context.Context, listen, token string) error {
	dir, err := os.MkdirTemp("", "pulley-page-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b, err := broker.New(broker.Config{StoreDir: dir})
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }() // the end of ctx ends it, and run waits
	select {
	case err := <-ended:
		return err
	case <-b.Ready():
	}
	nc, err := nats.Connect("", nats.InProcessServer(b))
	if err != nil {
		return err
	}
	defer nc.Close()
	if err := die(ctx, nc); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(states)) {
		l, err := net.Listen("tcp", listen)
		if err != nil {
			return err
		}
		if host, _, err := net.SplitHostPort(listen); err == nil {
			listen = net.JoinHostPort(host, "0")
		}
		p, err := page.New(nc, "v1.0.0", token != "", slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		s := newScene(states[name])
		go p.Run(ctx, page.Source{View: s.view, Hour: s.hour}) // the end of ctx ends it
		go http.Serve(l, handler(p, token))                    // the process's end does
		fmt.Printf("%s http://%s/\n", name, l.Addr())
	}
	fmt.Println("serving")
	return <-ended
}

// handler serves a page as an admin port does.
func handler(p *page.Page, token string) http.Handler {
	guarded := func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if token != "" && strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ") != token {
				http.Error(w, "the admin port needs its token", http.StatusUnauthorized)
				return
			}
			h.ServeHTTP(w, r)
		})
	}
	admin, mux := p.Admin(), http.NewServeMux()
	mux.Handle("GET /{$}", admin.Files)
	mux.Handle("GET /page/", admin.Files)
	mux.Handle("GET /page/live", guarded(admin.Live))
	mux.Handle("POST /page/do", guarded(admin.Do))
	return mux
}

// die stores some dead letters.
func die(ctx context.Context, nc *nats.Conn) error {
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	if err := subjects.EnsureStreams(ctx, js, policy.DefaultTiers(), 1); err != nil {
		return err
	}
	for i, reason := range []string{
		"too many failures; last error: the engine answered 500: CUDA error: an illegal memory access was encountered",
		"it has crashed two workers; last error: the worker is gone",
		"too many failures; last error: <img src=x onerror=alert(1)> is no answer",
	} {
		m := nats.NewMsg(subjects.Dead("standard", "llama-70b"))
		m.Header.Set(subjects.HeaderReason, reason)
		m.Header.Set("Nats-Msg-Id", fmt.Sprint(i))
		if _, err := js.PublishMsg(ctx, m); err != nil {
			return err
		}
	}
	return nil
}
