package api

import "bytes"

// MaxResponseID bounds, in bytes, the id of a response that is remembered.
const MaxResponseID = 256

// ResponseID finds the id of a response in the beginning of an answer of the Responses API: of the object itself, or in a
// stream of its first event that has one. It is "" if there is none, or not all of it has come.
func ResponseID(begin []byte, stream bool) string {
	if !stream {
		return idOf(begin)
	}
	for line := range bytes.Lines(begin) {
		if data, ok := bytes.CutPrefix(line, []byte("data:")); ok {
			if id := idOf(data); id != "" {
				return id
			}
		}
	}
	return ""
}

// idOf is the id of a response, or of the response in an event.
func idOf(object []byte) string {
	t := cursor{b: object}
	if t.peek() != '{' {
		return ""
	}
	t.open()
	for name := t.name(); name != nil; name = t.name() {
		switch kind := t.peek(); {
		case string(name) == `"id"` && kind == '"', string(name) == `"response"` && kind == '{':
			if kind == '"' {
				return shortString(t.value())
			}
			t.open()
			for name := t.name(); name != nil; name = t.name() {
				if v := t.value(); string(name) == `"id"` {
					return shortString(v)
				}
			}
		default:
			t.value()
		}
	}
	return ""
}

// shortString is the value of a JSON string that is no longer than MaxResponseID; else "".
func shortString(v []byte) string {
	if len(v) < 2 || len(v) > MaxResponseID || v[0] != '"' {
		return ""
	}
	return unquoted(v)
}
