package main

import (
	"context"
	"os"
	"runtime"
	"syscall"
	"time"
)

const (
	// nap is how long stayAwake is in a system call at a time: less than the 10 ms after which the runtime takes away its P.
	nap = 8 * time.Millisecond

	// busyEvery and idleEvery are how often stayAwake looks whether the process has become busy, and whether it is no longer.
	busyEvery, idleEvery = 250 * time.Millisecond, 3 * time.Second

	// A process is busy when its threads give up a CPU more often in a second than busySwitches: an idle part does so 200 to
	// 500 times, and one with 4 streams of 50 tokens a second 1 000 times. It is so no longer with fewer than idleSwitches: an
	// idle part that is kept awake has 450 to 700.
	busySwitches, idleSwitches = 900, 800
)

// stayAwake keeps the runtime's monitor thread (sysmon) from falling asleep between two tokens, until ctx is done.
//
// The monitor sleeps when no P is in use, and is woken when one is again; then it looks around each 20 µs for a while. A part
// that streams tokens is idle between any two of them. So each token cost several switches of threads, and 40 % of a worker's
// CPU time went there: 64 streams took 132 µs of CPU a token in all parts, and take 84; small requests, 16 at once, took 488 µs
// each, and take 335. While one goroutine is in a system call, its P is in use, and the monitor looks around each 10 ms. The P is
// one more than there would be otherwise. That itself costs 5 ms of CPU a second, so an idle process does not do it.
func stayAwake(ctx context.Context) {
	tick := time.NewTicker(busyEvery)
	defer tick.Stop()
	last, at := switches(), time.Now()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var busy bool
		if busy, last, at = rate(last, at, busySwitches); busy {
			last, at = napLoop(ctx, last, at)
			tick.Reset(busyEvery)
		}
	}
}

// napLoop naps until the process is idle.
func napLoop(ctx context.Context, last int64, at time.Time) (int64, time.Time) {
	procs := runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(procs + 1)
	defer func() {
		if os.Getenv("GOMAXPROCS") != "" {
			runtime.GOMAXPROCS(procs)
		} else {
			runtime.SetDefaultGOMAXPROCS() // the runtime follows the limits of the container again
		}
	}()
	for busy := true; busy && ctx.Err() == nil; {
		for time.Since(at) < idleEvery && ctx.Err() == nil {
			short := syscall.NsecToTimespec(int64(nap))
			syscall.Nanosleep(&short, nil)
			runtime.Gosched() // the runtime takes the P of a goroutine that has had it for 10 ms
		}
		busy, last, at = rate(last, at, idleSwitches)
	}
	return last, at
}

// rate reports whether the threads of the process have given up a CPU more often than most times a second since at, when it
// had been last times. It returns what these are now.
func rate(last int64, at time.Time, most float64) (busy bool, n int64, now time.Time) {
	n, now = switches(), time.Now()
	return float64(n-last) > most*now.Sub(at).Seconds(), n, now
}

// switches is how often the threads of the process have given up a CPU.
func switches() int64 {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return int64(u.Nvcsw) // 32 bits on some machines
}
