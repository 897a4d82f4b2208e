package policy

// RankLoad is the load of one data-parallel rank of an engine.
type RankLoad struct {
	InFlight int     // the worker's own requests
	Others   int     // requests of others, as last reported
	Waiting  int     // requests that wait inside the rank, as last reported
	KVUsage  float64 // used part of its KV cache, 0 to 1, as last reported
}

// LeastLoadedRank returns the index of the rank that should get the next request; -1 if there are none. A rank in which requests
// wait comes after those in which none do. Then the number of requests counts, then the use of the KV cache.
func LeastLoadedRank(ranks []RankLoad) int {
	best := -1
	for i, r := range ranks {
		if best < 0 || r.before(ranks[best]) {
			best = i
		}
	}
	return best
}

func (r RankLoad) before(other RankLoad) bool {
	if waits := r.Waiting > 0; waits != (other.Waiting > 0) {
		return !waits
	}
	if n, m := r.InFlight+r.Others, other.InFlight+other.Others; n != m {
		return n < m
	}
	return r.KVUsage < other.KVUsage
}
