package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/worker"
)

// WorkersConfig says which workers to run.
type WorkersConfig struct {
	// Workers is how many there are, Pools how many pools they are divided among. Default 1.
	Workers, Pools int
	// Slots are those of each worker. Default 16.
	Slots int
	// Token is the time between two tokens of an engine, and until the first one. Default 0.
	Token time.Duration
	// First is the time until the first token. Default 0.
	First time.Duration
	// Connect makes the connection of one worker.
	Connect func(ctx context.Context, name string) (*nats.Conn, error)
	// Logger gets what the workers log. Default: silent.
	Logger *slog.Logger
}

// PoolName is the name of one of the pools, counted from 0.
func PoolName(pool int) string { return fmt.Sprintf("m%d", pool) }

// connecting bounds how many workers connect at once.
const connecting = 32

// RunWorkers runs workers in this process until ctx ends, and calls ready when all of them are connected and run. Each has a
// connection and a simulated engine of its own. When ctx ends they leave, without the time to finish what runs.
func RunWorkers(ctx context.Context, cfg WorkersConfig, ready func()) error {
	if cfg.Workers < 1 || cfg.Pools < 1 || cfg.Pools > cfg.Workers {
		return fmt.Errorf("%d workers in %d pools: there must be a worker for each pool", cfg.Workers, cfg.Pools)
	}
	conns := make([]*nats.Conn, cfg.Workers)
	defer func() {
		for _, nc := range conns {
			if nc != nil {
				nc.Close()
			}
		}
	}()
	var dialing errgroup.Group
	dialing.SetLimit(connecting)
	for i := range conns {
		dialing.Go(func() (err error) {
			conns[i], err = cfg.Connect(ctx, workerName(i))
			return err
		})
	}
	if err := dialing.Wait(); err != nil {
		return err
	}
	running, ctx := errgroup.WithContext(ctx)
	for i, nc := range conns {
		w, err := newWorker(cfg, i, nc)
		if err != nil {
			return err
		}
		running.Go(func() error { return w.Run(ctx) })
	}
	ready()
	err := running.Wait()
	if err == nil && ctx.Err() == nil {
		err = errors.New("the workers ended by themselves")
	}
	return err
}

func workerName(i int) string { return fmt.Sprintf("w%d", i) }

func newWorker(cfg WorkersConfig, i int, nc *nats.Conn) (*worker.Worker, error) {
	engine, err := sim.New(sim.Config{
		Name: workerName(i), Models: []string{PoolName(i % cfg.Pools)}, Slots: cfg.Slots,
		TTFT: cfg.First, ITLBase: cfg.Token, Seed: uint64(i + 1),
	})
	if err != nil {
		return nil, fmt.Errorf("engine %d: %w", i, err)
	}
	return worker.New(worker.Config{
		Engine: "http://" + workerName(i), Name: workerName(i), Slots: cfg.Slots, Transport: direct{engine},
		DrainTimeout: time.Millisecond, Logger: cfg.Logger, Version: "bench",
	}, nc)
}
