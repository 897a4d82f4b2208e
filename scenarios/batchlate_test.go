package scenarios

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/batch"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/testenv"
)

// busy starts a worker of 4 slots with an engine that counts, and n endless clients.
func busy(t *testing.T, env *Env, g *Gateway, n int) *counted {
	t.Helper()
	c := counting(t, env, g)
	endlessClients(t, g, n)
	return c
}

// endlessClients starts n clients of tier standard whose requests take 2 s.
func endlessClients(t *testing.T, g *Gateway, n int, header ...string) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	t.Cleanup(func() {
		stop()
		clients.Wait()
	})
	for range n {
		clients.Go(func() {
			for ctx.Err() == nil {
				resp, err := post(ctx, g, "/v1/chat/completions", chat("m", false, 20), "", header...)
				if err != nil {
					return
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					time.Sleep(time.Second)
				}
			}
		})
	}
	time.Sleep(5 * time.Second)
}

// latestUntil waits until a batch has ended, and returns how late it was shown at most.
func latestUntil(t testing.TB, g *Gateway, id string, within time.Duration) (b batchState, latest int) {
	t.Helper()
	for ends := time.Now().Add(within); ; time.Sleep(time.Second) {
		b = batchAt(t, g, id)
		latest = max(latest, b.Late)
		if b.Status == "completed" || b.Status == "expired" || time.Now().After(ends) {
			return b, latest
		}
	}
}

func submitWithin(t testing.TB, g *Gateway, content, window string) string {
	t.Helper()
	return member(t, do(t, g, "POST", "/v1/batches", batchOf(uploadTo(t, g, content), window)), "id")
}

// A batch that would miss its window beside a higher tier that has more than the fleet can serve ends in time, since some of its
// requests run as ordinary calls; each runs once.
func TestLateBatchEndsInItsWindow(t *testing.T) {
	for what, c := range map[string]struct {
		late int
		want string
	}{
		"with ordinary calls":    {0, "completed"},
		"without ordinary calls": {-1, "expired"},
	} {
		t.Run(what, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g := env.BatchGateway(batch.Config{Late: c.late})
				e := busy(t, env, g, 12)
				id := submitWithin(t, g, inputOf(80, 20), "2m")
				b, latest := latestUntil(t, g, id, 3*time.Minute)
				if b.Status != c.want || b.Counts.Total != 80 || b.Counts.Completed+b.Counts.Failed != 80 || (latest > 0) != (c.want == "completed") || latest > 16 || b.Late != 0 {
					t.Errorf("%+v, late %d", b, latest)
				}
				if c.want != "completed" {
					return
				}
				t.Logf("it took %v of 2m, late %d at most", time.Unix(b.Completed, 0).Sub(time.Unix(b.Expires, 0).Add(-2*time.Minute)), latest)
				rightAnswers(t, results(t, g, b.Output), 80, 20)
				e.once(t, 80)
			})
		})
	}
}

// A batch whose requests all wait in the queue has them taken back from it, and run as ordinary calls.
func TestLateBatchTakesItsRequestsBack(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.BatchGateway(batch.Config{})
		env.SetPolicy(func(p *policy.Policy) { // nothing is left for the tier of batches
			for i := range p.Tiers {
				if p.Tiers[i].Name == "standard" {
					p.Tiers[i].Share = 1000
				}
			}
		})
		e := busy(t, env, g, 12)
		id := submitWithin(t, g, inputOf(8, 20), "1m")
		b, latest := latestUntil(t, g, id, 2*time.Minute)
		if b.Status != "completed" || b.Counts.Completed != 8 || latest == 0 {
			t.Errorf("%+v, late %d", b, latest)
		}
		rightAnswers(t, results(t, g, b.Output), 8, 20)
		e.once(t, 8)
	})
}

// A batch that ends in time without help gets none, whether its requests are short or long for its window.
func TestBatchInTimeIsNotLate(t *testing.T) {
	for what, c := range map[string]struct {
		lines, tokens, clients int
		window                 string
	}{
		"alone":                                {80, 20, 0, "2m"},
		"with requests of a sixth of a window": {14, 200, 0, "2m"},
		"beside a higher tier":                 {80, 20, 2, "15m"},
		"with one request":                     {1, 300, 0, "1m"},
	} {
		t.Run(what, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g := env.BatchGateway(batch.Config{})
				e := busy(t, env, g, c.clients)
				id := submitWithin(t, g, inputOf(c.lines, c.tokens), c.window)
				b, latest := latestUntil(t, g, id, time.Hour)
				if b.Status != "completed" || b.Counts.Completed != c.lines || latest != 0 {
					t.Errorf("%+v, late %d", b, latest)
				}
				e.once(t, c.lines)
			})
		})
	}
}

// A late batch that is cancelled keeps what was answered, and nothing of it runs any more.
func TestLateBatchIsCancelled(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.BatchGateway(batch.Config{})
		e := busy(t, env, g, 12)
		id := submitWithin(t, g, inputOf(200, 20), "2m")
		testenv.Eventually(t, "it is late", time.Minute, func() bool { return batchAt(t, g, id).Late >= 8 })
		time.Sleep(3 * time.Second)
		do(t, g, "POST", "/v1/batches/"+id+"/cancel", "")
		b := endOf(t, g, id, 10*time.Second)
		output, unanswered := results(t, g, b.Output), results(t, g, b.Errors)
		if b.Status != "cancelled" || b.Counts.Completed+b.Counts.Failed != 200 || len(output) != b.Counts.Completed || len(unanswered) != b.Counts.Failed || b.Late != 0 {
			t.Errorf("%+v: %d answers, %d errors, late %d", b, len(output), len(unanswered), b.Late)
		}
		var before, after [200]int
		for i := range before {
			if before[i] = e.times(i); before[i] > 1 {
				t.Errorf("question %d ran %d times", i, before[i])
			}
		}
		time.Sleep(time.Minute)
		for i := range after {
			after[i] = e.times(i)
		}
		if before != after {
			t.Error("requests of a batch that was cancelled have run")
		}
	})
}

// A late batch whose gateway dies is late at the next one, and ends in time; each request has one answer.
func TestLateBatchIsTakenOver(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		clients, g1, g2 := env.Gateway(gateway.Config{}), env.BatchGateway(batch.Config{}), (*Gateway)(nil)
		e := busy(t, env, clients, 12)
		g1.Serves(t, "m")
		id := submitWithin(t, g1, inputOf(100, 20), "3m")
		testenv.Eventually(t, "it is late", time.Minute, func() bool { return batchAt(t, g1, id).Late > 0 })
		g2 = env.BatchGateway(batch.Config{})
		time.Sleep(5 * time.Second)
		g1.Link.Cut(true)
		b, latest := latestUntil(t, g2, id, 4*time.Minute)
		if b.Status != "completed" || b.Counts.Completed != 100 || latest == 0 {
			t.Errorf("%+v, late %d", b, latest)
		}
		rightAnswers(t, results(t, g2, b.Output), 100, 20)
		for i := range 100 { // those that ran when the gateway died run again
			if times := e.times(i); times < 1 || times > 2 {
				t.Errorf("question %d ran %d times", i, times)
			}
		}
	})
}

// Several late batches share the bound of their gateway, and each gets some.
func TestLateBatchesShareTheBound(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		const most = 6
		g := env.BatchGateway(batch.Config{Late: most})
		busy(t, env, g, 12)
		var ids []string
		for range 3 {
			ids = append(ids, submitWithin(t, g, inputOf(300, 20), "3m"))
			time.Sleep(20 * time.Second)
		}
		had, above := make([]bool, len(ids)), 0
		for range 120 {
			sum := 0
			for i, id := range ids {
				late := batchAt(t, g, id).Late
				had[i] = had[i] || late > 0
				sum += late
			}
			if above++; sum <= most {
				above = 0
			}
			if above > 10 { // what is shown of each may be two seconds old
				t.Fatalf("%d requests of late batches may run as ordinary calls; %d are the most", sum, most)
			}
			time.Sleep(500 * time.Millisecond)
		}
		for i, is := range had {
			if !is {
				t.Errorf("batch %d was never late", i)
			}
		}
	})
}

// What an ordinary call of a late batch is refused with is no result of a request: it runs in the tier of batches, or expires.
func TestLateBatchIsRefusedOrdinaryCalls(t *testing.T) {
	for what, c := range map[string]struct {
		tiers []string
		ask   string // for a tier, in each body
		queue int    // of tier standard; 0: as usual
		never bool   // it gets no help
	}{
		"the key has no tier but that of batches":        {tiers: []string{"batch"}, never: true},
		"the requests ask for a tier that it has not":    {ask: "priority"},
		"there is no such tier":                          {tiers: []string{"gone", "batch"}},
		"the queue of the tier is full":                  {queue: 9},
		"the queue is full, and they ask for other tier": {queue: 9, ask: "nonsense"},
	} {
		t.Run(what, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g := env.BatchGateway(batch.Config{})
				env.SetPolicy(func(p *policy.Policy) {
					for i := range p.Tiers {
						if p.Tiers[i].Name == "standard" && c.queue > 0 {
							p.Tiers[i].MaxQueue = c.queue
						}
					}
				})
				e := counting(t, env, g)
				endlessClients(t, g, 12, "X-Api-Key", env.AddKey("others"))
				key := env.AddKey("acme", func(k *policy.Key) { k.Tiers = c.tiers })
				input := inputOf(80, 20)
				if c.ask != "" {
					input = strings.ReplaceAll(input, `"max_tokens"`, fmt.Sprintf(`"service_tier":%q,"max_tokens"`, c.ask))
				}
				header := []string{"X-Api-Key", key}
				id := member(t, do(t, g, "POST", "/v1/batches", batchOf(uploadTo(t, g, input, header...), "2m"), header...), "id")
				late := 0
				for range 12 {
					time.Sleep(5 * time.Second)
					b := batchAt(t, g, id, header...)
					late = max(late, b.Late)
					if c.never && late > 0 && b.Late == 0 { // known after the first
						late = 0
						break
					}
				}
				b := endOf(t, g, id, 3*time.Minute, header...)
				if (late > 0) == c.never || b.Counts.Completed < 10 || b.Counts.Completed+b.Counts.Failed != 80 {
					t.Errorf("%+v, late %d", b, late)
				}
				for custom, code := range results(t, g, b.Errors, header...) {
					if code != "batch_expired" {
						t.Errorf("%s: %s", custom, code)
					}
				}
				for i := range 80 {
					if times := e.times(i); times > 1 {
						t.Errorf("question %d ran %d times", i, times)
					}
				}
			})
		})
	}
}
