package engine

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// ClientConfig says how an engine is called.
type ClientConfig struct {
	// URL is the engine's base URL: see ParseAddress. Its user and password are added to Credentials. Required.
	URL         string
	Credentials Credentials
	TLS         TLS
	// Transport has the settings of connections. Default those of net/http, without a proxy.
	Transport *http.Transport
	// RoundTripper makes the calls instead; TLS and Transport are not used then. Default nil.
	RoundTripper http.RoundTripper
	// Logger gets a line when a file with a key or a certificate has changed, or cannot be read any more. Default: silent.
	Logger *slog.Logger
}

// A Client calls one engine as an [http.RoundTripper]. It adds the credentials to calls of the engine's own address, and
// to no others. Files with keys and certificates are read again when they have changed. If the engine refuses a key (401 or
// 403) that came from a file, the file is read again at once, and the call is made again with the key that it has now, and
// then with the one that it had before: so neither order of changing the file and the engine fails a call.
type Client struct {
	// Fixed after NewClient.
	scheme, host string            // of the engine
	url          string            // of the engine, as it may be shown
	next         http.RoundTripper // nil: tls
	keys         *keys             // nil: there are no credentials
	tls          *tlsTransport     // nil: next
	log          *slog.Logger
}

// NewClient checks cfg and reads the files that it names. It calls nothing.
func NewClient(cfg ClientConfig) (*Client, error) {
	a, err := ParseAddress(cfg.URL)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(a.URL)
	if err != nil {
		return nil, err
	}
	c := &Client{scheme: u.Scheme, host: u.Host, url: a.URL, next: cfg.RoundTripper, log: cfg.Logger}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	credentials, err := cfg.Credentials.With(a)
	if err != nil {
		return nil, err
	}
	if c.keys, err = newKeys(credentials); err != nil {
		return nil, err
	}
	if c.next != nil {
		return c, nil
	}
	if cfg.Transport == nil {
		cfg.Transport = new(http.Transport)
	}
	if err := cfg.TLS.check(); err != nil {
		return nil, err
	}
	if cfg.TLS.Given() {
		if u.Scheme != "https" {
			return nil, errors.New("settings of TLS need a URL with https")
		}
		if c.tls, err = newTLSTransport(cfg.TLS, cfg.Transport); err != nil {
			return nil, err
		}
		return c, nil
	}
	c.next = NewTransport(a.URL, cfg.Transport)
	return c, nil
}

// RoundTrip implements [http.RoundTripper].
func (c *Client) RoundTrip(r *http.Request) (*http.Response, error) {
	if c.keys == nil || r.URL.Scheme != c.scheme || r.URL.Host != c.host {
		return c.send(r)
	}
	now := time.Now()
	c.tell(c.keys.refresh(false, now), "key", c.keys.file)
	header := c.keys.header(now)
	tried := make([]string, 0, 3)
	for {
		resp, err := c.send(authorized(r, header))
		if err != nil {
			return resp, err
		}
		if resp.StatusCode != http.StatusUnauthorized && resp.StatusCode != http.StatusForbidden {
			certain := resp.StatusCode < 300 && r.Method == http.MethodPost
			if certain || len(tried) > 0 {
				c.keys.onAccepted(header, certain, len(tried) > 0, now)
			}
			return resp, nil
		}
		if c.keys.file == "" || r.GetBody == nil && r.Body != nil && r.Body != http.NoBody {
			return resp, nil
		}
		c.tell(c.keys.refresh(true, now), "key", c.keys.file)
		tried = append(tried, header)
		if header = c.keys.other(tried...); header == "" || len(tried) == cap(tried) {
			return resp, nil
		}
		again, err := replay(r)
		if err != nil {
			return resp, nil
		}
		io.CopyN(io.Discard, resp.Body, 4<<10) // so that the connection can be used again
		resp.Body.Close()
		r = again
	}
}

// send makes a call. If it fails because the engine's certificate is not trusted, the files are read again; if they have
// changed, the call is made again.
func (c *Client) send(r *http.Request) (*http.Response, error) {
	if c.tls == nil {
		return c.next.RoundTrip(r)
	}
	now := time.Now()
	c.tell(c.tls.refresh(false, now), "certificates", c.tls.cfg.CA+" "+c.tls.cfg.Cert)
	std := c.tls.current()
	resp, err := std.RoundTrip(r)
	if err == nil || !untrusted(err) {
		return resp, err
	}
	news := c.tls.refresh(true, now)
	c.tell(news, "certificates", c.tls.cfg.CA+" "+c.tls.cfg.Cert)
	if c.tls.current() == std {
		return resp, err
	}
	again, unread := replay(r)
	if unread != nil {
		return resp, err
	}
	return c.tls.current().RoundTrip(again)
}

// Conceal returns a text of the engine without the key or the password that it was sent.
func (c *Client) Conceal(text string) string {
	if c.keys == nil {
		return text
	}
	for _, secret := range c.keys.secrets() {
		text = strings.ReplaceAll(text, secret, Secret(secret).String())
	}
	return text
}

// CloseIdleConnections closes the connections that no call uses.
func (c *Client) CloseIdleConnections() {
	if c.tls != nil {
		c.tls.current().CloseIdleConnections()
	} else if next, ok := c.next.(interface{ CloseIdleConnections() }); ok {
		next.CloseIdleConnections()
	}
}

// tell logs what reading a file again has shown.
func (c *Client) tell(news reread, what, file string) {
	switch {
	case news.changed:
		c.log.Info("file for the engine has changed", "what", what, "file", file, "engine", c.url)
	case news.failed != "":
		c.log.Warn("file for the engine not read; the last "+what+" is used", "err", news.failed, "engine", c.url)
	}
}

// replay returns a request that was sent before, with its body from the beginning.
func replay(r *http.Request) (*http.Request, error) {
	c := new(http.Request)
	*c = *r
	if r.GetBody == nil {
		if r.Body != nil && r.Body != http.NoBody {
			return nil, http.ErrBodyReadAfterClose
		}
		return c, nil
	}
	body, err := r.GetBody()
	c.Body = body
	return c, err
}
