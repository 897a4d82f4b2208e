package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// WarmUp has the engine load a model, in the way that it has for that, and returns when the model is loaded. No request of
// a client is needed:
//
//   - Ollama: POST /api/generate with the model and no prompt; for a model that does not generate text, POST /api/embed
//     without input.
//   - llama-swap: GET /upstream/<model>/health, which starts the model's server and waits for it.
//   - llama.cpp as a router: POST /models/load, and then GET /models until it is loaded.
//   - Any other engine, and one that does not have these or hides them: a chat of one token; for a model that does not chat,
//     an embedding of one token.
//
// It is safe to call while Run runs. An engine may stop loading when ctx ends. The error has the engine's own words.
func (s *Scraper) WarmUp(ctx context.Context, model string) error {
	var err error
	own := true
	switch s.Latest().Dialect {
	case DialectOllama:
		err = s.warmUpOllama(ctx, model)
	case DialectLlamaSwap: // the model's own server need not have this page
		_, err = s.call(ctx, http.MethodGet, "/upstream/"+escapePath(model)+"/health", nil)
	case DialectLlamaCpp:
		err = s.warmUpLlamaCpp(ctx, model)
	default:
		own, err = false, s.generateOne(ctx, model)
	}
	if own && hidden(err) && s.generateOne(ctx, model) == nil {
		return nil
	}
	if e, ok := errors.AsType[*statusError](err); ok {
		if said := strings.TrimSpace(string(e.body[:min(len(e.body), 200)])); said != "" {
			return fmt.Errorf("load model %q: %s: %s", model, e.status(), strings.ToValidUTF8(said, "\ufffd"))
		}
	}
	if err != nil {
		return fmt.Errorf("load model %q: %w", model, err)
	}
	return nil
}

// hidden reports whether the engine does not have a page, or something in front of it does not let it be used.
func hidden(err error) bool {
	e, ok := errors.AsType[*statusError](err)
	return ok && (e.code == http.StatusForbidden || e.code == http.StatusNotFound || e.code == http.StatusMethodNotAllowed || e.code == http.StatusNotImplemented)
}

func (s *Scraper) warmUpOllama(ctx context.Context, model string) error {
	_, err := s.call(ctx, http.MethodPost, "/api/generate", map[string]any{"model": model, "stream": false})
	if e, ok := errors.AsType[*statusError](err); ok && e.code == http.StatusBadRequest { // it does not generate text
		if _, embeds := s.call(ctx, http.MethodPost, "/api/embed", map[string]any{"model": model, "input": []string{}}); embeds == nil {
			return nil
		}
	}
	return err
}

// loadPoll is how often llama.cpp is asked whether it has loaded a model.
const loadPoll = 250 * time.Millisecond

// warmUpLlamaCpp loads a model of a router. A llama.cpp that is no router has its one model loaded.
func (s *Scraper) warmUpLlamaCpp(ctx context.Context, model string) error {
	_, err := s.call(ctx, http.MethodPost, "/models/load", map[string]any{"model": model})
	if e, ok := errors.AsType[*statusError](err); ok {
		if e.code != http.StatusBadRequest { // which means that it is loaded or being loaded
			return err
		}
	} else if err != nil {
		return err
	}
	poll := time.NewTicker(loadPoll)
	defer poll.Stop()
	for started := false; ; {
		page, err := s.call(ctx, http.MethodGet, "/models", nil)
		if err != nil {
			return err
		}
		var list modelList
		if err := json.Unmarshal(page, &list); err != nil {
			return fmt.Errorf("get %s/models: %w", s.base, err)
		}
		state := ""
		for _, m := range list.Data {
			if m.ID == model {
				state = m.Status.Value
			}
		}
		switch {
		case state == "loaded", state == "":
			return nil
		case state == "loading":
			started = true
		case started:
			return fmt.Errorf("its state is %q", state)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-poll.C:
		}
	}
}

// generateOne has the model generate one token.
func (s *Scraper) generateOne(ctx context.Context, model string) error {
	_, err := s.call(ctx, http.MethodPost, "/v1/chat/completions", map[string]any{
		"model": model, "max_tokens": 1, "messages": []any{map[string]any{"role": "user", "content": "."}},
	})
	e, ok := errors.AsType[*statusError](err)
	if !ok || e.code != http.StatusBadRequest && e.code != http.StatusNotFound && e.code != http.StatusUnprocessableEntity && e.code != http.StatusNotImplemented {
		return err
	}
	if _, embeds := s.call(ctx, http.MethodPost, "/v1/embeddings", map[string]any{"model": model, "input": "."}); embeds == nil {
		return nil
	}
	return err
}

// call sends a request with a body in JSON, if it has one, and returns the answer. It takes as long as ctx allows.
func (a asker) call(ctx context.Context, method, path string, body any) ([]byte, error) {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		content = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, a.base+path, content)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, shownError(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxPage))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		return nil, a.statusError(resp, method, a.base+path, answer)
	}
	return answer, nil
}

// escapePath escapes a model's name in a path. Its slashes stay.
func escapePath(name string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return strings.Join(parts, "/")
}
