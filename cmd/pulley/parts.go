package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"

	"github.com/pulley-lb/pulley/worker"
)

// part is a gateway, a worker or the like: it runs until its context is done.
type part struct {
	name string
	run  func(context.Context) error
}

// runParts runs all parts at the same time. When ctx is done, or when one of them ends, it stops the stages one after
// the other, the last stage first. A worker that was drained ends without stopping the others.
func runParts(ctx context.Context, stages [][]part) error {
	collecting, stopCollecting := context.WithCancel(context.WithoutCancel(ctx))
	var collector sync.WaitGroup
	collector.Go(func() { collectLess(collecting) })
	collector.Go(func() { stayAwake(collecting) })
	defer collector.Wait()
	defer stopCollecting()

	ended := make(chan error, 64)
	type running struct {
		stop  context.CancelFunc
		parts sync.WaitGroup
	}
	started := make([]running, len(stages))
	left := 0
	for i, stage := range stages {
		stageCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
		started[i].stop = stop
		left += len(stage)
		for _, p := range stage {
			started[i].parts.Go(func() {
				err := p.run(stageCtx)
				if err == nil && stageCtx.Err() == nil {
					err = errors.New("ended by itself")
				}
				if err != nil {
					err = fmt.Errorf("%s: %w", p.name, err)
				}
				ended <- err
			})
		}
	}
	var errs []error
	for left > 0 && len(errs) == 0 && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case err := <-ended:
			if left--; !errors.Is(err, worker.ErrDrained) {
				errs = append(errs, err)
			}
		}
	}
	for i := len(started) - 1; i >= 0; i-- {
		started[i].stop()
		started[i].parts.Wait()
	}
	for len(ended) > 0 {
		if err := <-ended; !errors.Is(err, worker.ErrDrained) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// collectLess lets a small heap grow to smallHeap before it is collected, and a large one by half; it adjusts this as the heap
// changes. A
// gateway or worker has some 15 MB of live data and produces garbage at the rate of its requests: with Go's default it
// collected dozens of times a second, which took a tenth of the CPU at 16 requests in flight. If $GOGC is set,
// collectLess does nothing.
func collectLess(ctx context.Context) {
	const smallHeap, every = 96 << 20, 2 * time.Second
	if os.Getenv("GOGC") != "" {
		return
	}
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		metrics.Read(live)
		percent := uint64(800)
		if n := live[0].Value.Uint64(); n > 0 {
			percent = min(max((smallHeap-min(n, smallHeap))*100/n, 50), 800)
		}
		debug.SetGCPercent(int(percent))
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
