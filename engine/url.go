package engine

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// An Address is the base URL of an engine, as people write it: with or without /v1 and trailing slashes, and perhaps with
// a user and a password.
type Address struct {
	// URL is what paths such as /v1/models are appended to. It has no user, no query, and no slash at its end.
	URL string
	// User and Password are those of the URL, for basic authentication; empty if it has none.
	User     string
	Password Secret
}

// ParseAddress parses the URL of an engine. It may have a base path, which comes before /v1. It may not have a query or a
// fragment. Errors show neither those nor the password.
func ParseAddress(raw string) (Address, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return Address{}, fmt.Errorf("%q is not a URL such as http://127.0.0.1:8000", ShowURL(raw))
	}
	if u.RawQuery != "" || u.ForceQuery {
		return Address{}, errors.New("the URL must not have a query (?…): for an engine that wants a key, set key-env= or key-file=")
	}
	if u.Fragment != "" || strings.HasSuffix(raw, "#") {
		return Address{}, errors.New("the URL must not have a fragment (#…)")
	}
	var a Address
	if u.User != nil {
		password, _ := u.User.Password()
		a.User, a.Password = u.User.Username(), Secret(password)
		if a.User == "" {
			return Address{}, errors.New("the URL has a password without a user")
		}
		u.User = nil
	}
	a.URL = strings.TrimRight(strings.TrimSuffix(strings.TrimRight(u.String(), "/"), "/v1"), "/")
	return a, nil
}

// ShowURL returns a URL as it may be shown: without user, password, query and fragment. The text need not be a valid URL.
func ShowURL(raw string) string {
	raw, _, _ = strings.Cut(raw, "#")
	raw, _, _ = strings.Cut(raw, "?")
	if i := strings.LastIndexByte(raw, '@'); i >= 0 {
		scheme := ""
		if j := strings.Index(raw, "://"); j >= 0 && j < i {
			scheme = raw[:j+len("://")]
		}
		raw = scheme + raw[i+1:]
	}
	return raw
}
