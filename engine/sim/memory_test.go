package sim_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pulley-lb/pulley/engine/sim"
)

func TestPromptsWaitForMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sim.Config{KVTokens: 100, PrefillRate: 1000, ITLBase: 50 * time.Millisecond})
		var wg sync.WaitGroup
		for i, req := range []struct {
			in   int
			want []int
		}{
			{60, []int{60, 110, 160}},
			{60, []int{220, 270, 320}}, // there is room when the first has ended
			{10, []int{230, 280, 330}}, // it would fit, but is behind
		} {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * time.Microsecond)
				wantTimes(t, fmt.Sprint(i), r.tokenTimes("", req.in, 3), req.want...)
			})
		}
		wg.Wait()
		if got := r.sim.Stats(); got.MaxRunning != 2 || got.Preempted != 0 || got.Finished != 3 {
			t.Errorf("stats %+v, want at most two at once and none preempted", got)
		}
	})
}

func TestPromptsWaitForTheirPrefill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sim.Config{PrefillBatch: 150, PrefillRate: 1000, ITLBase: 50 * time.Millisecond})
		var wg sync.WaitGroup
		for i, want := range [][]int{{200, 250}, {300, 350}, {350, 400}, {450, 500}} {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * time.Microsecond)
				wantTimes(t, fmt.Sprint(i), r.tokenTimes("", []int{200, 100, 50, 100}[i], 2), want...)
			})
		}
		for _, want := range []struct {
			at               time.Duration
			running, waiting int
		}{{10, 1, 3}, {210, 3, 1}, {310, 3, 0}, {360, 2, 0}, {410, 1, 0}} {
			time.Sleep(want.at*time.Millisecond - r.since())
			synctest.Wait()
			if got := r.sim.Stats(); got.Running != want.running || got.Waiting != want.waiting {
				t.Errorf("after %d ms %d run and %d wait, want %d and %d", want.at, got.Running, got.Waiting, want.running, want.waiting)
			}
		}
		wg.Wait()
	})
}

func TestLastComerIsPreempted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sim.Config{KVTokens: 30, PrefillRate: 1000, ITLBase: 10 * time.Millisecond})
		var wg sync.WaitGroup
		wg.Go(func() {
			wantTimes(t, "first", r.tokenTimes("", 10, 15), 10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120, 130, 140, 150)
		})
		time.Sleep(time.Microsecond)
		synctest.Wait()
		// At 60 ms there are 2 × 10 prompt tokens, and 6 + 5 that were produced. It gets its slot
		// again at 150 ms, and 15 tokens are prefilled.
		events := make(chan []event, 1)
		wg.Go(func() {
			got, err := r.stream("/v1/chat/completions", "", chatBody(words(10), `,"stream":true,"max_tokens":15`))
			if err != nil {
				t.Error(err)
			}
			events <- got
		})
		// A later request stays behind it.
		wg.Go(func() {
			time.Sleep(65 * time.Millisecond)
			wantTimes(t, "third", r.tokenTimes("", 1, 1), 166)
		})
		wg.Wait()
		var text strings.Builder
		var times []time.Duration
		for _, e := range <-events {
			if strings.Contains(e.data, `"content":"`) && !strings.Contains(e.data, `"content":""`) {
				times = append(times, e.at)
				text.WriteString(at(t, parse(t, e.data), "choices", 0, "delta", "content").(string))
			}
		}
		wantTimes(t, "second", times, 20, 30, 40, 50, 60, 165, 175, 185, 195, 205, 215, 225, 235, 245, 255)
		if want := sim.Text(sim.PromptHash(words(10)), 15); text.String() != want {
			t.Errorf("text of the preempted one %q, want %q", text.String(), want)
		}
		if got := r.sim.Stats(); got.Preempted != 1 || got.Started != 3 || got.Finished != 3 || got.Running != 0 {
			t.Errorf("stats %+v, want one preempted, three started and finished", got)
		}
		page := httptest.NewRecorder()
		r.sim.ServeHTTP(page, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		if want := `num_preemptions_total{engine="0",model_name="m"} 1`; !strings.Contains(page.Body.String(), want) {
			t.Errorf("no %s in %s", want, page.Body)
		}
	})
}

func TestOneAloneMayOutgrowMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sim.Config{KVTokens: 10, PrefillRate: 1000, ITLBase: 10 * time.Millisecond})
		wantTimes(t, "long prompt", r.tokenTimes("", 20, 2), 20, 30)
		wantTimes(t, "long answer", r.tokenTimes("", 8, 5), 38, 48, 58, 68, 78)
		if got := r.sim.Stats(); got.Preempted != 0 || got.Finished != 2 {
			t.Errorf("stats %+v", got)
		}
	})
}

func TestClientOfAPreemptedRequestGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sim.Config{KVTokens: 30, PrefillRate: 1000, ITLBase: 10 * time.Millisecond})
		var wg sync.WaitGroup
		wg.Go(func() { r.tokenTimes("", 10, 15) })
		time.Sleep(time.Microsecond)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := r.post(ctx, "/v1/chat/completions", "", chatBody(words(10), `,"max_tokens":15`)); err == nil {
			t.Error("the client that should be gone got its answer")
		}
		synctest.Wait()
		if got := r.sim.Stats(); got.Preempted != 1 || got.Aborted != 1 || got.Running != 1 || got.Waiting != 0 {
			t.Errorf("stats %+v, want the preempted one aborted, and the other one running", got)
		}
		wg.Wait()
	})
}

func TestPreemptedWholeAnswersAreRight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sim.Config{KVTokens: 200, PrefillRate: 2000, ITLBase: 5 * time.Millisecond, ITLPerRequest: time.Millisecond})
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				prompt := strings.Repeat(fmt.Sprint("w", i, " "), 20)
				body := chatBody(prompt, fmt.Sprintf(`,"max_tokens":%d`, 20+i))
				_, _, answer, err := r.answer("/v1/chat/completions", "", body)
				if err != nil {
					t.Error(err)
					return
				}
				v := parse(t, answer)
				if got, want := at(t, v, "choices", 0, "message", "content"), sim.Text(sim.PromptHash(prompt), 20+i); got != want {
					t.Errorf("request %d: %q, want %q", i, got, want)
				}
				if got := at(t, v, "usage", "completion_tokens"); got != float64(20+i) {
					t.Errorf("request %d: %v tokens, want %d", i, got, 20+i)
				}
			})
		}
		wg.Wait()
		if got := r.sim.Stats(); got.Preempted == 0 || got.Finished != 20 {
			t.Errorf("stats %+v, want some preempted and all finished", got)
		}
	})
}

func TestClockSlowsAllThatIsComputed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sim.Config{PrefillRate: 1000, TTFT: 10 * time.Millisecond, ITLBase: 20 * time.Millisecond})
		var wg sync.WaitGroup
		wg.Go(func() {
			// Half of the prefill is done at 50 ms, and half of a token at 220 ms.
			wantTimes(t, "slowed and quickened", r.tokenTimes("", 100, 4), 160, 200, 230, 250)
		})
		time.Sleep(50 * time.Millisecond)
		if err := r.sim.SetClock(0.5); err != nil {
			t.Fatal(err)
		}
		time.Sleep(170 * time.Millisecond)
		status, _, body, err := r.answer("/sim/clock?factor=1", "", "")
		if err != nil || status != http.StatusOK || !strings.Contains(body, `"clock":1`) {
			t.Errorf("got %d %s %v", status, body, err)
		}
		wg.Wait()
		for _, factor := range []string{"0", "-1", "nan", "inf", "", "fast"} {
			status, _, body, err := r.answer("/sim/clock?factor="+factor, "", "")
			if err != nil || status != http.StatusBadRequest || !strings.Contains(body, `"param":"factor"`) {
				t.Errorf("factor %q: got %d %s %v, want 400", factor, status, body, err)
			}
		}
	})
}

func TestClockAtAStandstill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sim.Config{PrefillRate: 1000, ITLBase: 20 * time.Millisecond})
		var wg sync.WaitGroup
		wg.Go(func() {
			times := r.tokenTimes("", 100, 2)
			// A minute at a millionth of the pace is 60 µs of work.
			if want := 60_120*time.Millisecond - 60*time.Microsecond; len(times) != 2 || times[1] != want {
				t.Errorf("tokens at %v, the second wanted at %v", times, want)
			}
		})
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if err := r.sim.SetClock(1e-6); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if err := r.sim.SetClock(1); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
	})
}
