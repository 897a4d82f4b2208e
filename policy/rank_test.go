package policy

import "testing"

func TestLeastLoadedRank(t *testing.T) {
	for about, c := range map[string]struct {
		ranks []RankLoad
		want  int
	}{
		"none":                         {nil, -1},
		"one":                          {[]RankLoad{{InFlight: 9, Waiting: 3}}, 0},
		"all idle":                     {[]RankLoad{{}, {}, {}}, 0},
		"fewest of ours":               {[]RankLoad{{InFlight: 2}, {InFlight: 1}, {InFlight: 3}}, 1},
		"others count":                 {[]RankLoad{{InFlight: 1, Others: 4}, {InFlight: 3}}, 1},
		"a queue counts more":          {[]RankLoad{{InFlight: 1, Waiting: 1}, {InFlight: 5}}, 1},
		"a queue everywhere":           {[]RankLoad{{InFlight: 3, Waiting: 1}, {InFlight: 2, Waiting: 9}}, 1},
		"equal, and the cache differs": {[]RankLoad{{InFlight: 1, KVUsage: 0.9}, {InFlight: 1, KVUsage: 0.2}, {InFlight: 1, KVUsage: 0.3}}, 1},
	} {
		if got := LeastLoadedRank(c.ranks); got != c.want {
			t.Errorf("%s: %d, want %d", about, got, c.want)
		}
	}
}
