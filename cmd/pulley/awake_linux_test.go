package main

import (
	"context"
	"runtime"
	"sync"
	"testing"
	"time"
)

// A busy process has one P more, and the old number when it is idle again or stops.
func TestStayAwake(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	runtime.SetDefaultGOMAXPROCS() // go test -cpu may have set another number
	procs := runtime.GOMAXPROCS(0)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var running sync.WaitGroup
	running.Go(func() { stayAwake(ctx) })
	busy, rest := context.WithCancel(ctx)
	running.Go(func() {
		for busy.Err() == nil {
			time.Sleep(200 * time.Microsecond)
		}
	})
	await := func(want int) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); runtime.GOMAXPROCS(0) != want; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("GOMAXPROCS is %d, want %d", runtime.GOMAXPROCS(0), want)
			}
		}
	}
	await(procs + 1)
	rest()
	await(procs)
	stop()
	running.Wait()
}
