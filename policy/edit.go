package policy

import (
	"errors"
	"time"
)

// EditWorker changes the settings of a worker. One with default settings is left out.
func (p *Policy) EditWorker(name string, edit func(*Worker)) {
	w := p.Workers[name]
	edit(&w)
	if w == (Worker{}) {
		delete(p.Workers, name)
		return
	}
	if p.Workers == nil {
		p.Workers = make(map[string]Worker)
	}
	p.Workers[name] = w
}

// EditPool changes the settings of a pool. One with default settings is left out.
func (p *Policy) EditPool(name string, edit func(*Pool)) {
	pool := p.Pools[name]
	edit(&pool)
	if pool.Balance == "" && pool.Affinity == "" && pool.StickFor == 0 && !pool.Paused && len(pool.Spill) == 0 {
		delete(p.Pools, name)
		return
	}
	if p.Pools == nil {
		p.Pools = make(map[string]Pool)
	}
	p.Pools[name] = pool
}

// Why a shift does not start.
var (
	ErrShifting       = errors.New("a shift is running")
	ErrNothingToShift = errors.New("all requests already go there")
)

// StartShift starts a shift of a model. A model that a pattern applied to gets a route of its own, and StartShift returns the
// pattern; one without a route is moved away from the pool of its name.
func (p *Policy) StartShift(model string, s Shift, now time.Time) (pattern string, err error) {
	r, exists := p.Routes[model]
	if !exists {
		var of *Route
		if pattern, of = NewRouter(p).Find(model); of != nil {
			r = *of
			r.Shift = nil
		} else {
			pattern, r = "", Route{To: []Target{{Pool: model, Weight: 100}}}
		}
	}
	if r.shifting() {
		return "", ErrShifting
	}
	next := NewShift(r, s, now)
	if next.ShiftShare() >= 100 {
		return "", ErrNothingToShift
	}
	if p.Routes == nil {
		p.Routes = make(map[string]Route)
	}
	p.Routes[model] = next
	return pattern, nil
}
