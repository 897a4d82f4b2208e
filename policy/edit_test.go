package policy_test

import (
	"errors"
	"reflect"
	"testing"

	"github.com/pulley-lb/pulley/policy"
)

func TestEditLeavesDefaultsOut(t *testing.T) {
	p := policy.Default()
	p.EditWorker("a", func(w *policy.Worker) { w.Cordoned = true })
	p.EditWorker("a", func(w *policy.Worker) { w.Weight = 2 })
	p.EditWorker("b", func(w *policy.Worker) { w.Weight = 3 })
	p.EditPool("m", func(p *policy.Pool) { p.Paused = true })
	p.EditPool("n", func(p *policy.Pool) { p.Balance = policy.RoundRobin })
	if want := map[string]policy.Worker{"a": {Cordoned: true, Weight: 2}, "b": {Weight: 3}}; !reflect.DeepEqual(p.Workers, want) {
		t.Errorf("workers %v, want %v", p.Workers, want)
	}
	p.EditWorker("b", func(w *policy.Worker) { w.Weight = 0 })
	p.EditPool("m", func(p *policy.Pool) { p.Paused = false })
	p.EditPool("none", func(*policy.Pool) {})
	if _, kept := p.Workers["b"]; kept || len(p.Workers) != 1 || len(p.Pools) != 1 || p.Pools["n"].Balance != policy.RoundRobin {
		t.Errorf("workers %v, pools %v", p.Workers, p.Pools)
	}
}

func TestStartShift(t *testing.T) {
	shift := policy.Shift{To: "new", By: 10, Every: 1}
	p := policy.Default()
	p.Routes = map[string]policy.Route{
		"gpt-*":  {To: []policy.Target{{Pool: "a", Weight: 1}}, Fallback: []string{"b"}},
		"all":    {To: []policy.Target{{Pool: "new", Weight: 1}}},
		"moving": policy.NewShift(policy.Route{To: []policy.Target{{Pool: "a", Weight: 1}}}, shift, noon),
	}
	for _, c := range []struct {
		model, pattern string
		err            error
	}{{"plain", "", nil}, {"gpt-4", "gpt-*", nil}, {"all", "", policy.ErrNothingToShift}, {"moving", "", policy.ErrShifting}, {"gpt-4", "", policy.ErrShifting}} {
		pattern, err := p.StartShift(c.model, shift, noon)
		if pattern != c.pattern || !errors.Is(err, c.err) {
			t.Errorf("%s: got %q, %v; want %q, %v", c.model, pattern, err, c.pattern, c.err)
		}
	}
	if r := p.Routes["gpt-4"]; r.To[0].Pool != "a" || r.To[1].Pool != "new" || r.Fallback[0] != "b" || r.ShiftShare() != 0 {
		t.Errorf("gpt-4: %+v", r)
	}
	if r := p.Routes["plain"]; r.To[0] != (policy.Target{Pool: "plain", Weight: 100}) || p.Routes["gpt-*"].Shift != nil {
		t.Errorf("plain: %+v, gpt-*: %+v", r, p.Routes["gpt-*"])
	}
	if err := p.Check(); err != nil {
		t.Error(err)
	}
}
