package gateway

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/pulley-lb/pulley/subjects"
)

// call is what a request says of itself, as far as Pulley acts on it.
type call struct {
	model  string
	stream bool
	tier   string // as asked for
}

// scan finds the few fields that matter, without changing or keeping the body.
// The body is read as engines read it, or refused: a field named twice is an
// error, since engines take the last one.
func scan(r *http.Request, body []byte) (call, error) {
	if enc := strings.Join(r.Header["Content-Encoding"], ", "); enc != "" && !strings.EqualFold(enc, "identity") {
		return call{}, &Error{Status: http.StatusUnsupportedMediaType, Code: "unsupported_encoding",
			Message: "Content-Encoding " + quote(enc) + " is not supported: send the body uncompressed"}
	}
	if len(r.Header["Content-Type"]) > 1 {
		return call{}, badRequest("", "the request has more than one Content-Type")
	}
	ct, params, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	var c call
	var err error
	switch model, inPath := modelInPath(r.URL); {
	case inPath:
		c.model = model
	case ct == "multipart/form-data":
		c, err = scanForm(body, params["boundary"])
	default:
		c, err = scanJSON(body)
	}
	if err != nil {
		return call{}, err
	}
	if c.model == "" {
		return call{}, badRequest("model", "you must provide a model")
	}
	if len(c.model) > subjects.MaxName {
		return call{}, badRequest("model", "model name of %d bytes: at most %d", len(c.model), subjects.MaxName)
	}
	return c, nil
}

// modelInPath is KServe's way: /v2/models/{model}[/versions/{v}]/infer.
func modelInPath(u *url.URL) (string, bool) {
	rest, ok := strings.CutPrefix(u.EscapedPath(), "/v2/models/")
	if !ok {
		return "", false
	}
	name, _, _ := strings.Cut(rest, "/")
	name, err := url.PathUnescape(name)
	return name, err == nil
}

// scanJSON reads a JSON object's top level. Names are compared as the laxest
// engines do, without case, so that no spelling passes twice.
func scanJSON(body []byte) (call, error) {
	var c call
	d := jsontext.NewDecoder(bytes.NewBuffer(body),
		jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if d.PeekKind() != '{' {
		return c, badRequest("", "the body is not a JSON object")
	}
	if _, err := d.ReadToken(); err != nil {
		return c, notJSON(err)
	}
	seen := make(map[string]bool, len(fields))
	for d.PeekKind() != '}' {
		name, err := d.ReadValue()
		if err != nil {
			return c, notJSON(err)
		}
		field, exact := fieldOf(name)
		if field == "" {
			if err := d.SkipValue(); err != nil {
				return c, notJSON(err)
			}
			continue
		}
		if seen[field] {
			return c, badRequest(field, "the body names %q twice", field)
		}
		seen[field] = true
		kind := d.PeekKind()
		if kind == '{' || kind == '[' {
			return c, badRequest(field, "%q must be a single value", field)
		}
		v, err := d.ReadValue()
		if err != nil {
			return c, notJSON(err)
		}
		if !exact { // it is not ours to read, but nobody else may name it either
			continue
		}
		if len(v) > maxField {
			return c, badRequest(field, "%q is too long", field)
		}
		switch {
		case kind == 'n': // null is absent
		case field == "model" && kind == '"':
			c.model = unquoted(v)
		case field == "service_tier" && kind == '"':
			c.tier = unquoted(v)
		case field == "stream" && (kind == 't' || kind == 'f'):
			c.stream = kind == 't'
		case field == "stream":
			return c, badRequest(field, `"stream" must be true or false`)
		default:
			return c, badRequest(field, "%q must be a string", field)
		}
	}
	if _, err := d.ReadToken(); err != nil {
		return c, notJSON(err)
	}
	if _, err := d.ReadToken(); err != io.EOF {
		return c, badRequest("", "the body goes on after its JSON object")
	}
	return c, nil
}

// fields are what is read of a body.
var fields = []string{"model", "stream", "service_tier"}

// fieldOf is the field that a quoted name may be taken for, and whether it is
// that to the letter.
func fieldOf(name jsontext.Value) (field string, exact bool) {
	const longest = 6*len("service_tier") + 2 // each letter as \u0073
	if len(name) > longest {
		return "", false
	}
	s := unquoted(name)
	for _, f := range fields {
		if strings.EqualFold(s, f) {
			return f, s == f
		}
	}
	return "", false
}

// unquoted is what a JSON string means; invalid UTF-8 in it becomes U+FFFD, as
// everywhere in Go.
func unquoted(v jsontext.Value) string {
	b, _ := jsontext.AppendUnquote(make([]byte, 0, 64), v)
	return string(b)
}

func notJSON(err error) *Error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return badRequest("", "the body is not valid JSON: it ends too early")
	}
	msg := strings.TrimPrefix(err.Error(), "jsontext: ")
	if len(msg) > 200 {
		msg = msg[:200] + "…"
	}
	return badRequest("", "the body is not valid JSON: %s", msg)
}

// maxField bounds a field that is read, in a form or as JSON.
const maxField = 4 << 10

// scanForm reads the fields of a multipart form.
func scanForm(body []byte, boundary string) (call, error) {
	var c call
	if boundary == "" {
		return c, badRequest("", "multipart/form-data without a boundary")
	}
	seen := make(map[string]bool, len(fields))
	for form := multipart.NewReader(bytes.NewReader(body), boundary); ; {
		part, err := form.NextRawPart()
		if err == io.EOF && !bytes.Contains(body, []byte("--"+boundary+"--")) {
			err = io.ErrUnexpectedEOF // in a part's header; the reader takes it for the end
		}
		if err == io.EOF {
			return c, nil
		}
		if err != nil {
			return c, badRequest("", "the multipart form is damaged: %v", err)
		}
		field := part.FormName()
		if field == "" || manyNamed(part) {
			return c, badRequest("", "the multipart form is damaged: a part without one plain name")
		}
		if !slices.Contains(fields, field) {
			continue
		}
		if seen[field] {
			return c, badRequest(field, "the form names %q twice", field)
		}
		seen[field] = true
		if part.FileName() != "" {
			return c, badRequest(field, "%q must be a plain field of the form, not a file", field)
		}
		v, err := io.ReadAll(io.LimitReader(part, maxField))
		if err != nil {
			return c, badRequest(field, "the multipart form is damaged: %v", err)
		}
		switch field {
		case "model":
			c.model = string(v)
		case "service_tier":
			c.tier = string(v)
		case "stream":
			c.stream = string(v) == "true" || string(v) == "1" || string(v) == "True"
		}
	}
}

// manyNamed says that another parser might read another name: RFC 7578 has no
// name*=, and some take it and some do not.
func manyNamed(part *multipart.Part) bool {
	d := part.Header["Content-Disposition"]
	return len(d) > 1 || strings.Contains(strings.ReplaceAll(strings.ToLower(d[0]), "filename*", ""), "name*")
}

func quote(s string) string {
	if len(s) > 60 {
		s = s[:60] + "…"
	}
	return `"` + s + `"`
}
