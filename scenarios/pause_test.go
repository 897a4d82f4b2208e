package scenarios

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/worker"
)

// An engine whose whole process stops for a second and a half at times, for its garbage or its swap, works: it is not fenced,
// and none of its requests is called twice.
func TestPausesAreNoHang(t *testing.T) {
	cases := []struct {
		dialect engine.Dialect
		rate    float64
		cache   int
		stream  bool
		words   int
		n       int // requests at once
	}{
		{engine.DialectVLLM, 3000, 0, true, 900, 4},
		{engine.DialectVLLM, 20_000, 0, true, 200, 3},
		{engine.DialectLlamaCpp, 3000, 0, true, 900, 4},
		{engine.DialectOpenAI, 3000, 0, true, 900, 4},
		{engine.DialectOpenAI, 10_000, 0, false, 300, 5},
		{engine.DialectTGI, 3000, 0, false, 900, 6},
	}
	if raceEnabled {
		cases = cases[:2]
	}
	for _, c := range cases {
		t.Run(fmt.Sprintf("%s, %v tokens per second, cache %d, stream %t, %d words, %d at once", c.dialect, c.rate, c.cache, c.stream, c.words, c.n), func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				engines := make([]*fickle, 2)
				for i, name := range []string{"a", "b"} {
					cfg := reader(name, c.dialect, c.rate)
					cfg.PrefixCache = c.cache
					engines[i] = newFickle(t, cfg)
				}
				g := fickles(t, env, gateway.Config{}, worker.Config{Slots: 8}, nil, engines...)
				seen := recordStates(t, env)
				rnd := rand.New(rand.NewPCG(1, uint64(c.words)))
				done := make(chan struct{})
				var wg sync.WaitGroup
				var mu sync.Mutex
				asked := 0
				for i := range c.n {
					wg.Go(func() {
						for j := 0; ; j++ {
							select {
							case <-done:
								return
							default:
							}
							mu.Lock()
							asked++
							mu.Unlock()
							if r := ask(t, g, prompt(fmt.Sprintf("%d-%d", i, j), c.words, c.stream, 20), ""); r.status != 200 {
								t.Errorf("%d after %v: %.200q", r.status, r.took, r.body)
							}
						}
					})
				}
				a := engines[0]
				time.Sleep(10 * time.Second)
				for range 8 {
					time.Sleep(2*time.Second + time.Duration(rnd.IntN(4000))*time.Millisecond)
					a.freeze()
					a.SetClock(1e-6)
					time.Sleep(1500 * time.Millisecond)
					a.SetClock(1)
					a.thaw()
				}
				time.Sleep(5 * time.Second)
				close(done)
				wg.Wait()
				calls := 0
				for _, e := range engines {
					posts, probes := e.asked()
					calls += posts
					t.Logf("%s: %d requests, %d probes, states %q", e.Stats().Name, posts, probes, seen.of(e.Stats().Name))
					if seen.has(e.Stats().Name, "fenced") || seen.has(e.Stats().Name, "down") {
						t.Errorf("%s: states %q", e.Stats().Name, seen.of(e.Stats().Name))
					}
				}
				if calls != asked {
					t.Errorf("%d calls for %d requests", calls, asked)
				}
			})
		})
	}
}
