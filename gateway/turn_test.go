package gateway

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Requests that move at once come to the queue one after the other, each when the one before has been taken; where none is
// taken, or one has ended, they still come in order, a little later.
func TestTurns(t *testing.T) {
	for what, c := range map[string]struct {
		take   time.Duration // after a request is on the queue; 0: never
		gone   int           // this one never comes; -1: all do
		within time.Duration // until all have come
	}{
		"all are taken":                {time.Millisecond, -1, 100 * time.Millisecond},
		"no worker takes any":          {0, -1, turnWithin + 20*time.Millisecond},
		"each is taken late":           {time.Second, -1, turnWithin + 20*time.Millisecond},
		"the first never comes":        {time.Millisecond, 0, 2*turnWithin + 100*time.Millisecond},
		"one of the others never does": {time.Millisecond, 7, 2*turnWithin + 100*time.Millisecond},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const n = 20
				var mu sync.Mutex
				var wg sync.WaitGroup
				var order []int
				var last *turn
				began := time.Now()
				for i := range n {
					next := last.after()
					last = next
					if i == c.gone {
						continue
					}
					looks := time.Duration(rand.IntN(20)) * time.Millisecond // until its handler is there
					wg.Go(func() {
						time.Sleep(looks)
						next.await(t.Context())
						mu.Lock()
						order = append(order, i)
						mu.Unlock()
						next.onBack()
						if c.take > 0 {
							time.Sleep(c.take)
							next.onTaken()
						}
					})
				}
				wg.Wait()
				if took := time.Since(began) - c.take; len(order) < n-1 || took > c.within {
					t.Errorf("%d of %d after %v, want within %v", len(order), n, took, c.within)
				}
				if c.gone < 0 && !slices.IsSorted(order) {
					t.Errorf("in the order %v", order)
				}
			})
		})
	}
	var alone *turn
	alone.await(context.Background())
	alone.onBack()
	alone.onTaken()
}
