package gateway

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// stuckAfter is for how long a stream has to store nothing, while the connection works, until it counts as stuck. A stream
	// without a leader gets one before.
	stuckAfter = 6 * time.Second

	// triesAtStuck is how long a request is sent again to a stream that is stuck: as long as one ack may take, and a little more.
	triesAtStuck = ackTimeout + time.Second

	// lookAtStuckEvery is how often the broker is asked about a stream that stores nothing.
	lookAtStuckEvery = 2 * time.Second
)

// stuck are the streams that store nothing although they have a leader. nats-server does not answer a message that it cannot
// write, because its disk is full or read-only, and from then on none at all: see broker.Run. A stream on a disk that hangs does
// not answer questions either.
type stuck struct {
	some atomic.Bool // there are any: spares acks the lock

	mu       sync.Mutex
	byStream map[string]*stuckStream
}

type stuckStream struct {
	why   string    // empty: not stuck, as far as is known
	at    time.Time // when that was last found
	asked time.Time // when the broker was last asked about it
}

// ask says whether the broker is to be asked about a stream that stores nothing now.
func (s *stuck) ask(stream string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.byStream[stream]
	if st == nil {
		st = new(stuckStream)
		if s.byStream == nil {
			s.byStream = make(map[string]*stuckStream)
		}
		s.byStream[stream] = st
		s.some.Store(true)
	}
	if now.Sub(st.asked) < lookAtStuckEvery {
		return false
	}
	st.asked = now
	return true
}

// note notes why a stream stores nothing. It returns true if that is news, also after a while.
func (s *stuck) note(stream, why string, now time.Time) (news bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.byStream[stream]
	if st == nil { // it has stored something meanwhile
		return false
	}
	news = st.why != why || now.Sub(st.at) > troubleFor
	st.why, st.at = why, now
	return news
}

// works notes that a stream has stored a message. It returns true if it was stuck.
func (s *stuck) works(stream string) (was bool) {
	if !s.some.Load() {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.byStream[stream]
	delete(s.byStream, stream)
	s.some.Store(len(s.byStream) > 0)
	return st != nil && st.why != ""
}

// why says why a stream stores nothing; empty if it is not known to be so.
func (s *stuck) why(stream string, now time.Time) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.byStream[stream]; st != nil && now.Sub(st.at) < troubleFor {
		return st.why
	}
	return ""
}

// trouble is why one of the streams stores nothing; empty if all do.
func (s *stuck) trouble(now time.Time) (why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.byStream {
		if now.Sub(st.at) < troubleFor {
			why = max(why, st.why)
		}
	}
	return why
}

// explainSilence asks the broker why a stream has stored nothing for a while, and notes it. A stream without a leader is not
// stuck: it stores again when it has one.
func (p *publisher) explainSilence(ctx context.Context, stream string, now time.Time) {
	if !p.bus.conn.Hears(now) || !p.stuck.ask(stream, now) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	s, err := p.bus.js.Stream(ctx, stream)
	if err != nil {
		return
	}
	info := s.CachedInfo()
	if info.Cluster != nil && info.Cluster.Leader == "" {
		return
	}
	why := fmt.Sprintf("the broker does not store requests in %s, although that has a leader: its disk may be full, read-only or failing; see the broker's log", stream)
	if p.stuck.note(stream, why, now) {
		p.bus.log.Warn("the broker does not store requests", "err", why)
	}
}
