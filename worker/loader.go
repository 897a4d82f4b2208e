package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	// longestLoad bounds a load without a request. Large models come over slow networks.
	longestLoad = 30 * time.Minute

	// mostParallel bounds how many requests at once are believed of the bucket.
	mostParallel = 1 << 16

	// rememberAgain is after how long the bucket is asked for again that could not be used.
	rememberAgain = time.Minute
)

// loader loads the models that capacity chooses, and keeps what was measured of the engine in the broker: their load times, and
// how many requests it runs at once. It decides nothing.
type loader struct {
	// Fixed.
	capacity *capacity
	engine   *engine.Scraper
	nc       *nats.Conn
	log      *slog.Logger
	key      string // in the LearnedBucket
	changed  func() // is called when a load begins or ends

	// Owned by remember.
	recalled bool      // the bucket was read
	kept     learned   // what the bucket has
	next     time.Time // remember does nothing before
}

// run loads models until ctx is done.
func (l *loader) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.capacity.warmUps:
		}
		model, ok := l.capacity.warmingUp()
		if !ok {
			continue
		}
		l.changed()
		l.log.Info("loading model", "model", model)
		began := time.Now()
		err := l.load(ctx, model)
		if ctx.Err() != nil {
			return
		}
		now := time.Now()
		took := l.capacity.onWarmedUp(err, now)
		switch {
		case err != nil:
			l.log.Warn("model not loaded", "model", model, "err", err, "after", now.Sub(began).Round(10*time.Millisecond))
		case took > 0:
			l.log.Info("model loaded", "model", model, "took", took.Round(10*time.Millisecond))
		}
		l.changed()
	}
}

func (l *loader) load(ctx context.Context, model string) error {
	ctx, cancel := context.WithTimeout(ctx, longestLoad)
	defer cancel()
	return l.engine.WarmUp(ctx, model)
}

// learned is what was measured of the engine and is kept.
type learned struct {
	loads    map[string]time.Duration // by the engine's name of the model
	parallel int                      // requests that it runs at once; 0: unknown
}

// remember reads what an earlier run of this worker has measured, once, and then writes what is new.
func (l *loader) remember(ctx context.Context) {
	now := time.Now()
	is := l.capacity.learned()
	is.parallel = cmp.Or(is.parallel, l.kept.parallel)
	same := is.parallel == l.kept.parallel && (len(is.loads) == 0 || maps.EqualFunc(is.loads, l.kept.loads, sameTime))
	if now.Before(l.next) || l.recalled && same {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	err := l.exchange(ctx, is)
	if err != nil && !errors.Is(err, nats.ErrNoResponders) { // a gateway creates the bucket
		l.next = now.Add(rememberAgain)
		l.log.Debug("measurements not kept", "err", err)
	}
}

// sameTime reports whether two load times differ by so little that the first need not be kept again.
func sameTime(a, b time.Duration) bool { return (a - b).Abs() <= b/10 }

func (l *loader) exchange(ctx context.Context, is learned) error {
	if !l.recalled {
		return l.recall(ctx)
	}
	entry := subjects.Learned{Loads: make(map[string]int64, len(is.loads)), Parallel: is.parallel}
	for model, took := range is.loads {
		entry.Loads[model] = took.Milliseconds()
	}
	body, err := subjects.Marshal(entry)
	if err != nil {
		return err
	}
	m, err := l.nc.RequestWithContext(ctx, subjects.KVSubject(subjects.LearnedBucket, l.key), body)
	if err != nil {
		return err
	}
	if _, err := subjects.ParsePublishAck(m); err != nil {
		return err
	}
	l.kept = is
	return nil
}

func (l *loader) recall(ctx context.Context) error {
	m, err := l.nc.RequestWithContext(ctx, subjects.DirectGetKey(subjects.LearnedBucket, l.key), nil)
	if err != nil {
		return err
	}
	switch status := m.Header.Get("Status"); {
	case status == "404", m.Header.Get("KV-Operation") != "":
		l.recalled = true
		return nil
	case status != "":
		return fmt.Errorf("%s %s", status, m.Header.Get("Description"))
	}
	l.recalled, l.kept.loads = true, make(map[string]time.Duration)
	var was subjects.Learned
	if err := subjects.Unmarshal(m.Data, &was); err != nil {
		return err
	}
	for model, ms := range was.Loads {
		if took := time.Duration(ms) * time.Millisecond; took > 0 && took <= longestLoad {
			l.kept.loads[model] = took
		}
	}
	if was.Parallel <= mostParallel {
		l.kept.parallel = max(was.Parallel, 0)
	}
	l.capacity.recall(l.kept, time.Now())
	return nil
}
