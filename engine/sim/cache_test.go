package sim_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/engine/sim"
)

// distinct is the words from a until before b of an endless text.
func distinct(text string, a, b int) string {
	var words []string
	for i := a; i < b; i++ {
		words = append(words, text+strconv.Itoa(i))
	}
	return strings.Join(words, " ")
}

// conversation is a chat of these messages that asks for one token.
func conversation(rest string, messages ...string) string {
	var list []string
	for i, m := range messages {
		list = append(list, fmt.Sprintf(`{"role":%q,"content":%q}`, []string{"user", "assistant"}[i%2], m))
	}
	return `{"model":"m","max_tokens":1,"messages":[` + strings.Join(list, ",") + `]` + rest + `}`
}

// cachedOf sends a request and returns how many tokens of the prompt were cached and how long the
// answer took.
func (r *rig) cachedOf(body string) (cached int, took time.Duration) {
	r.t.Helper()
	begun := r.since()
	status, _, answer, err := r.answer("/v1/chat/completions", "", body)
	if err != nil || status != http.StatusOK {
		r.t.Fatal(status, answer, err)
	}
	took = r.since() - begun
	return int(at(r.t, parse(r.t, answer), "usage", "prompt_tokens_details", "cached_tokens").(float64)), took
}

func (r *rig) wantCached(what, body string, cached int, took time.Duration) {
	r.t.Helper()
	if c, d := r.cachedOf(body); c != cached || d != took {
		r.t.Errorf("%s: %d tokens cached and %v, want %d and %v", what, c, d, cached, took)
	}
}

func TestConversationThatGoesOnHitsWhatItHasInCommon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sim.Config{PrefillRate: 1000, PrefixCache: 10_000})
		first, answer := distinct("q", 0, 100), distinct("a", 0, 20)
		const ms = time.Millisecond
		r.wantCached("first turn", conversation("", first), 0, 100*ms)
		// 96 of 100 tokens are whole blocks.
		r.wantCached("second turn", conversation("", first, answer, "and now?"), 96, 26*ms)
		r.wantCached("third turn", conversation("", first, answer, "and now?", answer, "more"), 112, 31*ms)
		r.wantCached("the same split otherwise", conversation("", distinct("q", 0, 50), distinct("q", 50, 100), answer), 112, 8*ms)
		r.wantCached("another beginning", conversation("", "x "+first, answer), 0, 121*ms)
		r.wantCached("another middle", conversation("", distinct("q", 0, 40)+" x "+distinct("q", 41, 100)), 32, 68*ms)
		r.wantCached("a block less", conversation("", distinct("q", 0, 95)), 80, 15*ms)
		r.wantCached("no more than whole blocks: the last token is computed", conversation("", distinct("q", 0, 96)), 80, 16*ms)
		r.wantCached("shorter than a block", conversation("", distinct("q", 0, 15)), 0, 15*ms)
	})
}

func TestEveryAPITellsWhatWasCached(t *testing.T) {
	for name, cache := range map[string]int{"with a cache": 1000, "without": 0} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, sim.Config{PrefixCache: cache})
			text := distinct("w", 0, 40)
			chat := `{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"` + text + `"}]`
			if _, _, _, err := r.answer("/v1/chat/completions", "", chat+`}`); err != nil {
				t.Fatal(err)
			}
			for path, c := range map[string]struct{ body, with, without string }{
				"/v1/chat/completions": {chat, `"total_tokens":41,"prompt_tokens_details":{"cached_tokens":32}}`, `"total_tokens":41}`},
				"/v1/completions": {`{"model":"m","max_tokens":1,"prompt":"` + text + `"`,
					`"total_tokens":41,"prompt_tokens_details":{"cached_tokens":32}}`, `"total_tokens":41}`},
				"/v1/responses": {`{"model":"m","max_output_tokens":1,"input":"` + text + `"`,
					`"input_tokens":40,"input_tokens_details":{"cached_tokens":32}`, `"input_tokens":40,"input_tokens_details":{"cached_tokens":0}`},
				"/v1/messages": {chat, `"cache_read_input_tokens":32,"input_tokens":8,`, `"usage":{"input_tokens":40,`},
			} {
				want := c.without
				if cache > 0 {
					want = c.with
				}
				for _, rest := range []string{`}`, `,"stream":true,"stream_options":{"include_usage":true}}`} {
					_, _, answer, err := r.answer(path, "", c.body+rest)
					if err != nil || !strings.Contains(answer, want) {
						t.Errorf("%s: %s %v\nwant %s", path, answer, err, want)
					}
				}
			}
			if got := r.sim.Stats(); (got.Cached > 0) != (cache > 0) {
				t.Errorf("stats %+v", got)
			}
		})
	}
}

func TestCacheGivesUpTheOldestAndTheEndOfAPromptFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sim.Config{PrefixCache: 16*10 + 15})
		prompt := func(text string, blocks int) string { return conversation("", distinct(text, 0, 16*blocks+1)) }
		want := func(what string, body string, blocks int) {
			t.Helper()
			if c, _ := r.cachedOf(body); c != 16*blocks {
				t.Errorf("%s: %d blocks cached, want %d", what, c/16, blocks)
			}
		}
		want("a", prompt("a", 4), 0)
		want("b", prompt("b", 4), 0)
		want("a again", prompt("a", 4), 4)
		want("c, for which two blocks of b go", prompt("c", 4), 0)
		want("b's beginning", prompt("b", 2), 2)
		want("a, which was used after b", prompt("a", 4), 4)
		want("more than there is room for", prompt("d", 20), 0)
		want("its beginning", prompt("d", 20), 10)
		want("a, for which there was no room", prompt("a", 4), 0)
	})
}

func TestPrefillThatWasBrokenOffIsNotCached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sim.Config{PrefillRate: 1000, PrefixCache: 10_000})
		body := conversation("", distinct("w", 0, 1000))
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		if _, err := r.post(ctx, "/v1/chat/completions", "", body); err == nil {
			t.Fatal("it ended")
		}
		r.wantCached("after that", body, 0, time.Second)
	})
}

func TestPromptsInLineFindWhatThoseBeforeThemCompute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sim.Config{PrefillRate: 1000, PrefixCache: 10_000})
		var wg sync.WaitGroup
		for i, want := range []time.Duration{1000, 1008, 1016} {
			wg.Go(func() {
				time.Sleep(time.Duration(i))
				_, took := r.cachedOf(conversation("", distinct("w", 0, 1000)))
				if took.Round(time.Microsecond) != want*time.Millisecond {
					t.Errorf("request %d took %v, want %d ms", i, took, want)
				}
			})
		}
		wg.Wait()
		st := r.sim.Stats()
		if st.Queried != 3000 || st.Cached != 2*992 {
			t.Errorf("stats %+v, want 3000 queried and 1984 cached", st)
		}
		resp, err := r.client.Get("http://sim/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		metrics, _ := io.ReadAll(resp.Body)
		for _, want := range []string{
			"# TYPE vllm:prefix_cache_queries_total counter\nvllm:prefix_cache_queries_total{engine=\"0\",model_name=\"m\"} 3000\n",
			"# TYPE vllm:prefix_cache_hits_total counter\nvllm:prefix_cache_hits_total{engine=\"0\",model_name=\"m\"} 1984\n",
		} {
			if !strings.Contains(string(metrics), want) {
				t.Errorf("metrics %s\nwant %s", metrics, want)
			}
		}
	})
}

// TestCacheAgreesWithAPlainList requests random branches of a tree of texts, and compares with a
// list of everything that was ever used.
func TestCacheAgreesWithAPlainList(t *testing.T) {
	const room = 40
	r := newRig(t, sim.Config{PrefixCache: 16 * room})
	rng := rand.New(rand.NewPCG(1, 2))
	var used []string // blocks with all before them, most recently used last
	for n := range 400 {
		var blocks []string
		var path strings.Builder
		for range 1 + rng.IntN(12) {
			path.WriteString(string('a' + rune(rng.IntN(2))))
			blocks = append(blocks, path.String())
		}
		hits := 0
		for hits < len(blocks) && slices.Contains(used, blocks[hits]) {
			hits++
		}
		for _, b := range slices.Backward(blocks) {
			used = append(slices.DeleteFunc(used, func(x string) bool { return x == b }), b)
		}
		used = used[max(0, len(used)-room):]

		var text strings.Builder
		for _, b := range blocks {
			text.WriteString(distinct(b[len(b)-1:], 0, 16) + " ")
		}
		if c, _ := r.cachedOf(conversation("", text.String()+"end")); c != 16*hits {
			t.Fatalf("request %d: %d blocks cached, want %d", n, c/16, hits)
		}
	}
}

func BenchmarkPrefixCache(b *testing.B) {
	body := []byte(conversation("", words(10_000)))
	for name, cache := range map[string]int{"off": 0, "on": 100_000} {
		b.Run(name, func(b *testing.B) {
			eng := newSim(b, sim.Config{PrefixCache: cache})
			b.ReportAllocs()
			for b.Loop() {
				req, _ := http.NewRequest(http.MethodPost, "/v1/chat/completions", bytes.NewReader(body))
				eng.ServeHTTP(discard{http.Header{}}, req)
			}
		})
	}
}

// llama.cpp says in its answers how many tokens of the prompt it computed, and how long that took, and counts both; others do not.
func TestLlamaCppTellsHowItReadsPrompts(t *testing.T) {
	for dialect, tells := range map[engine.Dialect]bool{engine.DialectLlamaCpp: true, engine.DialectVLLM: false} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, sim.Config{PrefillRate: 1000, PrefixCache: 10_000, Dialect: dialect})
			text := distinct("w", 0, 100)
			const first, again = `"timings":{"cache_n":0,"prompt_n":100,"prompt_ms":100}`, `"timings":{"cache_n":96,"prompt_n":4,"prompt_ms":4}`
			n := 0
			for path, body := range map[string]string{
				"/v1/chat/completions": `{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"` + text + `"}]`,
				"/v1/completions":      `{"model":"m","max_tokens":1,"prompt":"` + text + `"`,
			} {
				for _, rest := range []string{`}`, `,"stream":true}`, `,"stream":true,"stream_options":{"include_usage":true}}`} {
					want := first
					if n > 0 {
						want = again
					}
					n++
					_, _, answer, err := r.answer(path, "", body+rest)
					if err != nil || strings.Contains(answer, want) != tells || strings.Contains(answer, "timings") != tells || strings.Count(answer, "timings") > 1 {
						t.Errorf("%s, %s%s: %s %v\nwant %s: %t", dialect, path, rest, answer, err, want, tells)
					}
				}
			}
			if got := r.sim.Stats(); got.Computed != 120 || got.PrefillTime != 120*time.Millisecond {
				t.Errorf("computed %d in %v, want 120 in as many ms", got.Computed, got.PrefillTime)
			}
		})
	}
}
