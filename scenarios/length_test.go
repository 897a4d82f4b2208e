package scenarios

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// short is an engine like vLLM with a context of so many tokens: it refuses what is longer, and reports how many tokens a prompt
// has.
type short struct {
	name    string
	context int // 0: it does not say, and takes anything
	slots   chan struct{}
	takes   time.Duration
	down    atomic.Bool // it answers that it is not ready

	mu      sync.Mutex
	lengths []int // of the prompts with their answers that it has answered
	refused int
}

// tokensOf counts tokens as a tokenizer might: a letter of some scripts takes more of them.
func tokensOf(text string) int {
	quarters := 0
	for _, r := range text {
		switch {
		case r < 0x80:
			quarters++
		case r < 0x800:
			quarters += 2
		case r < 0x1800:
			quarters += 6
		default:
			quarters += 3
		}
	}
	return quarters/4 + 8
}

func (s *short) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if s.down.Load() {
		http.Error(w, "starting", http.StatusServiceUnavailable)
		return
	}
	switch r.URL.Path {
	case "/v1/models":
		length := ""
		if s.context > 0 {
			length = fmt.Sprintf(`,"max_model_len":%d`, s.context)
		}
		fmt.Fprintf(w, `{"object":"list","data":[{"id":"m","object":"model","owned_by":"vllm"%s}]}`, length)
		return
	case "/v1/chat/completions":
	default:
		http.NotFound(w, r)
		return
	}
	var ask struct {
		MaxTokens int `json:"max_tokens"`
		Messages  []struct{ Content string }
	}
	if err := json.NewDecoder(r.Body).Decode(&ask); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	prompt := tokensOf(ask.Messages[0].Content)
	whole := prompt + max(ask.MaxTokens, 1)
	s.mu.Lock()
	fits := s.context == 0 || whole <= s.context
	if fits {
		s.lengths = append(s.lengths, whole)
	} else {
		s.refused++
	}
	s.mu.Unlock()
	if !fits {
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(w, `{"error":{"message":"This model's maximum context length is %d tokens. However, you requested %d tokens.","type":"BadRequestError","param":null,"code":400}}`,
			s.context, whole)
		return
	}
	s.slots <- struct{}{}
	time.Sleep(s.takes)
	<-s.slots
	fmt.Fprintf(w, `{"id":"x","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"yes, %s"},"finish_reason":"stop"}],"usage":{"prompt_tokens":%d,"completion_tokens":3,"total_tokens":%d}}`,
		s.name, prompt, prompt+3)
}

// counts are how many requests the engine has answered and refused, and the longest and shortest of the former.
func (s *short) counts() (answered, refused, longest int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.lengths {
		longest = max(longest, n)
	}
	return len(s.lengths), s.refused, longest
}

// shorts starts engines of these contexts with their workers.
func shorts(t *testing.T, env *Env, contexts ...int) (g *Gateway, all []*short, ws []*Worker) {
	t.Helper()
	g = env.Gateway(gateway.Config{})
	g.Client.Transport.(*http.Transport).MaxIdleConnsPerHost = 1000
	for i, n := range contexts {
		s := &short{name: fmt.Sprint("engine-", i), context: n, slots: make(chan struct{}, 4), takes: 100 * time.Millisecond}
		all = append(all, s)
		ws = append(ws, env.Worker(env.Handler(s.name, s), worker.Config{Name: s.name, Slots: 4}))
	}
	g.Serves(t, "m")
	return g, all, ws
}

// say asks for an answer of at most so many tokens, with a text repeated to so many tokens.
func say(t *testing.T, g *Gateway, text string, tokens, answer int, escaped bool) reply {
	t.Helper()
	content := strings.Repeat(text, tokens/max(tokensOf(text)-8, 1)+1)
	for tokensOf(content) > tokens {
		_, n := utf8.DecodeLastRuneInString(content)
		content = content[:len(content)-n]
	}
	body, _ := json.Marshal(content)
	if escaped {
		var b strings.Builder
		for _, r := range string(body) {
			if r < 0x80 {
				b.WriteRune(r)
			} else {
				fmt.Fprintf(&b, `\u%04x`, r)
			}
		}
		body = []byte(b.String())
	}
	limit := ""
	if answer > 0 {
		limit = fmt.Sprintf(`,"max_tokens":%d`, answer)
	}
	return ask(t, g, fmt.Sprintf(`{"model":"m","messages":[{"role":"user","content":%s}]%s}`, body, limit), "")
}

// Several sentences, each long enough that its end changes nothing.
var languages = map[string]string{
	"English":  "The quick brown fox jumps over the lazy dog while the engine reads on. ",
	"Russian":  "Съешь же ещё этих мягких французских булок, да выпей чаю. ",
	"Chinese":  "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。寒来暑往，秋收冬藏。",
	"Hindi":    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतंत्रता प्राप्त है। ",
	"Japanese": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。 ",
}

// TestLongRequestsGoWhereTheyFit has two workers of one model whose contexts differ.
func TestLongRequestsGoWhereTheyFit(t *testing.T) {
	for language, text := range languages {
		for _, escaped := range []bool{false, true} {
			if escaped && language != "Russian" && language != "Hindi" || raceEnabled && language != "Hindi" {
				continue
			}
			t.Run(fmt.Sprintf("%s, escaped %v", language, escaped), func(t *testing.T) {
				run(t, func(t *testing.T, env *Env) {
					g, engines, _ := shorts(t, env, 4000, 32000)
					small, large := engines[0], engines[1]
					good := func(r reply) {
						t.Helper()
						if r.status != 200 {
							t.Errorf("%d %s %v", r.status, r.body, r.err)
						}
					}
					for i := range 20 { // learn
						good(say(t, g, text, 1000+100*i, 0, escaped))
					}
					_, before, _ := small.counts()
					shorts, _, _ := small.counts()
					var wg sync.WaitGroup
					for i := range 120 {
						tokens, answer := 300+i*37%900, 100
						switch i % 4 {
						case 0:
							tokens, answer = 4200+i*200, 500
						case 1:
							tokens, answer = 2000, 2500 // the answer makes it too long
						}
						wg.Go(func() { good(say(t, g, text, tokens, answer, escaped)) })
						time.Sleep(20 * time.Millisecond)
					}
					wg.Wait()
					after, refused, _ := small.counts()
					if refused != before {
						t.Errorf("the small engine has refused %d requests since", refused-before)
					}
					if _, n, _ := large.counts(); n != 0 {
						t.Errorf("the large engine has refused %d", n)
					}
					if after-shorts < 20 {
						t.Errorf("the small engine has answered only %d of 60 short requests", after-shorts)
					}
				})
			})
		}
	}
}

// A request that fits nowhere goes to the largest context, whose engine says so to the client after one call.
func TestRequestThatFitsNowhere(t *testing.T) {
	for name, contexts := range map[string][]int{"unlike": {2000, 8000, 4000}, "alike": {4000, 4000, 4000}, "two largest": {2000, 8000, 8000}} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g, engines, _ := shorts(t, env, contexts...)
				for i := range 10 {
					say(t, g, languages["English"], 500+100*i, 10, false)
				}
				most := 0
				for _, n := range contexts {
					most = max(most, n)
				}
				for range 5 {
					r := say(t, g, languages["English"], 9000, 100, false)
					if r.status != 400 || !strings.Contains(r.body, fmt.Sprintf("maximum context length is %d tokens", most)) {
						t.Errorf("%d %s, want the words of an engine with %d", r.status, r.body, most)
					}
				}
				calls := 0
				for _, e := range engines {
					_, refused, _ := e.counts()
					calls += refused
				}
				if calls != 5 {
					t.Errorf("%d calls for 5 requests", calls)
				}
			})
		})
	}
}

// The one large worker is busy, then gone, then back: short requests pass the long ones, and these wait for it or are refused.
func TestLongRequestsWaitForTheLargeWorker(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g, engines, ws := shorts(t, env, 2000, 0, 8000)
		engines[1].takes = time.Second
		engines[2].takes = time.Second
		for i := range 10 {
			say(t, g, languages["English"], 500+100*i, 10, false)
		}
		_, before, _ := engines[0].counts()
		var long, brief sync.WaitGroup
		for range 40 {
			long.Go(func() {
				if r := say(t, g, languages["English"], 5000, 100, false); r.status != 200 {
					t.Errorf("%d %s", r.status, r.body)
				}
			})
		}
		time.Sleep(100 * time.Millisecond)
		began := time.Now()
		for range 20 {
			brief.Go(func() {
				if r := say(t, g, languages["English"], 200, 100, false); r.status != 200 {
					t.Errorf("%d %s", r.status, r.body)
				}
			})
		}
		brief.Wait()
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("short requests took %v beside long ones", took)
		}
		ws[2].Stop() // the engine of unknown length is left for them
		long.Wait()
		if _, refused, _ := engines[0].counts(); refused != before {
			t.Errorf("the small engine has refused %d", refused-before)
		}
		ws[2] = env.Worker(env.Handler("again", engines[2]), worker.Config{Name: "again", Slots: 4})
		testenv.Eventually(t, "the large worker serves again", 10*time.Second, func() bool {
			n, _, _ := engines[2].counts()
			say(t, g, languages["English"], 5000, 100, false)
			m, _, _ := engines[2].counts()
			return m > n
		})
	})
}

// While the only worker that a long request fits is away, the request waits for it, and is refused as one without a worker is.
// What fits the others goes on, also what only seems to be too long.
func TestLongRequestsWaitForAWorkerThatIsAway(t *testing.T) {
	for what, gone := range map[string]func(w *Worker, s *short, at *testenv.Engine){
		"it has left":        func(w *Worker, _ *short, _ *testenv.Engine) { w.Stop() },
		"it is lost":         func(w *Worker, _ *short, at *testenv.Engine) { w.Kill(at) },
		"its engine is down": func(_ *Worker, s *short, _ *testenv.Engine) { s.down.Store(true) },
	} {
		t.Run(what, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g, engines, _ := shorts(t, env, 2000)
				large := &short{name: "large", context: 8000, slots: make(chan struct{}, 4), takes: 100 * time.Millisecond}
				at := env.Handler("large", large)
				w := env.Worker(at, worker.Config{Name: "large", Slots: 4})
				engines = append(engines, large)
				time.Sleep(2 * time.Second)
				for i := range 10 {
					say(t, g, languages["English"], 500+100*i, 10, false)
				}
				gone(w, large, at)
				time.Sleep(5 * time.Second)
				if r := say(t, g, languages["English"], 5000, 100, false); r.status != 503 || !strings.Contains(r.body, "no_worker") {
					t.Errorf("without it: %d after %v %s, want 503", r.status, r.took, r.body)
				}
				if r := say(t, g, languages["English"], 1000, 100, false); r.status != 200 {
					t.Errorf("a short one: %d %s", r.status, r.body)
				}
				if r := say(t, g, languages["English"], 1880, 100, false); r.status != 200 || r.took > time.Second {
					t.Errorf("one that just fits: %d after %v %s", r.status, r.took, r.body)
				}
				var wg sync.WaitGroup
				defer wg.Wait()
				for range 6 {
					wg.Go(func() {
						if r := say(t, g, languages["English"], 5000, 100, false); r.status != 200 {
							t.Errorf("while it comes back: %d after %v %s", r.status, r.took, r.body)
						}
					})
				}
				time.Sleep(2 * time.Second)
				if engines[1].down.Load() {
					engines[1].down.Store(false)
				} else {
					env.Worker(env.Handler("again", engines[1]), worker.Config{Name: "again", Slots: 4})
				}
				wg.Wait()
				if r := say(t, g, languages["English"], 9000, 100, false); r.status != 400 || !strings.Contains(r.body, "8000 tokens") {
					t.Errorf("one that fits nowhere: %d %s", r.status, r.body)
				}
			})
		})
	}
}

// The contexts of LM Studio's models are those with which they are loaded.
func TestLongRequestsToLMStudio(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		beats := recordBeats(t, env)
		g := env.Gateway(gateway.Config{})
		engines := make(map[string]*fickle)
		for name, context := range map[string]int{"short": 2048, "long": 16_384} {
			cfg := brisk(name, engine.DialectLMStudio)
			cfg.Context = context
			engines[name] = newFickle(t, cfg)
			env.Worker(env.Handler(name, engines[name]), worker.Config{Name: name, Slots: 4})
		}
		g.Serves(t, "m")
		time.Sleep(2 * time.Second)
		for name, want := range map[string]int64{"short": 2048, "long": 16_384} {
			if h := beats.of(name); len(h.Pools) != 1 || h.Pools[0].Length != want {
				t.Errorf("%s: %+v, want a context of %d", name, h.Pools, want)
			}
		}
		for i := range 10 {
			if r := ask(t, g, prompt(fmt.Sprint(i), 8000, true, 5), ""); r.status != 200 || words(content(t, r.body)) != 5 {
				t.Errorf("a long one: %d %.300s", r.status, r.body)
			}
		}
		if posts, _ := engines["short"].asked(); posts != 0 {
			t.Errorf("the short one got %d", posts)
		}
		for i := range 10 {
			if r := ask(t, g, prompt(fmt.Sprint(i), 100, true, 5), ""); r.status != 200 {
				t.Errorf("a short one: %d %.300s", r.status, r.body)
			}
		}
		if posts, _ := engines["short"].asked(); posts == 0 {
			t.Error("the short one got nothing")
		}
	})
}
