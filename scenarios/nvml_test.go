package scenarios

import (
	"testing"
	"time"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// A worker that loses NVML while it serves says so, and is fenced only where NVML is required.
func TestNVMLIsLostMidway(t *testing.T) {
	for what, required := range map[string]bool{"required": true, "auto": false} {
		t.Run(what, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g := env.Gateway(gateway.Config{})
				last := recordBeats(t, env)
				b := a100.board(t)
				newHost(t, env, steady("a"), b, worker.Config{Slots: 4, NVMLRequired: required})
				g.Serves(t, "m")
				if r := ask(t, g, chat("m", true, 5), ""); r.status != 200 {
					t.Fatalf("%d %s", r.status, r.body)
				}
				b.fallsSilent(true)
				time.Sleep(32 * time.Second)
				h := last.of("a")
				if h.Capacity.GPU != "missing" || h.NVML == nil {
					t.Errorf("it says %q of its GPU, %+v", h.Capacity.GPU, h.NVML)
				}
				if fenced := h.State == subjects.Fenced && h.FenceClass == subjects.FenceNVML; fenced != required || !required && h.State != subjects.Ready {
					t.Errorf("%s %s %q", h.State, h.FenceClass, h.Reason)
				}
				b.fallsSilent(false)
				testenv.Eventually(t, "it is ready again", 3*time.Second, func() bool {
					h := last.of("a")
					return h.State == subjects.Ready && h.Capacity.GPU == "fresh"
				})
				if r := ask(t, g, chat("m", true, 5), ""); r.status != 200 || r.took > 3*time.Second {
					t.Errorf("%d after %v", r.status, r.took)
				}
			})
		})
	}
}

func (b *board) fallsSilent(silent bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.silent = silent
}
