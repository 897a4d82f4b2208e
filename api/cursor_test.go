package api

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
)

// scanText reports whether text accepts b as one value with white space around it.
func scanText(b []byte) bool {
	t := cursor{b: b}
	t.value()
	return t.peek() == 0 && t.at == len(b) && !t.bad
}

// openText reports the same, and enters each object and array on the way.
func openText(b []byte) bool {
	t := cursor{b: b}
	openValue(&t)
	return t.peek() == 0 && t.at == len(b) && !t.bad
}

func openValue(t *cursor) {
	switch t.peek() {
	case '{':
		t.open()
		for name := t.name(); name != nil; name = t.name() {
			openValue(t)
		}
	case '[':
		t.open()
		for t.element() {
			openValue(t)
		}
	default:
		t.value()
	}
}

// jsontextTakes defines what is JSON.
func jsontextTakes(b []byte) bool {
	d := jsontext.NewDecoder(bytes.NewReader(b), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if d.SkipValue() != nil {
		return false
	}
	_, err := d.ReadToken()
	return err == io.EOF
}

// FuzzCursor compares the cursor with jsontext: both accept the same.
func FuzzCursor(f *testing.F) {
	for _, s := range []string{
		"", " ", "{}", "[]", "{ }", "[ ]", `{"a":1}`, `{"a":1,}`, `{,}`, `[,]`, `[1,]`, `[1 2]`, `{"a" 1}`, `{"a":}`, `{"a"}`, `{a:1}`, `{1:1}`,
		`[{"a":[{}]},[]]`, `[}`, `{]`, `[1}`, `{"a":1]`, `]`, `}`, `,`, `:`, `[[[`, `{"a":{"a":`, `1 2`, `{} {}`, "[1]\x00", "\ufeff[]",
		"0", "-", "-0", "00", "01", "-01", "1.", "1.0", ".1", "1e", "1e+", "1e-0", "1E5", "1.5e+10", "1.e5", "+1", "1-", "0x1", "1_0", "NaN", "-Infinity",
		"true", "tru", "truee", "false", "falsy", "null", "nul", "nullnull", "True",
		`"`, `""`, `"a`, `"a\`, `"\"`, `"\x"`, `"\u"`, `"\u12"`, `"\u12g4"`, `"\u1234"`, `"\uD834\uDD1E"`, `"\ud800"`, `"\ud800\u"`, `"\/\b\f\n\r\t\\\""`, `'a'`,
		"\"\x00\"", "\"\x1f\"", "\" \"", "\"\x7f\"", "\"\x80\"", "\"\xff\xfe\"", "\"\xe2\x82\"", "\"\xe2\x82", "\"€\"", "\"😀\"", "\"\xed\xa0\x80\"", "\"\n\"",
		`"1234567"`, `"12345678"`, `"123456789"`, `"1234567\"`, `"1234567\""`, "\"1234567\n\"", "\"éééé\x1f\"", "\"\x80\x80\x80\x22", "\"!!!!!!!\x21\x20\x22",
	} {
		f.Add([]byte(s))
		f.Add([]byte(`{"a":[` + s + `],"b":` + s + "}"))
		f.Add([]byte("\r\n\t [" + s + " , 1 ] "))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		want := jsontextTakes(b)
		if got := scanText(b); got != want {
			t.Errorf("%q: takes it %t, jsontext %t", b, got, want)
		}
		if got := openText(b); got != want {
			t.Errorf("%q: takes it step by step %t, jsontext %t", b, got, want)
		}
	})
}

func TestCursorDepth(t *testing.T) {
	for _, depth := range []int{1, 63, 64, 65, 9_999, 10_000, 10_001, 20_000} {
		for _, b := range []string{
			strings.Repeat("[", depth) + strings.Repeat("]", depth),
			strings.Repeat(`{"a":`, depth) + "0" + strings.Repeat("}", depth),
			strings.Repeat(`[{"a":`, depth/2) + "0" + strings.Repeat("}]", depth/2),
		} {
			want := jsontextTakes([]byte(b))
			if got := scanText([]byte(b)); got != want {
				t.Errorf("%.10s… %d deep: takes it %t, jsontext %t", b, depth, got, want)
			}
			if got := openText([]byte(b)); got != want {
				t.Errorf("%.10s… %d deep: takes it step by step %t, jsontext %t", b, depth, got, want)
			}
		}
	}
}

// TestCursorStrings puts each byte at each position of strings around the eight bytes that are
// examined at once.
func TestCursorStrings(t *testing.T) {
	for length := range 20 {
		for at := range length {
			for c := range 256 {
				b := []byte(`"` + strings.Repeat("é", length)[:length] + `"`)
				b[1+at] = byte(c)
				if got, want := scanText(b), jsontextTakes(b); got != want {
					t.Errorf("%q: takes it %t, jsontext %t", b, got, want)
				}
			}
		}
	}
}
