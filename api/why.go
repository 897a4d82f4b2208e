package api

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// WhyNotJSON says what is wrong with JSON that a decoder refused with err, without the words of libraries and of Go.
func WhyNotJSON(err error) string {
	if e, ok := errors.AsType[*json.SemanticError](err); ok && e.JSONKind != 0 {
		return fmt.Sprintf("%s: a JSON %s is not possible here", cmp.Or(string(e.JSONPointer), "/"), kindName(e.JSONKind))
	}
	switch {
	case err == io.EOF:
		return "it is empty"
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "it ends too early"
	}
	text := strings.TrimPrefix(strings.TrimPrefix(err.Error(), "jsontext: "), "json: ")
	if len(text) > 200 {
		text = text[:200] + "…"
	}
	return text
}

func kindName(k jsontext.Kind) string {
	switch k {
	case '{':
		return "object"
	case '[':
		return "array"
	}
	return k.String()
}
