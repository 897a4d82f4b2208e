package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
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
	l.Models, l.Status, l.Err = s.listModels(ctx)
	return l
}

func (s *Scraper) listModels(ctx context.Context) (models []string, status int, err error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.base+"/v1/models", nil)
	if err != nil {
		return nil, 0, err
	}
	if s.key != "" {
		r.Header.Set("Authorization", "Bearer "+s.key)
	}
	resp, err := s.client.Do(r)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxPage))
	if resp.StatusCode != http.StatusOK {
		return nil, resp.StatusCode, fmt.Errorf("GET /v1/models: %s", resp.Status)
	}
	if err != nil {
		return nil, resp.StatusCode, err
	}
	var list struct {
		Data []struct {
			ID string `json:"id"`
		} `json:"data"`
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, resp.StatusCode, fmt.Errorf("GET /v1/models: %w", err)
	}
	models = make([]string, 0, len(list.Data))
	for _, m := range list.Data {
		models = append(models, m.ID)
	}
	return models, resp.StatusCode, nil
}
