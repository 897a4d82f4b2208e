package api

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/pulley-lb/pulley/subjects"
)

// RenameModel puts the engine's name for the model where the request has the client's,
// and changes no other byte. A request that names no model at a known place goes
// as it came. The body itself is not written to.
func RenameModel(req *subjects.Request, body []byte, model string) (path string, renamed []byte, err error) {
	at := req.ModelAt
	if at.In == "" || model == req.Model {
		return req.Path, body, nil
	}
	size := len(body)
	if at.In == subjects.ModelInPath {
		size = len(req.Path)
	}
	if at.From < 0 || at.From > at.To || at.To > size {
		return "", nil, fmt.Errorf("model %q cannot be renamed: it is not at %d to %d of %d bytes", req.Model, at.From, at.To, size)
	}
	switch at.In {
	case subjects.ModelInJSON:
		if at.To-at.From < 2 || body[at.From] != '"' || body[at.To-1] != '"' {
			break
		}
		name, err := jsontext.AppendQuote(nil, model)
		if err != nil {
			return "", nil, fmt.Errorf("model %q cannot be renamed to %q: %w", req.Model, model, err)
		}
		return req.Path, slices.Concat(body[:at.From], name, body[at.To:]), nil
	case subjects.ModelInForm:
		if strings.ContainsAny(model, "\r\n") {
			break
		}
		return req.Path, slices.Concat(body[:at.From], []byte(model), body[at.To:]), nil
	case subjects.ModelInPath:
		if strings.ContainsAny(req.Path[at.From:at.To], "/?#") {
			break
		}
		return req.Path[:at.From] + url.PathEscape(model) + req.Path[at.To:], body, nil
	}
	return "", nil, fmt.Errorf("model %q cannot be renamed to %q at %d to %d of the %s", req.Model, model, at.From, at.To, at.In)
}
