package api

import (
	"encoding/binary"
	"math/bits"
)

// cursor walks over JSON without decoding it. It accepts exactly what jsontext accepts when
// duplicate names and invalid UTF-8 are allowed, at about twice its speed, because most of a body
// is strings that are not read here. If it is lax, it accepts more. At the first invalid byte it becomes bad and stops.
type cursor struct {
	b     []byte
	at    int
	bad   bool
	fresh bool // directly after an opening bracket, where no comma is expected
	depth int  // nesting depth of the current position
	cache bool // a member "cache_control" was skipped
	lax   bool // NaN, Infinity and -Infinity are numbers, as for Python
	in    [maxDepth/64 + 1]uint64
}

// maxDepth is jsontext's limit.
const maxDepth = 10_000

// peek is the next byte that is not white space, 0 at the end.
func (t *cursor) peek() byte {
	t.at = skipSpace(t.b, t.at)
	if t.at == len(t.b) {
		return 0
	}
	return t.b[t.at]
}

// open enters the object or array that starts here. name or element iterate over it and leave it.
func (t *cursor) open() {
	t.peek()
	t.at++
	t.depth++
	t.fresh = true
	t.bad = t.bad || t.depth > maxDepth
}

// name returns the quoted name of the next member of the current object and advances to its value;
// nil after the last member or if the text is bad.
func (t *cursor) name() []byte {
	if !t.more('}') {
		return nil
	}
	from := t.at
	if t.peek() != '"' {
		t.bad = true
		return nil
	}
	end := skipString(t.b, from)
	t.at = max(end, from)
	if end < 0 || t.peek() != ':' {
		t.bad = true
		return nil
	}
	t.at++
	t.peek()
	return t.b[from:end]
}

// element reports whether the current array has another value, and advances to it.
func (t *cursor) element() bool { return t.more(']') }

func (t *cursor) more(end byte) bool {
	fresh := t.fresh
	t.fresh = false
	switch c := t.peek(); {
	case t.bad:
		return false
	case c == end:
		t.at++
		t.depth--
		return false
	case fresh:
		return true
	case c == ',':
		t.at++
		t.peek()
		return true
	}
	t.bad = true
	return false
}

// value skips the next value and returns its bytes; nil if it is bad.
func (t *cursor) value() []byte {
	t.peek()
	from := t.at
	if end := t.skip(from); end >= 0 && !t.bad {
		t.at = end
		return t.b[from:end]
	}
	t.bad = true
	return nil
}

// skip is the index where the value that starts at i ends, -1 if there is none.
func (t *cursor) skip(i int) int {
	b, depth := t.b, t.depth
values:
	for i >= 0 && i < len(b) {
		switch c := b[i]; c {
		case '"':
			i = skipString(b, i)
		case '{', '[':
			if depth == maxDepth {
				return -1
			}
			depth++
			if c == '{' {
				t.in[depth/64] |= 1 << (depth % 64)
			} else {
				t.in[depth/64] &^= 1 << (depth % 64)
			}
			i = skipSpace(b, i+1)
			if i < len(b) && b[i] == c+2 { // the closing bracket in ASCII
				break
			}
			if c == '{' {
				i = t.skipName(i)
			}
			continue
		case 't':
			i = skipWord(b, i, "true")
		case 'f':
			i = skipWord(b, i, "false")
		case 'n':
			i = skipWord(b, i, "null")
		default:
			i = t.skipNumber(i)
		}
		for i >= 0 && depth > t.depth { // after a value: its array or object continues or ends
			if i = skipSpace(b, i); i == len(b) {
				return -1
			}
			object := t.in[depth/64]>>(depth%64)&1 == 1
			switch c := b[i]; {
			case c == ',':
				if i = skipSpace(b, i+1); object {
					i = t.skipName(i)
				}
				continue values
			case c == '}' && object, c == ']' && !object:
				depth--
				i++
			default:
				return -1
			}
		}
		return i
	}
	return -1
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\t' || b[i] == '\r') {
		i++
	}
	return i
}

// skipName skips a member's name and colon, and returns the index of its value.
func (t *cursor) skipName(i int) int {
	b, from := t.b, i
	if i == len(b) || b[i] != '"' {
		return -1
	}
	if i = skipString(b, i); i < 0 {
		return -1
	}
	if string(b[from:i]) == cacheControl {
		t.cache = true
	}
	if i = skipSpace(b, i); i == len(b) || b[i] != ':' {
		return -1
	}
	return skipSpace(b, i+1)
}

// skipString returns the index after a string, -1 if it is invalid.
func skipString(b []byte, i int) int {
	for i++; ; {
		i = plainRun(b, i)
		switch {
		case i == len(b), b[i] < ' ':
			return -1
		case b[i] == '"':
			return i + 1
		}
		if i = skipEscape(b, i); i < 0 {
			return -1
		}
	}
}

// plainRun is the index, from i on, of the first quote, backslash or control byte: any other byte
// may be in a string. It examines eight bytes at a time.
func plainRun(b []byte, i int) int {
	const each, high = 0x0101010101010101, 0x8080808080808080
	for ; i+8 <= len(b); i += 8 {
		x := binary.LittleEndian.Uint64(b[i : i+8 : i+8])
		// The high bit marks each byte that is one of the three. A byte above such a byte may be
		// marked wrongly, so only the first one counts.
		found := (((x ^ each*'"') - each) | ((x ^ each*'\\') - each) | (x - each*' ')) &^ x & high
		if found != 0 {
			return i + bits.TrailingZeros64(found)/8
		}
	}
	for i < len(b) && b[i] >= ' ' && b[i] != '"' && b[i] != '\\' {
		i++
	}
	return i
}

func skipEscape(b []byte, i int) int {
	if i+1 >= len(b) {
		return -1
	}
	switch b[i+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return i + 2
	case 'u':
		if i+6 > len(b) {
			return -1
		}
		for _, c := range b[i+2 : i+6] {
			if !('0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'f') {
				return -1
			}
		}
		return i + 6
	}
	return -1
}

func skipWord(b []byte, i int, word string) int {
	if len(b)-i < len(word) || string(b[i:i+len(word)]) != word {
		return -1
	}
	return i + len(word)
}

func (t *cursor) skipNumber(i int) int {
	if t.lax {
		for _, word := range [...]string{"NaN", "Infinity", "-Infinity"} {
			if end := skipWord(t.b, i, word); end >= 0 {
				return end
			}
		}
	}
	return skipNumber(t.b, i)
}

func skipNumber(b []byte, i int) int {
	if i < len(b) && b[i] == '-' {
		i++
	}
	if i < len(b) && b[i] == '0' {
		i++
	} else if i = skipDigits(b, i); i < 0 {
		return -1
	}
	if i < len(b) && b[i] == '.' {
		if i = skipDigits(b, i+1); i < 0 {
			return -1
		}
	}
	if i < len(b) && (b[i] == 'e' || b[i] == 'E') {
		i++
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		return skipDigits(b, i)
	}
	return i
}

// skipDigits skips one or more digits.
func skipDigits(b []byte, i int) int {
	from := i
	for i < len(b) && '0' <= b[i] && b[i] <= '9' {
		i++
	}
	if i == from {
		return -1
	}
	return i
}
