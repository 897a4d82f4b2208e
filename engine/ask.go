package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// maxPage bounds how much of an engine's page is read. vLLM's metrics page has about 100 kB.
const maxPage = 4 << 20

// An asker gets pages from one engine.
type asker struct {
	client *http.Client
	base   string // without a trailing slash or /v1
	key    string
}

func newAsker(client *http.Client, baseURL, key string) asker {
	return asker{client: client, base: strings.TrimSuffix(strings.TrimRight(baseURL, "/"), "/v1"), key: key}
}

// A statusError is an answer with a status other than 200.
type statusError struct {
	method, url string
	code        int
	body        []byte // the first bytes
}

func (e *statusError) Error() string { return e.status() + afterStatus(e.body) }

// status is the error without the engine's words.
func (e *statusError) status() string {
	return fmt.Sprintf("%s %s: %d %s", strings.ToLower(e.method), e.url, e.code, http.StatusText(e.code))
}

// afterStatus is the text of an error in JSON, to be put after a status; "" if there is none, or it is long.
func afterStatus(body []byte) string {
	var outer struct {
		Error  json.RawMessage `json:"error"`
		Detail string          `json:"detail"`
	}
	if json.Unmarshal(body, &outer) != nil {
		return ""
	}
	text := outer.Detail
	var inner struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(outer.Error, &inner) == nil {
		text = inner.Message
	} else {
		json.Unmarshal(outer.Error, &text)
	}
	if text == "" || len(text) > 100 || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' }) {
		return ""
	}
	return ": " + text
}

// absent reports whether the engine answered that it has no such page.
func (e *statusError) absent() bool {
	switch e.code {
	case http.StatusRequestTimeout, http.StatusTooManyRequests:
		return false
	case http.StatusNotImplemented: // llama.cpp without --metrics
		return true
	}
	return e.code >= 400 && e.code < 500
}

// ask reads one page into buf, up to maxPage bytes, and returns the answer; nil if there was none. The API key is sent
// only to the engine itself.
func (a asker) ask(ctx context.Context, method, url string, buf *bytes.Buffer) (*http.Response, error) {
	var body io.Reader
	if method == http.MethodPost {
		body = strings.NewReader("{}")
	}
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if a.key != "" && strings.HasPrefix(url, a.base+"/") {
		req.Header.Set("Authorization", "Bearer "+a.key)
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	buf.Reset()
	if _, err := buf.ReadFrom(io.LimitReader(resp.Body, maxPage+1)); err != nil {
		return resp, fmt.Errorf("get %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return resp, &statusError{method, url, resp.StatusCode, bytes.Clone(buf.Bytes()[:min(buf.Len(), 1024)])}
	}
	if buf.Len() > maxPage {
		return resp, fmt.Errorf("get %s: more than %d MiB", url, maxPage>>20)
	}
	return resp, nil
}

// get reads the JSON at path into v.
func (a asker) get(ctx context.Context, path string, v any) error {
	var buf bytes.Buffer
	if _, err := a.ask(ctx, http.MethodGet, a.base+path, &buf); err != nil {
		return err
	}
	if err := json.Unmarshal(buf.Bytes(), v); err != nil {
		return fmt.Errorf("get %s%s: %w", a.base, path, err)
	}
	return nil
}

// locate is the URL of a page: on the engine, on another port of its host, or where the caller said
// that its metrics are.
func (a asker) locate(p page, metricsURL string) string {
	if p.scrape && metricsURL != "" {
		return metricsURL
	}
	if p.port == "" {
		return a.base + p.path
	}
	u, err := url.Parse(a.base)
	if err != nil {
		return a.base + p.path
	}
	u.Host, u.Path = net.JoinHostPort(u.Hostname(), p.port), p.path
	return u.String()
}

// outOfTime reports whether an engine did not answer in time, which may mean that it is busy.
func outOfTime(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}
