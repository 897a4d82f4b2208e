package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// collectLess lets a small heap grow to smallHeap before it is collected, and adjusts
// this as the heap changes. A gateway or worker has some 15 MB of live data and produces
// garbage at the rate of its requests: with Go's default it collected dozens of times a
// second, which took a tenth of the CPU at 16 requests in flight. If $GOGC is set,
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
			percent = min(max((smallHeap-min(n, smallHeap))*100/n, 100), 800)
		}
		debug.SetGCPercent(int(percent))
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
