package worker

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	// longestLoad bounds a load without a request. Large models come over slow networks.
	longestLoad = 30 * time.Minute

	// rememberAgain is after how long the bucket is asked for again that could not be used.
	rememberAgain = time.Minute
)

// loader loads the models that capacity chooses, and keeps their load times in the broker. It decides nothing.
type loader struct {
	// Fixed.
	capacity *capacity
	engine   *engine.Scraper
	nc       *nats.Conn
	log      *slog.Logger
	key      string // in the LearnedBucket
	changed  func() // is called when a load begins or ends

	// Owned by remember.
	recalled bool                     // the bucket was read
	kept     map[string]time.Duration // load times in the bucket
	next     time.Time                // remember does nothing before
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

// remember reads the load times that an earlier run of this worker has measured, once, and then writes new ones.
func (l *loader) remember(ctx context.Context) {
	now := time.Now()
	_, loads := l.capacity.loadTimes()
	if now.Before(l.next) || l.recalled && (len(loads) == 0 || maps.EqualFunc(loads, l.kept, sameTime)) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	err := l.exchange(ctx, loads)
	if err != nil && !errors.Is(err, jetstream.ErrBucketNotFound) { // a gateway creates the bucket
		l.next = now.Add(rememberAgain)
		l.log.Debug("load times not kept", "err", err)
	}
}

// sameTime reports whether two load times differ by so little that the first need not be kept again.
func sameTime(a, b time.Duration) bool { return (a - b).Abs() <= b/10 }

func (l *loader) exchange(ctx context.Context, loads map[string]time.Duration) error {
	js, err := jetstream.New(l.nc)
	if err != nil {
		return err
	}
	kv, err := js.KeyValue(ctx, subjects.LearnedBucket)
	if err != nil {
		return err
	}
	if !l.recalled {
		return l.recall(ctx, kv)
	}
	learned := subjects.Learned{Loads: make(map[string]int64, len(loads))}
	for model, took := range loads {
		learned.Loads[model] = took.Milliseconds()
	}
	body, err := subjects.Marshal(learned)
	if err != nil {
		return err
	}
	if _, err := kv.Put(ctx, l.key, body); err != nil {
		return err
	}
	l.kept = loads
	return nil
}

func (l *loader) recall(ctx context.Context, kv jetstream.KeyValue) error {
	entry, err := kv.Get(ctx, l.key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		l.recalled = true
		return nil
	}
	if err != nil {
		return err
	}
	l.recalled, l.kept = true, make(map[string]time.Duration)
	var learned subjects.Learned
	if err := subjects.Unmarshal(entry.Value(), &learned); err != nil {
		return err
	}
	for model, ms := range learned.Loads {
		if took := time.Duration(ms) * time.Millisecond; took > 0 && took <= longestLoad {
			l.kept[model] = took
		}
	}
	l.capacity.recall(l.kept)
	return nil
}
