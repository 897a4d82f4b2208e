package bench

import (
	"fmt"
	"strings"
	"time"
)

// Progress is the state of a run. Requests of the warm-up are counted in Warmup only.
type Progress struct {
	Name      string
	Elapsed   time.Duration
	Warmup    int64
	Succeeded int64
	Failed    int64
	InFlight  int
	Rate      float64 // requests that ended per second, since the last report
	TTFT, E2E time.Duration
	Final     bool
}

// String is one line for a terminal.
func (p Progress) String() string {
	var line strings.Builder
	if p.Name != "" {
		fmt.Fprintf(&line, "%s  ", p.Name)
	}
	fmt.Fprintf(&line, "%s  %.0f/s  ok %d", p.Elapsed.Round(time.Second), p.Rate, p.Succeeded)
	if p.Failed > 0 {
		fmt.Fprintf(&line, "  errors %d", p.Failed)
	}
	fmt.Fprintf(&line, "  in flight %d", p.InFlight)
	if p.Succeeded > 0 {
		fmt.Fprintf(&line, "  p50 TTFT %s E2E %s", formatLatency(p.TTFT), formatLatency(p.E2E))
	} else if p.Warmup > 0 {
		fmt.Fprintf(&line, "  warming up")
	}
	return line.String()
}

// progressLoop reports once a second until the run has ended, and then once more.
func (g *generator) progressLoop(ended <-chan struct{}) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var before Progress
	for final := false; !final; {
		select {
		case <-tick.C:
		case <-ended:
			final = true
		}
		now := g.progress()
		now.Final = final
		if since := (now.Elapsed - before.Elapsed).Seconds(); since > 0 {
			now.Rate = float64(now.ended()-before.ended()) / since
		}
		g.cfg.Progress(now)
		before = now
	}
}

func (p Progress) ended() int64 { return p.Warmup + p.Succeeded + p.Failed }

func (g *generator) progress() Progress {
	g.mu.Lock()
	p := Progress{Name: g.cfg.Name, Elapsed: time.Since(g.start), InFlight: g.inFlight}
	g.mu.Unlock()

	r := g.recorder
	r.mu.Lock()
	defer r.mu.Unlock()
	p.Warmup, p.Succeeded, p.Failed = r.sum.Warmup, r.sum.Succeeded, r.sum.Failed
	p.TTFT, p.E2E = r.sum.TTFT.Percentile(50), r.sum.E2E.Percentile(50)
	return p
}
