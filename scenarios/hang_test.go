package scenarios

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// A fickle engine is one whose process can be frozen, whose requests can hang, and whose pages can come late.
type fickle struct {
	*sim.Engine

	mu     sync.Mutex
	frozen chan struct{} // closed to thaw; nil: it runs
	hangs  chan struct{} // the same for new requests
	after  string        // they hang after: "", nothing; "headers"; "a token"
	only   string        // they hang for this model alone; empty: for all
	late   time.Duration // of its pages
	posts  int           // requests, without probes
	probes int
	pages  map[string]int
	calls  map[string]int // requests by their header X-Nth
	one    *sync.Mutex    // it has one thread; nil: many
}

func newFickle(t *testing.T, cfg sim.Config) *fickle {
	t.Helper()
	e, err := sim.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &fickle{Engine: e, pages: make(map[string]int), calls: make(map[string]int)}
}

func (f *fickle) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if f.one != nil {
		if !lockWithin(r, f.one) {
			return
		}
		defer f.one.Unlock()
	}
	body, _ := io.ReadAll(r.Body) // only then does the server notice that a client has gone
	r.Body = io.NopCloser(bytes.NewReader(body))
	f.mu.Lock()
	frozen, hangs, late, after := f.frozen, f.hangs, f.late, f.after
	if f.only != "" && !strings.Contains(string(body), fmt.Sprintf(`"model":%q`, f.only)) {
		hangs = nil
	}
	f.mu.Unlock()
	waits := func(for_ <-chan struct{}) (gone bool) {
		select {
		case <-for_:
			return false
		case <-r.Context().Done():
			return true
		}
	}
	if frozen != nil && waits(frozen) {
		return
	}
	f.mu.Lock()
	switch {
	case r.Method != http.MethodPost:
		f.pages[r.URL.Path]++
	case r.Header.Get("User-Agent") == "pulley": // a worker's own
		f.probes++
	default:
		f.posts++
		f.calls[r.Header.Get("X-Nth")]++
	}
	f.mu.Unlock()
	switch {
	case r.Method == http.MethodPost && hangs != nil && after == "a token":
		w = &stopper{ResponseWriter: w, until: hangs, r: r}
	case r.Method == http.MethodPost && hangs != nil:
		if after == "headers" {
			w.Header().Set("Content-Type", "text/event-stream")
			w.WriteHeader(http.StatusOK)
			http.NewResponseController(w).Flush()
		}
		if waits(hangs) || after != "" {
			return
		}
	case r.Method != http.MethodPost && late > 0:
		select {
		case <-time.After(late):
		case <-r.Context().Done():
			return
		}
	}
	f.Engine.ServeHTTP(&freezer{w, f, r}, r)
}

// lockWithin waits for a lock as long as the client does.
func lockWithin(r *http.Request, mu *sync.Mutex) bool {
	for !mu.TryLock() {
		select {
		case <-time.After(time.Millisecond):
		case <-r.Context().Done():
			return false
		}
	}
	return true
}

// freezer holds the bytes of an answer while its engine is frozen.
type freezer struct {
	http.ResponseWriter
	f *fickle
	r *http.Request
}

func (w *freezer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *freezer) Write(b []byte) (int, error) {
	w.f.mu.Lock()
	frozen := w.f.frozen
	w.f.mu.Unlock()
	if frozen != nil {
		select {
		case <-frozen:
		case <-w.r.Context().Done():
		}
	}
	return w.ResponseWriter.Write(b)
}

// stopper holds the bytes of an answer after the first events.
type stopper struct {
	http.ResponseWriter
	until <-chan struct{}
	r     *http.Request
	wrote int
}

func (w *stopper) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *stopper) Write(b []byte) (int, error) {
	if w.wrote >= 3 {
		select {
		case <-w.until:
		case <-w.r.Context().Done():
		}
	}
	w.wrote++
	return w.ResponseWriter.Write(b)
}

// set changes the engine. What is closed is let go.
func (f *fickle) set(change func(f *fickle)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *fickle) freeze() { f.set(func(f *fickle) { f.frozen = make(chan struct{}) }) }
func (f *fickle) thaw()   { f.set(func(f *fickle) { close(f.frozen); f.frozen = nil }) }
func (f *fickle) hang()   { f.set(func(f *fickle) { f.hangs = make(chan struct{}) }) }
func (f *fickle) mend()   { f.set(func(f *fickle) { close(f.hangs); f.hangs = nil }) }
func (f *fickle) delay(late time.Duration) {
	f.set(func(f *fickle) { f.late = late })
}

// callsOf is how often the nth request came.
func (f *fickle) callsOf(nth string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[nth]
}

func (f *fickle) asked() (posts, probes int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.posts, f.probes
}

// states records which states each worker was in, with the class of a fence.
type states struct {
	mu   sync.Mutex
	seen map[string][]string
}

func recordStates(t *testing.T, env *Env) *states {
	t.Helper()
	s := &states{seen: make(map[string][]string)}
	onHeartbeats(t, env, func(h *subjects.Heartbeat) {
		state := string(h.State)
		if h.FenceClass != "" {
			state += " " + string(h.FenceClass)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if seen := s.seen[h.Name]; len(seen) == 0 || seen[len(seen)-1] != state {
			s.seen[h.Name] = append(seen, state)
		}
	})
	return s
}

// has reports whether a worker was in a state that begins so.
func (s *states) has(name, state string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, seen := range s.seen[name] {
		if strings.HasPrefix(seen, state) {
			return true
		}
	}
	return false
}

func (s *states) of(name string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.seen[name]...)
}

// fickles starts a gateway and a worker for each engine, and has all of them answer some requests.
func fickles(t *testing.T, env *Env, gcfg gateway.Config, wcfg worker.Config, warm []string, engines ...*fickle) *Gateway {
	t.Helper()
	g := env.Gateway(gcfg)
	for _, f := range engines {
		name := f.Stats().Name
		wcfg.Name = name
		env.Worker(env.Handler(name, f), wcfg)
	}
	g.Serves(t, "m")
	for range 4 {
		var wg sync.WaitGroup
		for range 2 * len(engines) {
			for _, body := range warm {
				wg.Go(func() {
					if r := ask(t, g, body, ""); r.status != 200 {
						t.Errorf("warming up: %d %s", r.status, r.body)
					}
				})
			}
		}
		wg.Wait()
	}
	time.Sleep(time.Second)
	return g
}

// brisk is an engine that takes 0.1 s for a prompt and a tenth of that for a token.
func brisk(name string, d engine.Dialect) sim.Config {
	return sim.Config{Name: name, Models: []string{"m"}, Slots: 8, TTFT: 100 * time.Millisecond, ITLBase: 10 * time.Millisecond, Dialect: d}
}

func TestHungEngine(t *testing.T) {
	for _, c := range []struct {
		dialect engine.Dialect
		stream  bool
		slots   int
		slow    int           // requests that may take longer than 4 s
		within  time.Duration // until it is fenced, from the first request on that it does not answer
	}{
		{engine.DialectVLLM, true, 0, 0, 5 * time.Second},
		{engine.DialectVLLM, false, 0, 0, 5 * time.Second},
		{engine.DialectVLLM, true, 8, 0, 5 * time.Second},
		{engine.DialectSGLang, false, 8, 0, 5 * time.Second},
		{engine.DialectLlamaCpp, true, 4, 0, 5 * time.Second},
		{engine.DialectTGI, false, 0, 0, 5 * time.Second},
		{engine.DialectOpenAI, true, 8, 3, 12 * time.Second},
	} {
		t.Run(fmt.Sprintf("%s, stream %t, slots %d", c.dialect, c.stream, c.slots), func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				a, b := newFickle(t, brisk("a", c.dialect)), newFickle(t, brisk("b", c.dialect))
				g := fickles(t, env, gateway.Config{}, worker.Config{Slots: c.slots}, []string{chat("m", c.stream, 5)}, a, b)
				beats := recordBeats(t, env)
				a.hang()
				hung := time.Time{} // when it got the first request that it does not answer
				a.set(func(f *fickle) { f.posts = 0 })
				var mu sync.Mutex
				var wg sync.WaitGroup
				slow := 0
				for i := range 60 {
					wg.Go(func() {
						r := ask(t, g, chat("m", c.stream, 5), "", "X-Request-Timeout", "15")
						if r.status != 200 || r.err != nil || words(content(t, r.body)) != 5 {
							t.Errorf("request %d: %d %q", i, r.status, r.body)
						}
						if r.took > 4*time.Second {
							mu.Lock()
							defer mu.Unlock()
							slow++
							t.Logf("request %d took %v", i, r.took)
						}
					})
					time.Sleep(time.Second)
					if posts, _ := a.asked(); posts > 0 && hung.IsZero() {
						hung = time.Now()
					}
					if since := time.Since(hung); !hung.IsZero() && since > c.within && (beats.of("a").State != subjects.Fenced || beats.of("a").FenceClass != subjects.FenceHung) {
						t.Fatalf("%v after it hung: %s %q", since, beats.of("a").State, beats.of("a").Reason)
					}
				}
				wg.Wait()
				posts, probes := a.asked()
				t.Logf("%d slow of 60; a got %d requests and %d probes; %q", slow, posts, probes, beats.of("a").Reason)
				if slow > c.slow {
					t.Errorf("%d requests were slow, want at most %d", slow, c.slow)
				}
				if b := beats.of("b"); b.State != subjects.Ready {
					t.Errorf("b: %s %q", b.State, b.Reason)
				}
				before, _ := a.asked()
				a.mend()
				testenv.Eventually(t, "a comes back", 4*time.Second, func() bool { return beats.of("a").State == subjects.Ready })
				for range 6 {
					for range 2 {
						wg.Go(func() { ask(t, g, chat("m", c.stream, 50), "") })
					}
					wg.Wait()
				}
				if after, _ := a.asked(); after == before {
					t.Error("back, it gets no requests")
				}
			})
		})
	}
}

// The requests of a frozen engine are answered elsewhere within three seconds, and it comes back when it runs again.
func TestFrozenEngine(t *testing.T) {
	for _, c := range []struct {
		dialect engine.Dialect
		stream  bool
		at      time.Duration // when it freezes, after the requests
	}{
		{engine.DialectVLLM, true, 50 * time.Millisecond},
		{engine.DialectVLLM, false, 50 * time.Millisecond},
		{engine.DialectLlamaCpp, true, 20 * time.Millisecond},
		{engine.DialectOllama, true, 90 * time.Millisecond},
		{engine.DialectOpenAI, true, 50 * time.Millisecond},
	} {
		t.Run(fmt.Sprintf("%s, stream %t", c.dialect, c.stream), func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				a, b := newFickle(t, brisk("a", c.dialect)), newFickle(t, brisk("b", c.dialect))
				g := fickles(t, env, gateway.Config{}, worker.Config{Slots: 8}, []string{chat("m", c.stream, 5)}, a, b)
				beats := recordBeats(t, env)
				a.set(func(f *fickle) { f.posts = 0 })
				var wg sync.WaitGroup
				for i := range 12 { // each has 8 slots
					wg.Go(func() {
						r := ask(t, g, chat("m", c.stream, 5), "")
						if r.status != 200 || words(content(t, r.body)) != 5 || r.took > 3*time.Second {
							t.Errorf("request %d: %d after %v: %q", i, r.status, r.took, r.body)
						}
					})
				}
				time.Sleep(c.at)
				a.freeze()
				wg.Wait()
				if posts, _ := a.asked(); posts == 0 {
					t.Errorf("a got %d requests: nothing was tested", posts)
				}
				if h := beats.of("a"); h.State != subjects.Fenced || h.FenceClass != subjects.FenceFrozen {
					t.Errorf("%s %s %q", h.State, h.FenceClass, h.Reason)
				}
				for range 20 { // nothing goes there
					if r := ask(t, g, chat("m", c.stream, 5), ""); r.status != 200 || r.took > time.Second {
						t.Errorf("while it is frozen: %d after %v", r.status, r.took)
					}
				}
				a.thaw()
				testenv.Eventually(t, "a comes back", 10*time.Second, func() bool { return beats.of("a").State == subjects.Ready })
			})
		})
	}
}

// An engine that answers no question while it works keeps its requests, and so do all of a pool.
func TestBusyEngineKeepsItsRequests(t *testing.T) {
	for what, c := range map[string]struct {
		late, answers time.Duration
		n             int
	}{
		"15 s of 20":       {15 * time.Second, 20 * time.Second, 12},
		"all the time":     {30 * time.Second, 30 * time.Second, 12},
		"for two seconds":  {2 * time.Second, 5 * time.Second, 9},
		"a single request": {40 * time.Second, 45 * time.Second, 1},
	} {
		for _, stream := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, stream %t", what, stream), func(t *testing.T) {
				run(t, func(t *testing.T, env *Env) {
					a, b := newFickle(t, brisk("a", engine.DialectVLLM)), newFickle(t, brisk("b", engine.DialectVLLM))
					engines := []*fickle{a, b}
					if c.n == 1 {
						engines = engines[:1]
					}
					g := fickles(t, env, gateway.Config{}, worker.Config{Slots: 8}, []string{chat("m", stream, 5)}, engines...)
					seen := recordStates(t, env)
					for _, e := range engines {
						e.set(func(f *fickle) { f.posts, f.probes = 0, 0 })
					}
					var wg sync.WaitGroup
					for i := range c.n {
						wg.Go(func() {
							r := ask(t, g, chat("m", stream, 5), fmt.Sprintf("ttft=%v", c.answers))
							if r.status != 200 || r.took > c.answers+time.Second {
								t.Errorf("request %d: %d after %v: %s", i, r.status, r.took, r.body)
							}
						})
					}
					time.Sleep(500 * time.Millisecond)
					for _, e := range engines {
						e.delay(c.late)
					}
					time.Sleep(c.late)
					for _, e := range engines {
						e.delay(0)
					}
					wg.Wait()
					total := 0
					for _, e := range engines {
						posts, probes := e.asked()
						total += posts
						t.Logf("%s: %d requests, %d probes, states %q", e.Stats().Name, posts, probes, seen.of(e.Stats().Name))
						if seen.has(e.Stats().Name, "down") {
							t.Errorf("%s: states %q", e.Stats().Name, seen.of(e.Stats().Name))
						}
					}
					if total != c.n {
						t.Errorf("%d posts for %d requests", total, c.n)
					}
					testenv.Eventually(t, "both ready", 10*time.Second, func() bool {
						for _, e := range engines {
							if s := seen.of(e.Stats().Name); s[len(s)-1] != "ready" {
								return false
							}
						}
						return true
					})
				})
			})
		}
	}
}

// A slow engine that works is not taken for one that hangs: it is never fenced, and keeps the request that is slow. Streams
// that wait behind that one may move.
func TestSlowIsNotHung(t *testing.T) {
	long := func(seed string) string { // 30 000 tokens: 30 s
		return fmt.Sprintf(`{"model":"m","stream":true,"max_tokens":5,"messages":[{"role":"user","content":%q}]}`, strings.Repeat(seed+" ", 30_000))
	}
	reading := func(d engine.Dialect) sim.Config {
		return sim.Config{Name: "a", Models: []string{"m"}, Slots: 4, PrefillRate: 1000, ITLBase: 100 * time.Millisecond, Dialect: d}
	}
	cached := reading(engine.DialectVLLM)
	cached.PrefixCache = 1 << 20
	blindCache := cached
	blindCache.Dialect = engine.DialectOpenAI
	single := reading(engine.DialectOpenAI)
	single.Slots = 1
	crawling := reading(engine.DialectVLLM)
	crawling.ITLBase = 500 * time.Millisecond
	crawlingBlind, crawlingSingle := crawling, crawling
	crawlingBlind.Dialect = engine.DialectOpenAI
	crawlingSingle.Dialect, crawlingSingle.Slots = engine.DialectOllama, 1
	const unbounded = `{"model":"m","stream":false,"messages":[{"role":"user","content":"one two three"}]}` // 64 tokens: 32 s
	for what, c := range map[string]struct {
		cfg    sim.Config
		warm   []string
		ask    []string
		orders string
		late   time.Duration // of its pages meanwhile
		one    bool          // it has one thread
	}{
		"a long prompt":                           {cfg: reading(engine.DialectVLLM), warm: []string{chat("m", true, 5)}, ask: []string{long("x")}},
		"a long prompt, blind":                    {cfg: reading(engine.DialectOpenAI), warm: []string{chat("m", true, 5)}, ask: []string{long("x")}},
		"a long prompt, pages late":               {cfg: reading(engine.DialectLlamaCpp), warm: []string{chat("m", true, 5)}, ask: []string{long("x")}, late: 25 * time.Second},
		"a long prompt, others behind it":         {cfg: reading(engine.DialectVLLM), warm: []string{chat("m", true, 5)}, ask: []string{long("x"), chat("m", true, 5), chat("m", true, 5)}},
		"long prompts":                            {cfg: reading(engine.DialectVLLM), warm: []string{chat("m", true, 5)}, ask: []string{long("x"), long("y"), long("z")}},
		"a long prompt, others were cached":       {cfg: cached, warm: []string{long("x")}, ask: []string{long("y")}},
		"the same, blind":                         {cfg: blindCache, warm: []string{long("x")}, ask: []string{long("y")}},
		"uncached, pages late":                    {cfg: cached, warm: []string{long("x")}, ask: []string{long("y")}, late: 25 * time.Second},
		"one slot":                                {cfg: single, warm: []string{chat("m", true, 5)}, ask: []string{chat("m", true, 100), chat("m", true, 100), chat("m", true, 100)}},
		"a long whole answer":                     {cfg: crawling, warm: []string{chat("m", false, 5)}, ask: []string{unbounded}},
		"a long whole answer, blind":              {cfg: crawlingBlind, warm: []string{chat("m", false, 5)}, ask: []string{unbounded}},
		"a long whole answer, one slot":           {cfg: crawlingSingle, warm: []string{chat("m", false, 5)}, ask: []string{unbounded, unbounded}},
		"long whole answers":                      {cfg: crawlingBlind, warm: []string{chat("m", false, 5)}, ask: []string{unbounded, unbounded, unbounded, unbounded}},
		"a long whole answer with a bound":        {cfg: crawling, warm: []string{chat("m", false, 5)}, ask: []string{chat("m", false, 100)}},
		"the same, pages late":                    {cfg: crawling, warm: []string{chat("m", false, 5)}, ask: []string{chat("m", false, 100)}, late: 45 * time.Second},
		"a whole answer behind streams":           {cfg: crawlingSingle, warm: []string{chat("m", false, 5), chat("m", true, 5)}, ask: []string{chat("m", true, 60), chat("m", false, 20)}},
		"the first request":                       {cfg: reading(engine.DialectVLLM), ask: []string{chat("m", true, 5)}, orders: "ttft=55s"},
		"the first request, blind":                {cfg: reading(engine.DialectOpenAI), ask: []string{chat("m", false, 5)}, orders: "ttft=55s"},
		"the first request, pages late":           {cfg: reading(engine.DialectVLLM), ask: []string{chat("m", true, 5)}, orders: "ttft=25s", late: 24 * time.Second},
		"one thread, long prompts":                {cfg: single, warm: []string{chat("m", true, 5)}, ask: []string{long("x"), chat("m", true, 5)}, one: true},
		"one thread, a long whole answer":         {cfg: single, warm: []string{chat("m", false, 5)}, ask: []string{chat("m", false, 200), chat("m", false, 5)}, one: true},
		"one thread, long whole answer unbounded": {cfg: single, warm: []string{chat("m", false, 5)}, ask: []string{unbounded, unbounded}, one: true},
	} {
		t.Run(what, func(t *testing.T) {
			if raceEnabled && c.late == 0 && !c.one {
				t.Skip("concurrent as those whose pages are late")
			}
			run(t, func(t *testing.T, env *Env) {
				a := newFickle(t, c.cfg)
				if c.one {
					a.one = new(sync.Mutex)
				}
				// A second worker has room for whatever is moved.
				g := fickles(t, env, gateway.Config{}, worker.Config{Slots: 4}, c.warm, a)
				seen := recordStates(t, env)
				a.set(func(f *fickle) { f.posts, f.probes = 0, 0 })
				var wg sync.WaitGroup
				for i, body := range c.ask {
					wg.Go(func() {
						r := ask(t, g, body, c.orders, "X-Nth", fmt.Sprint(i))
						if r.status != 200 || r.err != nil {
							t.Errorf("request %d: %d after %v: %.200q", i, r.status, r.took, r.body)
						}
					})
					time.Sleep(50 * time.Millisecond)
				}
				b := newFickle(t, func() sim.Config { b := c.cfg; b.Name = "b"; return b }())
				env.Worker(env.Handler("b", b), worker.Config{Name: "b", Slots: 4})
				time.Sleep(time.Second)
				if c.late > 0 {
					a.delay(c.late)
					time.Sleep(c.late)
					a.delay(0)
				}
				wg.Wait()
				posts, probes := a.asked()
				elsewhere, _ := b.asked()
				t.Logf("%d posts, %d elsewhere, %d probes, states %q", posts, elsewhere, probes, seen.of("a"))
				if seen.has("a", "fenced") || seen.has("a", "down") || posts+elsewhere > 3*len(c.ask)-2 {
					t.Errorf("%d posts for %d requests, and %d elsewhere; states %q", posts, len(c.ask), elsewhere, seen.of("a"))
				}
				if here, there := a.callsOf("0"), b.callsOf("0"); here != 1 || there != 0 {
					t.Errorf("the first request was called %d times, and %d elsewhere", here, there)
				}
			})
		})
	}
}

// A stream whose first byte takes too long moves once, if another worker has room; a few at a time.
func TestFirstByteWithin(t *testing.T) {
	for what, c := range map[string]struct {
		flag, tier time.Duration
		after      time.Duration
	}{
		"by the gateway's setting": {2 * time.Second, 0, 2 * time.Second},
		"by the tier's":            {time.Minute, 3 * time.Second, 3 * time.Second},
		"by the measurements":      {0, 0, 3 * time.Second},
	} {
		t.Run(what, func(t *testing.T) {
			if raceEnabled && c.flag != 0 {
				t.Skip("concurrent as the one by the measurements")
			}
			runBoth(t, func(t *testing.T, env *Env) {
				a, b := newFickle(t, brisk("a", engine.DialectVLLM)), newFickle(t, brisk("b", engine.DialectVLLM))
				g := fickles(t, env, gateway.Config{FirstByteWithin: c.flag}, worker.Config{Slots: 8}, []string{chat("m", true, 5)}, a, b)
				env.SetPolicy(func(p *policy.Policy) {
					for i := range p.Tiers {
						p.Tiers[i].FirstByteWithin = policy.Duration(c.tier)
					}
				})
				seen := recordStates(t, env)
				var wg sync.WaitGroup
				defer wg.Wait()
				for range 2 { // both engines work all the time
					wg.Go(func() { ask(t, g, chat("m", true, 6000), "") })
					time.Sleep(time.Second)
				}
				moved := false
				for range 6 {
					r := ask(t, g, chat("m", true, 5), onA("ttft=20s"))
					if r.status != 200 || r.took > c.after+3*time.Second {
						na, _ := a.asked()
						nb, _ := b.asked()
						t.Errorf("%d after %v by %s; %d %d %q %q", r.status, r.took, r.header.Get("x-sim-name"), na, nb, seen.of("a"), seen.of("b"))
					}
					if r.took > time.Second {
						moved = true
						if r.took < c.after {
							t.Errorf("moved after %v, want %v", r.took, c.after)
						}
					}
				}
				if !moved {
					t.Error("none was slow: nothing was tested")
				}
				if seen.has("a", "fenced") {
					t.Errorf("states %q", seen.of("a"))
				}
			})
		})
	}
}

// Of many whose first byte is late at once, only a few move.
func TestFewMoveForTheirFirstByte(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		a, b := newFickle(t, brisk("a", engine.DialectVLLM)), newFickle(t, brisk("b", engine.DialectVLLM))
		g := fickles(t, env, gateway.Config{FirstByteWithin: 2 * time.Second}, worker.Config{Slots: 8}, []string{chat("m", true, 5)}, a, b)
		for _, e := range []*fickle{a, b} {
			e.set(func(f *fickle) { f.posts = 0 })
		}
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if r := ask(t, g, chat("m", true, 5), "ttft=6s"); r.status != 200 || r.took > 9*time.Second {
					t.Errorf("%d after %v", r.status, r.took)
				}
			})
		}
		wg.Wait()
		na, _ := a.asked()
		nb, _ := b.asked()
		if na+nb > 12 {
			t.Errorf("%d calls of engines for 10 requests: one may move at a time", na+nb)
		}
	})
}

// However an engine hangs, few requests notice.
func TestKindsOfHanging(t *testing.T) {
	for what, c := range map[string]struct {
		dialect engine.Dialect
		after   string
		stream  bool
		broken  int // requests that may fail: nothing can move an answer that has begun
		slow    int // requests that may take longer than 4 s
	}{
		"headers, then nothing":             {engine.DialectVLLM, "headers", true, 0, 1},
		"headers, then nothing, blind":      {engine.DialectOpenAI, "headers", true, 0, 3},
		"a token, then nothing":             {engine.DialectVLLM, "a token", true, 4, 4},
		"a token, then nothing, llama.cpp":  {engine.DialectLlamaCpp, "a token", true, 4, 4},
		"a token, then nothing, blind":      {engine.DialectOpenAI, "a token", true, 4, 4},
		"nothing at all, TensorRT-LLM":      {engine.DialectTRTLLM, "", true, 0, 2},
		"nothing at all, Ollama, no stream": {engine.DialectOllama, "", false, 0, 2},
	} {
		t.Run(what, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				a, b := newFickle(t, brisk("a", c.dialect)), newFickle(t, brisk("b", c.dialect))
				g := fickles(t, env, gateway.Config{}, worker.Config{Slots: 8}, []string{chat("m", c.stream, 5)}, a, b)
				beats := recordBeats(t, env)
				a.set(func(f *fickle) { f.after, f.posts = c.after, 0 })
				a.hang()
				var mu sync.Mutex
				var wg sync.WaitGroup
				slow, broken := 0, 0
				for i := range 60 {
					wg.Go(func() {
						r := ask(t, g, chat("m", c.stream, 5), "", "X-Request-Timeout", "15")
						mu.Lock()
						defer mu.Unlock()
						if r.status != 200 || r.err != nil || words(content(t, r.body)) != 5 {
							t.Logf("request %d broke after %v: %d", i, r.took, r.status)
							broken++
						}
						if r.took > 4*time.Second {
							t.Logf("request %d took %v", i, r.took)
							slow++
						}
					})
					time.Sleep(time.Second)
				}
				wg.Wait()
				posts, probes := a.asked()
				t.Logf("%d broken and %d slow of 60; a got %d requests and %d probes; %s %q", broken, slow, posts, probes, beats.of("a").State, beats.of("a").Reason)
				if broken > c.broken || slow > c.slow {
					t.Errorf("%d broken and %d slow, want at most %d and %d", broken, slow, c.broken, c.slow)
				}
				if h := beats.of("a"); posts == 0 || h.State != subjects.Fenced || h.FenceClass != subjects.FenceHung {
					t.Errorf("%d requests; %s %s %q", posts, h.State, h.FenceClass, h.Reason)
				}
				a.mend()
				testenv.Eventually(t, "a comes back", 4*time.Second, func() bool { return beats.of("a").State == subjects.Ready })
			})
		})
	}
}

// An engine that hangs for one model alone goes on to serve the other.
func TestHangsForOneModel(t *testing.T) {
	for _, d := range []engine.Dialect{engine.DialectVLLM, engine.DialectOllama} {
		for _, stream := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, stream %t", d, stream), func(t *testing.T) {
				run(t, func(t *testing.T, env *Env) {
					two := func(name string) sim.Config {
						cfg := brisk(name, d)
						cfg.Models = []string{"m", "n"}
						return cfg
					}
					a, b := newFickle(t, two("a")), newFickle(t, two("b"))
					g := fickles(t, env, gateway.Config{}, worker.Config{Slots: 8}, []string{chat("m", stream, 5), chat("n", stream, 5)}, a, b)
					beats := recordBeats(t, env)
					of := func(pool string) (s subjects.PoolStatus) {
						h := beats.of("a")
						for _, p := range h.Pools {
							if p.Pool == pool {
								s = p
							}
						}
						return s
					}
					a.set(func(f *fickle) { f.only = "m" })
					a.hang()
					n := completed(a)
					var mu sync.Mutex
					var wg sync.WaitGroup
					slow := 0
					for i := range 60 {
						for _, model := range []string{"m", "n", "n"} {
							wg.Go(func() {
								r := ask(t, g, chat(model, stream, 20), "", "X-Request-Timeout", "15")
								if r.status != 200 || r.err != nil {
									t.Errorf("request %d for %s: %d %q", i, model, r.status, r.body)
								}
								if r.took > 4*time.Second {
									mu.Lock()
									defer mu.Unlock()
									slow++
									if model == "n" {
										t.Errorf("request %d for n took %v", i, r.took)
									}
								}
							})
						}
						time.Sleep(time.Second)
					}
					wg.Wait()
					t.Logf("%d of 60 slow; a answered %d; %s %q %+v", slow, completed(a)-n, beats.of("a").State, beats.of("a").Reason, of("m").Vitality)
					if slow > 4 {
						t.Errorf("%d were slow", slow)
					}
					if completed(a)-n < 20 {
						t.Errorf("a answered %d requests for the other model", completed(a)-n)
					}
					if m, n := of("m"), of("n"); m.Vitality != subjects.VitalityHung || m.Failing == "" || n.Vitality != "" {
						t.Errorf("m: %q %q, n: %q", m.Vitality, m.Failing, n.Vitality)
					}
					a.mend()
					testenv.Eventually(t, "m comes back", 4*time.Second, func() bool { return of("m").Vitality == "" })
				})
			})
		}
	}
}

func completed(f *fickle) int { return int(f.Stats().Finished) }

// What an engine did not give up it may finish: requests that nobody else has room for wait for it.
func TestHangsAndGoesOn(t *testing.T) {
	for _, c := range []struct {
		others, n int
		stream    bool
	}{{0, 4, true}, {0, 4, false}, {1, 20, true}, {1, 20, false}} {
		t.Run(fmt.Sprintf("%d others, %d requests, stream %t", c.others, c.n, c.stream), func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				engines := []*fickle{newFickle(t, brisk("a", engine.DialectVLLM))}
				if c.others > 0 {
					engines = append(engines, newFickle(t, brisk("b", engine.DialectVLLM)))
				}
				g := fickles(t, env, gateway.Config{}, worker.Config{Slots: 8}, []string{chat("m", c.stream, 5)}, engines...)
				beats, a := recordBeats(t, env), engines[0]
				a.hang()
				var wg sync.WaitGroup
				for i := range c.n {
					wg.Go(func() {
						if r := ask(t, g, chat("m", c.stream, 5), ""); r.status != 200 || words(content(t, r.body)) != 5 || r.took > 25*time.Second {
							t.Errorf("request %d: %d after %v %q", i, r.status, r.took, r.body)
						}
					})
				}
				time.Sleep(20 * time.Second)
				if h := beats.of("a"); h.State != subjects.Fenced {
					t.Errorf("%s %q", h.State, h.Reason)
				}
				a.mend()
				testenv.Eventually(t, "a comes back", 4*time.Second, func() bool { return beats.of("a").State == subjects.Ready })
				wg.Wait()
			})
		})
	}
}

// All requests of an engine that hangs move, however many these are: they are not retries that multiply the load.
func TestManyRequestsOfAHungEngine(t *testing.T) {
	for _, retries := range []int{2, 1, 0} {
		t.Run(fmt.Sprintf("%d retries", retries), func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				cfg := brisk("a", engine.DialectVLLM)
				cfg.Slots = 64
				a := newFickle(t, cfg)
				cfg.Name = "b"
				b := newFickle(t, cfg)
				g := fickles(t, env, gateway.Config{}, worker.Config{Slots: 40}, []string{chat("m", true, 5)}, a, b)
				env.SetPolicy(func(p *policy.Policy) {
					for i := range p.Tiers {
						p.Tiers[i].Retries = retries
					}
				})
				time.Sleep(15 * time.Second) // the first attempts of the retry budget are gone
				a.hang()
				a.set(func(f *fickle) { f.posts = 0 })
				var wg sync.WaitGroup
				for i := range 60 {
					wg.Go(func() {
						r := ask(t, g, chat("m", true, 5), "", "X-Request-Timeout", "20")
						if retries > 0 && (r.status != 200 || r.took > 5*time.Second) {
							t.Errorf("request %d: %d after %v %q", i, r.status, r.took, r.body)
						}
						if r.status == 502 { // without another attempt it stays, for its engine may go on
							t.Errorf("request %d: %d after %v %q", i, r.status, r.took, r.body)
						}
					})
				}
				wg.Wait()
				if posts, _ := a.asked(); posts < 10 { // of 60, of which the other has slots for 40
					t.Errorf("a got %d requests: nothing was tested", posts)
				}
			})
		})
	}
}

// An engine with one thread is not kept busy by questions about itself.
func TestScrapingSparesTheEngine(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		a := newFickle(t, brisk("a", engine.DialectVLLM))
		a.one = new(sync.Mutex)
		fickles(t, env, gateway.Config{}, worker.Config{Slots: 1}, nil, a)
		a.delay(400 * time.Millisecond)
		a.set(func(f *fickle) { clear(f.pages) })
		time.Sleep(time.Minute)
		a.mu.Lock()
		defer a.mu.Unlock()
		if n := a.pages["/metrics"]; n > 16 || n < 8 {
			t.Errorf("asked %d times for its metrics in a minute, each taking 0.4 s", n)
		}
		t.Logf("pages %v", a.pages)
	})
}
