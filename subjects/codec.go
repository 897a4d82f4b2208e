package subjects

import (
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
)

// Marshal encodes a message or a stored value. All parts use it and Unmarshal, so that what one writes the other reads by
// the same rules. The members of a map are in order. A string that is not UTF-8, such as an engine's words in a reason,
// is made valid with U+FFFD: a heartbeat must not be lost for it.
func Marshal(v any) ([]byte, error) {
	return json.Marshal(v, json.Deterministic(true), jsontext.AllowInvalidUTF8(true))
}

// Unmarshal decodes a message or a stored value. Names are matched exactly, unknown ones are ignored, and one that stands
// twice in an object is an error.
func Unmarshal(data []byte, v any) error { return json.Unmarshal(data, v) }

// MustMarshal is Marshal for the messages of this package, which always encode.
func MustMarshal(v any) []byte {
	body, err := Marshal(v)
	if err != nil {
		panic(err)
	}
	return body
}

// The messages that every request needs (Request, Claim, Head, End) are JSON like all others, but a reflecting library
// took a sixth of the CPU of a small request for them. So they are written by hand. A message in exactly that form,
// with the same fields in the same order and no escapes, is also read by hand. Any other message is left to the
// library, which alone decides what is an error.

// builder writes a JSON text. It keeps the first error.
type builder struct {
	buf []byte
	err error
}

// lit appends a literal piece of JSON. The other methods append one and a value.
func (b *builder) lit(s string) { b.buf = append(b.buf, s...) }

func (b *builder) str(before, s string) {
	b.lit(before)
	if bare(s) {
		b.buf = append(b.buf, '"')
		b.buf = append(b.buf, s...)
		b.buf = append(b.buf, '"')
		return
	}
	quoted, err := jsontext.AppendQuote(b.buf, s)
	if err != nil { // it is not UTF-8
		b.err = err
		return
	}
	b.buf = quoted
}

func (b *builder) int(before string, n int64) {
	b.buf = strconv.AppendInt(append(b.buf, before...), n, 10)
}
func (b *builder) bool(before string, v bool) {
	b.buf = strconv.AppendBool(append(b.buf, before...), v)
}

// header appends names and values; values are bytes, see toWire.
func (b *builder) header(before string, h http.Header) {
	b.lit(before)
	b.lit("{")
	comma := ""
	for k, vs := range h {
		b.str(comma, k)
		comma = ","
		b.lit(":[")
		for i, v := range vs {
			if i > 0 {
				b.lit(",")
			}
			b.str("", toWire(v))
		}
		b.lit("]")
	}
	b.lit("}")
}

// reader reads what a builder has written. Each method consumes the next piece and reports whether
// it was there in the plain form.
type reader struct{ rest string }

func (r *reader) lit(s string) bool {
	rest, ok := strings.CutPrefix(r.rest, s)
	r.rest = rest
	return ok
}

func (r *reader) str(to *string) bool {
	if len(r.rest) == 0 || r.rest[0] != '"' {
		return false
	}
	n := strings.IndexByte(r.rest[1:], '"')
	if n < 0 || !bare(r.rest[1:1+n]) {
		return false
	}
	*to, r.rest = r.rest[1:1+n], r.rest[n+2:]
	return true
}

func (r *reader) id(to *ID) bool {
	var s string
	if !r.str(&s) || len(s) != 36 {
		return false
	}
	id, err := uuid.Parse(s)
	*to = id
	return err == nil
}

// int64 consumes a number without a fraction and an exponent.
func (r *reader) int64(to *int64) bool {
	n := 0
	for n < len(r.rest) && (r.rest[n] == '-' || '0' <= r.rest[n] && r.rest[n] <= '9') {
		n++
	}
	digits := strings.TrimPrefix(r.rest[:n], "-")
	v, err := strconv.ParseInt(r.rest[:n], 10, 64)
	*to, r.rest = v, r.rest[n:]
	return err == nil && (digits[0] != '0' || len(digits) == 1)
}

func (r *reader) int(to *int) bool {
	var n int64
	ok := r.int64(&n)
	*to = int(n)
	return ok && int64(*to) == n
}

func (r *reader) bool(to *bool) bool {
	*to = r.lit("true")
	return *to || r.lit("false")
}

func (r *reader) header(to *http.Header) bool {
	h := make(http.Header, 8)
	values := make([]string, 0, 8) // enough for all values of most headers
	*to = h
	if !r.lit("{") {
		return false
	}
	if r.lit("}") {
		return true
	}
	for {
		var k string
		if !r.str(&k) || !r.lit(":[") || h[k] != nil {
			return false
		}
		from := len(values)
		for {
			var v string
			if !r.str(&v) {
				return false
			}
			values = append(values, v)
			if !r.lit(",") {
				break
			}
		}
		h[k] = values[from:len(values):len(values)]
		switch {
		case !r.lit("]"):
			return false
		case r.lit("}"):
			return true
		case !r.lit(","):
			return false
		}
	}
}

// bare reports whether a string needs no escapes between quotes.
func bare(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= utf8.RuneSelf || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

// Header values are bytes, which JSON does not have. On the wire each byte is the code point of the
// same number, U+0000 to U+00FF, as in the Fetch standard and in Python. ASCII is unchanged.

// toWire encodes a value for the wire.
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

// fromWire reverses toWire in a header, in place. A value that toWire cannot have produced is left as it is.
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
