package subjects

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"
)

// EndToEnd takes out of a header what belongs to one connection.
func EndToEnd(h http.Header) {
	for _, named := range h["Connection"] {
		for name := range strings.SplitSeq(named, ",") {
			h.Del(strings.TrimSpace(name))
		}
	}
	for _, k := range hops {
		delete(h, k)
	}
}

var hops = []string{"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}

// MediaType is that of a header's content, without parameters.
func MediaType(h http.Header) string {
	ct, _, _ := strings.Cut(h.Get("Content-Type"), ";")
	return strings.ToLower(strings.TrimSpace(ct))
}

// canonical gives names the one spelling that http.Header knows. It is never nil.
func canonical(h http.Header) http.Header {
	same := h != nil
	for k := range h {
		same = same && http.CanonicalHeaderKey(k) == k
	}
	if same {
		return h
	}
	out := make(http.Header, len(h))
	for _, k := range slices.Sorted(maps.Keys(h)) {
		c := http.CanonicalHeaderKey(k)
		out[c] = append(out[c], h[k]...)
	}
	return out
}

// Header values are bytes, and JSON has none. On the wire each byte is the code
// point of the same number, U+0000 to U+00FF, as in Fetch and in Python; ASCII
// is itself.

// toWire is a value for the wire.
func toWire(v string) string {
	if ascii(v) {
		return v
	}
	r := make([]rune, len(v))
	for i := range len(v) {
		r[i] = rune(v[i])
	}
	return string(r)
}

// fromWire undoes toWire in a header, in place. A value that is no bytes stays.
func fromWire(h http.Header) {
	for _, vs := range h {
		for i, v := range vs {
			if ascii(v) {
				continue
			}
			b := make([]byte, 0, len(v))
			for _, r := range v {
				if r > 0xff {
					b = append(b[:0], v...)
					break
				}
				b = append(b, byte(r))
			}
			vs[i] = string(b)
		}
	}
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
