package scenarios

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/worker"
)

// A worker that is much slower or smaller than is usual in its pool is named while it serves; among two, nothing is usual.
func TestUnlikeWorkersAreNamed(t *testing.T) {
	with := func(d engine.Dialect, change func(*sim.Config)) sim.Config {
		cfg := brisk("", d)
		cfg.Context = 32_768
		change(&cfg)
		return cfg
	}
	const ms = time.Millisecond
	usual := func(*sim.Config) {}
	slow := func(c *sim.Config) { c.ITLBase = 45 * ms }
	few := func(c *sim.Config) { c.Slots = 1 }
	short := func(c *sim.Config) { c.Context = 4096 }
	for what, c := range map[string]struct {
		dialect engine.Dialect
		kinds   []func(*sim.Config)
		slots   []int // told; nil: none
		want    []string
	}{
		"a slow one":                  {engine.DialectVLLM, []func(*sim.Config){usual, usual, usual, slow}, nil, []string{"", "", "", "m: slow: 4"}},
		"a slow one, blind":           {engine.DialectOpenAI, []func(*sim.Config){usual, usual, slow}, nil, []string{"", "", "m: slow: 4"}},
		"one with few slots":          {engine.DialectLlamaCpp, []func(*sim.Config){usual, usual, few}, nil, []string{"", "", "m: small: 1 at once, where 8 are usual"}},
		"one that was told so":        {engine.DialectVLLM, []func(*sim.Config){usual, usual, usual}, []int{8, 8, 2}, []string{"", "", "m: small: 2 at once, where 8 are usual"}},
		"one with a short context":    {engine.DialectVLLM, []func(*sim.Config){short, usual, usual}, nil, []string{"m: small: a context of 4096 tokens, where 32768 are usual", "", ""}},
		"two unlike ones":             {engine.DialectLlamaCpp, []func(*sim.Config){usual, func(c *sim.Config) { slow(c); few(c); short(c) }}, nil, []string{"", ""}},
		"two of one kind, two others": {engine.DialectVLLM, []func(*sim.Config){usual, usual, slow, slow}, nil, []string{"", "", "", ""}},
		"all alike":                   {engine.DialectVLLM, []func(*sim.Config){usual, usual, usual, usual}, nil, []string{"", "", "", ""}},
	} {
		t.Run(what, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				beats := recordBeats(t, env)
				g := env.Gateway(gateway.Config{})
				for i, change := range c.kinds {
					cfg := with(c.dialect, change)
					cfg.Name = fmt.Sprint("w", i)
					wcfg := worker.Config{Name: cfg.Name}
					if c.slots != nil {
						wcfg.Slots = c.slots[i]
					}
					env.Worker(env.Handler(cfg.Name, newFickle(t, cfg)), wcfg)
				}
				g.Serves(t, "m")
				until := time.Now().Add(10 * time.Second)
				var wg sync.WaitGroup
				for range 2 * len(c.kinds) {
					wg.Go(func() {
						for time.Now().Before(until) {
							if r := ask(t, g, chat("m", true, 20), ""); r.status != 200 {
								t.Errorf("%d %s", r.status, r.body)
							}
						}
					})
				}
				wg.Wait()
				for i, want := range c.want {
					if h := beats.of(fmt.Sprint("w", i)); !strings.HasPrefix(h.Notes(), want) || (h.Notes() == "") != (want == "") || h.State != "ready" {
						t.Errorf("w%d: %s %q, want %q", i, h.State, h.Notes(), want)
					}
				}
			})
		})
	}
}
