package engine

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pulley-lb/pulley/plain"
)

const (
	// period is the time from one scrape to the next, and maxBackoff the longest, of an engine that does not answer.
	period     = 500 * time.Millisecond
	maxBackoff = 5 * time.Second

	// absentFor is how long a page that an engine does not have is not asked for again.
	absentFor = 30 * time.Second
)

// ScraperConfig says what to scrape, and how often.
type ScraperConfig struct {
	// URL of the engine, with or without /v1: see ParseAddress. Required.
	URL string
	// Dialect of the engine. Default: detected, and detected again after the engine was away.
	Dialect Dialect
	// MetricsURL is where its metrics are, if not where the dialect has them. Default "".
	MetricsURL string
	// APIKey is sent to the engine as a bearer token. Default "", none: Client may have a Client that sends credentials.
	APIKey Secret
	// Client makes the requests. Default http.DefaultClient.
	Client *http.Client
	// OnStatus, if not nil, receives the result of every scrape, from within Run.
	OnStatus func(Status)
	// OnListing, if not nil, receives every answer to GET /v1/models, from within Run: one every 5 s while it returns true,
	// one every 0.5 s while it returns false, and one soon after each call of Look. Default nil: the models are not asked for.
	OnListing func(Listing) (good bool)
}

// A Scraper watches one engine: it reads its Status over and over. An engine that does not answer
// is asked less and less often, from period up to maxBackoff. Each page has a backoff of its own,
// so a broken /metrics does not delay the health check. Together, the questions take at most a tenth of the engine's time, those
// of Pulse included, as long as the caller does not ask for more by Look.
type Scraper struct {
	// Fixed after NewScraper.
	cfg ScraperConfig
	asker
	timeout time.Duration // of each request of a scrape
	look    chan struct{} // wakes listLoop; holds one
	doubted atomic.Bool   // see Doubt
	check   chan struct{} // wakes Run; holds one
	pulse   chan struct{} // wakes pulseLoop; holds one
	costs   costs

	// Owned by Run.
	dialect  Dialect
	meetAt   time.Time // when to detect the dialect again; zero: after the engine was away
	health   watched
	checked  Status // the result of the last health check alone
	rest     []*watched
	timeouts int       // consecutive timeouts of the health check
	late     time.Time // when the first of these was sent; zero: the last health check did not time out
	hurry    bool      // a page timed out: the health is checked at once, and no other page is read before
	body     bytes.Buffer

	mu          sync.Mutex // guards the fields below
	latest      Status
	latestPulse Pulse
	healthPage  healthPage
}

// NewScraper checks cfg and starts nothing.
func NewScraper(cfg ScraperConfig) (*Scraper, error) {
	if u := cfg.MetricsURL; u != "" {
		if parsed, err := url.Parse(u); err != nil || parsed.Scheme != "http" && parsed.Scheme != "https" || parsed.Host == "" {
			return nil, fmt.Errorf("MetricsURL: %q is not a URL such as http://127.0.0.1:8000/metrics", ShowURL(u))
		}
	}
	if cfg.Dialect != "" {
		d, err := ParseDialect(string(cfg.Dialect))
		if err != nil {
			return nil, fmt.Errorf("Dialect: %w", err)
		}
		cfg.Dialect = d
	}
	cfg.Client = cmp.Or(cfg.Client, http.DefaultClient)
	a, err := newAsker(cfg.Client, cfg.URL, cfg.APIKey)
	if err != nil {
		return nil, fmt.Errorf("URL: %w", err)
	}
	return &Scraper{
		cfg: cfg, asker: a, timeout: time.Second, look: make(chan struct{}, 1), check: make(chan struct{}, 1), pulse: make(chan struct{}, 1),
		latest: Status{Reason: "not asked yet"},
	}, nil
}

// Latest is the result of the last scrape. It is not healthy before the first one.
func (s *Scraper) Latest() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.latest
}

// Run scrapes until ctx ends, then returns nil.
func (s *Scraper) Run(ctx context.Context) error {
	var beside sync.WaitGroup
	defer beside.Wait()
	if s.cfg.OnListing != nil {
		beside.Go(func() { s.listLoop(ctx) })
	}
	beside.Go(func() { s.pulseLoop(ctx) })
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-s.check:
			s.health.next = time.Time{}
		}
		st := s.scrape(ctx)
		if ctx.Err() != nil {
			return nil
		}
		s.mu.Lock()
		s.latest = st
		s.mu.Unlock()
		if s.cfg.OnStatus != nil {
			s.cfg.OnStatus(st)
		}
		if s.hurry {
			timer.Reset(0)
			continue
		}
		timer.Reset(backoff(s.health.failures))
	}
}

// backoff is the time until the next attempt after so many consecutive failures.
func backoff(failures int) time.Duration {
	d := period
	for range min(failures-1, 16) {
		d = min(2*d, maxBackoff)
	}
	return d
}

// A watched page remembers its last result.
type watched struct {
	page
	next     time.Time // time of the next attempt
	failures int       // consecutive failures
	found    Status    // the last result
	at       time.Time // time of the last result; zero: none
}

// scrape reads everything that is due, and combines it with the earlier results.
func (s *Scraper) scrape(ctx context.Context) Status {
	if err := s.meet(ctx); err != nil {
		s.health.failures++
		return Status{Checked: time.Now(), Reason: plain.Error(err)}
	}
	asked := time.Now()
	if !s.hurry && s.health.failures == 0 && asked.Before(s.health.next) {
		st := s.checked
		s.combine(ctx, &st)
		return st
	}
	s.hurry = false
	was := s.Latest()
	away := s.health.failures > 0 && !was.Healthy
	err := s.read(ctx, &s.health)
	st := Status{Dialect: s.dialect, Checked: time.Now(), Took: time.Since(asked)}
	s.health.next = st.Checked.Add(s.costs.ask("health: "+s.health.path, st.Took, period, healthWeight))
	st.Healthy, st.Reason = s.judge(err, was)
	switch {
	case s.timeouts == 0:
		s.late = time.Time{}
	case s.late.IsZero():
		s.late = asked
	}
	st.Late = s.late
	if away && s.health.failures == 0 { // the engine that is back may be another one
		s.meetAt = time.Now()
		for _, w := range s.rest {
			w.next = time.Time{}
		}
		if s.meet(ctx) == nil && s.dialect != st.Dialect {
			return s.scrape(ctx)
		}
	}
	s.checked = st
	s.combine(ctx, &st)
	return st
}

// combine adds to the result of a health check those of the pages, and reads the pages that are due.
func (s *Scraper) combine(ctx context.Context, st *Status) {
	st.fill(s.health.found)
	for _, w := range s.rest {
		s.consult(ctx, w, st)
	}
	st.derive()
}

// meet detects the dialect if it is time to. A known dialect is kept until another one is certain.
func (s *Scraper) meet(ctx context.Context) error {
	if s.dialect != "" && (s.meetAt.IsZero() || time.Now().Before(s.meetAt)) {
		return nil
	}
	d, inTime := s.cfg.Dialect, true
	if d == "" {
		var err error
		if d, inTime, err = detect(ctx, s.asker); err != nil && s.dialect == "" {
			return err
		}
	}
	s.meetAt = time.Time{}
	if !inTime {
		s.meetAt = time.Now().Add(absentFor)
	}
	if s.dialect == "" || inTime && d != s.dialect {
		s.learn(d)
	}
	return nil
}

func (s *Scraper) learn(d Dialect) {
	s.costs.forget(listOfAll)
	health, rest := d.pages()
	s.dialect, s.health, s.rest = d, watched{page: health}, nil
	s.mu.Lock()
	s.healthPage = healthPage{cmp.Or(health.method, http.MethodGet), s.locate(health, s.cfg.MetricsURL)}
	s.mu.Unlock()
	for _, p := range rest {
		if p.port != "" && s.cfg.MetricsURL != "" {
			continue
		}
		s.rest = append(s.rest, &watched{page: p})
	}
}

// consult adds to st the current or the last result of a page. If the engine did not answer the
// health check, nothing more is read.
func (s *Scraper) consult(ctx context.Context, w *watched, st *Status) {
	answers := s.health.failures == 0 && !s.hurry
	switch {
	case answers && w.needless != nil && w.needless(*st):
		w.found, w.at = Status{}, time.Time{}
	case answers:
		s.visit(ctx, w)
	}
	if w.at.IsZero() {
		return
	}
	if w.every == 0 && (st.At.IsZero() || w.at.Before(st.At)) {
		st.At = w.at
	}
	st.fill(w.found)
	st.Healthy = st.Healthy && st.Reason == "" // a page may report that the engine is unhealthy
}

// judge derives the engine's health from the result of the health check. A busy engine may answer
// late, so only the second timeout in a row counts.
func (s *Scraper) judge(err error, was Status) (healthy bool, reason string) {
	late := err != nil && outOfTime(err)
	if !late {
		s.timeouts = 0
	}
	status, answered := errors.AsType[*statusError](err)
	switch {
	case err == nil:
		s.health.failures = 0
		return true, ""
	case late:
		s.timeouts++
		s.health.failures++
		if s.timeouts == 1 {
			return was.Healthy, was.Reason
		}
		return false, fmt.Sprintf("no answer to %s within %v", s.health.path, s.timeout)
	case answered && status.absent() && status.code != s.health.notReady && status.code != http.StatusUnauthorized && status.code != http.StatusForbidden:
		s.health.failures = 0 // the engine has no health page, but it answers
		return true, ""
	}
	s.health.failures++
	return false, plain.Error(err)
}

func (s *Scraper) visit(ctx context.Context, w *watched) {
	now := time.Now()
	if now.Before(w.next) {
		return
	}
	asked := now
	err := s.read(ctx, w)
	now = time.Now()
	weight := loadWeight
	if w.every > 0 { // it does not tell the load
		weight = listWeight
	}
	rest := s.costs.ask(w.path+w.port, now.Sub(asked), max(w.every, period), weight)
	status, answered := errors.AsType[*statusError](err)
	switch {
	case err == nil:
		w.failures, w.next = 0, now.Add(rest)
	case answered && status.absent():
		w.failures, w.next = 0, now.Add(absentFor)
		w.found, w.at = Status{}, time.Time{}
	default:
		w.failures++
		w.next = now.Add(max(backoff(w.failures), rest))
		s.hurry = outOfTime(err) // the engine may not answer anything any more
	}
}

func (s *Scraper) read(ctx context.Context, w *watched) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	at := time.Now() // the values may be as old as the request
	if _, err := s.ask(ctx, cmp.Or(w.method, http.MethodGet), s.locate(w.page, s.cfg.MetricsURL), &s.body); err != nil {
		return err
	}
	if w.read == nil {
		return nil
	}
	var found Status
	if err := w.read(s.body.Bytes(), &found); err != nil {
		return fmt.Errorf("get %s: %w", w.path, err)
	}
	w.found, w.at = found, at
	return nil
}
