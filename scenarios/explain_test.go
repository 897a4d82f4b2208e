package scenarios

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/worker"
)

// receipt is what the headers of an answer say of it; nil if they say nothing.
func receipt(r reply) map[string]string {
	var said map[string]string
	for k, v := range r.header {
		if name, ok := strings.CutPrefix(k, "X-Pulley-"); ok && name != "Request-Id" {
			if said == nil {
				said = make(map[string]string)
			}
			said[name] = v[0]
		}
	}
	return said
}

// Who may ask for a receipt, and who gets one without asking.
func TestWhoGetsAReceipt(t *testing.T) {
	for _, mode := range []gateway.ExplainMode{"", gateway.ExplainKeys, gateway.ExplainAsked, gateway.ExplainAlways} {
		run(t, func(t *testing.T, env *Env) {
			g := env.Gateway(gateway.Config{Explain: mode})
			env.Worker(env.Engine(slow("a")), worker.Config{Name: "a"})
			g.Serves(t, "m")
			asks := []string{"X-Pulley-Explain", "1"}
			if got, want := receipt(ask(t, g, chat("m", false, 1), "", asks...)) != nil, mode == gateway.ExplainAsked || mode == gateway.ExplainAlways; got != want {
				t.Errorf("%q: without keys, asked: %t, want %t", mode, got, want)
			}
			ks := keysOf(t, env)
			plain, may := ks.put(policy.Key{ID: "aaaaaaaaaa"}), ks.put(policy.Key{ID: "bbbbbbbbbb", Explain: true})
			time.Sleep(inForce)
			always, asked := mode == gateway.ExplainAlways, mode == gateway.ExplainAlways || mode == gateway.ExplainAsked
			for _, c := range []struct {
				about  string
				header []string
				want   bool
			}{
				{"not asked", plain, always}, {"asked", append(asks, plain...), asked}, {"may, not asked", may, always}, {"may, asked", append(asks, may...), true},
				{"may, asked not to", append([]string{"X-Pulley-Explain", "0"}, may...), always},
			} {
				for _, stream := range []bool{false, true} {
					if got := receipt(ask(t, g, chat("m", stream, 1), "", c.header...)) != nil; got != c.want {
						t.Errorf("%q: %s: %t, want %t", mode, c.about, got, c.want)
					}
				}
			}
		})
	}
	if _, err := gateway.New(gateway.Config{Explain: "maybe"}, nil); err == nil {
		t.Error("a mode that does not exist passes")
	}
}

func TestReceipt(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{Explain: gateway.ExplainAlways})
		a, b := slow("a"), slow("b")
		a.Slots, b.Slots = 1, 1
		ea := env.Engine(a)
		wa := env.Worker(ea, worker.Config{Name: "a", Slots: 1})
		g.Serves(t, "m")
		talk := func(tokens int, turns ...string) string {
			var body strings.Builder
			body.WriteString(fmt.Sprintf(`{"model":"m","max_tokens":%d,"messages":[{"role":"user","content":"one"}`, tokens))
			for _, turn := range turns {
				body.WriteString(fmt.Sprintf(`,{"role":"assistant","content":"x"},{"role":"user","content":%q}`, turn))
			}
			return body.String() + "]}"
		}
		first := receipt(ask(t, g, talk(3), ""))
		if first["Worker"] != "a" || first["Attempts"] != "1" || first["Affinity"] != "miss" || first["Pool"] != "m" {
			t.Errorf("the first turn: %v", first)
		}
		if n, err := strconv.Atoi(first["Rung"]); err != nil || n < 0 || n > 9 {
			t.Errorf("rung %q", first["Rung"])
		}
		time.Sleep(time.Second)
		env.Worker(env.Engine(b), worker.Config{Name: "b", Slots: 1})
		time.Sleep(5 * time.Second)
		if got := receipt(ask(t, g, talk(3, "two"), "")); got["Worker"] != "a" || got["Affinity"] != "hit" {
			t.Errorf("the second turn: %v", got)
		}
		// While a is busy, another takes the conversation over. Right after an answer, a's next bid may be on its way.
		time.Sleep(100 * time.Millisecond)
		busy := make(chan reply, 1)
		go func() { busy <- ask(t, g, talk(100, "two", "long"), "") }()
		time.Sleep(time.Second)
		if got := receipt(ask(t, g, talk(3, "two", "three"), "")); got["Worker"] != "b" || got["Affinity"] != "moved" {
			t.Errorf("while its worker is busy: %v", got)
		}
		<-busy
		// An attempt that failed, and a wait.
		wa.Kill(ea)
		time.Sleep(5 * time.Second)
		go func() { busy <- ask(t, g, chat("m", false, 50), "") }()
		time.Sleep(time.Second)
		got := receipt(ask(t, g, chat("m", false, 1), ""))
		if ms, _ := strconv.Atoi(got["Queue-Ms"]); got["Worker"] != "b" || ms < 1000 || ms > 10_000 {
			t.Errorf("after a wait: %v", got)
		}
		<-busy
		failed := ask(t, g, chat("m", false, 1), "fail")
		if got := receipt(failed); got["Worker"] != "b" || got["Attempts"] == "" || got["Attempts"] == "0" {
			t.Errorf("a failure, %d: %v", failed.status, got)
		}
		wantError(t, ask(t, g, chat("m", false, 50), "", "X-Request-Timeout", "0.01"), 504, "deadline_exceeded")
	})
}
