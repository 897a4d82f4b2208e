package main

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/worker"
)

// simulations are the servers of the simulated engines inside pulley up.
type simulations []*http.Server

func (s simulations) close() {
	for _, server := range s {
		server.Close()
	}
}

// simulate starts a fast and a slow engine that serve the same model.
func simulate() ([]worker.Config, simulations, error) {
	var cfgs []worker.Config
	var servers simulations
	for _, c := range []sim.Config{
		{Name: "sim-fast", Models: []string{"sim"}, Slots: 16, PrefillRate: 8000, ITLBase: 15 * time.Millisecond, ITLPerRequest: 300 * time.Microsecond},
		{Name: "sim-slow", Models: []string{"sim"}, Slots: 4, PrefillRate: 2000, ITLBase: 45 * time.Millisecond, ITLPerRequest: 2 * time.Millisecond},
	} {
		eng, err := sim.New(c)
		if err != nil {
			return nil, servers, err
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, servers, fmt.Errorf("simulated engine: %w", err)
		}
		server := &http.Server{Handler: eng, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
		go server.Serve(l) // close ends it
		servers = append(servers, server)
		cfgs = append(cfgs, worker.Config{Engine: "http://" + l.Addr().String(), Name: c.Name, EngineName: "sim", Slots: c.Slots})
	}
	return cfgs, servers, nil
}
