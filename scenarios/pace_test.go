package scenarios

import (
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// prompt is a chat whose prompt has so many words and begins with the seed.
func prompt(seed string, words int, stream bool, output int) string {
	return fmt.Sprintf(`{"model":"m","stream":%t,"max_tokens":%d,"messages":[{"role":"user","content":"%s %s"}]}`, stream, output, seed, strings.Repeat("word ", words-1))
}

// reader is an engine that reads so many tokens per second.
func reader(name string, d engine.Dialect, rate float64) sim.Config {
	return sim.Config{Name: name, Models: []string{"m"}, Slots: 8, PrefillRate: rate, ITLBase: 10 * time.Millisecond, Dialect: d}
}

// Where prompts of a thousand tokens were measured, those of an engine that freezes are answered elsewhere within three
// seconds, also those that wait behind others.
func TestFrozenWithLongPrompts(t *testing.T) {
	for _, c := range []struct {
		dialect engine.Dialect
		rate    float64
		cache   int
		stream  bool
		words   int
		n       int // requests at once
		within  time.Duration
	}{
		{engine.DialectVLLM, 3000, 0, true, 900, 4, 3 * time.Second},
		{engine.DialectVLLM, 3000, 0, true, 900, 8, 4 * time.Second}, // each waits for as long as a second as it is
		{engine.DialectVLLM, 3000, 1 << 20, true, 900, 4, 3 * time.Second},
		{engine.DialectVLLM, 8000, 1 << 20, true, 2500, 4, 3 * time.Second},
		{engine.DialectSGLang, 3000, 1 << 20, true, 900, 4, 3 * time.Second},
		{engine.DialectLlamaCpp, 3000, 0, true, 900, 4, 4 * time.Second}, // whether prompts are cached it does not tell
		{engine.DialectOpenAI, 3000, 0, true, 900, 4, 4 * time.Second},
		{engine.DialectVLLM, 3000, 0, false, 900, 4, 5 * time.Second},
	} {
		t.Run(fmt.Sprintf("%s, %v tokens per second, cache %d, stream %t, %d words, %d at once", c.dialect, c.rate, c.cache, c.stream, c.words, c.n), func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				cfg := func(name string) sim.Config {
					cfg := reader(name, c.dialect, c.rate)
					cfg.PrefixCache = c.cache
					return cfg
				}
				a, b := newFickle(t, cfg("a")), newFickle(t, cfg("b"))
				g := fickles(t, env, gateway.Config{}, worker.Config{Slots: 8}, nil, a, b)
				beats := recordBeats(t, env)
				var wg sync.WaitGroup
				send := func(i, j int, check func(reply)) {
					wg.Go(func() { check(ask(t, g, prompt(fmt.Sprintf("%d-%d", i, j), c.words, c.stream, 20), "")) })
				}
				for i := range 16 {
					for j := range c.n {
						send(i, j, func(r reply) {
							if r.status != 200 {
								t.Errorf("before: %d %s", r.status, r.body)
							}
						})
					}
					wg.Wait()
				}
				a.set(func(f *fickle) { f.posts = 0 })
				for j := range c.n {
					send(100, j, func(r reply) {
						if r.status != 200 || r.took > c.within {
							t.Errorf("request %d: %d after %v: %.200q", j, r.status, r.took, r.body)
						}
					})
				}
				time.Sleep(50 * time.Millisecond)
				a.freeze()
				wg.Wait()
				if posts, _ := a.asked(); posts == 0 {
					t.Error("a got no request: nothing was tested")
				}
				if h := beats.of("a"); h.State != subjects.Fenced || h.FenceClass != subjects.FenceFrozen {
					t.Errorf("%s %s %q", h.State, h.FenceClass, h.Reason)
				}
				a.thaw()
				testenv.Eventually(t, "a comes back", 10*time.Second, func() bool { return beats.of("a").State == subjects.Ready })
			})
		})
	}
}

// Where clients ask again and again, a request of an engine that freezes takes at most three seconds more than with one engine less,
// of any engine, streamed or not: newer requests do not overtake it.
func TestFrozenUnderLoad(t *testing.T) {
	cases := []struct {
		dialect engine.Dialect
		stream  bool
		rate    float64
		cache   int
		words   int
		slots   int
		n       int // requests at once
	}{
		{engine.DialectVLLM, true, 3000, 0, 900, 0, 12},
		{engine.DialectVLLM, true, 3000, 1 << 20, 900, 8, 4},
		{engine.DialectVLLM, true, 8000, 0, 2500, 0, 6},
		{engine.DialectVLLM, false, 3000, 0, 900, 8, 4},
		{engine.DialectVLLM, false, 8000, 1 << 20, 2500, 8, 8},
		{engine.DialectSGLang, false, 3000, 0, 900, 8, 16},
		{engine.DialectTGI, true, 3000, 0, 400, 8, 6},
		{engine.DialectLlamaCpp, true, 3000, 0, 900, 0, 12},
		{engine.DialectLlamaCpp, false, 3000, 0, 900, 8, 4},
		{engine.DialectOpenAI, true, 3000, 0, 900, 8, 20},
		{engine.DialectOpenAI, false, 3000, 0, 900, 8, 12},
	}
	if raceEnabled {
		cases = cases[4:6]
	}
	for _, c := range cases {
		t.Run(fmt.Sprintf("%s, stream %t, %v tokens per second, cache %d, %d words, slots %d, %d at once", c.dialect, c.stream, c.rate, c.cache, c.words, c.slots, c.n), func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				cfg := func(name string) sim.Config {
					cfg := reader(name, c.dialect, c.rate)
					cfg.PrefixCache = c.cache
					return cfg
				}
				a, b := newFickle(t, cfg("a")), newFickle(t, cfg("b"))
				g := fickles(t, env, gateway.Config{}, worker.Config{Slots: c.slots}, nil, a, b)
				seen := recordStates(t, env)
				const output = 20
				alone := time.Duration(float64(c.n*c.words) / c.rate * float64(time.Second)) // with one engine, each waits for a prompt of each other
				if !c.stream {
					alone += output * 10 * time.Millisecond
				}
				done := make(chan struct{})
				var mu sync.Mutex
				var slowest time.Duration
				var wg sync.WaitGroup
				for i := range c.n {
					wg.Go(func() {
						for j := 0; ; j++ {
							select {
							case <-done:
								return
							default:
							}
							began := time.Now()
							resp, err := post(t.Context(), g, "/v1/chat/completions", prompt(fmt.Sprintf("%d-%d", i, j), c.words, c.stream, output), "")
							if err != nil {
								t.Error(err)
								return
							}
							_, err = resp.Body.Read(make([]byte, 1))
							mu.Lock()
							slowest = max(slowest, time.Since(began))
							mu.Unlock()
							io.Copy(io.Discard, resp.Body)
							if resp.Body.Close(); resp.StatusCode != 200 || err != nil {
								t.Errorf("%d %v", resp.StatusCode, err)
							}
						}
					})
				}
				time.Sleep(20 * time.Second)
				mu.Lock()
				before := slowest
				slowest = 0
				mu.Unlock()
				a.freeze()
				time.Sleep(15 * time.Second)
				close(done)
				mu.Lock()
				t.Logf("slowest before %v, after %v; with one engine %v", before, slowest, alone)
				if most := max(alone, before) + 3*time.Second; slowest > most {
					t.Errorf("%v, want at most %v", slowest, most)
				}
				mu.Unlock()
				if !seen.has("a", "fenced frozen") {
					t.Errorf("states %q", seen.of("a"))
				}
				a.thaw()
				wg.Wait()
			})
		})
	}
}

// The requests that an engine accepts and never answers, while its pages answer and tell of its queue, are answered elsewhere about
// three seconds later than they take: it has to be asked for a token first. Of six at once, up to five are at that engine: they
// would take 1.5 s there, and then wait as long for each other's prompts elsewhere.
func TestHungWithLongPrompts(t *testing.T) {
	for _, c := range []struct {
		dialect engine.Dialect
		stream  bool
		rate    float64
		words   int
		n       int // requests at once
		within  time.Duration
	}{
		{engine.DialectVLLM, true, 3000, 900, 2, 3800 * time.Millisecond},
		{engine.DialectVLLM, true, 3000, 900, 6, 6300 * time.Millisecond},
		{engine.DialectVLLM, true, 8000, 2500, 2, 4100 * time.Millisecond},
		{engine.DialectSGLang, true, 3000, 900, 2, 3800 * time.Millisecond},
		{engine.DialectLlamaCpp, true, 3000, 900, 2, 3800 * time.Millisecond},
		{engine.DialectVLLM, false, 3000, 900, 2, 4200 * time.Millisecond},
	} {
		t.Run(fmt.Sprintf("%s, stream %t, %v tokens per second, %d words, %d at once", c.dialect, c.stream, c.rate, c.words, c.n), func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				a, b := newFickle(t, reader("a", c.dialect, c.rate)), newFickle(t, reader("b", c.dialect, c.rate))
				g := fickles(t, env, gateway.Config{}, worker.Config{Slots: 8}, nil, a, b)
				beats := recordBeats(t, env)
				var wg sync.WaitGroup
				send := func(i int, check func(reply)) {
					for j := range c.n {
						wg.Go(func() { check(ask(t, g, prompt(fmt.Sprintf("%d-%d", i, j), c.words, c.stream, 20), "")) })
					}
					wg.Wait()
				}
				for i := range 20 {
					send(i, func(r reply) {
						if r.status != 200 {
							t.Errorf("before: %d %s", r.status, r.body)
						}
					})
				}
				a.hang()
				a.set(func(f *fickle) { f.posts = 0 })
				send(100, func(r reply) {
					t.Logf("took %v", r.took)
					if r.status != 200 || r.took > c.within {
						t.Errorf("%d after %v: %.200q", r.status, r.took, r.body)
					}
				})
				if posts, _ := a.asked(); posts == 0 {
					t.Error("a got no request: nothing was tested")
				}
				if h := beats.of("a"); h.State != subjects.Fenced || h.FenceClass != subjects.FenceHung {
					t.Errorf("%s %s %q", h.State, h.FenceClass, h.Reason)
				}
				a.mend()
				testenv.Eventually(t, "a comes back", 10*time.Second, func() bool { return beats.of("a").State == subjects.Ready })
			})
		})
	}
}

// No engine that works is fenced, whatever the prompts are like: long after short ones, not cached after cached ones, far
// longer than any, with letters that are more tokens than others, behind a backlog; and whether its pages are late meanwhile.
func TestUnlikePromptsAreNoHang(t *testing.T) {
	shared := strings.Repeat("system ", 1500)
	type traffic func(i int, rnd *rand.Rand) string
	fresh := func(i, words int) string { return prompt(fmt.Sprint("fresh-", i), words, true, 5) }
	follow := func(i int) string { return prompt(shared, 50, true, 5) }
	digits := func(i, n int) string { // each is a word, and takes a third of the bytes of others
		return fmt.Sprintf(`{"model":"m","stream":true,"max_tokens":5,"messages":[{"role":"user","content":"%d %s"}]}`, i, strings.Repeat("7 ", n))
	}
	tail := func(i int, rnd *rand.Rand) string {
		return fresh(i, int(min(200/(1-rnd.Float64()), 12_000))) // Pareto: a few are sixty times as long as most
	}
	for what, c := range map[string]struct {
		rate  float64
		cache int
		blind bool
		late  time.Duration // of its pages with the traffic after
		n     int           // requests before
		warm  traffic
		m     int // requests after
		then  traffic
	}{
		"cached, then not":             {400, 1 << 20, false, 0, 60, func(i int, _ *rand.Rand) string { return follow(i) }, 4, func(i int, _ *rand.Rand) string { return fresh(i, 2000) }},
		"cached, then not, blind":      {400, 1 << 20, true, 0, 60, func(i int, _ *rand.Rand) string { return follow(i) }, 4, func(i int, _ *rand.Rand) string { return fresh(i, 2000) }},
		"cached, then not, pages late": {400, 1 << 20, false, 4 * time.Second, 60, func(i int, _ *rand.Rand) string { return follow(i) }, 2, func(i int, _ *rand.Rand) string { return fresh(i, 2000) }},
		"a long tail":                  {2000, 0, false, 0, 100, tail, 60, tail},
		"a long tail, blind":           {2000, 0, true, 0, 100, tail, 60, tail},
		"a long tail, slow":            {600, 1 << 20, false, 0, 40, tail, 30, tail},
		"short, then long":             {1000, 0, false, 0, 40, func(i int, _ *rand.Rand) string { return fresh(i, 150) }, 3, func(i int, _ *rand.Rand) string { return fresh(i, 20_000) }},
		"short, then long, pages late": {1000, 0, false, 10 * time.Second, 40, func(i int, _ *rand.Rand) string { return fresh(i, 150) }, 1, func(i int, _ *rand.Rand) string { return fresh(i, 12_000) }},
		"words, then digits":           {2000, 0, false, 0, 40, func(i int, _ *rand.Rand) string { return fresh(i, 1000) }, 4, func(i int, _ *rand.Rand) string { return digits(i, 8000) }},
		"words, then digits, blind":    {2000, 0, true, 0, 40, func(i int, _ *rand.Rand) string { return fresh(i, 1000) }, 4, func(i int, _ *rand.Rand) string { return digits(i, 8000) }},
		"a backlog of long ones":       {1500, 0, false, 0, 40, func(i int, _ *rand.Rand) string { return fresh(i, 800) }, 40, func(i int, _ *rand.Rand) string { return fresh(i, 3000) }},
		"cached and not, at once, and late": {1500, 1 << 20, false, 700 * time.Millisecond, 60, func(i int, r *rand.Rand) string {
			if r.IntN(4) == 0 {
				return fresh(i, 1200)
			}
			return follow(i)
		}, 20, func(i int, _ *rand.Rand) string { return fresh(i, 1200) }},
	} {
		t.Run(what, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				cfg := reader("a", engine.DialectVLLM, c.rate)
				cfg.PrefixCache = c.cache
				if c.blind {
					cfg.Dialect = engine.DialectOpenAI
				}
				a := newFickle(t, cfg)
				g := fickles(t, env, gateway.Config{}, worker.Config{Slots: 8}, nil, a)
				seen := recordStates(t, env)
				rnd := rand.New(rand.NewPCG(1, 2))
				var wg sync.WaitGroup
				replay := func(from, n int, next traffic) {
					queue := make(chan string)
					for range 4 {
						wg.Go(func() {
							for body := range queue {
								if r := ask(t, g, body, ""); r.status != 200 || r.err != nil {
									t.Errorf("%d after %v %.200q", r.status, r.took, r.body)
								}
							}
						})
					}
					for i := range n {
						queue <- next(from+i, rnd)
					}
					close(queue)
				}
				replay(0, c.n, c.warm)
				wg.Wait()
				time.Sleep(5 * time.Second)
				before, _ := a.asked()
				a.delay(c.late)
				replay(1000, c.m, c.then)
				time.Sleep(c.late)
				a.delay(0)
				wg.Wait()
				after, probes := a.asked()
				t.Logf("%d calls for %d requests, %d probes, states %q", after-before, c.m, probes, seen.of("a"))
				if seen.has("a", "fenced") || seen.has("a", "down") || after-before != c.m {
					t.Errorf("%d calls for %d requests; states %q", after-before, c.m, seen.of("a"))
				}
			})
		})
	}
}
