package scenarios

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// deadLetters is how many requests of a pool became dead letters.
func deadLetters(t *testing.T, env *Env) uint64 {
	t.Helper()
	s, err := env.JetStream().Stream(t.Context(), subjects.DeadStream)
	if err != nil {
		return 0 // it is made for the first of them
	}
	info, err := s.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return info.State.Msgs
}

// longChat is a chat of 300 tokens that asks for 10.
func longChat(model string, stream bool) string {
	return strings.Replace(chat(model, stream, 10), "one two three", strings.Repeat("word ", 300), 1)
}

// A prompt that is too long for one engine is answered by one that has room, in whichever words the first refuses, and
// whether its stream has begun by then. If none has room, each is asked once and the client gets the engine's words, but no
// dead letter.
func TestTooLongInTheWordsOfEachDialect(t *testing.T) {
	for _, dialect := range sim.Dialects() {
		if dialect == engine.DialectOllama { // cuts the prompt
			continue
		}
		t.Run(string(dialect), func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g := env.Gateway(gateway.Config{})
				small := env.Engine(sim.Config{Name: "small", Models: []string{"m"}, Dialect: dialect, Context: 200})
				env.Worker(small, worker.Config{Name: "small", Slots: 4})
				g.Serves(t, "m")
				for _, stream := range []bool{false, true} {
					before := small.Stats().Received
					r := ask(t, g, longChat("m", stream), "")
					if r.status != http.StatusBadRequest && r.status != http.StatusUnprocessableEntity {
						t.Errorf("alone, stream %t: got %d %s", stream, r.status, r.body)
					}
					if got := small.Stats().Received - before; got != 1 {
						t.Errorf("alone, stream %t: the engine was asked %d times", stream, got)
					}
				}
				large := env.Engine(sim.Config{Name: "large", Models: []string{"m"}, Dialect: dialect, ITLBase: 50 * time.Millisecond})
				env.Worker(large, worker.Config{Name: "large", Slots: 4})
				time.Sleep(3 * time.Second)
				for i := range 6 {
					stream := i%2 == 0
					if r := ask(t, g, longChat("m", stream), ""); r.status != http.StatusOK || !strings.Contains(r.body, `"large"`) {
						t.Errorf("stream %t: got %d %s, want an answer of the large one", stream, r.status, r.body)
					}
					if r := ask(t, g, chat("m", stream, 1), ""); r.status != http.StatusOK {
						t.Errorf("short, stream %t: got %d %s", stream, r.status, r.body)
					}
				}
				if n := deadLetters(t, env); n != 0 {
					t.Errorf("%d dead letters", n)
				}
			})
		})
	}
}

// What a real engine refuses, by its recorded words, another one answers, unless it is the request's own fault. Nothing of it
// is a dead letter.
func TestRecordedRefusalsOfOneEngine(t *testing.T) {
	seen := 0
	for _, r := range testenv.Recordings(t, "../engine/testdata/answers") {
		for _, a := range r.Answers {
			if a.Fault == "" || a.Fault == "request" || a.Path != "/v1/chat/completions" || a.Method != "POST" {
				continue
			}
			seen++
			t.Run(r.Engine+", "+a.Name, func(t *testing.T) {
				run(t, func(t *testing.T, env *Env) {
					var calls atomic.Int64
					g := besides(t, env, says(a.Status, a.Type, a.Body+"\n\n", &calls))
					for i := range 12 {
						if r := ask(t, g, chat("m", i%2 == 0 || a.Type == "text/event-stream", 3), ""); r.status != http.StatusOK || words(content(t, r.body)) != 3 {
							t.Fatalf("got %d %s", r.status, r.body)
						}
					}
					if calls.Load() == 0 {
						t.Error("the engine was never asked")
					}
					if n := deadLetters(t, env); n != 0 {
						t.Errorf("%d dead letters", n)
					}
				})
			})
		}
	}
	if seen < 20 {
		t.Errorf("only %d refusals were tried", seen)
	}
}

// The client does not hear of a model that one engine turns out not to have, whose list still names it.
func TestUnknownModelInTheWordsOfEachDialect(t *testing.T) {
	for _, dialect := range []engine.Dialect{engine.DialectVLLM, engine.DialectOllama, engine.DialectLMStudio, engine.DialectTriton, engine.DialectLlamaSwap, engine.DialectOpenAI} {
		t.Run(string(dialect), func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g := env.Gateway(gateway.Config{})
				lacks := env.Engine(sim.Config{Name: "lacks", Models: []string{"other"}, Dialect: dialect})
				env.Worker(lacks, worker.Config{Name: "lacks", Slots: 4, Models: []string{"m"}})
				has := env.Engine(sim.Config{Name: "has", Models: []string{"m"}, Dialect: dialect, ITLBase: 50 * time.Millisecond})
				env.Worker(has, worker.Config{Name: "has", Slots: 4})
				g.Serves(t, "m")
				time.Sleep(2 * time.Second)
				for i := range 6 {
					if r := ask(t, g, chat("m", i%2 == 0, 1), ""); r.status != http.StatusOK {
						t.Errorf("got %d %s", r.status, r.body)
					}
				}
			})
		})
	}
}
