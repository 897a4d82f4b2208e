package policy

import "slices"

// A worker's bid is a rung, and a method of balancing (see Balance) is a way to
// arrive at one. Price is the default and needs nobody's help. The others are
// for those who know better than a measurement, or want what they are used to.
//
//	price         PriceRung       unlike workers, or you do not know: it learns which is fast, and how fast it is with n requests
//	least-loaded  LeastLoadedRung slots say all: engines that were given as many slots as they do well, whatever they are
//	weighted      WeightedRung    weights say all: you measured, or want to fill one worker before another
//	round-robin   always rung 0   like workers and like requests, such as embeddings: it costs the broker the least

// PriceRung is the rung of a request that would be the n-th in flight, behind
// as much prefill as that of so many mean requests, under Price: the latency that the worker expects to give it,
// by its own measurements, over the pool's reference price. A weight of 2 makes
// the worker bid as if it were twice as fast.
//
// Use it unless you have a reason not to. While nobody in the pool has measured
// anything (reference 0) it is the load fraction, and for a worker that has not,
// among others that have, TrialRung. So it is for the first request of one whose
// measurements have faded.
func PriceRung(c *Curve, mean Mean, reference float64, n int, behind float64, slots int, weight float64) int {
	price, known := c.Price(mean, n, behind)
	switch {
	case reference <= 0:
		return LoadRung(n, slots, weight)
	case !known || c.Faded && n == 1:
		return TrialRung(n, slots, weight)
	}
	return Rung(price/weight, reference)
}

// LeastLoadedRung is the rung of the n-th request in flight under LeastLoaded:
// the part of the slots that is taken without it, in tenths.
//
// Use it where the slots were chosen with care, so that a half-full worker is as
// good as any other half-full one. Fast and slow workers fill alike: a slow one
// takes requests while a fast one has room.
func LeastLoadedRung(n, slots int) int { return LoadRung(n, slots, 1) }

// WeightedRung is the rung of the n-th request in flight under Weighted: what is
// in flight without it, over the worker's weight. The last rung is reached at the
// pool's mean of slots for each unit of weight, so that the ladder fits what the
// pool can hold; poolSlots and poolWeight are the sums over its workers.
//
// Use it where the operator knows better than a measurement, say to prefer
// machines that are paid for anyway. Requests in flight split like the weights
// while nobody is full, whatever each worker's slots and speed are.
func WeightedRung(n int, weight float64, poolSlots int, poolWeight float64) int {
	if poolSlots <= 0 || poolWeight <= 0 {
		return min(n-1, Rungs-1)
	}
	full := weight * float64(poolSlots) / poolWeight
	return int(min(Rungs*float64(n-1)/full, Rungs-1))
}

// RoundRobinDepth is how many bids a worker parks on a lane under RoundRobin.
// They are all on rung 0, where the queue serves whoever has waited longest: with
// one each, workers take turns, and who is full is passed over. It bounds a
// worker to one request for each round trip to the broker, which no model server
// notices.
const RoundRobinDepth = 1

// AddPenalty is a rung some steps up, at most the last.
func AddPenalty(rung, by int) int { return min(rung+by, Rungs-1) }

// HomePenalty is how many rungs dearer a worker bids on another's home lane than
// on its own: a conversation leaves the worker that has its beginning cached
// once that is so much dearer than another, a factor of 2.2.
const HomePenalty = 3

const (
	// manyHomes is from how many home lanes on a worker bids on a few of the
	// others only: each parked bid costs the broker work.
	manyHomes = 32
	fewHomes  = 4
)

// OtherHomeLanes are the home lanes of others that a worker bids on too. In a large pool
// they are the next few in the ring of all, so that each lane has as many
// bidders. The homes are sorted and without doubles; self need not be there.
func OtherHomeLanes(self string, homes []string) []string {
	at, there := slices.BinarySearch(homes, self)
	after := homes[at:]
	if there {
		after = homes[at+1:]
	}
	others := slices.Concat(after, homes[:at])
	if len(homes) > manyHomes {
		others = others[:fewHomes]
	}
	return others
}

const (
	// mostMisses is how many of the requests for which slots are in reserve may
	// find all of them taken.
	mostMisses = 0.01

	// mostReserve is how many times the percentage the reserve may come to. So at
	// 10 % the tiers after it keep half of a worker of few slots, and whoever sets
	// 2 % says that they matter more than the time to the first token.
	mostReserve = 5
)

// Ceiling is how many of a worker's slots the i-th tier may fill: all but what
// the tiers before it have in reserve, and always one. So a request of a tier
// with a reserve finds a slot at once, however long the backlog after it.
//
// A percentage of few slots is none, or too few for requests that come at
// random. So where the tiers with a reserve have requests in flight, as many as
// loads says on the mean of the last minute, the reserve is at least one slot and
// what it takes that 99 in 100 of theirs find one, but at most five times the
// percentage.
func Ceiling(tiers []Tier, loads []float64, i, slots int) int {
	percent, load, sum := 0, 0.0, 0.0
	for j, t := range tiers[:i] {
		sum += loads[j]
		if t.Reserve > 0 {
			percent += t.Reserve
			load = sum
		}
	}
	reserve := slots * percent / 100
	if load > 0 {
		reserve = reserveFor(load, slots, reserve, slots*min(mostReserve*percent, 100)/100)
	}
	return max(slots-reserve, 1)
}

// reserveFor is the least reserve, between two bounds, in which no more than
// mostMisses of the requests that it is for find all of it taken, where others
// keep the rest of the slots filled. That is Erlang's loss formula over the
// reserve alone; with all slots in reserve it is Erlang B.
func reserveFor(load float64, slots, least, most int) int {
	term, sum := 1.0, 1.0 // of 1/misses
	for reserve := 0; ; reserve++ {
		if reserve >= most || reserve >= least && 1/sum <= mostMisses {
			return reserve
		}
		term *= float64(slots-reserve) / load
		sum += term
	}
}

// MayBid says whether a worker may bid for one more request of a tier, with so
// many in flight and prefills waiting on it. A tier with a more important one
// active above it waits while any prefill does (the prefill gate): an engine
// prefills one prompt after the other, and a request of the one above, which has
// a slot at once, would stand behind it.
func MayBid(ceiling, inFlight, prefills int, activeAbove bool) bool {
	return inFlight < ceiling && (prefills == 0 || !activeAbove)
}
