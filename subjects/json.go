package subjects

import (
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
)

// The messages that every request costs (Request, Claim, Head, End) are JSON like
// all others, but through a library that reflects they took a sixth of the CPU of
// a small request. So they are written by hand; and what was written here, the
// same fields in the same order and no escapes, is read by hand. Anything else is
// left to the library, which alone says what is an error.

// builder writes a JSON text. The first error stays.
type builder struct {
	buf []byte
	err error
}

// lit writes a piece of JSON as it is.
func (b *builder) lit(s string) { b.buf = append(b.buf, s...) }

func (b *builder) str(s string) {
	if bare(s) {
		b.buf = append(b.buf, '"')
		b.buf = append(b.buf, s...)
		b.buf = append(b.buf, '"')
		return
	}
	quoted, err := jsontext.AppendQuote(b.buf, s)
	if err != nil { // it is no UTF-8
		b.err = err
		return
	}
	b.buf = quoted
}

func (b *builder) int(n int64) { b.buf = strconv.AppendInt(b.buf, n, 10) }
func (b *builder) bool(v bool) { b.buf = strconv.AppendBool(b.buf, v) }

// header writes names and values, which are bytes: see toWire.
func (b *builder) header(h http.Header) {
	between := "{"
	for k, vs := range h {
		b.lit(between)
		between = ","
		b.str(k)
		b.lit(":[")
		for i, v := range vs {
			if i > 0 {
				b.lit(",")
			}
			b.str(toWire(v))
		}
		b.lit("]")
	}
	if len(h) == 0 {
		b.lit("{")
	}
	b.lit("}")
}

// reader reads what a builder has written. Each method takes the next piece off
// and says whether it was there in the plain form.
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

// number takes a number without an exponent off.
func (r *reader) number() string {
	s, n := r.rest, 0
	digits := func() (some bool) {
		from := n
		for n < len(s) && '0' <= s[n] && s[n] <= '9' {
			n++
		}
		return n > from
	}
	if n < len(s) && s[n] == '-' {
		n++
	}
	first := n
	if !digits() || s[first] == '0' && n > first+1 {
		return ""
	}
	if n < len(s) && s[n] == '.' {
		n++
		if !digits() {
			return ""
		}
	}
	r.rest = s[n:]
	return s[:n]
}

func (r *reader) int64(to *int64) bool {
	n, err := strconv.ParseInt(r.number(), 10, 64)
	*to = n
	return err == nil
}

func (r *reader) int(to *int) bool {
	n, err := strconv.Atoi(r.number())
	*to = n
	return err == nil
}

func (r *reader) bool(to *bool) bool {
	*to = r.lit("true")
	return *to || r.lit("false")
}

func (r *reader) header(to *http.Header) bool {
	h := make(http.Header, 8)
	values := make([]string, 0, 8) // all of them, most often
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

// bare says that a string is itself between quotes.
func bare(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= utf8.RuneSelf || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}
