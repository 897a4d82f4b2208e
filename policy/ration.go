package policy

import "hash/fnv"

// ParkTarget is about how many workers of a pool park bids on its shared lane, beside one for each request that it gets in a
// second: the broker goes through all parked bids at each delivery. In a pool that has no more workers all of them do.
//
// Which ones park is decided once a second. Of those that do, each takes one request within that time then, and is not dearer
// than when it was decided by more than that: with 64 alone, first tokens of a busy pool came late (TestRationedBalance).
const ParkTarget = 64

// Ration says which workers of a large pool park bids: the cheapest ones. The zero value lets all of them.
//
// Workers of one rung are alike, so a part of them parks: those with the least [Draw]. It is always the same ones while their
// prices stay; one that gets requests becomes dearer, and the next one takes its place.
type Ration struct {
	Rung int     `json:"rung"`           // cheaper workers park, dearer ones do not
	Part float64 `json:"part,omitempty"` // of the workers of that rung, those whose draw is less park
}

// RationOf returns the ration by how many workers with a free slot have each rung as the price of their next bid, and how many
// requests workers take in a second; false if all workers may park.
func RationOf(free [Rungs]int, perSecond float64) (r Ration, rationed bool) {
	target := ParkTarget
	if perSecond > 0 {
		target += int(min(perSecond, 1e6))
	}
	before := 0
	for rung, n := range free {
		if before+n > target {
			return Ration{Rung: rung, Part: float64(target-before) / float64(n)}, true
		}
		before += n
	}
	return Ration{}, false
}

// Parks reports whether a worker parks bids, by the rung of its next bid and its draw.
func (r Ration) Parks(rung int, draw float64) bool {
	return rung < r.Rung || rung == r.Rung && draw < r.Part
}

// Draw is a worker's place among those of a pool, at least 0 and less than 1: always the same, and for each pool another one.
func Draw(worker, pool string) float64 {
	h := fnv.New64a()
	h.Write([]byte(pool + "\x00" + worker))
	x := h.Sum64() // names that are alike have hashes that are: mix them, as splitmix64 does
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	const bits = 53 // of a float64
	return float64((x^x>>31)>>(64-bits)) / (1 << bits)
}
