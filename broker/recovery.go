package broker

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

const (
	// lookAtStoreEvery is how often the store is tried after a write error.
	lookAtStoreEvery = time.Second

	// enoughRoom is what must fit into the store before the server is started again: the largest message, and then some.
	enoughRoom = 2 << 20

	// A server that fails again soon after it was started again waits longer and longer: each start costs the streams in memory.
	firstPause  = time.Second
	longPause   = time.Minute
	failedAgain = 5 * time.Minute
)

// errStoreWritable says that the server has to be started again, since the store can be written again.
var errStoreWritable = errors.New("the store can be written again")

// recovery waits until a store that could not be written can be. nats-server 2.15 never writes again to a stream that it failed
// to write to once, and after some errors switches JetStream off until it is restarted; requests in memory go on until then.
// Only Run uses it.
type recovery struct {
	dir string
	log *logBridge

	said      string        // last logged
	restarted bool          // a write error has ended the last server
	last      time.Time     // when
	pause     time.Duration // before the next one
}

// untilWritable returns when the server, which gave up the store for the reason why, can be started again; false if ctx has
// ended.
func (r *recovery) untilWritable(ctx context.Context, why string) bool {
	now := time.Now()
	if r.last.IsZero() || now.Sub(r.last) > failedAgain {
		r.pause = firstPause
	} else {
		r.pause = min(2*r.pause, longPause)
	}
	r.log.Error("the server has given up writing to the store; it starts again when that is possible", "store", r.dir, "why", why)
	for {
		r.wait(ctx)
		if ctx.Err() != nil {
			return false
		}
		err := r.try()
		if err == nil {
			break
		}
		r.say("the store cannot be written: requests of tiers on disk, dead letters and changes of the policy are refused until it can", err)
	}
	r.restarted, r.last, r.said = true, time.Now(), ""
	return true
}

// say logs a reason, unless it is the one that was logged last.
func (r *recovery) say(what string, err error) {
	if text := err.Error(); text != r.said {
		r.said = text
		r.log.Error(what, "store", r.dir, "err", text)
	}
}

func (r *recovery) wait(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(max(r.pause, lookAtStoreEvery)):
	}
}

// try writes to the store, in a file of its own, as a stream does.
func (r *recovery) try() error {
	path := filepath.Join(r.dir, server.JetStreamStoreDir, "probe")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return cause(err)
	}
	defer os.Remove(path)
	defer f.Close()
	if _, err := f.Write(make([]byte, enoughRoom)); err != nil {
		return cause(err)
	}
	if err := f.Sync(); err != nil {
		return cause(err)
	}
	return nil
}
