package subjects

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"
)

// EndToEnd is what of h goes further than one connection. The values are h's
// own.
func EndToEnd(h http.Header) http.Header {
	out := maps.Clone(h)
	if out == nil {
		out = make(http.Header)
	}
	for _, named := range h["Connection"] {
		for name := range strings.SplitSeq(named, ",") {
			out.Del(strings.TrimSpace(name))
		}
	}
	for _, k := range []string{"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade"} {
		delete(out, k)
	}
	return out
}

// canonical gives names the one spelling that http.Header knows.
func canonical(h http.Header) http.Header {
	same := true
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

// wireHeader is h for the wire; h itself if all of it is ASCII.
func wireHeader(h http.Header) http.Header {
	var out http.Header
	for k, vs := range h {
		for i, v := range vs {
			if ascii(v) {
				continue
			}
			if out == nil {
				out = h.Clone()
			}
			r := make([]rune, len(v))
			for j := range len(v) {
				r[j] = rune(v[j])
			}
			out[k][i] = string(r)
		}
	}
	if out == nil {
		return h
	}
	return out
}

// fromWire undoes wireHeader, in place. A value that is no bytes stays.
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
