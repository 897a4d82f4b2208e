package testenv_test

import (
	"fmt"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/testenv"
)

// brief is an engine that does four requests every 100 ms.
func brief(name string) engine.SimConfig {
	return engine.SimConfig{Name: name, Models: []string{"m"}, Slots: 4, TTFT: 100 * time.Millisecond}
}

// served keeps the tiers of answers in the order in which they came.
type served struct {
	mu    sync.Mutex
	tiers []string
}

// send asks n times at once for a tier.
func (s *served) send(t *testing.T, wg *sync.WaitGroup, g *testenv.Gateway, tier string, n int) {
	for range n {
		wg.Go(func() {
			r := ask(t, g, chat("m", false, 1, fmt.Sprintf(`"service_tier":%q`, tier)), "")
			if r.status != 200 {
				t.Errorf("%s: %d %s %v", tier, r.status, r.body, r.err)
				return
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			s.tiers = append(s.tiers, tier)
		})
	}
}

// split is each tier's part of the answers from one to another.
func (s *served) split(from, to int) map[string]float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	parts := make(map[string]float64)
	for _, tier := range s.tiers[from:to] {
		parts[tier] += 1 / float64(to-from)
	}
	return parts
}

func (s *served) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.tiers)
}

func TestBackloggedTiersShareTheSlots(t *testing.T) {
	// Of the answers; the first ones were taken before anybody knew of a backlog.
	const from, over = 100, 1000
	for _, c := range []struct {
		name    string
		engines int
		backlog map[string]int
		want    map[string]float64
	}{
		{"all three", 1, map[string]int{"priority": 800, "standard": 500, "batch": 200},
			map[string]float64{"priority": 8. / 13, "standard": 4. / 13, "batch": 1. / 13}},
		{"all three on three workers", 3, map[string]int{"priority": 800, "standard": 500, "batch": 200},
			map[string]float64{"priority": 8. / 13, "standard": 4. / 13, "batch": 1. / 13}},
		{"an idle tier's share goes to the others", 1, map[string]int{"priority": 1000, "batch": 200},
			map[string]float64{"priority": 8. / 9, "batch": 1. / 9}},
	} {
		t.Run(c.name, func(t *testing.T) {
			testenv.Run(t, func(t *testing.T, env *testenv.Env) {
				var engines []engine.SimConfig
				for i := range c.engines {
					engines = append(engines, brief(fmt.Sprint("engine-", i)))
				}
				g, _, _ := pair(t, env, engines...)
				var s served
				var wg sync.WaitGroup
				for tier, n := range c.backlog {
					s.send(t, &wg, g, tier, n)
				}
				wg.Wait()
				got := s.split(from, from+over)
				t.Logf("of %d: %v", over, got)
				for tier, want := range c.want {
					if math.Abs(got[tier]-want) > 0.05*want {
						t.Errorf("%s: %.4f of %d answers, want %.4f ± 5 %%", tier, got[tier], over, want)
					}
				}
			})
		})
	}
}

// A request of a tier that was idle does not wait behind the backlog of
// others, even where every slot is taken when it comes.
func TestAnIdleTiersRequestPassesABacklog(t *testing.T) {
	testenv.Run(t, func(t *testing.T, env *testenv.Env) {
		g, _, _ := pair(t, env, brief("engine"))
		var s served
		var wg sync.WaitGroup
		s.send(t, &wg, g, "standard", 600)
		s.send(t, &wg, g, "batch", 200) // together 20 s of work
		for range 20 {
			time.Sleep(730 * time.Millisecond)
			r := ask(t, g, chat("m", false, 1, `"service_tier":"priority"`), "")
			// It waits for a slot, at most twice where its tier's turn is over.
			if r.status != 200 || r.took > 400*time.Millisecond {
				t.Errorf("priority: %d after %v, want at most 400 ms", r.status, r.took)
			}
		}
		if n := s.count(); n > 790 {
			t.Errorf("%d of the backlog were answered meanwhile: it was no backlog", n)
		}
		wg.Wait()
	})
}
