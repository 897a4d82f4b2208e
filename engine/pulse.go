package engine

import (
	"bytes"
	"context"
	"errors"
	"time"
)

const (
	// pulseEvery is the shortest time from one answer of Pulse to the next question.
	pulseEvery = 250 * time.Millisecond
	// pulseTimeout is how long an answer is awaited. A question that waits costs an engine nothing more.
	pulseTimeout = 10 * time.Second
	pulses       = "pulses" // in costs
)

// A Pulse is what the last question of Scraper.Pulse showed. The zero value is that of an engine that was never asked.
type Pulse struct {
	Asked    time.Time // when the question was sent
	Answered time.Time // when its answer came, whatever that was; zero: there is none yet
}

// Pulse makes Run ask for the engine's health now, beside its scrapes, to find out soon whether an engine whose requests are
// silent answers anything. It does not wait for the answer: see LatestPulse. While a question has no answer, there is no
// other, and like the scrapes they take at most their part of the engine's time, so that a call may have no effect.
func (s *Scraper) Pulse() {
	select {
	case s.pulse <- struct{}{}:
	default:
	}
}

// LatestPulse returns what is known of the last question of Pulse.
func (s *Scraper) LatestPulse() Pulse {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.latestPulse
}

// pulseLoop asks for the health when Pulse was called, until ctx ends.
func (s *Scraper) pulseLoop(ctx context.Context) {
	var body bytes.Buffer
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.pulse:
		}
		s.mu.Lock()
		health := s.healthPage
		s.mu.Unlock()
		if health.url == "" { // it never answered
			continue
		}
		asked := time.Now()
		s.onPulse(Pulse{Asked: asked})
		err := s.askHealth(ctx, health, &body)
		p := Pulse{asked, time.Now()}
		took := p.Answered.Sub(asked)
		if err != nil && outOfTime(err) { // what this showed is known; the scrapes go on
			p, took = Pulse{}, s.timeout // what it costs the engine is not known: as with the scrapes
		}
		s.onPulse(p)
		rest := s.costs.ask(pulses, took, pulseEvery, healthWeight)
		select {
		case <-ctx.Done():
			return
		case <-time.After(rest):
		}
		s.costs.drop(pulses)
		select { // of a call meanwhile
		case <-s.pulse:
		default:
		}
	}
}

func (s *Scraper) askHealth(ctx context.Context, health healthPage, body *bytes.Buffer) error {
	ctx, cancel := context.WithTimeout(ctx, pulseTimeout)
	defer cancel()
	_, err := s.ask(ctx, health.method, health.url, body)
	if _, answered := errors.AsType[*statusError](err); answered {
		return nil
	}
	return err
}

func (s *Scraper) onPulse(p Pulse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.latestPulse = p
}
