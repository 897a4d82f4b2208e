package sim_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pulley-lb/pulley/engine/sim"
)

// tokenTimes streams a chat and returns when each of its tokens arrived.
func (r *rig) tokenTimes(orders string, in, out int) []time.Duration {
	r.t.Helper()
	body := chatBody(words(in), fmt.Sprintf(`,"stream":true,"max_tokens":%d`, out))
	events, err := r.stream("/v1/chat/completions", orders, body)
	if err != nil {
		r.t.Error(err)
		return nil
	}
	var times []time.Duration
	for _, e := range events {
		if strings.Contains(e.data, `"content":"`) && !strings.Contains(e.data, `"content":""`) {
			times = append(times, e.at)
		}
	}
	return times
}

func wantTimes(t *testing.T, who string, got []time.Duration, wantMillis ...int) {
	t.Helper()
	var want []time.Duration
	for _, ms := range wantMillis {
		want = append(want, time.Duration(ms)*time.Millisecond)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s: tokens at %v, want %v", who, got, want)
	}
}

func TestRequestAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sim.Config{
			PrefillRate: 1000, TTFT: 50 * time.Millisecond,
			ITLBase: 20 * time.Millisecond, ITLPerRequest: 5 * time.Millisecond,
		})
		wantTimes(t, "stream", r.tokenTimes("", 100, 4), 150, 175, 200, 225)

		begun := r.since()
		_, _, _, err := r.answer("/v1/chat/completions", "ttft=1s", chatBody(words(100), `,"max_tokens":4`))
		if took := r.since() - begun; err != nil || took != 1225*time.Millisecond {
			t.Errorf("whole answer took %v, %v; want 1.225s", took, err)
		}
	})
}

func TestPaceChangesWithTheBatchInTheMiddleOfAToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sim.Config{ITLBase: 10 * time.Millisecond, ITLPerRequest: 10 * time.Millisecond})
		var wg sync.WaitGroup
		// Alone a token takes 20 ms, together 30 ms. At 10 ms half a token is left.
		wg.Go(func() { wantTimes(t, "first", r.tokenTimes("", 1, 3), 0, 25, 55) })
		wg.Go(func() {
			time.Sleep(10 * time.Millisecond)
			// At 55 ms half a token is left, and is produced alone.
			wantTimes(t, "second", r.tokenTimes("", 1, 3), 10, 40, 65)
		})
		wg.Wait()
	})
}

func TestPrefillIsSerialAndSlotsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sim.Config{Slots: 2, PrefillRate: 1000, ITLBase: 50 * time.Millisecond})
		var wg sync.WaitGroup
		for i, want := range [][]int{{100, 150, 200}, {200, 250, 300}, {300, 350, 400}} {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * time.Millisecond / 10)
				wantTimes(t, fmt.Sprint(i), r.tokenTimes("", 100, 3), want...)
			})
		}
		wg.Wait()
		if got := r.sim.Stats(); got.MaxRunning != 2 || got.Finished != 3 || got.Running != 0 {
			t.Errorf("stats %+v, want 3 finished of which at most 2 at once", got)
		}
	})
}

func TestTokensPerEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sim.Config{TokensPerEvent: 4, ITLBase: 10 * time.Millisecond})
		wantTimes(t, "events of 1, 4, 4 and 1", r.tokenTimes("", 1, 10), 0, 40, 80, 90)
	})
}

func TestQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sim.Config{Slots: 1, MaxQueue: 1, ITLBase: time.Second, RefuseStatus: 503, RetryAfter: 1500 * time.Millisecond})
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() { r.tokenTimes("", 1, 5) })
		}
		synctest.Wait()
		status, header, body, err := r.answer("/v1/chat/completions", "", chatBody("hi", ""))
		if err != nil || status != 503 || header.Get("Retry-After") != "2" || !strings.Contains(body, `"code":"overloaded"`) {
			t.Errorf("got %d %v %s %v, want 503 with retry-after 2", status, header, body, err)
		}
		wg.Wait()
		if got := r.sim.Stats(); got.Finished != 2 || got.Refused != 1 {
			t.Errorf("stats %+v", got)
		}
	})
}

func TestClientThatGoesFreesItsSlotAtOnce(t *testing.T) {
	cfg := sim.Config{Slots: 1, PrefillRate: 1000, TTFT: time.Second, ITLBase: time.Second}
	for phase, gone := range map[string]struct {
		after  time.Duration
		orders string
	}{
		"in its prefill":           {after: 50 * time.Millisecond},
		"before its first token":   {after: 500 * time.Millisecond},
		"while it decodes":         {after: 2500 * time.Millisecond},
		"while it hangs":           {after: time.Hour, orders: "hang"},
		"while it hangs in midway": {after: time.Hour, orders: "hang-after=3"},
	} {
		for _, stream := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, stream %v", phase, stream), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := newRig(t, cfg)
					ctx, cancel := context.WithTimeout(t.Context(), gone.after)
					defer cancel()
					var wg sync.WaitGroup
					wg.Go(func() {
						resp, err := r.post(ctx, "/v1/chat/completions", gone.orders,
							chatBody(words(100), fmt.Sprintf(`,"max_tokens":10,"stream":%v`, stream)))
						if err == nil {
							_, err = io.ReadAll(resp.Body)
							resp.Body.Close()
						}
						if err == nil {
							t.Error("the client that should be gone got its answer")
						}
					})
					synctest.Wait()
					// The next one waits in the queue, and one behind it gives up there.
					wg.Go(func() {
						times := r.tokenTimes("", 100, 1)
						want := gone.after + 1100*time.Millisecond
						if len(times) != 1 || times[0] != want {
							t.Errorf("next request's token at %v, want %v", times, want)
						}
					})
					synctest.Wait()
					short, cancelShort := context.WithTimeout(t.Context(), time.Millisecond)
					defer cancelShort()
					if _, err := r.post(short, "/v1/chat/completions", "", chatBody("hi", "")); err == nil {
						t.Error("a request got through a full engine")
					}
					synctest.Wait()
					if got := r.sim.Stats(); got.Running != 1 || got.Waiting != 1 || got.Aborted != 1 {
						t.Errorf("stats %+v, want one running, one waiting and one aborted", got)
					}
					wg.Wait()
					if got := r.sim.Stats(); got.Running != 0 || got.Aborted != 2 || got.Finished != 1 || got.Started != 2 {
						t.Errorf("stats %+v, want two aborted and one finished", got)
					}
				})
			})
		}
	}
}

func TestAbortedPrefillLetsTheNextBeginAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sim.Config{PrefillRate: 1000})
		var wg sync.WaitGroup
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		defer cancel()
		wg.Go(func() { _, _ = r.post(ctx, "/v1/chat/completions", "", chatBody(words(1000), "")) })
		synctest.Wait()
		wantTimes(t, "next", r.tokenTimes("", 100, 1), 130)
		wg.Wait()
	})
}

// TestAgreesWithTheModel replays random requests and compares each with a simple time-stepped
// simulation.
func TestAgreesWithTheModel(t *testing.T) {
	for name, memory := range map[string]int{"enough memory": 0, "little memory": 600} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				agreesWithTheModel(t, sim.Config{
					Slots: 6, PrefillRate: 3000, ITLBase: 3 * time.Millisecond, ITLPerRequest: 1700 * time.Microsecond, KVTokens: memory,
				})
			})
		})
	}
}

func agreesWithTheModel(t *testing.T, cfg sim.Config) {
	rng := rand.New(rand.NewPCG(7, 7))
	var reqs []*modelRequest
	at := 0.0
	for range 150 {
		at += rng.ExpFloat64() * 0.05
		reqs = append(reqs, &modelRequest{at: at, in: rng.IntN(200), out: 1 + rng.IntN(40)})
	}
	preempted := runModel(cfg, reqs)
	r := newRig(t, cfg)
	var wg sync.WaitGroup
	for i, q := range reqs {
		wg.Go(func() {
			time.Sleep(time.Duration(q.at * 1e9))
			times := r.tokenTimes("", q.in, q.out)
			if len(times) != q.out {
				t.Errorf("request %d: %d tokens, want %d", i, len(times), q.out)
				return
			}
			first, end := times[0].Seconds(), times[q.out-1].Seconds()
			if d := max(first-q.first, q.first-first, end-q.end, q.end-end); d > 1e-6 {
				t.Errorf("request %d: first %v end %v, want %v and %v", i, first, end, q.first, q.end)
			}
		})
	}
	wg.Wait()
	if got := r.sim.Stats().Preempted; got != int64(preempted) || (cfg.KVTokens > 0) != (got > 0) {
		t.Errorf("%d were preempted, want %d", got, preempted)
	}
	t.Logf("%d were preempted", preempted)
}

type modelRequest struct {
	at      float64
	in, out int

	first, end float64
	again      int     // tokens produced before it was preempted
	made       float64 // since its prefill, after the first
}

func (q *modelRequest) tokens() int { return q.again + 1 + int(q.made+1e-9) }

// runModel advances from one token to the next and visits every request each time.
func runModel(cfg sim.Config, reqs []*modelRequest) (preempted int) {
	const never = 1e18
	arriving := slices.Clone(reqs)
	var queue, running, prefill, batch []*modelRequest
	now, prefillEnd := 0.0, never
	held := func() (tokens int) {
		for _, q := range running {
			tokens += q.in + q.tokens()
		}
		return tokens
	}
	for {
		itl := cfg.ITLBase.Seconds() + cfg.ITLPerRequest.Seconds()*float64(len(batch))
		next := prefillEnd
		if len(arriving) > 0 {
			next = min(next, arriving[0].at)
		}
		for _, q := range batch {
			token := float64(q.tokens() - q.again) // value of made when the next token is ready
			next = min(next, now+(token-q.made)*itl)
		}
		if next == never {
			return preempted
		}
		for _, q := range batch {
			q.made += (next - now) / itl
		}
		now = next
		if len(arriving) > 0 && arriving[0].at <= now {
			queue, arriving = append(queue, arriving[0]), arriving[1:]
		}
		if prefillEnd <= now {
			q := prefill[0]
			if q.again == 0 {
				q.first = now
			}
			batch, prefill, prefillEnd = append(batch, q), prefill[1:], never
		}
		for _, q := range batch {
			q.end = now // until it continues
		}
		ended := func(q *modelRequest) bool { return q.end == now && q.tokens() >= q.out }
		running = slices.DeleteFunc(running, ended)
		batch = slices.DeleteFunc(batch, ended)
		for cfg.KVTokens > 0 && len(running) > 1 && held() > cfg.KVTokens {
			q := running[len(running)-1]
			running = running[:len(running)-1]
			if i := slices.Index(batch, q); i >= 0 {
				q.again, q.made = q.tokens(), 0
				batch = slices.Delete(batch, i, i+1)
			} else if i := slices.Index(prefill, q); i >= 0 {
				prefill = slices.Delete(prefill, i, i+1)
				if i == 0 {
					prefillEnd = never
				}
			}
			queue = slices.Insert(queue, 0, q)
			preempted++
		}
		for len(queue) > 0 && len(running) < cfg.Slots {
			q := queue[0]
			if cfg.KVTokens > 0 && len(running) > 0 && held()+q.in+q.tokens() > cfg.KVTokens {
				break
			}
			running, prefill, queue = append(running, q), append(prefill, q), queue[1:]
		}
		if prefillEnd == never && len(prefill) > 0 {
			prefillEnd = now + float64(prefill[0].in+prefill[0].again)/cfg.PrefillRate
		}
	}
}
