package suite

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pulley-lb/pulley/bench"
	"github.com/pulley-lb/pulley/bench/parts"
)

// idleStreams is the name of the scenario that opens streams which then send nothing.
const idleStreams = "idle-streams"

var idleBar = bar{figure: figureMemory, most: 150, unit: "MiB"}

// idleTime is how long the streams are open before memory is read again: more than one garbage collection.
const idleTime = 5 * time.Second

// measureIdleStreams opens streams through a gateway in a separate process. Each sends one token and then hangs.
func measureIdleStreams(ctx context.Context, cfg Config, report *Report) error {
	return parts.With(cfg.parts(), func(set *parts.Set) error {
		engine, err := set.Engine(ctx, "engine", model)
		if err != nil {
			return err
		}
		apart, err := startParts(ctx, set, engine)
		if err != nil {
			return err
		}
		gateway := apart.gateway
		if err := parts.Ready(ctx, gateway.URL, model); err != nil {
			return err
		}
		before, err := gateway.ResidentBytes()
		if err != nil {
			return err
		}
		during, err := whileIdle(ctx, cfg, gateway.URL, gateway.ResidentBytes)
		if err != nil {
			return err
		}
		cost := float64(during-before) / (1 << 20)
		report.Rows = append(report.Rows, &Row{
			Scenario: idleStreams,
			Title:    fmt.Sprintf("%d open streams that are idle", cfg.IdleStreams),
			Value:    cost,
			Unit:     idleBar.unit,
			Bar:      idleBar.String(),
			Met:      idleBar.met(cost),
			Rounds:   []float64{cost},
			Note:     fmt.Sprintf("RSS of the gateway %.1f → %.1f MiB", float64(before)/(1<<20), float64(during)/(1<<20)),
		})
		return nil
	})
}

// whileIdle opens the streams, waits, calls measure, and closes them.
func whileIdle(ctx context.Context, cfg Config, url string, measure func() (int64, error)) (int64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	transport := bench.NewTransport()
	defer transport.CloseIdleConnections()
	cfg.Progress(fmt.Sprintf("%s: opening %d", idleStreams, cfg.IdleStreams))
	var opening errgroup.Group
	opening.SetLimit(64)
	for range cfg.IdleStreams {
		opening.Go(func() error { return openIdle(ctx, transport, url) })
	}
	if err := opening.Wait(); err != nil {
		return 0, err
	}
	cfg.Progress(fmt.Sprintf("%s: all open, waiting %s", idleStreams, idleTime))
	select {
	case <-time.After(idleTime):
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	return measure()
}

// openIdle opens one stream and reads its first token. It stays open until ctx ends.
func openIdle(ctx context.Context, transport http.RoundTripper, url string) error {
	body := `{"model":"` + model + `","messages":[{"role":"user","content":"hello"}],"max_tokens":100,"stream":true}`
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Sim", "hang-after=1")
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("open a stream: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("open a stream: %s %s", resp.Status, text)
	}
	lines := bufio.NewReader(resp.Body)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return fmt.Errorf("first token of a stream: %w", err)
		}
		if strings.HasPrefix(line, "data:") {
			return nil
		}
	}
}
