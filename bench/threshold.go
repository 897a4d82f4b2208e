package bench

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Threshold is a bound of one figure of a result, such as "p99_ttft>500ms"; see ParseThreshold.
type Threshold struct {
	text  string
	of    func(*Result) (value float64, known bool)
	below bool // the figure must not be below the bound; otherwise not above it
	bound float64
	show  func(float64) string
}

// ParseThreshold parses FIGURE>BOUND or FIGURE<BOUND, which says when a result is not good enough. The figures are
// error_rate and goodput (percent of all requests), rps (successful requests per second), tps (output tokens per second), and
// p50_, p90_, p95_, p99_, p99.9_, max_ and mean_ of ttft, itl, gap, e2e and queue (a duration such as 500ms).
func ParseThreshold(text string) (Threshold, error) {
	at := strings.IndexAny(text, "<>")
	if at < 0 {
		return Threshold{}, fmt.Errorf("%q: must be FIGURE>BOUND or FIGURE<BOUND, such as p99_ttft>500ms or rps<20", text)
	}
	t := Threshold{text: text, below: text[at] == '<', show: func(x float64) string { return strconv.FormatFloat(x, 'g', 4, 64) }}
	name, bound := strings.TrimSpace(text[:at]), strings.TrimSpace(text[at+1:])
	percent := func(x float64) string { return fmt.Sprintf("%.2f %%", 100*x) }
	var err error
	switch name {
	case "error_rate":
		t.show, t.of = percent, func(r *Result) (float64, bool) {
			return float64(r.Failed) / float64(max(r.Requests, 1)), r.Requests > 0
		}
		t.bound, err = parsePercent(bound)
	case "goodput":
		t.show, t.of = percent, func(r *Result) (float64, bool) {
			if r.SLO == nil {
				return 0, false
			}
			return r.SLO.Share, true
		}
		t.bound, err = parsePercent(bound)
	case "rps":
		t.of = func(r *Result) (float64, bool) { return r.RequestsPerSecond, true }
		t.bound, err = strconv.ParseFloat(bound, 64)
	case "tps":
		t.of = func(r *Result) (float64, bool) { return r.OutputTokensPerSecond, true }
		t.bound, err = strconv.ParseFloat(bound, 64)
	default:
		statistic, kind, _ := strings.Cut(name, "_")
		of, known := figureOf(statistic)
		if !known || !slices.Contains([]string{"ttft", "itl", "gap", "e2e", "queue"}, kind) {
			return t, fmt.Errorf("%q: no figure %q: must be error_rate, goodput, rps, tps, or p50, p90, p95, p99, p99.9, max or mean of ttft, itl, gap, e2e or queue", text, name)
		}
		t.of = func(r *Result) (float64, bool) {
			d := map[string]Distribution{"ttft": r.TTFT, "itl": r.InterToken, "gap": r.Gap, "e2e": r.E2E, "queue": r.Queue}[kind]
			return of(d).Seconds(), !d.IsZero()
		}
		t.show = func(x float64) string { return formatLatency(time.Duration(x * float64(time.Second))) }
		var d time.Duration
		d, err = time.ParseDuration(bound)
		t.bound = d.Seconds()
	}
	if err != nil || t.bound < 0 {
		return t, fmt.Errorf("%q: %q is not a bound of %s, such as p99_ttft>500ms, error_rate>1%% or rps<20", text, bound, name)
	}
	return t, nil
}

func parsePercent(text string) (float64, error) {
	number, isPercent := strings.CutSuffix(text, "%")
	if !isPercent {
		return 0, fmt.Errorf("%q has no %%", text)
	}
	n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	return n / 100, err
}

func figureOf(statistic string) (func(Distribution) time.Duration, bool) {
	switch statistic {
	case "max":
		return func(d Distribution) time.Duration { return d.Percentile(100) }, true
	case "mean":
		return Distribution.Mean, true
	}
	p, found := map[string]float64{"p50": 50, "p90": 90, "p95": 95, "p99": 99, "p99.9": 99.9}[statistic]
	return func(d Distribution) time.Duration { return d.Percentile(p) }, found
}

// Missed says why a result is not good enough; "" if it is. A figure that the result does not have is a miss: a run that
// measured nothing must not pass.
func (t Threshold) Missed(r *Result) string {
	value, known := t.of(r)
	switch {
	case !known:
		return fmt.Sprintf("%s: %s was not measured", r.Name, t.text)
	case t.below && value < t.bound, !t.below && value > t.bound:
		return fmt.Sprintf("%s: %s: it is %s", r.Name, t.text, t.show(value))
	}
	return ""
}
