package sim

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/pulley-lb/pulley/engine"
)

// A loader holds fewer models at once than an Engine answers for. What is asked for is loaded, and what makes room for it is
// the model whose last request is longest ago, once nothing of it runs any more. One model is loaded at a time. It is nil
// in an Engine that holds all of its models.
type loader struct {
	// Fixed after newLoader.
	most   int
	took   time.Duration // to load one
	inLine bool          // who waits behind a load waits for it, whatever it asks for

	mu      sync.Mutex   // guards all below
	held    []*heldModel // the one that was asked for longest ago first
	waiting []*visit     // first come first
	next    string       // what makes room is to go for it; "": nothing
	loads   int64
}

// heldModel is one that is loaded, or being loaded, or about to go.
type heldModel struct {
	name    string
	ready   bool
	leaving bool
	running int // requests
}

// visit is a request on its way to its model.
type visit struct {
	model string
	come  chan struct{} // closed when it may run
	of    *heldModel    // then
}

func newLoader(cfg Config) *loader {
	if cfg.Loaded == 0 || cfg.Loaded >= len(cfg.Models) {
		return nil
	}
	// Ollama works off its queue in order; llama-swap lets those pass whose model is there.
	return &loader{most: cfg.Loaded, took: cfg.LoadTime, inLine: cfg.Dialect == engine.DialectOllama}
}

// enter returns when a model is there. Then the request must leave; it does not come in if ctx ends before.
func (l *loader) enter(ctx context.Context, model string) (leave func(), err error) {
	if l == nil {
		return func() {}, nil
	}
	v := &visit{model: model, come: make(chan struct{})}
	l.mu.Lock()
	l.waiting = append(l.waiting, v)
	l.goOnLocked()
	l.mu.Unlock()
	select {
	case <-v.come:
		return func() { l.leave(v) }, nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if v.of == nil {
		l.waiting = without(l.waiting, v)
		l.goOnLocked()
	} else {
		l.leaveLocked(v)
	}
	return nil, context.Cause(ctx)
}

func (l *loader) leave(v *visit) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leaveLocked(v)
}

func (l *loader) leaveLocked(v *visit) {
	v.of.running--
	l.goOnLocked()
}

func (l *loader) find(model string) *heldModel {
	if i := slices.IndexFunc(l.held, func(h *heldModel) bool { return h.name == model }); i >= 0 {
		return l.held[i]
	}
	return nil
}

// goOnLocked does all that can be done now.
func (l *loader) goOnLocked() {
	wanted := func(v *visit) bool { return v.model == l.next }
	if l.next != "" && !slices.ContainsFunc(l.waiting, wanted) { // who asked for it is gone
		l.next = ""
		for _, h := range l.held {
			h.leaving = false
		}
	}
	for again := true; again; {
		again = false
		stuck := false
		l.waiting = slices.DeleteFunc(l.waiting, func(v *visit) bool {
			in := !stuck && l.letInLocked(v)
			stuck = stuck || l.inLine && !in
			return in
		})
		for _, v := range l.waiting {
			if l.find(v.model) == nil {
				h := l.loadLocked(v.model)
				again = h != nil && h.ready
				break
			}
			if l.inLine {
				break
			}
		}
	}
}

// letInLocked lets a request run if its model is there.
func (l *loader) letInLocked(v *visit) bool {
	h := l.find(v.model)
	if h == nil || !h.ready || h.leaving {
		return false
	}
	h.running++
	l.held = append(without(l.held, h), h)
	v.of = h
	close(v.come)
	return true
}

// loadLocked begins to load a model; nil while there is no room for it.
func (l *loader) loadLocked(model string) *heldModel {
	if l.next != "" && l.next != model || slices.ContainsFunc(l.held, func(h *heldModel) bool { return !h.ready }) {
		return nil
	}
	if len(l.held) == l.most && !l.makeRoomLocked(model) {
		return nil
	}
	l.next = ""
	l.loads++
	h := &heldModel{name: model, ready: l.took == 0}
	l.held = append(l.held, h)
	if !h.ready {
		time.AfterFunc(l.took, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			h.ready = true
			l.goOnLocked()
		})
	}
	return h
}

// makeRoomLocked takes out the model that has to go; false while requests of it still run.
func (l *loader) makeRoomLocked(model string) bool {
	if l.next == "" {
		l.next = model
		idle := slices.IndexFunc(l.held, func(h *heldModel) bool { return h.running == 0 })
		l.held[max(idle, 0)].leaving = true
	}
	i := slices.IndexFunc(l.held, func(h *heldModel) bool { return h.leaving })
	if l.held[i].running > 0 {
		return false
	}
	l.held = slices.Delete(l.held, i, i+1)
	return true
}

func without[T comparable](list []T, x T) []T {
	return slices.DeleteFunc(list, func(y T) bool { return x == y })
}

// stats adds what waits for a load, and the loads so far.
func (l *loader) stats(st *Stats) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	st.Waiting += len(l.waiting)
	st.Loads = l.loads
}

// states are the models that are loaded, by name, as llama-swap calls what they are about.
func (l *loader) states(models []string) map[string]string {
	states := make(map[string]string)
	if l == nil {
		for _, name := range models {
			states[name] = "ready"
		}
		return states
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range l.held {
		switch {
		case !h.ready:
			states[h.name] = "starting"
		case h.leaving:
			states[h.name] = "stopping"
		default:
			states[h.name] = "ready"
		}
	}
	return states
}

// ollamaLoaded are those in memory. Ollama lists one from when it begins to load it.
func (s *Engine) ollamaLoaded(state) any {
	states := s.loader.states(s.cfg.Models)
	models := []object{}
	for _, m := range s.cfg.Models {
		if states[m] != "" {
			models = append(models, ollamaModel(m))
		}
	}
	return object{"models": models}
}

func ollamaModel(name string) object {
	return object{"name": name, "model": name, "size": 1 << 30, "size_vram": 1 << 30, "context_length": 4096}
}

func (s *Engine) llamaSwapRunning(state) any {
	states := s.loader.states(s.cfg.Models)
	running := []object{}
	for _, m := range s.cfg.Models {
		if states[m] != "" {
			running = append(running, object{"model": m, "state": states[m], "cmd": "", "proxy": "", "ttl": 0, "name": "", "description": ""})
		}
	}
	return object{"running": running}
}

func llamaSwapHealth(w http.ResponseWriter, _ *http.Request) {
	writeBody(w, http.StatusOK, "text/plain", []byte("OK"))
}
