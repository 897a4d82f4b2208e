package policy

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"time"
)

// Side counts how one side of a split did since a step started: its answers and errors, and the
// times of the answers without an error. The zero value has seen nothing. A copy is independent of
// its original. As JSON it is small: tens of numbers.
type Side struct {
	answers, errors int
	ttft, e2e       histogram
}

// Observe counts an answer. An answer is not ok if it was a 5xx or broke off; such an answer is often quick, so its
// times are not recorded. An answer that came in one piece has ttft 0: its first byte came with its last.
func (s *Side) Observe(ok bool, ttft, e2e time.Duration) {
	s.answers++
	if !ok {
		s.errors++
		return
	}
	if ttft <= 0 {
		ttft = e2e
	}
	s.ttft.add(ttft)
	s.e2e.add(e2e)
}

// Merge adds what another gateway observed.
func (s *Side) Merge(o Side) {
	s.answers += o.answers
	s.errors += o.errors
	s.ttft.merge(&o.ttft)
	s.e2e.merge(&o.e2e)
}

// Answers is the number of answers, errors included.
func (s Side) Answers() int { return s.answers }

// Errors is how many answers were a 5xx or broke off.
func (s Side) Errors() int { return s.errors }

// Quantile is the time that the fraction q of the answers without an error took at most. It is off
// by at most 2.2 %, so the ratio of two quantiles is off by at most 4.4 %. Times below 1 ms count
// as 1 ms, those above 70 minutes as 70 minutes. It returns false if there are no answers.
func (s Side) Quantile(m Metric, q float64) (time.Duration, bool) {
	if m == TTFT {
		return s.ttft.quantile(q)
	}
	return s.e2e.quantile(q)
}

type sideJSON struct {
	Answers int       `json:"n"`
	Errors  int       `json:"errors,omitempty"`
	TTFT    histogram `json:"ttft,omitzero"`
	E2E     histogram `json:"e2e,omitzero"`
}

func (s Side) MarshalJSON() ([]byte, error) {
	return json.Marshal(sideJSON{s.answers, s.errors, s.ttft, s.e2e})
}

func (s *Side) UnmarshalJSON(b []byte) error {
	var j sideJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	if j.Errors < 0 || j.Answers < j.Errors {
		return fmt.Errorf("%d errors of %d answers", j.Errors, j.Answers)
	}
	*s = Side{j.Answers, j.Errors, j.TTFT, j.E2E}
	return nil
}

// histogram counts times in buckets that each span a factor of 2^(1/16), 1.044, from 1 ms to 2²² ms. A bucket stands
// for its geometric middle. As JSON it is the index and the count of each non-empty bucket: [160,3,161,12].
type histogram [22 * perOctave]uint32

const perOctave = 16

func (h *histogram) add(d time.Duration) {
	ms := float64(max(d, time.Millisecond)) / float64(time.Millisecond)
	h[min(int(math.Log2(ms)*perOctave), len(h)-1)]++
}

func (h *histogram) merge(o *histogram) {
	for i, n := range o {
		h[i] += n
	}
}

func (h *histogram) quantile(q float64) (time.Duration, bool) {
	n := 0
	for _, c := range h {
		n += int(c)
	}
	if n == 0 {
		return 0, false
	}
	left := min(max(int(math.Ceil(q*float64(n))), 1), n)
	i := 0
	for left > int(h[i]) {
		left -= int(h[i])
		i++
	}
	ms := math.Exp2((float64(i) + 0.5) / perOctave)
	return time.Duration(ms * float64(time.Millisecond)), true
}

func (h histogram) MarshalJSON() ([]byte, error) {
	pairs := []uint32{}
	for i, n := range h {
		if n > 0 {
			pairs = append(pairs, uint32(i), n)
		}
	}
	return json.Marshal(pairs)
}

func (h *histogram) UnmarshalJSON(b []byte) error {
	var pairs []uint32
	if err := json.Unmarshal(b, &pairs); err != nil {
		return err
	}
	if len(pairs)%2 != 0 {
		return fmt.Errorf("a histogram of %d numbers: must be pairs", len(pairs))
	}
	*h = histogram{}
	for p := range slices.Chunk(pairs, 2) {
		if int(p[0]) >= len(h) {
			return fmt.Errorf("bucket %d of a histogram with %d buckets", p[0], len(h))
		}
		h[p[0]] = p[1]
	}
	return nil
}
