package engine_test

import (
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pulley-lb/pulley/engine"
)

// late is an engine whose pages take so long.
type late struct {
	http.Handler

	mu    sync.Mutex
	takes map[string]time.Duration
	asked map[string]int
	busy  time.Duration // the time that its answers took in all
}

func (l *late) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	takes := l.takes[r.URL.Path]
	l.asked[r.URL.Path]++
	l.busy += takes
	l.mu.Unlock()
	select {
	case <-time.After(takes):
	case <-r.Context().Done():
		return
	}
	l.Handler.ServeHTTP(w, r)
}

func (l *late) set(page string, takes time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.takes[page] = takes
}

func lateVLLM(t *testing.T) *late {
	return &late{Handler: vllmAt(t), takes: make(map[string]time.Duration), asked: make(map[string]int)}
}

// A question beside the scrapes is sent at once, even while a page has no answer, and shows since when the engine answers
// nothing.
func TestPulse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := lateVLLM(t)
		s := watch(t, engine.ScraperConfig{Client: clientOf(e), Dialect: engine.DialectVLLM})
		time.Sleep(5 * time.Second)
		if p := s.LatestPulse(); !p.Asked.IsZero() {
			t.Fatalf("asked without a call: %+v", p)
		}
		e.set("/metrics", time.Hour)
		time.Sleep(700 * time.Millisecond) // the scrapes wait for it
		at := time.Now()
		s.Pulse()
		synctest.Wait()
		if p := s.LatestPulse(); !p.Asked.Equal(at) || !p.Answered.Equal(at) {
			t.Errorf("asked at %v and answered at %v, want at once, at %v", p.Asked, p.Answered, at)
		}
		time.Sleep(time.Second)
		e.set("/health", 3*time.Second)
		at = time.Now()
		for range 20 { // no other is sent meanwhile
			s.Pulse()
			time.Sleep(100 * time.Millisecond)
			if p := s.LatestPulse(); !p.Asked.Equal(at) || !p.Answered.IsZero() {
				t.Errorf("%v later: asked at %v, answered at %v", time.Since(at), p.Asked, p.Answered)
			}
		}
		time.Sleep(1500 * time.Millisecond)
		if p := s.LatestPulse(); p.Answered.Sub(at) != 3*time.Second {
			t.Errorf("answered after %v", p.Answered.Sub(at))
		}
	})
}

// However often they are called for, with the scrapes they take a tenth of the engine's time. One that has no answer for ten
// seconds is given up, and asked again.
func TestPulsesTakeATenth(t *testing.T) {
	for takes, least := range map[time.Duration]int{0: 400, 20 * time.Millisecond: 150, 200 * time.Millisecond: 10, 2 * time.Second: 2, time.Hour: 2} {
		synctest.Test(t, func(t *testing.T) {
			e := lateVLLM(t)
			s := watch(t, engine.ScraperConfig{Client: clientOf(e), Dialect: engine.DialectVLLM, OnListing: func(engine.Listing) bool { return true }})
			time.Sleep(5 * time.Second)
			e.mu.Lock()
			e.busy = 0
			e.mu.Unlock()
			for _, page := range []string{"/health", "/metrics", "/v1/models"} {
				e.set(page, min(takes, 900*time.Millisecond))
			}
			e.set("/health", takes)
			asked := make(map[time.Time]bool)
			for range 2 * 600 {
				s.Pulse()
				time.Sleep(100 * time.Millisecond)
				if p := s.LatestPulse(); !p.Asked.IsZero() {
					asked[p.Asked] = true
				}
			}
			if len(asked) < least {
				t.Errorf("each takes %v: %d in two minutes, want at least %d", takes, len(asked), least)
			}
			e.mu.Lock()
			defer e.mu.Unlock()
			if most := 2*time.Minute/10 + 3*time.Second; takes < time.Second && e.busy > most {
				t.Errorf("each takes %v: %v of two minutes, want at most %v: %v", takes, e.busy, most, e.asked)
			}
		})
	}
}

// A refused connection and an error are answers of a kind: what is wrong then is found elsewhere.
func TestPulseOfAnEngineThatIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := vllmAt(t)
		s := watch(t, engine.ScraperConfig{Client: clientOf(e), Dialect: engine.DialectVLLM})
		time.Sleep(time.Second)
		e.set(pages{"/health": "503"})
		s.Pulse()
		synctest.Wait()
		if p := s.LatestPulse(); p.Asked.IsZero() || p.Answered.IsZero() {
			t.Errorf("%+v", p)
		}
	})
}
