package engine

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"html"
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
}

// newAsker returns an asker that sends the key, if there is one, or else the user and the password of the URL, if it has them.
func newAsker(client *http.Client, baseURL string, key Secret) (asker, error) {
	at, err := ParseAddress(baseURL)
	if err != nil {
		return asker{}, err
	}
	a := asker{client: client, base: at.URL}
	if key == "" && at.User == "" {
		return a, nil
	}
	rt := client.Transport
	if rt == nil {
		rt = http.DefaultTransport
	}
	c, err := NewClient(ClientConfig{URL: baseURL, Credentials: Credentials{Key: key}, RoundTripper: rt})
	if err != nil {
		return asker{}, err
	}
	with := *client
	with.Transport = c
	a.client = &with
	return a, nil
}

// A statusError is an answer with a status other than 200.
type statusError struct {
	method, url string // the URL as it may be shown
	code        int
	location    string // where a redirection leads to, as it may be shown
	body        []byte // the first bytes, without credentials
}

func (e *statusError) Error() string { return e.status() + afterStatus(e.body) }

// status is the error without the engine's words.
func (e *statusError) status() string {
	text := fmt.Sprintf("%s %s: %d %s", strings.ToLower(e.method), e.url, e.code, http.StatusText(e.code))
	if e.location != "" {
		text += ", to " + e.location
	}
	return text
}

// refusesCredentials reports whether the engine answered that it wants other credentials, or any.
func (e *statusError) refusesCredentials() bool {
	return e.code == http.StatusUnauthorized || e.code == http.StatusForbidden || e.code == http.StatusProxyAuthRequired
}

// A pageError is an answer that is a web page in place of JSON.
type pageError struct {
	asked string // what was asked for, as it may be shown
	title string
}

func (e *pageError) Error() string {
	if e.title == "" {
		return e.asked + ": an HTML page, not JSON"
	}
	return fmt.Sprintf("%s: an HTML page (%q), not JSON", e.asked, e.title)
}

// notJSON returns the error of an answer that should have been JSON and is not, given the error of the decoder.
func notJSON(asked string, body []byte, err error) error {
	if body = bytes.TrimLeft(bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")), " \t\r\n"); len(body) > 0 && body[0] == '<' {
		return &pageError{asked, titleOf(body)}
	}
	return fmt.Errorf("%s: %w", asked, err)
}

// titleOf returns the title of a web page, cut to 60 characters; empty if it has none.
func titleOf(page []byte) string {
	page = bytes.ToValidUTF8(page[:min(len(page), 8<<10)], nil)
	lower := bytes.ToLower(page)
	start := bytes.Index(lower, []byte("<title"))
	if start < 0 || len(lower) != len(page) {
		return ""
	}
	open := bytes.IndexByte(lower[start:], '>')
	end := bytes.Index(lower[start:], []byte("</title"))
	if open < 0 || end < open {
		return ""
	}
	title := []rune(strings.Join(strings.Fields(html.UnescapeString(string(page[start+open+1:start+end]))), " "))
	return string(title[:min(len(title), 60)])
}

// Trouble is the kind of obstacle between a worker and its engine, for those that someone has to remove.
type Trouble string

// The kinds of obstacles. Any other, such as an engine that does not run, is the zero value.
const (
	TroubleCredentials Trouble = "credentials" // the engine refuses the credentials
	TroubleCertificate Trouble = "certificate" // the engine's certificate is not trusted, or it refuses the worker's
	TroublePage        Trouble = "page"        // what answers at the URL is not an engine: a web page, a redirection, no such path
)

// TroubleOf returns the kind of obstacle that made a call fail.
func TroubleOf(err error) Trouble {
	if status, ok := errors.AsType[*statusError](err); ok {
		switch {
		case status.refusesCredentials():
			return TroubleCredentials
		case status.code == http.StatusNotFound || status.code >= 300 && status.code < 400:
			return TroublePage
		}
	}
	if _, ok := errors.AsType[*pageError](err); ok {
		return TroublePage
	}
	if _, alert := errors.AsType[tls.AlertError](err); alert || untrusted(err) {
		return TroubleCertificate
	}
	return ""
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

// ask reads one page into buf, up to maxPage bytes, and returns the answer; nil if there was none.
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
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, shownError(err)
	}
	defer resp.Body.Close()
	buf.Reset()
	if _, err := buf.ReadFrom(io.LimitReader(resp.Body, maxPage+1)); err != nil {
		return resp, fmt.Errorf("get %s: %w", ShowURL(url), err)
	}
	if resp.StatusCode != http.StatusOK {
		return resp, a.statusError(resp, method, url, buf.Bytes())
	}
	if buf.Len() > maxPage {
		return resp, fmt.Errorf("get %s: more than %d MiB", ShowURL(url), maxPage>>20)
	}
	return resp, nil
}

// statusError returns the error of an answer. Some engines repeat the key that they refuse: it is left out.
func (a asker) statusError(resp *http.Response, method, url string, body []byte) *statusError {
	said := a.conceal(string(body[:min(len(body), 4<<10)]))
	return &statusError{method, ShowURL(url), resp.StatusCode, ShowURL(resp.Header.Get("Location")), []byte(said[:min(len(said), 1024)])}
}

// shownError returns the error of a call without what must not be shown of its URL.
func shownError(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		e.URL = ShowURL(e.URL)
	}
	return err
}

// conceal returns what an engine has said, without the credentials that it was sent.
func (a asker) conceal(said string) string {
	if c, ok := a.client.Transport.(*Client); ok {
		return c.Conceal(said)
	}
	return said
}

// get reads the JSON at path into v.
func (a asker) get(ctx context.Context, path string, v any) error {
	var buf bytes.Buffer
	if _, err := a.ask(ctx, http.MethodGet, a.base+path, &buf); err != nil {
		return err
	}
	if err := json.Unmarshal(buf.Bytes(), v); err != nil {
		return notJSON("get "+a.base+path, buf.Bytes(), err)
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
