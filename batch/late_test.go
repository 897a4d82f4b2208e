package batch

import "testing"

// Late batches share what may run as ordinary calls: never more than the bound, and each gets its part in the end.
func TestHelpIsShared(t *testing.T) {
	for _, c := range []struct{ most, batches, each int }{{16, 1, 16}, {16, 2, 8}, {16, 3, 5}, {2, 5, 0}, {0, 3, 0}} {
		h := &help{most: c.most, granted: make(map[*run]int)}
		runs, got := make([]*run, c.batches), make([]int, c.batches)
		for i := range runs {
			runs[i] = new(run)
		}
		for range 10 {
			for i, r := range runs {
				got[i] = h.grant(r, max(2*got[i], 2))
				sum := 0
				for _, n := range got {
					sum += n
				}
				if sum > c.most {
					t.Errorf("%+v: %v", c, got)
				}
			}
		}
		for _, n := range got {
			if n < c.each {
				t.Errorf("%+v: %v", c, got)
			}
		}
		for range c.most {
			if !h.begin() {
				t.Errorf("%+v: not as many run as may", c)
			}
		}
		if h.begin() {
			t.Errorf("%+v: more run than may", c)
		}
		for _, r := range runs {
			h.grant(r, 0)
		}
		if len(h.granted) != 0 {
			t.Errorf("%+v: %v is left", c, h.granted)
		}
	}
}
