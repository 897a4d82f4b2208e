package worker

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/subjects"
)

// tells is what an Ollama says that has these models, those with a + loaded.
func tells(at time.Time, models ...string) engine.Status {
	st := engine.Status{Dialect: engine.DialectOllama, Healthy: true, At: at, Models: []engine.Model{}}
	for _, m := range models {
		name := strings.TrimSuffix(m, "+")
		st.Models = append(st.Models, engine.Model{Name: name, Loaded: name != m})
	}
	return st
}

func TestWhichModelsAreMissing(t *testing.T) {
	now := time.Now()
	for what, test := range map[string]struct {
		was   func(*modelSwap) // of a
		tells engine.Status
		want  string // that are missing
	}{
		"it says nothing of models":         {nil, engine.Status{Healthy: true, At: now}, ""},
		"as it says":                        {nil, tells(now, "a", "b+"), "a"},
		"with the tag that goes without":    {nil, tells(now, "a:latest+", "b:latest"), "b"},
		"one that it has by another name":   {nil, tells(now, "b"), "b"},
		"it answered since":                 {func(m *modelSwap) { m.answered = now.Add(time.Second) }, tells(now, "a", "b+"), ""},
		"it made room since":                {func(m *modelSwap) { m.left = now.Add(time.Second) }, tells(now, "a+", "b+"), "a"},
		"it is listed, and only being read": {func(m *modelSwap) { m.missing, m.inFlight, m.began = true, 1, now }, tells(now, "a+", "b"), "a b"},
		"as long ago as no load takes":      {func(m *modelSwap) { m.missing, m.inFlight, m.began = true, 1, now.Add(-time.Minute) }, tells(now, "a+", "b"), "b"},
	} {
		t.Run(what, func(t *testing.T) {
			w := connected(t)
			w.serve([]served{{"a", "a"}, {"b", "b"}})
			w.mu.Lock()
			defer w.mu.Unlock()
			if test.was != nil {
				test.was(&w.pools["a"].swap)
			}
			w.hearLoadedLocked(test.tells, now)
			var missing []string
			for _, p := range w.servedLocked() {
				if p.swap.missing {
					missing = append(missing, p.name)
				}
			}
			if got := strings.Join(missing, " "); got != test.want || w.swaps.on != (test.want != "") {
				t.Errorf("missing %q, on %v, want %q", got, w.swaps.on, test.want)
			}
		})
	}
}

func TestWhichModelsFitTogether(t *testing.T) {
	now := time.Now()
	var s swaps
	for _, step := range []struct {
		tells engine.Status
		fit   []string // beside what is loaded
	}{
		{tells(now, "a+", "b", "c"), nil},
		{tells(now, "a+", "b+", "c"), nil},
		{tells(now, "a", "b", "c"), []string{"a", "b"}},
		{tells(now, "a", "b+", "c"), []string{"a"}},
		{tells(now, "a", "b+", "c+"), nil},
		{tells(now, "a", "b", "c+"), []string{"b"}},
		{tells(now, "a", "b+", "c"), []string{"a"}}, // b came and c went: these two do not
	} {
		s.fitLoaded(step.tells)
		var fit []string
		for _, m := range step.tells.Models {
			if !m.Loaded && s.fits(m.Name) {
				fit = append(fit, m.Name)
			}
		}
		if !slices.Equal(fit, step.fit) {
			t.Errorf("beside %q: %q fit, want %q", step.tells.Loaded(), fit, step.fit)
		}
	}
}

// Of workers that would all have to load a model, no two consider it at once.
func TestWhoLoadsFirst(t *testing.T) {
	w := connected(t)
	w.serve([]served{{"a", "a"}})
	homes := []string{"w1", "w2", w.id, "w4"}
	slices.Sort(homes)
	seen := make(map[time.Duration]bool)
	for _, id := range homes {
		w.id = id
		p := w.pools["a"]
		p.hear("gw", subjects.PoolReference{HomeLanes: homes}, time.Now())
		later := w.laterLocked(p)
		if seen[later] || later%laterEach != 0 || later >= time.Duration(len(homes))*laterEach {
			t.Errorf("%s comes %v later, as another does", id, later)
		}
		seen[later] = true
	}
}
