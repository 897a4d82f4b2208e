package policy

import "time"

// PromptPace learns how long an engine takes at most for a token of a prompt that it has not cached, from prompts whose times
// may be those of cached ones. The slowest prompt of a few minutes says so if one of them was not cached. If none was, the
// engine's own counters do, or its answers: they say how many of the tokens were computed, and perhaps how long these took. The
// zero value knows nothing.
type PromptPace struct {
	young, old span
	reports    bool // some answer said that a part of its prompt was cached
}

// span is what was seen for some time.
type span struct {
	from            time.Time
	n               int
	took, tokens    float64 // sums, in seconds and tokens
	slowest         float64 // seconds per token
	longest         float64 // tokens of the longest prompt
	counts          bool    // the engine counts what it looks up in its prefix cache
	queries, cached float64 // tokens that it looked up, and found there

	// Of the prompts whose answers said how much of them was cached.
	known int
	fresh float64 // tokens that were not

	computed, computing float64 // tokens that the engine says it computed, and the seconds for these
}

const (
	// leastPrompt is the prompt from which on the time for it is that for its tokens. Shorter ones say nothing of longer ones.
	leastPrompt = 128
	// fewPrompts is how many prompts have to be seen before their pace counts, and spanPrompts how many a span has at least.
	fewPrompts  = 8
	spanPrompts = 32
	// stretched is how many times as long as the longest prompt seen one may be for the pace to hold: attention costs more
	// for each token of a long prompt.
	stretched = 4
	// leastCounted is how many tokens the engine must have looked up for its counters to count.
	leastCounted = 1024
	// mostPerToken bounds the sums against the division by no token at all, in seconds.
	mostPerToken = 1.
)

// Add includes a prompt that took so long.
func (p *PromptPace) Add(tokens float64, took time.Duration, now time.Time) {
	if tokens < leastPrompt || took <= 0 {
		return
	}
	p.rotate(now)
	s := &p.young
	s.n++
	s.took += took.Seconds()
	s.tokens += tokens
	s.slowest = max(s.slowest, took.Seconds()/tokens)
	s.longest = max(s.longest, tokens)
}

// AddFresh includes a prompt that took so long, of which the engine said that it had not cached so many tokens.
func (p *PromptPace) AddFresh(tokens, fresh float64, took time.Duration, now time.Time) {
	if tokens < leastPrompt || took <= 0 {
		return
	}
	p.Add(tokens, took, now)
	p.reports = p.reports || fresh < tokens // one that never says so may not know
	s := &p.young
	s.known++
	if fresh = max(fresh, 0); fresh >= leastPrompt {
		s.slowest = max(s.slowest, took.Seconds()/fresh)
	}
	s.fresh += fresh
}

// Computed includes that the engine says how long it took for tokens of prompts that it had to compute, of any requests.
func (p *PromptPace) Computed(tokens int64, took time.Duration, now time.Time) {
	if tokens <= 0 || took <= 0 { // it has started again
		return
	}
	p.rotate(now)
	p.young.computed += float64(tokens)
	p.young.computing += took.Seconds()
}

// Count includes that the engine has looked up tokens in its prefix cache, of any requests, and found some of them.
func (p *PromptPace) Count(queries, cached int64, now time.Time) {
	if queries < 0 || cached < 0 || cached > queries { // it has started again
		return
	}
	p.rotate(now)
	p.young.counts = true
	p.young.queries += float64(queries)
	p.young.cached += float64(cached)
}

func (p *PromptPace) rotate(now time.Time) {
	if p.young.from.IsZero() {
		p.young.from = now
	}
	if p.young.n >= spanPrompts && now.Sub(p.young.from) > FadeAfter {
		p.old, p.young = p.young, span{from: now}
	}
}

// A Reading is how fast an engine reads prompts. The zero value is not known.
type Reading struct {
	Token   time.Duration // for each token that is not cached, in the slowest prompt of the last minutes
	Longest int           // tokens of the prompt up to which that holds
	// Counted says that the engine shows how much of the prompts was cached, by its counters or in its answers. Otherwise all of
	// them may have been.
	Counted bool
}

// Reading returns what was seen.
func (p *PromptPace) Reading() Reading {
	a, b := &p.young, &p.old
	if a.n+b.n < fewPrompts {
		return Reading{}
	}
	r := Reading{Longest: int(stretched * max(a.longest, b.longest))}
	slowest := max(a.slowest, b.slowest)
	queries := a.queries + b.queries
	r.Counted = a.counts && (queries == 0 || queries >= leastCounted) // without a cache, it looks up nothing
	if r.Counted {
		computed := (a.tokens + b.tokens) * (1 - (a.cached+b.cached)/max(queries, 1))
		slowest = max(slowest, min((a.took+b.took)/max(computed, 1), mostPerToken))
	}
	if a.known+b.known == a.n+b.n && p.reports {
		r.Counted = true
		slowest = max(slowest, min((a.took+b.took)/max(a.fresh+b.fresh, 1), mostPerToken))
	}
	if computed := a.computed + b.computed; computed >= leastCounted {
		r.Counted = true
		slowest = max(slowest, min((a.computing+b.computing)/computed, mostPerToken))
	}
	r.Token = time.Duration(slowest * float64(time.Second))
	return r
}

// AtMost returns the reading if the times contain more than the prompts, which is margin enough: no engine is taken to be
// slower for them than one of which nothing is known.
func (r Reading) AtMost() Reading {
	r.Token = min(r.Token/slack, uncached/patient)
	return r
}

const (
	// uncached is the time for a token of a prompt that no measurement excludes: 250 tokens per second, a fast CPU. Engines
	// read one prompt after the other, a probe's at last.
	uncached = 4 * time.Millisecond

	// The tokens of a prompt are estimated by its letters, which is wrong by a factor of two for some texts and more for
	// few: slack is for an engine that does not even answer questions, and patient for one that does. However fast it
	// seems, an engine may take as long as leastUncached for a token, or leastUncounted where its prompts may have been cached.
	patient        = 4
	leastUncached  = 250 * time.Microsecond
	leastUncounted = time.Millisecond
)

// prompt returns how long a prompt of so many tokens may take if nothing of it is cached: with an engine that answers
// questions meanwhile, and with one that has stopped to.
func (r Reading) prompt(tokens int) (at, mute time.Duration) {
	most := time.Duration(tokens) * uncached
	if r == (Reading{}) {
		return most, most
	}
	near := time.Duration(min(tokens, r.Longest))
	far := (time.Duration(tokens) - near) * max(uncached, slack*r.Token)
	if !r.Counted {
		return max(most, slack*r.Token*near+far), max(slack*r.Token, leastUncounted)*near + far
	}
	return max(patient*r.Token, slack*leastUncached)*near + far, max(slack*r.Token, leastUncached)*near + far
}
