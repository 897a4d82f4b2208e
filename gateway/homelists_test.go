package gateway

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/subjects"
)

func lanesNamed(n int) (lanes []string) {
	for i := range n {
		lanes = append(lanes, fmt.Sprintf("w%d-abc", i))
	}
	return lanes
}

// A long list of home lanes is published when there is news in it for some worker, and every few seconds.
func TestLongListsOfHomeLanesAreLeftOut(t *testing.T) {
	noon := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	reversed := lanesNamed(40)
	slices.Reverse(reversed)
	type step struct {
		at     time.Duration
		lanes  []string
		keep   bool
		joined uint64
		listed bool
	}
	for name, steps := range map[string][]step{
		"nothing new":         {{0, lanesNamed(40), true, 40, true}, {1, reversed, true, 40, false}, {2, lanesNamed(40), true, 40, false}},
		"after five seconds":  {{0, lanesNamed(40), true, 40, true}, {4, lanesNamed(40), true, 40, false}, {5, lanesNamed(40), true, 40, true}, {6, lanesNamed(40), true, 40, false}},
		"a lane more":         {{0, lanesNamed(40), true, 40, true}, {1, lanesNamed(41), true, 40, true}, {2, lanesNamed(41), true, 40, false}},
		"another lane":        {{0, lanesNamed(40), true, 40, true}, {1, append(lanesNamed(39), "x"), true, 40, true}},
		"a worker that joins": {{0, lanesNamed(40), true, 40, true}, {1, lanesNamed(40), true, 41, true}, {2, lanesNamed(40), true, 41, false}},
		"an older worker":     {{0, lanesNamed(40), false, 40, true}, {1, lanesNamed(40), false, 40, true}, {2, lanesNamed(40), true, 40, false}},
		"few lanes":           {{0, lanesNamed(32), true, 40, true}, {1, lanesNamed(32), true, 40, true}},
		"the list is shorter": {{0, lanesNamed(40), true, 40, true}, {1, lanesNamed(3), true, 40, true}, {2, lanesNamed(40), true, 40, true}},
	} {
		var l homeLists
		for i, s := range steps {
			pools := map[string]subjects.PoolReference{"m": {HomeLanes: slices.Clone(s.lanes), Workers: 7}, "small": {HomeLanes: []string{"a"}}}
			l.shorten(pools, s.keep, s.joined, noon.Add(s.at*time.Second))
			r := pools["m"]
			if listed := r.HomeLanes != nil; listed != s.listed || r.Workers != 7 || len(pools["small"].HomeLanes) != 1 {
				t.Errorf("%s, step %d: listed %v, want %v; %+v", name, i, listed, s.listed, pools["small"])
			}
			if long := len(s.lanes) > manyHomes; (r.HomesID != 0) != long {
				t.Errorf("%s, step %d: id %d of %d lanes", name, i, r.HomesID, len(s.lanes))
			}
		}
	}
}
