package policy

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Condition compares the two sides of a shift, for example "error_rate>1%" or "p95_ttft>1.5x"; see ParseCondition.
type Condition string

// Test is a parsed Condition.
type Test struct {
	name     string
	metric   Metric
	quantile float64 // of the metric; 0 for the error rate
	bound    float64 // a rate, seconds, or a multiple of the stable side's value
	relative bool    // bound is a multiple of the stable side's value
	more     float64 // what is added to it, as a rate or in seconds
	text     string  // the bound as it was written
}

const errorRate = "error_rate"

var quantiles = map[string]float64{"p50": 0.50, "p95": 0.95, "p99": 0.99}

// ParseCondition parses a condition of the form METRIC>NUMBER and a unit. Metrics are error_rate, and p50_, p95_ and
// p99_ of ttft and e2e. With the unit x the bound is a multiple of the stable side's value; with % (for a rate), ms or
// s (for a time) it is absolute. A multiple may have an absolute part, as in "p95_ttft>1.5x+50ms": where the stable side's
// value is small, chance alone exceeds a multiple of it. Times are as exact as Side.Quantile is.
func ParseCondition(s string) (Test, error) {
	bad := func(format string, args ...any) (Test, error) {
		return Test{}, fmt.Errorf("%q: %s, such as error_rate>1%% or p95_ttft>1.5x", s, fmt.Sprintf(format, args...))
	}
	name, value, ok := strings.Cut(s, ">")
	if !ok {
		return bad("must be METRIC>NUMBER and a unit")
	}
	t := Test{name: strings.TrimSpace(name)}
	if t.name != errorRate {
		p, metric, _ := strings.Cut(t.name, "_")
		t.quantile, t.metric = quantiles[p], Metric(metric)
		if t.quantile == 0 || t.metric != TTFT && t.metric != E2E {
			return bad("the metric must be error_rate, or p50, p95 or p99 of ttft or e2e")
		}
	}
	value, more, hasMore := strings.Cut(value, "+")
	value = strings.TrimSpace(value)
	end := strings.IndexFunc(value, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if end < 0 {
		return bad("a unit must follow the number")
	}
	n, err := strconv.ParseFloat(value[:end], 64)
	if err != nil {
		return bad("a number must follow the >")
	}
	unit := strings.TrimSpace(value[end:])
	t.text = strconv.FormatFloat(n, 'f', -1, 64) + " " + unit
	switch {
	case unit == "x":
		t.bound, t.relative, t.text = n, true, strconv.FormatFloat(n, 'f', -1, 64)+"×"
		if n <= 0 || n > 1000 {
			return bad("the factor must be above 0 and at most 1000")
		}
		if !hasMore {
			return t, nil
		}
		part, err := ParseCondition(t.name + ">" + more)
		if err != nil || part.relative || strings.Contains(more, "+") {
			return bad("what follows the + must be absolute, with a unit")
		}
		t.more = part.bound
		return t, nil
	case hasMore:
		return bad("only a multiple, with x, may have a part after a +")
	case t.quantile == 0 && unit == "%":
		t.bound = n / 100
		if n >= 100 {
			return bad("the rate must be below 100 percent")
		}
	case t.quantile > 0 && unit == "ms":
		t.bound = n / 1000
	case t.quantile > 0 && unit == "s":
		t.bound = n
	case t.quantile == 0:
		return bad("error_rate is compared with %% or x")
	default:
		return bad("a time is compared with ms, s or x")
	}
	if t.quantile > 0 && !t.relative && (t.bound < 0.001 || t.bound > 3600) {
		return bad("the time must be 1ms to 3600s")
	}
	return t, nil
}

// Fails reports whether the condition holds for a canary, and both values as text. It returns false
// and no text when there is no value to compare. The caller decides how many answers are enough.
//
// A stable side without an error counts as if it had one: so few answers cannot show a lower rate,
// and any multiple of 0 is 0.
func (t Test) Fails(canary, stable Side) (fails bool, why string) {
	if t.sample(canary) == 0 || t.relative && t.sample(stable) == 0 {
		return false, ""
	}
	value, is := t.value(canary, 0)
	bound, limit := t.bound, t.text
	if t.relative {
		base, text := t.value(stable, 1)
		bound, limit = t.bound*base+t.more, t.text+" "+text
		if t.more > 0 && t.quantile > 0 {
			limit += fmt.Sprintf(" + %d ms", int64(t.more*1000+0.5))
		} else if t.more > 0 {
			limit += fmt.Sprintf(" + %g %%", 100*t.more)
		}
	}
	if value > bound*(1+1e-9) { // the tolerance keeps 1.1 · 0.1 from exceeding 0.11
		return true, t.name + " " + is + " > " + limit
	}
	return false, t.name + " " + is + " ≤ " + limit
}

// sample is how many of a side's answers the test uses.
func (t Test) sample(s Side) int {
	if t.quantile > 0 {
		return s.Answers() - s.Errors() // times of errors are not recorded
	}
	return s.Answers()
}

// value is the tested value, as a number and as text.
func (t Test) value(s Side, leastErrors int) (float64, string) {
	if t.quantile > 0 {
		d, _ := s.Quantile(t.metric, t.quantile)
		if d < time.Second {
			return d.Seconds(), fmt.Sprintf("%d ms", d.Milliseconds())
		}
		return d.Seconds(), fmt.Sprintf("%.1f s", d.Seconds())
	}
	n, answers := max(s.Errors(), leastErrors), s.Answers()
	rate := float64(n) / float64(answers)
	return rate, fmt.Sprintf("%.1f %% (%d of %d)", 100*rate, n, answers)
}

// Metric is a time that a Side measures.
type Metric string

const (
	TTFT Metric = "ttft" // until the first byte of the answer
	E2E  Metric = "e2e"  // until the last byte of the answer
)
