package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

const (
	listEvery   = 5 * time.Second        // while the engine's answers are good
	listAgain   = 500 * time.Millisecond // while they are not
	listTimeout = 2 * time.Second
)

// A Listing is an engine's answer to GET /v1/models. Every engine has that page, whatever its dialect, and answers it by the
// same way as requests: an engine that lists its models can be called.
type Listing struct {
	Asked  time.Time // when the question was sent
	Status int       // HTTP status of the answer; 0 if there was none
	Models []string  // names in the order of the engine; nil with Err
	Err    error     // why there is no list: no answer, a status other than 200, or another body
}

// Look makes Run ask for the models now. If a question is under way, another one follows it, since the answer to the first
// may be older than what made the caller look.
func (s *Scraper) Look() {
	select {
	case s.look <- struct{}{}:
	default:
	}
}

// listLoop asks for the models until ctx ends. It runs beside the scrapes: neither waits for the other's answers.
func (s *Scraper) listLoop(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-s.look:
		}
		l := s.list(ctx)
		if ctx.Err() != nil {
			return
		}
		if s.cfg.OnListing(l) {
			timer.Reset(listEvery)
		} else {
			timer.Reset(listAgain)
		}
	}
}

func (s *Scraper) list(ctx context.Context) Listing {
	l := Listing{Asked: time.Now()}
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	var body bytes.Buffer
	resp, err := s.ask(ctx, http.MethodGet, s.base+"/v1/models", &body)
	if resp != nil {
		l.Status = resp.StatusCode
	}
	if err == nil {
		l.Models, err = modelNames(body.Bytes())
	}
	if l.Err = err; l.Status != 0 && l.Status != http.StatusOK {
		l.Err = fmt.Errorf("GET /v1/models: %s", resp.Status)
	}
	return l
}

func modelNames(page []byte) ([]string, error) {
	var list struct {
		Data []struct {
			ID string `json:"id"`
		} `json:"data"`
	}
	if err := json.Unmarshal(page, &list); err != nil {
		return nil, fmt.Errorf("GET /v1/models: %w", err)
	}
	names := make([]string, 0, len(list.Data))
	for _, m := range list.Data {
		names = append(names, m.ID)
	}
	return names, nil
}
