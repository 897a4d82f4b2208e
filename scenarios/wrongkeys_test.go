package scenarios

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/gateway"
)

// Wrong keys are bounded by address. Whoever has a right one is served, from the same address too.
func TestWrongKeysByAddress(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := with(t, env, gateway.Config{WrongKeys: 20, TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}, digest)
		first := env.AddKey("acme")
		time.Sleep(2 * time.Second)
		const wrong = "Bearer sk-pulley-0123456789-c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2V"
		for about, c := range map[string]struct {
			from, other string // addresses: the other one is not bounded by what comes from the first
			header      []string
			otherHeader []string
			method      string
			path        string
			key         []string
		}{
			"IPv4":             {"192.0.2.1", "192.0.2.2", nil, nil, "POST", "/v1/x", []string{"Authorization", wrong}},
			"IPv6":             {"2001:db8::1", "2001:db8:0:1::1", nil, nil, "POST", "/v1/x", []string{"Authorization", wrong}},
			"another header":   {"192.0.2.3", "192.0.2.4", nil, nil, "POST", "/v1/x", []string{"X-Api-Key", "sk-ant-wrong"}},
			"a list of models": {"192.0.2.5", "192.0.2.6", nil, nil, "GET", "/v1/models", []string{"Api-Key", "wrong"}},
			"behind a proxy": {"10.0.0.1", "10.0.0.1", []string{"X-Forwarded-For", "198.51.100.1"}, []string{"X-Forwarded-For", "198.51.100.1, 198.51.100.2"},
				"POST", "/v1/x", []string{"Authorization", wrong}},
		} {
			t := labelled{t, about}
			send := func(from string, header ...string) reply {
				return do(t, g.from(t, from), c.method, c.path, `{"model":"m"}`, header...)
			}
			bad := append(c.key, c.header...)
			for range 20 {
				if r := send(c.from, bad...); r.status != 401 {
					t.Errorf("got %d %q, want 401", r.status, r.body)
				}
			}
			r := send(c.from, bad...)
			wantError(t, r, 429, "too_many_wrong_keys")
			if secs, err := strconv.Atoi(r.header.Get("Retry-After")); err != nil || secs < 1 || secs > 3 || r.header.Get("X-Should-Retry") != "false" {
				t.Errorf("got %v", r.header)
			}
			if strings.Contains(about, "6") { // another address of the same client
				wantError(t, send("2001:db8::ffff:1", bad...), 429, "too_many_wrong_keys")
			}
			if r := send(c.from, append([]string{"Authorization", "Bearer " + first}, c.header...)...); r.status != 200 {
				t.Errorf("a right key: got %d %q", r.status, r.body)
			}
			if r := send(c.from, c.header...); r.status != 401 {
				t.Errorf("no key: got %d %q", r.status, r.body)
			}
			if r := send(c.other, append(c.key, c.otherHeader...)...); r.status != 401 {
				t.Errorf("another address: got %d %q", r.status, r.body)
			}
			fresh := env.AddKey("later")
			time.Sleep(2 * time.Second)
			for range 20 {
				send(c.from, bad...)
			}
			if r := send(c.from, append([]string{"Authorization", "Bearer " + fresh}, c.header...)...); r.status != 200 {
				t.Errorf("a right key that was not used before: got %d %q", r.status, r.body)
			}
			time.Sleep(10 * time.Second) // 3 of 20 a minute
			if r := send(c.from, bad...); r.status != 401 {
				t.Errorf("after a while: got %d %q, want 401", r.status, r.body)
			}
		}
	})
}
