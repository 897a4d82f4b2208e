package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/subjects"
)

const (
	powerDiskSize = 1 << 31 // of each broker, sparse

	publishers = 8
)

// PowerCut cuts the power of all brokers while requests are published to a tier whose queue is on disk, gives it back, and
// returns how many requests the brokers had acknowledged, and how many of these are gone.
//
// Each broker has a file system of its own on a loop device. The cut makes the device read-only, kills the broker, and goes
// on with a copy of what the device had: what was only in memory is lost, as it is in a power cut. That needs root.
func PowerCut(ctx context.Context, cfg Config, publishFor time.Duration) (acked, lost int, err error) {
	if os.Geteuid() != 0 {
		return 0, 0, errors.New("loop devices need root")
	}
	t := cfg.Topology.withDefaults()
	var disks []*disk
	defer func() {
		for _, d := range disks {
			err = errors.Join(err, d.remove())
		}
	}()
	t.Store = filepath.Join(cfg.Dir, "disks")
	for i := range t.Brokers {
		d, err := newDisk(filepath.Join(cfg.Dir, fmt.Sprintf("disk-%d", i)), filepath.Join(t.Store, fmt.Sprintf("broker-%d", i)), powerDiskSize)
		if err != nil {
			return 0, 0, err
		}
		disks = append(disks, d)
	}
	f, err := newFleet(ctx, cfg.Bin, cfg.Dir, t, nil, time.Now())
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	for _, w := range f.Workers { // requests stay in the queue
		w.Stop()
	}
	syscall.Sync() // the stream itself is on disk
	ids := f.publish(ctx, publishFor, func() error {
		for _, d := range disks {
			if err := d.cutOff(); err != nil {
				return err
			}
		}
		for _, b := range f.Brokers {
			if _, err := b.Kill(); err != nil {
				return err
			}
		}
		return nil
	}, &err)
	if err != nil {
		return 0, 0, err
	}
	for i, d := range disks {
		if err := d.restore(); err != nil {
			return 0, 0, err
		}
		if err := f.Brokers[i].Start(); err != nil {
			return 0, 0, err
		}
	}
	found, err := f.stored(ctx)
	if err != nil {
		return 0, 0, err
	}
	for _, id := range ids {
		if !found[id] {
			lost++
		}
	}
	return len(ids), lost, nil
}

// publish publishes requests until the time is over and the power is cut, and returns the ids of those that were
// acknowledged.
func (f *Fleet) publish(ctx context.Context, during time.Duration, cut func() error, failed *error) (acked []string) {
	nc, err := nats.Connect(f.directURL(), nats.MaxReconnects(-1), nats.ReconnectBufSize(-1))
	if err != nil {
		*failed = err
		return nil
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		*failed = err
		return nil
	}
	var mu sync.Mutex
	var publishing sync.WaitGroup
	var next atomic.Int64
	stop, cancel := context.WithCancel(ctx)
	for range publishers {
		publishing.Go(func() {
			for stop.Err() == nil {
				id := fmt.Sprintf("power-%d", next.Add(1))
				m := nats.NewMsg(subjects.Req(fileTier, Model, subjects.Shared))
				m.Header.Set(subjects.HeaderMsgID, id)
				m.Data = make([]byte, 1024)
				once, done := context.WithTimeout(stop, 2*time.Second)
				if _, err := js.PublishMsg(once, m, jetstream.WithRetryAttempts(0)); err == nil {
					mu.Lock()
					acked = append(acked, id)
					mu.Unlock()
				}
				done()
			}
		})
	}
	pause(ctx, during)
	*failed = cut()
	cancel()
	publishing.Wait()
	return acked
}

// stored returns the ids of the requests in the queue of the tier on disk, when it is there again. A stream that is gone has
// none.
func (f *Fleet) stored(ctx context.Context) (ids map[string]bool, err error) {
	ids = make(map[string]bool)
	nc, err := nats.Connect(f.directURL(), nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true))
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	var stream jetstream.Stream
	for end := time.Now().Add(startWithin); ; {
		once, done := context.WithTimeout(ctx, 2*time.Second)
		stream, err = js.Stream(once, subjects.ReqStream(fileTier))
		done()
		if err == nil {
			break
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("the stream does not come back: %w", err)
		}
		pause(ctx, 200*time.Millisecond)
	}
	pause(ctx, 2*time.Second) // a new leader catches up
	info, err := stream.Info(ctx)
	if err != nil {
		return nil, err
	}
	for seq := max(info.State.FirstSeq, 1); seq <= info.State.LastSeq; seq++ {
		m, err := stream.GetMsg(ctx, seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		ids[m.Header.Get(subjects.HeaderMsgID)] = true
	}
	return ids, nil
}
