package gateway

import (
	"context"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// idleGrace is how long a connection on which no request has begun stays open while the gateway stops. Browsers open
// such connections ahead of their requests.
const idleGrace = time.Second

// idleConns are the ingress's connections on which no request has begun. [http.Server.Shutdown] waits 5 s for each of
// them; the gateway closes them earlier.
type idleConns struct {
	count atomic.Int64 // length of since: spares each request the lock

	mu    sync.Mutex
	since map[net.Conn]time.Time // when each was accepted
}

func newIdleConns() *idleConns { return &idleConns{since: make(map[net.Conn]time.Time)} }

// track is an [http.Server.ConnState].
func (s *idleConns) track(c net.Conn, state http.ConnState) {
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

// closeLoop closes the connections that have been idle for idleGrace, until ctx is done.
func (s *idleConns) closeLoop(ctx context.Context) {
	tick := time.NewTicker(idleGrace / 4)
	defer tick.Stop()
	for ctx.Err() == nil {
		for _, c := range s.old(time.Now()) {
			c.Close()
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

func (s *idleConns) old(now time.Time) []net.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	var old []net.Conn
	for c, since := range s.since {
		if now.Sub(since) >= idleGrace {
			old = append(old, c)
		}
	}
	return old
}
