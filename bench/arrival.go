package bench

import (
	"context"
	"iter"
	"math/rand/v2"
	"time"
)

// arrivals are the requests of an open loop in the order of their times. A Poisson process has no end.
func arrivals(cfg Config) iter.Seq[Arrival] {
	if len(cfg.Trace) > 0 {
		return traceArrivals(cfg.Trace, cfg.Speedup)
	}
	return poissonArrivals(cfg)
}

func traceArrivals(trace Trace, speedup float64) iter.Seq[Arrival] {
	return func(yield func(Arrival) bool) {
		for _, arrival := range trace {
			arrival.At = time.Duration(float64(arrival.At) / speedup)
			if !yield(arrival) {
				return
			}
		}
	}
}

func poissonArrivals(cfg Config) iter.Seq[Arrival] {
	return func(yield func(Arrival) bool) {
		rng := rand.New(rand.NewPCG(cfg.Seed, 1))
		for seconds := 0.0; ; seconds += rng.ExpFloat64() / cfg.Rate {
			at := time.Duration(seconds * float64(time.Second))
			if !yield(Arrival{At: at, InputTokens: cfg.InputTokens, OutputTokens: cfg.OutputTokens}) {
				return
			}
		}
	}
}

// alarm sleeps until moments in time, with one timer for all of them.
type alarm struct{ timer *time.Timer }

func newAlarm() alarm {
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	return alarm{timer}
}

// sleepUntil returns at the given moment, or at once when it has passed; it reports false when ctx ended first.
func (a alarm) sleepUntil(ctx context.Context, at time.Time) bool {
	wait := time.Until(at)
	if wait <= 0 {
		return ctx.Err() == nil
	}
	a.timer.Reset(wait)
	select {
	case <-a.timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
