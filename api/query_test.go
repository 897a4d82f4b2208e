package api_test

import (
	"net/url"
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/api"
)

func TestWithoutKeys(t *testing.T) {
	for query, want := range map[string]string{
		"":                    "",
		"api-key=S":           "",
		"key=S":               "",
		"access_token=S":      "",
		"API-Key=S&beta=true": "beta=true",
		"a=b&api_key=S&c=%00": "a=b&c=%00",
		"%6bey=S":             "",
		"a%70i-key=S&x":       "x",
		"%256bey=S":           "",
		"%2525256bey=S":       "%2525256bey=S", // decoded three times it is %6bey
		"key":                 "",
		"key=":                "",
		"key=S&key=S":         "",
		"a=1;key=S;b=2":       "a=1;b=2",
		"a=1;b=2":             "a=1;b=2",
		"key[]=S":             "",
		"+key=S":              "",
		"key%3DS=x":           "",
		"api-version=2024-06": "api-version=2024-06",
		"monkey=1&keys=2":     "monkey=1&keys=2",
		"x=key":               "x=key",
		"q=a+b&d=%C3%BC&&":    "q=a+b&d=%C3%BC&&",
		"%zz=1&key=S":         "%zz=1",
		"subscription-key=S":  "",
	} {
		if got := api.WithoutKeys(query); got != want {
			t.Errorf("%q: got %q, want %q", query, got, want)
		}
	}
}

// FuzzWithoutKeys takes a query apart as net/url does: nothing secret is left, and nothing else is gone.
func FuzzWithoutKeys(f *testing.F) {
	for _, s := range []string{"a=b&key=S", "%6bey=S;a", "API-KEY", "a=1&&access_token=x&b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, query string) {
		got := api.WithoutKeys(query)
		if api.WithoutKeys(got) != got {
			t.Errorf("%q: once %q, twice %q", query, got, api.WithoutKeys(got))
		}
		values, err := url.ParseQuery(got)
		for name := range values {
			if n := strings.ToLower(name); n == "key" || n == "api-key" || n == "access_token" {
				t.Errorf("%q: %q has %q", query, got, name)
			}
		}
		if err != nil {
			return
		}
		was, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		for _, name := range []string{"a", "b", "api-version"} {
			if len(was[name]) != len(values[name]) {
				t.Errorf("%q: %s has %q, had %q", query, name, values[name], was[name])
			}
		}
	})
}
