package policy

import "time"

const (
	// ShortAfter is for how long a pool must have been short of slots before another worker loads its model. A burst that
	// the workers clear by themselves is mostly over by then.
	ShortAfter = time.Second

	// NextLoader is how long a worker leaves it to each of those before it to load the model. It is longer than it takes
	// until the others know that one of them does.
	NextLoader = 2 * time.Second
)

// Shortage is the standing demand of a pool beyond what the workers do that have its model loaded, as a worker sees it
// that would have to load it. The zero value is no shortage.
type Shortage struct {
	// Requests is how many requests wait, less the free slots of the workers that have the model loaded or are loading it.
	Requests int
	// For is for how long there has been a shortage, without a break.
	For time.Duration
	// Rank is how many other workers should rather load the model, and Before how many slots these have. Listed says that
	// this worker is one of those that may load it.
	Rank, Before int
	Listed       bool
}

// Loads reports whether the worker should load the model, which other workers have loaded (elsewhere) or none has. The
// workers before it come first, as far as the shortage is larger than what these will do. If they do not load it, each one
// after them follows by NextLoader. A model that no worker has is loaded without delay.
func (s Shortage) Loads(elsewhere bool) bool {
	after := ShortAfter
	if !elsewhere {
		after = 0
	}
	if s.Requests <= 0 || s.For < after || !elsewhere && !s.Listed {
		return false
	}
	return s.Requests > s.Before || s.For >= after+time.Duration(s.Rank)*NextLoader
}

// WarmUp returns the index of the model that the engine should load now although no request for it has come to this
// worker; -1: none. It is for models that are short of slots where they are loaded, and for those that several workers
// serve and none has loaded:
//
//   - If it fits beside the loaded models, or none is loaded, it is loaded at once.
//   - A loaded model that would be pushed out must have had no requests for as long as it would stay after its load.
//   - If no worker has it loaded, or a request has waited for longer than the load takes, it is enough that the loaded
//     models are idle at the moment, as for a request that brings in its model: see Swap.
//
// The model with the largest shortage comes first.
func (s Swap) WarmUp(st Swapping, models []SwapModel, now time.Time) int {
	if st.To != "" {
		return -1
	}
	best := -1
	for i := range models {
		m := &models[i]
		if m.Loaded || m.InFlight > 0 || !m.Elsewhere && !m.Shared || !m.Shortage.Loads(m.Elsewhere) || !s.Spare(st, models, i, now) {
			continue
		}
		if best < 0 || m.Shortage.Requests > models[best].Shortage.Requests {
			best = i
		}
	}
	return best
}

// Spare reports whether the i-th model could be loaded by WarmUp: nothing is in use that this would push out.
func (s Swap) Spare(st Swapping, models []SwapModel, i int, now time.Time) bool {
	m, out := &models[i], evicted(models)
	if st.To != "" {
		return false
	}
	if out == nil || m.Fits {
		return true
	}
	if idle, first := s.idle(st, models, now); idle && s.mayLoad(m) && (first == nil || first == m) {
		return true
	}
	return out.InFlight == 0 && out.longestWait() == 0 && now.Sub(out.Used) >= s.minStay() && now.Sub(st.Last) >= s.minStay()
}
