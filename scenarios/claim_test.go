package scenarios

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// A claim compares two figures that a test has measured. At least one of them differs from run to run, because the
// order in which goroutines run is not fixed, even in virtual time.
type claim struct {
	what       string
	got, bound float64
	atLeast    bool // got must not be below the bound; otherwise not above it
}

// atMost claims that a figure is not above a bound, which may be a figure too.
func atMost(what string, got, bound float64) claim { return claim{what: what, got: got, bound: bound} }

// atLeast claims that a figure is not below a bound.
func atLeast(what string, got, bound float64) claim {
	return claim{what: what, got: got, bound: bound, atLeast: true}
}

func (c claim) holds() bool {
	if c.atLeast {
		return c.got >= c.bound
	}
	return c.got <= c.bound
}

func (c claim) String() string {
	want := "at most"
	if c.atLeast {
		want = "at least"
	}
	return fmt.Sprintf("%.4g, want %s %.4g", c.got, want, c.bound)
}

// inMostRuns measures once, and is done if every claim holds. Otherwise it measures again, and judges each claim by the
// median of all runs: after three runs, and if need be after five. (The median of an odd number of runs meets a bound if
// and only if most runs do.) measure returns the same claims in the same order each time.
//
// A claim that chance breaks in a part p of all runs fails a test with probability p·(p² + 2p(1−p)·(1−(1−p)²)): 0.4 %
// instead of 10 %, 0.004 % instead of 2 %. A regression, which breaks its claim in nearly every run, fails the test as
// before: 98 % of the time if it breaks 98 % of the runs.
func inMostRuns(t *testing.T, measure func() []claim) {
	t.Helper()
	failures, runs := judge(func() []claim {
		claims := measure()
		if t.Failed() { // a request failed: that is no matter of chance
			t.FailNow()
		}
		return claims
	})
	for _, f := range failures {
		t.Errorf("in most of %d runs: %s", runs, f)
	}
	if len(failures) == 0 && runs > 1 {
		t.Logf("a claim failed in the first run and holds in most of %d", runs)
	}
}

// judge returns the claims that fail, each with its figures in every run, and how often it has measured.
func judge(measure func() []claim) (failures []string, n int) {
	var runs [][]claim
	for _, n := range []int{1, 3, 5} {
		for len(runs) < n {
			runs = append(runs, measure())
		}
		failures = nil
		for i, c := range runs[0] {
			var figures []string
			broken := 0
			for _, run := range runs {
				figures = append(figures, run[i].String())
				if !run[i].holds() {
					broken++
				}
			}
			if 2*broken > n {
				failures = append(failures, c.what+": "+strings.Join(figures, "; "))
			}
		}
		if failures == nil {
			break
		}
	}
	return failures, len(runs)
}

func TestInMostRuns(t *testing.T) {
	for name, c := range map[string]struct {
		figures [][]float64 // of each run; the first must be at most 1, the second at least 1
		runs    int
		fail    []string // the claims that fail
	}{
		"both hold":                        {[][]float64{{1, 1}}, 1, nil},
		"an outlier":                       {[][]float64{{9, 1}, {1, 1}, {0.9, 2}}, 3, nil},
		"two outliers":                     {[][]float64{{9, 1}, {9, 1}, {1, 1}, {1, 1}, {1, 1}}, 5, nil},
		"outliers of two claims":           {[][]float64{{9, 1}, {1, 0}, {1, 1}}, 3, nil},
		"more outliers than good runs":     {[][]float64{{9, 1}, {1, 1}, {9, 1}, {1, 1}, {9, 1}}, 5, []string{"first"}},
		"a regression":                     {[][]float64{{1.1, 1}, {1.2, 1}, {1.1, 1}, {1.3, 1}, {1.1, 1}}, 5, []string{"first"}},
		"a regression with one good run":   {[][]float64{{1, 0.9}, {1, 0.8}, {1, 0.9}, {1, 1.1}, {1, 0.9}}, 5, []string{"second"}},
		"a regression of one and outliers": {[][]float64{{9, 0.9}, {1, 0.8}, {1, 0.9}, {1, 0.9}, {1, 0.9}}, 5, []string{"second"}},
		"a regression of both":             {[][]float64{{2, 0}, {2, 0}, {2, 0}, {2, 0}, {2, 0}}, 5, []string{"first", "second"}},
	} {
		measured := 0
		failures, runs := judge(func() []claim {
			f := c.figures[measured]
			measured++
			return []claim{atMost("first", f[0], 1), atLeast("second", f[1], 1)}
		})
		var names []string
		for _, f := range failures {
			what, _, _ := strings.Cut(f, ":")
			names = append(names, what)
		}
		if runs != c.runs || measured != c.runs || !slices.Equal(names, c.fail) {
			t.Errorf("%s: %d runs, %q fail, want %d runs, %q", name, runs, failures, c.runs, c.fail)
		}
	}
}
