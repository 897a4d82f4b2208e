package policy

// Demand is the work of a pool that is outstanding: requests that wait or run.
type Demand struct {
	waiting, running []outstanding
}

// outstanding is a request with the tokens that it will have.
type outstanding struct {
	input, output float64
	on            int // the index of the worker that runs it
}

// PoolWorker is a worker as demand is measured against it.
type PoolWorker struct {
	Curve    *Curve
	Slots    int
	InFlight int
}

// DemandAhead is for how many seconds what runs counts as demand, and hence in how many seconds a fleet that follows it clears what
// waits. With less, a queue that grows while models load asks for more workers than it needs.
const DemandAhead = 30

// Wait adds a request that waits, with its estimated tokens; output is the limit of its answer, 0 if it has none.
func (d *Demand) Wait(input, output float64, mean Mean) {
	d.waiting = append(d.waiting, outstanding{input, answerOf(output, mean), -1})
}

// Run adds a request that runs on the worker of this index; -1: on another one, such as one that drains.
func (d *Demand) Run(input, output float64, on int, mean Mean) {
	d.running = append(d.running, outstanding{input, answerOf(output, mean), on})
}

// answerOf is how many tokens an answer will have: as many as usual, or its limit if that is less.
func answerOf(limit float64, mean Mean) float64 {
	switch {
	case limit > 0 && mean.Samples > 0:
		return min(limit, mean.Output)
	case mean.Samples > 0:
		return mean.Output
	}
	return limit
}

// Requests is how many slots the work would fill if there were as many.
func (d *Demand) Requests() int { return len(d.waiting) + len(d.running) }

// Seconds is how many seconds of these workers the work takes, by what they have measured: all of what waits, and of what runs as
// much as the workers will have to do of its kind within DemandAhead, if it goes on to come as it did.
//
//	Σ waiting cost / workers + DemandAhead · Σ running cost / time
//
// The cost of a request is the part of a full worker's time that it takes: the reading of its prompt, since an engine reads one after
// the other, or a slot's share of the time for all of it, whichever is more. Its time is what it takes beside the others that its
// worker has, which is less while that has few. By Little's law the sum over those that run is the part of the workers that is in
// use: what is left of each would say nothing of those that will come after it, and their number would grow with the length of
// answers and more slowly than the load. The prefill curve is of prompts as they come, with the part that is cached: what is found
// in a cache takes no time there.
//
// It returns false if there is work, but no worker that has measured how long it takes.
func (d *Demand) Seconds(workers []PoolWorker) (float64, bool) {
	if d.Requests() == 0 {
		return 0, true
	}
	usual := d.usual()
	rates, sum, slots, measured := make([]float64, len(workers)), 0.0, 0, 0
	for i, w := range workers {
		if cost := w.cost(usual); cost > 0 {
			rates[i] = 1 / cost
			sum += rates[i]
			slots += w.Slots
			measured++
		}
	}
	if measured == 0 {
		return 0, false
	}
	var backlog, used float64
	for _, r := range d.waiting {
		if perSecond := rate(workers, r); perSecond > 0 { // else nothing of its kind was measured
			backlog += 1 / perSecond
		}
	}
	on := make([]int, len(workers)) // of the requests that run
	for _, r := range d.running {
		if r.on >= 0 {
			on[r.on]++
		}
	}
	for _, r := range d.running {
		if r.on < 0 || rates[r.on] == 0 {
			used += 1 / float64(slots) // a slot of an average worker
			continue
		}
		w := workers[r.on]
		n := float64(max(w.InFlight, on[r.on]))
		share := 1 / n
		if takes := w.takes(r, n); takes > 0 {
			share = min(w.cost(r)/takes, share)
		}
		used += share * rates[r.on] / sum
	}
	return (backlog + DemandAhead*used) * float64(measured) / float64(len(workers)), true // the others do as much as these
}

// usual is the mean of all requests.
func (d *Demand) usual() (mean outstanding) {
	for _, rs := range [][]outstanding{d.waiting, d.running} {
		for _, r := range rs {
			mean.input += r.input / float64(d.Requests())
			mean.output += r.output / float64(d.Requests())
		}
	}
	return mean
}

// rate is how many requests like this one the workers end in a second.
func rate(workers []PoolWorker, r outstanding) (perSecond float64) {
	for _, w := range workers {
		if cost := w.cost(r); cost > 0 {
			perSecond += 1 / cost
		}
	}
	return perSecond
}

// takes is how many seconds a request takes if the worker has n; 0: unknown.
func (w PoolWorker) takes(r outstanding, n float64) (seconds float64) {
	if w.Curve == nil || w.Slots == 0 {
		return 0
	}
	if p := w.Curve.Prefill; p != nil {
		seconds += p.At(r.input)
	}
	if l := w.Curve.ITL; l != nil {
		seconds += r.output * l.At(n)
	}
	return seconds
}

// cost is how many seconds of a worker with all slots in use a request takes; 0: unknown.
func (w PoolWorker) cost(r outstanding) float64 {
	cost := w.takes(r, float64(w.Slots)) / float64(max(w.Slots, 1))
	if cost > 0 && w.Curve.Prefill != nil {
		cost = max(cost, w.Curve.Prefill.At(r.input))
	}
	return cost
}
