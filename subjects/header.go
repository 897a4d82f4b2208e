package subjects

import (
	"maps"
	"net/http"
	"slices"
	"strings"
)

// EndToEnd removes hop-by-hop headers.
func EndToEnd(h http.Header) {
	for _, named := range h["Connection"] {
		for name := range strings.SplitSeq(named, ",") {
			h.Del(strings.TrimSpace(name))
		}
	}
	for _, k := range hopByHop {
		delete(h, k)
	}
}

var hopByHop = []string{"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}

// MediaType is a header's content type in lower case, without parameters.
func MediaType(h http.Header) string {
	ct, _, _ := strings.Cut(h.Get("Content-Type"), ";")
	return strings.ToLower(strings.TrimSpace(ct))
}

// canonical merges the spellings of each header name into the canonical one. The result is never
// nil.
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
