package sim

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pulley-lb/pulley/engine"
)

// A loader holds fewer models at once than an Engine serves. It loads what is requested, and evicts
// the least recently used model once none of its requests run any more. One model is loaded at a
// time. It is nil in an Engine that always holds all of its models.
type loader struct {
	// Fixed after newLoader.
	most   int
	took   time.Duration // time of a load
	keep   time.Duration // after which a model without requests is unloaded; 0: never
	inLine bool          // no request overtakes one that waits for a load

	mu      sync.Mutex   // guards all fields below
	held    []*heldModel // least recently used first
	waiting []*visit     // in order of arrival
	next    string       // the model for which another is being evicted; "": none
	loads   int64
}

// heldModel is a model that is loaded, being loaded or being evicted.
type heldModel struct {
	name    string
	ready   bool
	leaving bool
	running int // its running requests
	used    time.Time
}

// visit is a request that waits for its model or uses it.
type visit struct {
	model string
	come  chan struct{} // closed when it may run
	of    *heldModel    // set when it may run
}

func newLoader(cfg Config) *loader {
	all := cfg.Loaded == 0 || cfg.Loaded >= len(cfg.Models)
	if all && !cfg.Cold && cfg.KeepAlive == 0 {
		return nil
	}
	// Ollama works through its queue in order; llama-swap lets requests for loaded models overtake.
	l := &loader{most: cfg.Loaded, took: cfg.LoadTime, keep: cfg.KeepAlive, inLine: cfg.Dialect == engine.DialectOllama}
	if all {
		l.most = len(cfg.Models)
	}
	if all && !cfg.Cold {
		for _, m := range cfg.Models {
			h := &heldModel{name: m, ready: true}
			l.held = append(l.held, h)
			l.expireLocked(h)
		}
	}
	return l
}

// expireLocked unloads a model if it has no request for KeepAlive from now on.
func (l *loader) expireLocked(h *heldModel) {
	h.used = time.Now()
	if l.keep == 0 || h.running > 0 {
		return
	}
	used := h.used
	time.AfterFunc(l.keep, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if h.used.Equal(used) && h.running == 0 && !h.leaving {
			drop(&l.held, h)
			l.goOnLocked()
		}
	})
}

// unload evicts a model that has no running requests, as Ollama does with keep_alive 0.
func (l *loader) unload(model string) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if h := l.find(model); h != nil && h.ready && h.running == 0 && !h.leaving {
		drop(&l.held, h)
		l.goOnLocked()
	}
}

// enter returns when a model is ready; then leave must be called. It returns an error if ctx ends before.
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
		drop(&l.waiting, v)
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
	l.expireLocked(v.of)
	l.goOnLocked()
}

func (l *loader) find(model string) *heldModel {
	if i := slices.IndexFunc(l.held, func(h *heldModel) bool { return h.name == model }); i >= 0 {
		return l.held[i]
	}
	return nil
}

// goOnLocked starts everything that can start now.
func (l *loader) goOnLocked() {
	wanted := func(v *visit) bool { return v.model == l.next }
	if l.next != "" && !slices.ContainsFunc(l.waiting, wanted) { // its requests were cancelled
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

func (l *loader) letInLocked(v *visit) bool {
	h := l.find(v.model)
	if h == nil || !h.ready || h.leaving {
		return false
	}
	h.running++
	h.used = time.Now()
	drop(&l.held, h)
	l.held = append(l.held, h)
	v.of = h
	close(v.come)
	return true
}

// loadLocked starts to load a model; nil while there is no room for it.
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
			if h.running == 0 { // the request that it was loaded for is gone
				l.expireLocked(h)
			}
		})
	}
	return h
}

// makeRoomLocked evicts a model; false while its requests still run.
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

// stats adds the requests that wait for a load, and the loads so far.
func (l *loader) stats(st *Stats) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	st.Waiting += len(l.waiting)
	st.Loads = l.loads
}

// states maps the names of the models in memory to llama-swap's names for their states.
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

// ollamaGenerate loads a model, or unloads it with keep_alive 0: Ollama's answer to a request without a prompt.
func (s *Engine) ollamaGenerate(w http.ResponseWriter, r *http.Request) {
	var b struct {
		Model     string `json:"model"`
		Prompt    string `json:"prompt"`
		KeepAlive any    `json:"keep_alive"`
	}
	refuse := func(status int, text string) { writeJSON(w, status, object{"error": text}) }
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxField)).Decode(&b); err != nil {
		refuse(http.StatusBadRequest, err.Error())
		return
	}
	at := slices.IndexFunc(s.cfg.Models, func(m string) bool {
		return strings.TrimSuffix(m, ":latest") == strings.TrimSuffix(b.Model, ":latest")
	})
	switch {
	case b.Model == "" || at < 0:
		refuse(http.StatusNotFound, fmt.Sprintf("model '%s' not found", b.Model))
		return
	case b.Prompt != "":
		refuse(http.StatusNotImplemented, "a simulated engine generates text only for the paths below /v1")
		return
	}
	reason := "load"
	if k := b.KeepAlive; k == 0.0 || k == "0" || k == "0s" {
		reason = "unload"
		s.loader.unload(s.cfg.Models[at])
	} else {
		leave, err := s.loader.enter(r.Context(), s.cfg.Models[at])
		if err != nil {
			return // the client is gone
		}
		leave()
	}
	writeJSON(w, http.StatusOK, object{
		"model": b.Model, "created_at": time.Now().UTC().Format(time.RFC3339Nano), "response": "", "done": true, "done_reason": reason,
	})
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

// llamaSwapUpstream passes a request on to the server of a model, which is loaded for it. That server has only a health page.
func (s *Engine) llamaSwapUpstream(w http.ResponseWriter, r *http.Request) {
	model, found := strings.CutSuffix(r.PathValue("path"), "/health")
	if !slices.Contains(s.cfg.Models, model) {
		http.Error(w, "model not found", http.StatusNotFound)
		return
	}
	leave, err := s.loader.enter(r.Context(), model)
	if err != nil {
		return // the client is gone
	}
	leave()
	if !found {
		http.NotFound(w, r)
		return
	}
	writeJSON(w, http.StatusOK, object{"status": "ok"})
}

func llamaSwapHealth(w http.ResponseWriter, _ *http.Request) {
	writeBody(w, http.StatusOK, "text/plain", []byte("OK"))
}
