package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pulley-lb/pulley/metric"
)

// AccessLog is where a gateway writes a line for each call, and which ones.
type AccessLog struct {
	// Writer gets whole lines, several at once if they come fast. It may block: requests do not wait for it. Default nil: there is
	// no access log.
	Writer io.Writer
	// JSON says that a line is a JSON object. Default false: key=value.
	JSON bool
	// Slow is how long a call takes from which on it always has a line, as those that end with an error do. Default 0: that does not
	// matter.
	Slow time.Duration
	// Sample is the share of the other calls that have one. Default nil: all; with Slow, none.
	Sample *float64
}

func (c AccessLog) withDefaults() (AccessLog, error) {
	switch {
	case c.Slow < 0:
		return c, errors.New("access log: slow: must not be negative")
	case c.Sample == nil && c.Slow > 0:
		c.Sample = new(0.0)
	case c.Sample == nil:
		c.Sample = new(1.0)
	case !(*c.Sample >= 0 && *c.Sample <= 1):
		return c, fmt.Errorf("access log: sample %v: must be from 0 to 1", *c.Sample)
	}
	return c, nil
}

const (
	// maxAccessLines bounds the lines that wait to be written: 2 MB, as lines are.
	maxAccessLines = 4096

	// accessBatch is about how many bytes are written at once.
	accessBatch = 64 << 10

	// accessReport is how often it is said that lines were lost.
	accessReport = 5 * time.Second

	// accessFlush bounds the wait for the last lines when the gateway ends.
	accessFlush = time.Second

	// maxAccessText bounds what a client chose, such as a path.
	maxAccessText = 256
)

// accessLog writes a line for each call that its settings choose. No call waits for that: lines that find the buffer full are
// dropped and counted. A nil accessLog writes nothing.
type accessLog struct {
	cfg     AccessLog
	gateway string
	log     *slog.Logger // of the gateway itself
	handler slog.Handler // makes the lines
	lines   accessLines

	count                    *prometheus.CounterVec
	written, dropped, failed prometheus.Counter
	lost                     atomic.Int64 // dropped or failed since the last report
	why                      atomic.Pointer[error]
}

// accessLines takes a line with each Write.
type accessLines chan []byte

var errAccessFull = errors.New("the lines come faster than they can be written")

func (q accessLines) Write(line []byte) (int, error) {
	select {
	case q <- append([]byte(nil), line...):
		return len(line), nil
	default:
		return 0, errAccessFull
	}
}

func newAccessLog(cfg AccessLog, b *bus) *accessLog {
	if cfg.Writer == nil {
		return nil
	}
	l := &accessLog{
		cfg: cfg, gateway: b.id, log: b.log, lines: make(accessLines, maxAccessLines),
		count: zeroed(metric.AccessLogLines.CounterVec(), metric.LineOutcomes),
	}
	l.written, l.dropped, l.failed = l.count.WithLabelValues("written"), l.count.WithLabelValues("dropped"), l.count.WithLabelValues("failed")
	options := &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.LevelKey || a.Key == slog.MessageKey {
			return slog.Attr{}
		}
		return a
	}}
	if l.handler = slog.NewTextHandler(l.lines, options); cfg.JSON {
		l.handler = slog.NewJSONHandler(l.lines, options)
	}
	return l
}

// collectors are its metrics.
func (l *accessLog) collectors() []prometheus.Collector {
	if l == nil {
		return nil
	}
	return []prometheus.Collector{l.count}
}

// add writes the line of a call that has ended, if it is to have one.
func (l *accessLog) add(rec *record, id string, now time.Time) {
	if l == nil || !l.chooses(rec, now.Sub(rec.began)) {
		return
	}
	if err := l.handler.Handle(context.Background(), l.line(rec, id, now)); err != nil {
		l.lose(l.dropped, 1, err)
	}
}

func (l *accessLog) chooses(rec *record, took time.Duration) bool {
	return rec.isError() || l.cfg.Slow > 0 && took >= l.cfg.Slow || rand.Float64() < *l.cfg.Sample
}

// line is the line of a call. What is not known is left out.
func (l *accessLog) line(rec *record, id string, now time.Time) slog.Record {
	line := slog.NewRecord(now, slog.LevelInfo, "", 0)
	text := func(key, value string) {
		if value != "" {
			line.AddAttrs(slog.String(key, shortened(value)))
		}
	}
	millis := func(key string, d time.Duration) {
		if d >= 0 {
			line.AddAttrs(slog.Float64(key, float64(d.Microseconds())/1e3))
		}
	}
	text("id", id)
	if own := rec.Header().Get("X-Request-Id"); own != id {
		text("client_id", own)
	}
	text("gateway", l.gateway)
	text("tenant", rec.tenant)
	text("key", rec.key)
	text("method", rec.method)
	text("path", rec.path)
	text("model", rec.model)
	text("pool", rec.pool)
	text("tier", rec.tier)
	text("worker", rec.worker)
	line.AddAttrs(slog.Int("attempts", rec.attempts), slog.Int("status", rec.status))
	text("code", rec.code)
	line.AddAttrs(slog.String("outcome", string(rec.outcome)), slog.Bool("stream", rec.stream()))
	millis("queue_ms", rec.queue)
	millis("ttft_ms", rec.firstByte)
	millis("total_ms", now.Sub(rec.began))
	line.AddAttrs(slog.Int("input_tokens", rec.input), slog.Int("output_tokens", rec.output),
		slog.Int64("bytes_in", rec.bytesIn), slog.Int64("bytes_out", rec.bytesOut))
	text("trace_id", rec.traceID())
	return line
}

// shortened bounds a text that a client chose.
func shortened(s string) string {
	if len(s) <= maxAccessText {
		return s
	}
	return strings.ToValidUTF8(s[:maxAccessText], "") + "…"
}

// lose counts lines that were lost.
func (l *accessLog) lose(as prometheus.Counter, n int, why error) {
	as.Add(float64(n))
	l.why.Store(&why)
	l.lost.Add(int64(n))
}

// run writes the lines until ctx is done and what is there then is written.
func (l *accessLog) run(ctx context.Context) {
	if l == nil {
		return
	}
	written := make(chan struct{})
	go func() { // ends after ctx; if a write never returns, with the process
		defer close(written)
		l.writeLoop(ctx)
	}()
	every(ctx, accessReport, l.report)
	select {
	case <-written:
	case <-time.After(accessFlush):
		l.lose(l.dropped, len(l.lines), errors.New("the gateway ended while a write was blocked"))
	}
	l.report()
}

func (l *accessLog) writeLoop(ctx context.Context) {
	var batch []byte
	for {
		select {
		case line := <-l.lines:
			batch = l.writeBatch(append(batch[:0], line...))
		case <-ctx.Done():
			for len(l.lines) > 0 {
				batch = l.writeBatch(batch[:0])
			}
			return
		}
	}
}

// writeBatch writes a batch, and the lines that wait as far as they fit. It returns the batch, whose memory is used again.
func (l *accessLog) writeBatch(batch []byte) []byte {
	lines := min(len(batch), 1)
	for waits := true; waits && len(batch) < accessBatch; {
		select {
		case line := <-l.lines:
			batch = append(batch, line...)
			lines++
		default:
			waits = false
		}
	}
	if _, err := l.cfg.Writer.Write(batch); err != nil {
		l.lose(l.failed, lines, err)
	} else {
		l.written.Add(float64(lines))
	}
	return batch
}

// report says how many lines were lost since the last report.
func (l *accessLog) report() {
	if n := l.lost.Swap(0); n > 0 {
		l.log.Warn("access log: lines lost", "lines", n, "err", *l.why.Load())
	}
}
