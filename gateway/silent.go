package gateway

import (
	"context"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// silentFor is how long a gateway that stops bears a connection on which no
// request has begun, such as browsers open ahead.
const silentFor = time.Second

// silent are the connections on which no request has begun yet. Without them
// [http.Server.Shutdown] takes as long as it must and no longer; for each of them
// it waits 5 s.
type silent struct {
	count atomic.Int64 // of since: spares each request the lock

	mu    sync.Mutex
	since map[net.Conn]time.Time
}

// track is an [http.Server.ConnState].
func (s *silent) track(c net.Conn, state http.ConnState) {
	if state != http.StateNew && s.count.Load() == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if state == http.StateNew {
		s.since[c] = time.Now()
	} else {
		delete(s.since, c)
	}
	s.count.Store(int64(len(s.since)))
}

// closeOld closes those that have been silent for long, until ctx is done.
func (s *silent) closeOld(ctx context.Context) {
	tick := time.NewTicker(silentFor / 4)
	defer tick.Stop()
	for ctx.Err() == nil {
		s.mu.Lock()
		for c, since := range s.since {
			if time.Since(since) >= silentFor {
				c.Close()
			}
		}
		s.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}
