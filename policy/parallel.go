package policy

import "time"

// Parallel finds out how many requests an engine runs at once where nobody says so. It is not safe for concurrent use; the
// zero value knows nothing.
//
// # What shows it
//
// An engine that runs N at once and has more shows N running and the rest waiting for as long as that lasts. So the most
// that were ever seen running is what it can do at least; and if others wait while it runs exactly so many, that is its
// number, unless they wait for something else:
//
//	for the next step of the engine   vLLM counts a request as waiting until then: one scrape proves nothing
//	for prompts ahead of them         there are requests beside the waiting ones that have no first token yet
//	for room in the KV cache          it is more than 70 % full, or has no room for a request four times as large as the mean, or
//	                                  a request was preempted, and since then there was always one that waited
//
// So two scrapes within 5 s have to show the same number. If the engine has run more before, without a restart that its
// counters show, ten of them in a row have to.
//
// An engine that reports nothing shows the same in its streams: those that have had a first token run, and the others wait or
// are being read. If it runs N at once, each first token follows the end of another stream, and after it N streams run while
// others still wait. Three such first tokens are enough; one that leaves fewer running counts against it. If twenty of them leave
// fewer running than were seen before, and there was always one that waited, the engine has changed. Of answers that are not streamed only their order is seen: those
// that an answer overtakes ran beside it. If the engine runs all M that it has, the youngest of them is the next to end about once
// in M answers. So if in 8·(N+1) answers, with more than N requests at the engine, none has overtaken more than N-1 others but
// three have overtaken so many, the engine runs N. Answers of one length end nearly in their order, which says nothing: N has to be
// 4 at least, and two thirds of the requests at the engine.
//
// # Until it is known
//
// A worker goes no further beyond what it has seen running than by a quarter, and by one at least: so of the requests that it
// has sent, no more than that wait in the engine before the number is known.
//
// # When it changes
//
// Once the number is known, one request more is tried now and then: after 15 s with all of them running, and after twice as
// long each time, up to 10 min, while the number is confirmed. If the engine runs it, the number is forgotten, and the worker
// goes further. After a restart of the engine the number stays, and is tried after 2 s.
//
// # Beside a reserve
//
// Of tiers that leave a part of the capacity free for those above, only requests of the latter would ever show that the engine
// runs more, and each that is tried waits in the engine: with three engines of 16, 8 and 4 that was one in a hundred, their p99.
// So beside a reserve a number that was confirmed is tried every 10 min, and for the trial, 10 s at most, the tiers below fill the
// reserve too (see Whole).
type Parallel struct {
	found int // 0: unknown
	seen  int // most that were seen running since the engine started

	running int       // at the last sign of a ceiling
	signs   int       // of that
	signAt  time.Time // of the last of them

	firsts int // of the last first tokens: how many there were beside requests that waited
	most   int // most streams that ran then, or at any first token between

	answers int // since seen has changed, with more requests at the engine than that
	tops    int // of these: that have overtaken as many others as any

	preempted float64 // by the last scrape
	short     bool    // a request was preempted since none waited

	trying bool
	tryAt  time.Time     // when one more may be tried
	every  time.Duration // how long after that again
	unsure bool          // the number was not confirmed since the engine or the worker started

	reserved int       // of the number: what some tiers leave free
	tryUntil time.Time // beside a reserve
}

const (
	signsScraped  = 2 // in scrapes, for a number that is the most that were seen
	signsLess     = 10
	signsStreamed = 3
	signsAnswered = 8 // times one more than the number
	answeredPart  = 2.0 / 3
	answeredLeast = 4
	firstsLess    = 20 // first tokens after which what was seen before counts no more
	signsWithin   = 5 * time.Second

	// reachPart is the part of what was seen running by which a worker goes further.
	reachPart = 4

	tryFirst = 15 * time.Second
	tryMost  = 10 * time.Minute
	tryAnew  = 2 * time.Second // after a restart
	tryFor   = 10 * time.Second
)

// Found is how many requests the engine runs at once; 0 if that is not known.
func (p *Parallel) Found() int { return p.found }

// Bound is how many requests the engine may have: Found, or one more while that is tried; 0 if that is not known.
func (p *Parallel) Bound() int {
	if p.found > 0 && p.trying {
		return p.found + 1
	}
	return p.found
}

// Whole reports whether one more is being tried beside a reserve, which the tiers below have to fill for that.
func (p *Parallel) Whole() bool { return p.trying && p.reserved > 0 }

// Reserve takes in how much of the capacity some tiers with requests leave free for those above: see [Signals.Reserved].
func (p *Parallel) Reserve(n int, now time.Time) {
	p.reserved = n
	if p.Whole() && now.After(p.tryUntil) {
		p.tried(now)
	}
}

// Reach is how many requests the engine may have while it is not known how many it runs at once; at least start.
func (p *Parallel) Reach(start int) int {
	return max(start, p.seen+max((p.seen+reachPart-1)/reachPart, 1))
}

// ReachWithReserve is Reach with a reserve that the tiers below leave free, so that it does not keep them from going that far. It
// is Reach alone until all that the reserve leaves was seen running.
func (p *Parallel) ReachWithReserve(start int) int {
	reach := p.Reach(start)
	if p.seen < reach-p.reserved {
		return reach
	}
	return min(reach+p.reserved, 2*reach)
}

// Recall takes in a number that was found before the worker started. It counts until the engine shows another one.
func (p *Parallel) Recall(found int, now time.Time) {
	if p.found == 0 && p.seen <= found {
		p.found = max(found, 0)
		p.tryAt, p.every, p.unsure = now.Add(tryAnew), tryFirst, true
	}
}

// Restart handles a restart of the engine, which may run another number now.
func (p *Parallel) Restart(now time.Time) {
	*p = Parallel{found: p.found, tryAt: now.Add(tryAnew), every: tryFirst, unsure: true, reserved: p.reserved, preempted: p.preempted}
}

// Scraped takes in a scrape of the engine.
func (p *Parallel) Scraped(s Scrape, now time.Time) {
	waiting, known := s.Waiting.Value()
	if !known {
		return
	}
	waits := int(waiting)
	running := max(s.InFlight-waits, 0) // of an engine that reports only how many wait
	if n, known := s.Running.Value(); known {
		running = int(n)
	}
	used, known := s.KVUsed.Value()
	full := known && (used > kvShrinkFrom || used+largeFactor*s.Request > kvFull)
	if n, known := s.Preempted.Value(); known {
		p.short = waits >= 1 && (p.short || n > p.preempted)
		p.preempted = n
	}
	switch p.see(running, now); {
	case waits < 1 && running < p.seen:
		p.signs = 0
	case waits < 1:
	case running < 1 || full || p.short || s.Prefilling > waits:
	case running >= p.seen:
		p.sign(running, signsScraped, now)
	default:
		p.sign(running, signsLess, now)
	}
}

// FirstToken takes in the first token of a stream of an engine that does not report its load. running is how many streams run
// now, this one included, and waiting how many have no first token yet. afterEnd says that another request has ended since this
// one began, and longer ago than the engine takes for a prompt.
func (p *Parallel) FirstToken(running, waiting int, afterEnd bool, now time.Time) {
	p.see(running, now)
	p.most = max(p.most, running)
	if waiting < 1 { // it runs all that it has
		p.firsts, p.most = 0, 0
	}
	if waiting < 1 || !afterEnd {
		return
	}
	if p.firsts++; p.firsts == firstsLess {
		if p.most < p.seen { // it is another engine now
			p.found, p.seen, p.signs = 0, p.most, 0
		}
		p.firsts, p.most = 0, 0
	}
	switch {
	case running < p.seen:
		p.signs = max(p.signs-1, 0)
	default:
		p.signAt = now // there may be minutes between two of them
		p.sign(running, signsStreamed, now)
	}
}

// Answered takes in the end of an answer of an engine that does not report its load. older is how many requests that began
// before this one still run or wait: since engines begin them in their order, all of those ran beside it. others is how many
// requests there are beside it in all.
func (p *Parallel) Answered(older, others int, now time.Time) {
	was := p.seen
	p.see(older+1, now)
	if p.seen != was {
		p.answers, p.tops = 0, 0
	}
	if others < p.seen || p.seen < answeredLeast || answeredPart*float64(others+1) > float64(p.seen) {
		return
	}
	p.answers++
	if older+1 == p.seen {
		p.tops++
	}
	if p.answers >= signsAnswered*(p.seen+1) && p.tops >= signsStreamed {
		p.answers, p.tops = 0, 0
		p.shows(p.seen, now)
	}
}

// see takes in that so many requests run.
func (p *Parallel) see(running int, now time.Time) {
	p.seen = max(p.seen, running)
	switch {
	case p.found == 0:
	case running > p.found:
		*p = Parallel{seen: running, reserved: p.reserved, preempted: p.preempted}
	case !p.trying && running >= p.found-p.reserved && !now.Before(p.due()):
		p.trying, p.tryUntil = true, now.Add(tryFor)
	}
}

// due is when one more may be tried.
func (p *Parallel) due() time.Time {
	if p.reserved > 0 && !p.unsure {
		return p.tryAt.Add(tryMost - p.every)
	}
	return p.tryAt
}

// tried handles the end of a trial that did not show that the engine runs more.
func (p *Parallel) tried(now time.Time) {
	p.every = min(2*p.every, tryMost)
	p.trying, p.unsure, p.tryAt = false, false, now.Add(p.every)
}

// sign takes in that others wait while so many run. enough is how many such signs it takes.
func (p *Parallel) sign(running, enough int, now time.Time) {
	if running != p.running || now.Sub(p.signAt) > signsWithin {
		p.signs = 0
	}
	p.running, p.signAt = running, now
	if p.signs++; p.signs < enough {
		return
	}
	p.signs = 0
	p.shows(running, now)
}

// shows takes in that the engine runs so many requests at once, and no more.
func (p *Parallel) shows(running int, now time.Time) {
	switch {
	case running != p.found:
		p.found, p.seen = running, running
		p.every, p.trying, p.unsure, p.tryAt = tryFirst, false, false, now.Add(tryFirst)
	case p.trying:
		p.seen = running
		p.tried(now)
	}
}
