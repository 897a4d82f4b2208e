package engine

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// absentFor is how long a page that an engine does not have is not asked for again.
const absentFor = 30 * time.Second

// ScraperConfig says what to scrape, and how often.
type ScraperConfig struct {
	// URL of the engine, with or without /v1. Required.
	URL string
	// Dialect of the engine. Default: what Detect finds, anew when the engine was away.
	Dialect Dialect
	// MetricsURL is where its metrics are, if they are not where the dialect has them. Default "".
	MetricsURL string
	// APIKey is what the engine wants as a bearer token. Default "", none.
	APIKey string
	// Client makes the requests. Default http.DefaultClient.
	Client *http.Client
	// Period is the time from one scrape to the next. Default 500ms.
	Period time.Duration
	// Timeout bounds each of a scrape's requests. Default 1s.
	Timeout time.Duration
	// MaxBackoff is the longest time between two scrapes of an engine that does not answer. Default 5s.
	MaxBackoff time.Duration
	// OnStatus, if not nil, hears of every scrape, good or bad, from within Run.
	OnStatus func(Status)
	// OnListing, if not nil, gets every answer to GET /v1/models, from within Run: one every 5 s while it returns true, one
	// every 0.5 s while it returns false, and one soon after each call of Look. Default nil: the question is not asked.
	OnListing func(Listing) (good bool)
	// Logger hears when the engine is healthy and when it is not. Default nil, silent.
	Logger *slog.Logger
}

// A Scraper watches one engine: it reads its Status over and over. While an engine does not answer, it is asked ever more
// seldom, from Period up to MaxBackoff; each of its pages by itself, so that a broken /metrics does not slow down the
// question for its health.
type Scraper struct {
	// Fixed after NewScraper.
	cfg ScraperConfig
	asker
	look chan struct{} // wakes listLoop; holds one

	// Owned by Run.
	dialect  Dialect
	meetAt   time.Time // when to find out the dialect again; zero: when the engine was away
	health   watched
	rest     []*watched
	timeouts int // of the health question, in a row
	body     bytes.Buffer

	mu     sync.Mutex // guards:
	latest Status
}

// NewScraper checks cfg and starts nothing.
func NewScraper(cfg ScraperConfig) (*Scraper, error) {
	for name, u := range map[string]string{"URL": cfg.URL, "MetricsURL": cfg.MetricsURL} {
		if u == "" && name == "MetricsURL" {
			continue
		}
		if parsed, err := url.Parse(u); err != nil || parsed.Scheme != "http" && parsed.Scheme != "https" || parsed.Host == "" {
			return nil, fmt.Errorf("%s: %q is no URL such as http://127.0.0.1:8000", name, u)
		}
	}
	if cfg.Dialect != "" {
		d, err := ParseDialect(string(cfg.Dialect))
		if err != nil {
			return nil, fmt.Errorf("Dialect: %w", err)
		}
		cfg.Dialect = d
	}
	for field, d := range map[string]time.Duration{"Period": cfg.Period, "Timeout": cfg.Timeout, "MaxBackoff": cfg.MaxBackoff} {
		if d < 0 {
			return nil, fmt.Errorf("%s: %v is negative", field, d)
		}
	}
	cfg.Client = cmp.Or(cfg.Client, http.DefaultClient)
	cfg.Period = cmp.Or(cfg.Period, FreshFor/4)
	cfg.Timeout = cmp.Or(cfg.Timeout, time.Second)
	cfg.MaxBackoff = max(cmp.Or(cfg.MaxBackoff, 5*time.Second), cfg.Period)
	cfg.Logger = cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler))
	return &Scraper{
		cfg: cfg, asker: newAsker(cfg.Client, cfg.URL, cfg.APIKey), look: make(chan struct{}, 1), latest: Status{Reason: "not asked yet"},
	}, nil
}

// Latest is what the last scrape found. It is never healthy before the first one.
func (s *Scraper) Latest() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.latest
}

// Run scrapes until ctx ends, and then returns nil.
func (s *Scraper) Run(ctx context.Context) error {
	var listing sync.WaitGroup
	defer listing.Wait()
	if s.cfg.OnListing != nil {
		listing.Go(func() { s.listLoop(ctx) })
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		st := s.scrape(ctx)
		if ctx.Err() != nil {
			return nil
		}
		s.publish(st)
		timer.Reset(s.backoff(s.health.failures))
	}
}

func (s *Scraper) publish(st Status) {
	s.mu.Lock()
	was := s.latest
	s.latest = st
	s.mu.Unlock()
	switch {
	case st.Healthy && !was.Healthy:
		s.cfg.Logger.Info("engine is healthy", "engine", s.base, "dialect", st.Dialect)
	case !st.Healthy && (was.Healthy || was.Checked.IsZero()):
		s.cfg.Logger.Warn("engine is not healthy", "engine", s.base, "reason", st.Reason)
	}
	if s.cfg.OnStatus != nil {
		s.cfg.OnStatus(st)
	}
}

// backoff is the time until an engine or a page is asked again that has failed so often in a row.
func (s *Scraper) backoff(failures int) time.Duration {
	d := s.cfg.Period
	for range min(failures-1, 16) {
		d = min(2*d, s.cfg.MaxBackoff)
	}
	return d
}

// A watched page knows what was read there last.
type watched struct {
	page
	next     time.Time // when it is to be asked for again
	failures int       // in a row
	found    Status    // what it told
	at       time.Time // and when; zero: it has told nothing
}

// scrape asks for all that is due, and puts together what there is.
func (s *Scraper) scrape(ctx context.Context) Status {
	if err := s.meet(ctx); err != nil {
		s.health.failures++
		return Status{Checked: time.Now(), Reason: err.Error()}
	}
	was := s.Latest()
	away := s.health.failures > 0 && !was.Healthy
	err := s.read(ctx, &s.health)
	st := Status{Dialect: s.dialect, Checked: time.Now()}
	st.Healthy, st.Reason = s.judge(err, was)
	if away && s.health.failures == 0 { // what is back may be another engine
		s.meetAt = time.Now()
		for _, w := range s.rest {
			w.next = time.Time{}
		}
		if s.meet(ctx) == nil && s.dialect != st.Dialect {
			return s.scrape(ctx)
		}
	}
	st.fill(s.health.found)
	for _, w := range s.rest {
		s.consult(ctx, w, &st)
	}
	st.derive()
	return st
}

// meet finds out the dialect, if it is time to. One that was known already stays so until another one is sure.
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

// learn turns to the pages of a dialect.
func (s *Scraper) learn(d Dialect) {
	health, rest := d.pages()
	s.dialect, s.health, s.rest = d, watched{page: health}, nil
	for _, p := range rest {
		if p.port != "" && s.cfg.MetricsURL != "" {
			continue
		}
		s.rest = append(s.rest, &watched{page: p})
	}
}

// consult adds to st what a page says, or last said. An engine that did not answer is not asked for more.
func (s *Scraper) consult(ctx context.Context, w *watched, st *Status) {
	answers := s.health.failures == 0
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
	st.Healthy = st.Healthy && st.Reason == "" // it may answer, and say that it is not well
}

// judge says how the engine is, by what came of the question for its health. An engine that is busy may answer late, so
// that only the second answer in a row that does not come in time says something.
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
		return false, fmt.Sprintf("no answer to %s within %v", s.health.path, s.cfg.Timeout)
	case answered && status.absent() && status.code != http.StatusUnauthorized && status.code != http.StatusForbidden:
		s.health.failures = 0 // it has no such question, and answers
		return true, ""
	}
	s.health.failures++
	return false, err.Error()
}

// visit asks for a page if it is time to.
func (s *Scraper) visit(ctx context.Context, w *watched) {
	now := time.Now()
	if now.Before(w.next) {
		return
	}
	err := s.read(ctx, w)
	now = time.Now()
	status, answered := errors.AsType[*statusError](err)
	switch {
	case err == nil:
		w.failures, w.next = 0, now.Add(w.every)
	case answered && status.absent():
		w.failures, w.next = 0, now.Add(absentFor)
		w.found, w.at = Status{}, time.Time{}
	default:
		w.failures++
		w.next = now.Add(s.backoff(w.failures))
		s.cfg.Logger.Debug("engine page", "engine", s.base, "err", err)
	}
}

// read asks for a page and takes what it says.
func (s *Scraper) read(ctx context.Context, w *watched) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	at := time.Now() // what it says may be as old as that
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
