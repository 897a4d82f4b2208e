package gateway

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// addresses finds out where calls come from. It does not change.
type addresses struct {
	proxies []netip.Prefix // whose X-Forwarded-For counts
}

// of returns the address of a call's client: that of the connection, or if that is a trusted proxy, the last one in
// X-Forwarded-For that is none. An IPv6 address becomes that of its network of 64 bits, all of which one client may have.
// It is the zero Addr if the connection has no IP address.
func (a *addresses) of(r *http.Request) netip.Addr {
	from := peer(r)
	if !a.trusts(from) {
		return network(from)
	}
	hops := strings.Split(strings.Join(r.Header["X-Forwarded-For"], ","), ",")
	for _, hop := range slices.Backward(hops) {
		addr, ok := parseAddr(strings.TrimSpace(hop))
		if !ok {
			break // what is before it was not written by a trusted proxy
		}
		if from = addr; !a.trusts(addr) {
			break
		}
	}
	return network(from)
}

// fromProxy says that a call comes from a trusted proxy.
func (a *addresses) fromProxy(r *http.Request) bool { return len(a.proxies) > 0 && a.trusts(peer(r)) }

func (a *addresses) trusts(addr netip.Addr) bool {
	return slices.ContainsFunc(a.proxies, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// peer is the address at the other end of a call's connection.
func peer(r *http.Request) netip.Addr {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap().WithZone("")
}

// parseAddr parses an IP address, with a port or without.
func parseAddr(s string) (netip.Addr, bool) {
	if at, err := netip.ParseAddrPort(s); err == nil {
		return at.Addr().Unmap().WithZone(""), true
	}
	addr, err := netip.ParseAddr(strings.Trim(s, "[]"))
	return addr.Unmap().WithZone(""), err == nil
}

func network(a netip.Addr) netip.Addr {
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}
