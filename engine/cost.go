package engine

import (
	"sync"
	"time"
)

// askedShare is the part of an engine's time that all questions about itself may take together: one with a single thread answers
// no requests meanwhile.
const askedShare = 0.1

// costs are what the answers of an engine's pages cost it, and how often each may be asked for. It is safe for concurrent use.
type costs struct {
	mu    sync.Mutex
	pages map[string]*cost // by path
}

// cost is what one page costs.
type cost struct {
	took   time.Duration // the last answer, or the time that was waited for one
	usual  time.Duration // from one question to the next, if it cost nothing
	weight float64       // of its part of the time, where that is scarce
}

// The weights: what an engine runs matters most, since bids follow it; a page that has no answer in time has its health checked
// at once.
const (
	loadWeight   = 4.
	healthWeight = 2.
	listWeight   = 1.
)

// ask takes in that the answer of a page took so long. It returns the time from that answer to the next question.
func (c *costs) ask(path string, took, usual time.Duration, weight float64) (pause time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pages == nil {
		c.pages = make(map[string]*cost)
	}
	c.pages[path] = &cost{took, usual, weight}
	return max(usual, c.everyLocked(path)-took)
}

// forget drops all pages but one: the engine is another one.
func (c *costs) forget(keep string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for path := range c.pages {
		if path != keep {
			delete(c.pages, path)
		}
	}
}

// drop forgets a page that may not be asked for again: the others share its part of the time.
func (c *costs) drop(path string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pages, path)
}

// everyLocked returns the time from one question for a page to the next. Pages that take less than their part of the time are
// asked for as usual, and leave the rest to the others.
func (c *costs) everyLocked(path string) time.Duration {
	left, weights := askedShare, 0.
	slow := make(map[string]bool, len(c.pages))
	for path, p := range c.pages {
		slow[path] = true
		weights += p.weight
	}
	for again := true; again; {
		again = false
		for path := range slow {
			p := c.pages[path]
			if share := p.took.Seconds() / (p.usual + p.took).Seconds(); share <= left*p.weight/weights {
				left -= share
				weights -= p.weight
				delete(slow, path)
				again = true
			}
		}
	}
	p := c.pages[path]
	if !slow[path] {
		return p.usual + p.took
	}
	return time.Duration(float64(p.took) * weights / (left * p.weight))
}
