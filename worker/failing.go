package worker

import (
	"time"

	"github.com/pulley-lb/pulley/policy"
)

// failing are the served pools whose requests fail here, by name. An entry is gone with the next success. Presence owns
// it.
type failing map[string]*failingPool

// failingPool is one pool of failing.
type failingPool struct {
	policy.Failures
	reason string // of the last failure
	trial  bool   // after a pause, one request runs to find out whether the engine answers again
}

// onFailure counts a failure. began reports whether the worker pauses for the pool because of it, for the first time
// since the last success.
func (p *presence) onFailure(f failure, now time.Time) (began bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failing == nil {
		p.failing = make(failing)
	}
	fp := p.failing[f.pool]
	if fp == nil {
		fp = new(failingPool)
		p.failing[f.pool] = fp
	}
	if f.reason != "" {
		fp.reason = f.reason
	}
	var pauses bool
	switch {
	case f.setup:
		pauses = fp.Stop(now)
	case f.blamed:
		pauses = fp.Blame(now)
	default:
		pauses = fp.Add(f.request, now)
	}
	return pauses && fp.Pauses() == 1
}

// onAnswer forgets the failures of a pool, since a request of it was answered. It reports whether the worker had paused.
func (p *presence) onAnswer(pool string) (had bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fp := p.failing[pool]
	delete(p.failing, pool)
	return fp != nil && fp.Tried()
}

// begin notes that a request of a pool begins: while the pool is on trial, no other one may.
func (p *presence) begin(pool string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if fp := p.failing[pool]; fp != nil && fp.Tried() {
		fp.trial = true
	}
}

// endTrial notes that the request on trial has had the first byte of an answer, or has ended.
func (p *presence) endTrial(pool string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if fp := p.failing[pool]; fp != nil {
		fp.trial = false
	}
}

// shut returns the pools of which no request may begin now, because others have failed; nil if there are none.
func (p *presence) shut(now time.Time) (pools map[string]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, fp := range p.failing {
		if fp.Paused(now) || fp.trial {
			if pools == nil {
				pools = make(map[string]bool)
			}
			pools[name] = true
		}
	}
	return pools
}

// failures returns why the pools fail for which the worker has paused since their last success, by name.
func (p *presence) failures() (reasons map[string]string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, fp := range p.failing {
		if fp.Tried() {
			if reasons == nil {
				reasons = make(map[string]string)
			}
			reasons[name] = fp.reason
		}
	}
	return reasons
}
