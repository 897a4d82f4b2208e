package scenarios

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// streamThrough asks for streams while strike strikes, and expects whole answers, each computed once.
func streamThrough(t *testing.T, g *Gateway, es []*testenv.Engine, n int, strike func()) {
	t.Helper()
	var before, after int64
	for _, e := range es {
		before += e.Stats().Received
	}
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			if r := ask(t, g, chat("m", true, 200), ""); r.status != 200 || words(content(t, r.body)) != 200 { // 20 s
				t.Errorf("got %d, %d words; %.200q", r.status, words(content(t, r.body)), r.body[max(len(r.body)-200, 0):])
			}
		})
	}
	time.Sleep(2 * time.Second)
	strike()
	wg.Wait()
	for _, e := range es {
		after += e.Stats().Received
	}
	if int(after-before) != n {
		t.Errorf("%d streams took %d runs", n, after-before)
	}
}

// A frozen node of a cluster breaks no stream: those whose node it is go to another one.
func TestFrozenNode(t *testing.T) {
	for name, strikes := range map[string][3]bool{ // the gateway's node, and those of the two workers
		"the gateway's":            {true, false, false},
		"a worker's":               {false, true, false},
		"both workers'":            {false, true, true},
		"a worker's and gateway's": {true, true, false},
		"everybody's":              {true, true, true},
	} {
		for _, wait := range []time.Duration{0, 170 * time.Millisecond, 330 * time.Millisecond} { // against heartbeats and pings
			if raceEnabled && (wait > 0 || name != "a worker's and gateway's") {
				continue
			}
			t.Run(fmt.Sprint(name, " ", wait), func(t *testing.T) {
				run(t, func(t *testing.T, env *Env) {
					nc, link := env.ConnectCluster("gateway")
					g := env.gatewayAt(nc, link[0], gateway.Config{})
					links := []*testenv.Link{link[0]}
					var es []*testenv.Engine
					for _, name := range []string{"a", "b"} {
						nc, link := env.ConnectCluster("worker")
						e := env.Engine(slow(name))
						env.workerAt(nc, link[0], e, worker.Config{Name: name, Slots: 4})
						es, links = append(es, e), append(links, link[0])
					}
					g.Serves(t, "m")
					streamThrough(t, g, es, 6, func() {
						time.Sleep(wait)
						for i, l := range links {
							if strikes[i] {
								l.Freeze()
							}
						}
						time.Sleep(10 * time.Second)
						for _, l := range links {
							l.Thaw()
						}
					})
				})
			})
		}
	}
}

// A single broker that is frozen for a while, and all parts with it, breaks no stream either.
func TestFrozenBroker(t *testing.T) {
	for _, frozen := range []time.Duration{2 * time.Second, 5 * time.Second, 11 * time.Second} {
		if raceEnabled && frozen != 5*time.Second {
			continue
		}
		t.Run(frozen.String(), func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				ea, eb := env.Engine(slow("a")), env.Engine(slow("b"))
				g := env.Gateway(gateway.Config{})
				wa, wb := env.Worker(ea, worker.Config{Name: "a", Slots: 4}), env.Worker(eb, worker.Config{Name: "b", Slots: 4})
				g.Serves(t, "m")
				streamThrough(t, g, []*testenv.Engine{ea, eb}, 6, func() {
					for _, l := range []*testenv.Link{g.Link, wa.Link, wb.Link} {
						l.Freeze()
					}
					time.Sleep(frozen)
					for _, l := range []*testenv.Link{wb.Link, g.Link, wa.Link} {
						l.Thaw()
						time.Sleep(20 * time.Millisecond)
					}
				})
			})
		})
	}
}
