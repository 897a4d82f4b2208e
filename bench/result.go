package bench

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/pulley-lb/pulley/api"
)

// classMaxInFlight counts requests of an open loop that were not sent, because MaxInFlight were waiting already.
const classMaxInFlight = "max in flight"

// Result is the result of one run, or of several of the same kind. Warm-up requests are counted in Warmup only. The
// JSON names include the units; distributions are objects in milliseconds, and omitted if nothing was measured.
type Result struct {
	Name     string  `json:"name"`
	URL      string  `json:"url"`
	Model    string  `json:"model"`
	Endpoint api.API `json:"endpoint"`
	Stream   bool    `json:"stream"`
	Load     string  `json:"load"` // a description such as "closed loop, concurrency 16"
	Seed     uint64  `json:"seed"`

	Started     time.Time `json:"started"`
	Rounds      int       `json:"rounds"`          // runs that are combined in this result
	Elapsed     float64   `json:"elapsed_seconds"` // from when the first request was due until the last one ended
	Interrupted bool      `json:"interrupted"`     // the context ended before the load did

	Requests  int64        `json:"requests"` // Succeeded + Failed
	Succeeded int64        `json:"succeeded"`
	Failed    int64        `json:"failed"`
	Cancelled int64        `json:"cancelled"` // cut off when the run was interrupted
	Warmup    int64        `json:"warmup"`
	Errors    []ErrorCount `json:"errors"` // the most frequent first

	RequestsPerSecond     float64 `json:"requests_per_second"` // of successful requests
	InputTokens           int64   `json:"input_tokens"`        // as reported by the server
	OutputTokens          int64   `json:"output_tokens"`       // as reported, or content events
	OutputTokensPerSecond float64 `json:"output_tokens_per_second"`

	TTFT       Distribution `json:"ttft,omitzero"`
	InterToken Distribution `json:"inter_token,omitzero"` // one mean per request
	Gap        Distribution `json:"gap,omitzero"`         // every gap between two content events
	E2E        Distribution `json:"e2e,omitzero"`
	Queue      Distribution `json:"queue,omitzero"` // as reported in server-timing
	Lag        Distribution `json:"lag,omitzero"`   // how late the generator itself sent a request, in an open loop

	SLO      *SLO     `json:"slo,omitempty"`
	Warnings []string `json:"warnings,omitempty"`

	elapsed time.Duration
	within  int64
}

// ErrorCount is a class of errors: "connection refused", "http 429 rate_limit_exceeded", "truncated", "timeout", ….
type ErrorCount struct {
	Class   string `json:"class"`
	Count   int64  `json:"count"`
	Example string `json:"example"` // the first one's message
}

// SLO is how many requests stayed within the bounds. A failed request did not.
type SLO struct {
	TTFT    float64 `json:"ttft_ms,omitempty"`
	E2E     float64 `json:"e2e_ms,omitempty"`
	Within  int64   `json:"within"`
	Share   float64 `json:"share"`               // of all requests, 0 to 1
	Goodput float64 `json:"requests_per_second"` // of requests within the bounds
}

// Merge combines several results of the same load, such as the rounds of one target.
func Merge(results ...*Result) *Result {
	sum := &Result{}
	for i, r := range results {
		if i == 0 {
			sum.Name, sum.URL, sum.Model, sum.Endpoint, sum.Stream = r.Name, r.URL, r.Model, r.Endpoint, r.Stream
			sum.Load, sum.Seed, sum.Started = r.Load, r.Seed, r.Started
		}
		sum.add(r)
	}
	sum.finish()
	return sum
}

func (r *Result) add(other *Result) {
	r.Rounds += other.Rounds
	r.elapsed += other.elapsed
	r.Interrupted = r.Interrupted || other.Interrupted
	r.Succeeded += other.Succeeded
	r.Failed += other.Failed
	r.Cancelled += other.Cancelled
	r.Warmup += other.Warmup
	for _, e := range other.Errors {
		r.countError(e.Class, e.Example, e.Count)
	}
	r.InputTokens += other.InputTokens
	r.OutputTokens += other.OutputTokens
	r.TTFT.merge(other.TTFT)
	r.InterToken.merge(other.InterToken)
	r.Gap.merge(other.Gap)
	r.E2E.merge(other.E2E)
	r.Queue.merge(other.Queue)
	r.Lag.merge(other.Lag)
	r.within += other.within
	if other.SLO != nil {
		r.SLO = &SLO{TTFT: other.SLO.TTFT, E2E: other.SLO.E2E}
	}
}

func (r *Result) countError(class, example string, count int64) {
	find := func(class string) int {
		return slices.IndexFunc(r.Errors, func(e ErrorCount) bool { return e.Class == class })
	}
	i := find(class)
	if i < 0 && len(r.Errors) >= maxClasses {
		class = "other"
		i = find(class)
	}
	if i < 0 {
		r.Errors = append(r.Errors, ErrorCount{Class: class, Example: example})
		i = len(r.Errors) - 1
	}
	r.Errors[i].Count += count
}

// finish computes what follows from the counts.
func (r *Result) finish() {
	r.Rounds = max(r.Rounds, 1)
	r.Requests = r.Succeeded + r.Failed
	r.Elapsed = r.elapsed.Seconds()
	r.RequestsPerSecond = r.perSecond(r.Succeeded)
	r.OutputTokensPerSecond = r.perSecond(r.OutputTokens)
	if r.SLO != nil {
		r.SLO.Within = r.within
		r.SLO.Goodput = r.perSecond(r.within)
		if r.Requests > 0 {
			r.SLO.Share = float64(r.within) / float64(r.Requests)
		}
	}
	if r.Errors == nil {
		r.Errors = []ErrorCount{}
	}
	slices.SortStableFunc(r.Errors, func(a, b ErrorCount) int { return cmp.Compare(b.Count, a.Count) })
	r.Warnings = r.warnings()
}

func (r *Result) perSecond(count int64) float64 {
	if r.elapsed <= 0 {
		return 0
	}
	return math.Round(float64(count)/r.elapsed.Seconds()*1000) / 1000
}

// The generator's own lag is part of every latency of an open loop. Above these bounds the result has a warning.
const (
	maxLag      = 5 * time.Millisecond
	maxLagShare = 0.01 // of the median E2E
)

func (r *Result) warnings() []string {
	var warnings []string
	lag, e2e := r.Lag.Percentile(99), r.E2E.Percentile(50)
	if lag > maxLag || (e2e > 0 && float64(lag) > maxLagShare*float64(e2e)) {
		warnings = append(warnings, fmt.Sprintf(
			"the generator itself sent late: p99 %s, against a median E2E of %s. The latencies contain it.",
			formatLatency(lag), formatLatency(e2e)))
	}
	for _, e := range r.Errors {
		if e.Class == classMaxInFlight {
			warnings = append(warnings, fmt.Sprintf(
				"%d requests were not sent, because too many were in flight: the load was lower than asked for.", e.Count))
		}
	}
	if r.Interrupted {
		warnings = append(warnings, fmt.Sprintf("interrupted: %d requests were cut off and are not counted.", r.Cancelled))
	}
	return warnings
}
