package worker

import (
	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// headerRank names the data-parallel rank that should run a request, from 0: vLLM.
const headerRank = "X-Data-Parallel-Rank"

// ranks are the data-parallel ranks of the engine, if the worker chooses among them. Capacity owns them.
type ranks struct {
	load []policy.RankLoad
	last []engine.RankStatus // as last reported; nil: they are not
}

// newRanks returns n ranks; none if the engine has only one.
func newRanks(n int) ranks {
	if n < 2 {
		return ranks{}
	}
	return ranks{load: make([]policy.RankLoad, n)}
}

// usable are the ranks that there are: the engine may have fewer than are configured.
func (rs *ranks) usable() []policy.RankLoad {
	if n := len(rs.last); n > 0 && n < len(rs.load) {
		return rs.load[:n]
	}
	return rs.load
}

// onStatus takes in what the engine reports of each rank.
func (rs *ranks) onStatus(st engine.Status) {
	rs.last = st.Ranks
	for i := range rs.load {
		l := &rs.load[i]
		l.Others, l.Waiting, l.KVUsage = 0, 0, 0
		if i >= len(st.Ranks) {
			continue
		}
		r := st.Ranks[i]
		if r.Waiting != nil {
			l.Waiting = *r.Waiting
		}
		if r.Running != nil {
			l.Others = max(*r.Running+l.Waiting-l.InFlight, 0)
		}
		if r.KVUsage != nil {
			l.KVUsage = *r.KVUsage
		}
	}
}

// waiting returns how many requests wait in the engine, as far as that keeps others out: while none waits in some rank, that
// one can have more.
func (rs *ranks) waiting(st engine.Status) *int {
	usable := rs.usable()
	if len(usable) < 2 || len(rs.last) < len(usable) {
		return st.Waiting
	}
	least := usable[0].Waiting
	for _, r := range usable {
		least = min(least, r.Waiting)
	}
	return new(least * len(usable))
}

// report returns the ranks for a heartbeat; nil if the worker does not choose among them.
func (rs *ranks) report() []subjects.Rank {
	var list []subjects.Rank
	for i, l := range rs.usable() {
		r := subjects.Rank{InFlight: l.InFlight}
		if i < len(rs.last) {
			r.Running, r.Waiting, r.KVUsage = rs.last[i].Running, rs.last[i].Waiting, rs.last[i].KVUsage
		}
		list = append(list, r)
	}
	return list
}

// takeRank chooses the rank for a request, and counts it there; -1 if the worker does not choose. freeRank ends that.
func (c *capacity) takeRank() int {
	if c.cfg.Ranks < 2 {
		return -1
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	i := policy.LeastLoadedRank(c.ranks.usable())
	c.ranks.load[i].InFlight++
	return i
}

func (c *capacity) freeRank(i int) {
	if i < 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ranks.load[i].InFlight--
}
