package subjects

import (
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
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
