package scenarios

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/worker"
)

// An engine that answers nothing about itself while it reads prompts that take longer than any before, or more of them at once,
// is not frozen, although it always answered beside its work until then: not cached after cached ones, long after short ones,
// many after one.
func TestMuteIsNotFrozen(t *testing.T) {
	shared := strings.Repeat("system ", 1500)
	fresh := func(seed string, words int, stream bool) func(i int) string {
		return func(i int) string { return prompt(fmt.Sprint(seed, "-", i), words, stream, 20) }
	}
	follow := func(stream bool) func(i int) string {
		return func(int) string { return prompt(shared, 50, stream, 20) }
	}
	cases := []struct {
		what    string
		dialect engine.Dialect
		rate    float64
		cache   int
		warm    func(i int) string
		then    func(i int) string
		n, m    int           // requests at once: before, and while it is mute
		late    time.Duration // of its pages meanwhile
		behind  int           // requests that may be late behind another one, and move
	}{
		{"long after short ones", engine.DialectVLLM, 2000, 0, fresh("a", 200, true), fresh("b", 30_000, true), 4, 1, 14 * time.Second, 0},
		{"long beside short ones", engine.DialectVLLM, 2000, 0, fresh("a", 200, true), func(i int) string {
			return fresh("b", []int{30_000, 200, 200}[i%3], true)(i)
		}, 4, 3, 14 * time.Second, 2},
		{"long after short ones", engine.DialectLlamaCpp, 2000, 0, fresh("a", 200, true), fresh("b", 30_000, true), 4, 1, 14 * time.Second, 0},
		{"not cached after cached ones", engine.DialectLlamaCpp, 500, 1 << 20, follow(false), fresh("b", 2000, false), 4, 1, 4 * time.Second, 0},
		{"not cached after cached ones", engine.DialectVLLM, 500, 1 << 20, follow(false), fresh("b", 2000, false), 4, 2, 4 * time.Second, 0},
		{"not cached after cached ones", engine.DialectOpenAI, 1200, 1 << 20, follow(false), fresh("b", 2000, false), 4, 1, 1600 * time.Millisecond, 0},
		{"not cached after cached ones", engine.DialectOpenAI, 1200, 1 << 20, follow(true), fresh("b", 2000, true), 4, 1, 1600 * time.Millisecond, 0},
		{"many after one", engine.DialectVLLM, 3000, 0, fresh("a", 900, false), fresh("b", 900, false), 1, 8, 2 * time.Second, 0},
		{"many after one", engine.DialectOpenAI, 3000, 0, fresh("a", 900, false), fresh("b", 900, false), 1, 8, 2 * time.Second, 0},
		{"many after two", engine.DialectTGI, 1500, 0, fresh("a", 900, false), fresh("b", 900, false), 2, 8, 4 * time.Second, 0},
	}
	if raceEnabled {
		cases = cases[4:6]
	}
	for _, c := range cases {
		t.Run(fmt.Sprintf("%s, %s, late for %v", c.what, c.dialect, c.late), func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				cfg := reader("a", c.dialect, c.rate)
				cfg.PrefixCache = c.cache
				a := newFickle(t, cfg)
				b := newFickle(t, reader("b", c.dialect, c.rate))
				g := fickles(t, env, gateway.Config{}, worker.Config{Slots: 8}, nil, a)
				seen := recordStates(t, env)
				var wg sync.WaitGroup
				send := func(n, i int, body func(i int) string) {
					for j := range n {
						wg.Go(func() {
							if r := ask(t, g, body(n*i+j), ""); r.status != 200 || r.err != nil {
								t.Errorf("%d after %v %.200q", r.status, r.took, r.body)
							}
						})
					}
				}
				for i := range 40 {
					send(c.n, i, c.warm)
					wg.Wait()
				}
				time.Sleep(2 * time.Second)
				before, _ := a.asked()
				send(c.m, 0, c.then)
				time.Sleep(50 * time.Millisecond)
				a.delay(c.late)
				env.Worker(env.Handler("b", b), worker.Config{Name: "b", Slots: 8}) // it has room for whatever is moved
				time.Sleep(c.late)
				a.delay(0)
				wg.Wait()
				after, probes := a.asked()
				t.Logf("%d calls for %d requests, %d probes, states %q", after-before, c.m, probes, seen.of("a"))
				if elsewhere, _ := b.asked(); seen.has("a", "fenced") || seen.has("a", "down") || after-before != c.m || elsewhere > c.behind {
					t.Errorf("%d calls for %d requests, %d elsewhere; states %q", after-before, c.m, elsewhere, seen.of("a"))
				}
			})
		})
	}
}
