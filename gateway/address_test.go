package gateway

import (
	"net/http"
	"net/netip"
	"testing"
)

func TestAddresses(t *testing.T) {
	proxied := addresses{proxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}}
	for about, c := range map[string]struct {
		a    addresses
		peer string
		sent []string
		want string // "" if it is not known
	}{
		"no proxy":                       {addresses{}, "192.0.2.7:5", nil, "192.0.2.7"},
		"what a client says":             {addresses{}, "192.0.2.7:5", []string{"198.51.100.1"}, "192.0.2.7"},
		"what a stranger says":           {proxied, "192.0.2.7:5", []string{"198.51.100.1"}, "192.0.2.7"},
		"what a proxy says":              {proxied, "10.1.2.3:5", []string{"198.51.100.1"}, "198.51.100.1"},
		"forged in front of it":          {proxied, "10.1.2.3:5", []string{"203.0.113.9, 198.51.100.1"}, "198.51.100.1"},
		"forged in a line of its own":    {proxied, "10.1.2.3:5", []string{"203.0.113.9", "198.51.100.1"}, "198.51.100.1"},
		"two proxies":                    {proxied, "10.1.2.3:5", []string{"203.0.113.9, 198.51.100.1, 10.9.9.9"}, "198.51.100.1"},
		"proxies only":                   {proxied, "10.1.2.3:5", []string{"10.0.0.4,10.0.0.5"}, "10.0.0.4"},
		"a proxy that says nothing":      {proxied, "10.1.2.3:5", nil, "10.1.2.3"},
		"no address":                     {proxied, "10.1.2.3:5", []string{"198.51.100.1, unknown"}, "10.1.2.3"},
		"no address before one":          {proxied, "10.1.2.3:5", []string{"unknown, 198.51.100.1"}, "198.51.100.1"},
		"with ports":                     {proxied, "10.1.2.3:5", []string{"198.51.100.1:4711, [fd00::1]:80"}, "198.51.100.1"},
		"IPv6":                           {addresses{}, "[2001:db8:1:2:3:4:5:6]:7", nil, "2001:db8:1:2::"},
		"another of the same network":    {addresses{}, "[2001:db8:1:2:ffff::1]:7", nil, "2001:db8:1:2::"},
		"IPv6 with a zone":               {addresses{}, "[fe80::1%eth0]:7", nil, "fe80::"},
		"IPv4 as IPv6":                   {proxied, "[::ffff:10.1.2.3]:7", []string{"::ffff:198.51.100.1"}, "198.51.100.1"},
		"IPv6 from a proxy, in brackets": {proxied, "[fd12::1]:7", []string{"[2001:db8:1:2::9]"}, "2001:db8:1:2::"},
		"no network":                     {proxied, "pipe", []string{"198.51.100.1"}, ""},
	} {
		r := &http.Request{RemoteAddr: c.peer, Header: http.Header{"X-Forwarded-For": c.sent}}
		want := netip.Addr{}
		if c.want != "" {
			want = netip.MustParseAddr(c.want)
		}
		if got := c.a.of(r); got != want {
			t.Errorf("%s: got %v, want %v", about, got, want)
		}
	}
}
