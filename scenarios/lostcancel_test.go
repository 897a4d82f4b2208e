package scenarios

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/testenv"
)

// A cancel that is lost with a connection to the broker is made up for as soon as there is a new one, and not only when the
// worker lists the next time what it runs.
func TestCancelIsLost(t *testing.T) {
	for _, c := range []struct {
		about string
		link  func(g *Gateway, w *Worker) *testenv.Link
	}{
		{"the gateway's connection", func(g *Gateway, _ *Worker) *testenv.Link { return g.Link }},
		{"the worker's connection", func(_ *Gateway, w *Worker) *testenv.Link { return w.Link }},
	} {
		t.Run(c.about, func(t *testing.T) {
			runBoth(t, func(t *testing.T, env *Env) {
				g, es, ws := pair(t, env, slow("a"))
				link := c.link(g, ws[0])
				for i := range 5 { // the worker lists once a second what it runs
					time.Sleep(5*time.Second + time.Duration(i)*200*time.Millisecond)
					ctx, leave := context.WithCancel(t.Context())
					var wg sync.WaitGroup
					wg.Go(func() { drain(post(ctx, g, "/v1/chat/completions", chat("m", true, 1000), "")) })
					time.Sleep(time.Second)
					if n := es[0].Stats().Running; n != 1 {
						t.Fatalf("%d requests run", n)
					}
					link.Freeze()
					leave()
					time.Sleep(300 * time.Millisecond)
					link.Cut(true)
					link.Thaw()
					link.Mend()
					began := time.Now()
					for es[0].Stats().Running > 0 && time.Since(began) < 5*time.Second {
						time.Sleep(time.Millisecond)
					}
					if d := time.Since(began); d > 150*time.Millisecond { // it connects again after 100 ms
						t.Errorf("the engine works %v after the connection was there again", d)
					}
					wg.Wait()
				}
			})
		})
	}
}
