package gateway

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
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
	if enc := r.Header.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		return call{}, &Error{Status: http.StatusUnsupportedMediaType, Code: "unsupported_encoding",
			Message: "Content-Encoding " + quote(enc) + " is not supported: send the body uncompressed"}
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
	seen := make(map[string]bool, 3)
	for d.PeekKind() != '}' {
		name, err := d.ReadToken()
		if err != nil {
			return c, notJSON(err)
		}
		field := ""
		for _, f := range []string{"model", "stream", "service_tier"} {
			if strings.EqualFold(name.String(), f) {
				field = f
			}
		}
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
		exact := name.String() == field
		kind := d.PeekKind()
		if kind == '{' || kind == '[' {
			return c, badRequest(field, "%q must be a single value", field)
		}
		v, err := d.ReadToken()
		if err != nil {
			return c, notJSON(err)
		}
		if !exact { // it is not ours to read, but nobody else may name it either
			continue
		}
		switch {
		case kind == 'n': // null is absent
		case field == "model" && kind == '"':
			c.model = v.String()
		case field == "service_tier" && kind == '"':
			c.tier = v.String()
		case field == "stream" && (kind == 't' || kind == 'f'):
			c.stream = v.Bool()
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

// maxField bounds a form field that is read; files are skipped.
const maxField = 4 << 10

// scanForm reads the fields of a multipart form.
func scanForm(body []byte, boundary string) (call, error) {
	var c call
	if boundary == "" {
		return c, badRequest("", "multipart/form-data without a boundary")
	}
	seen := make(map[string]bool, 3)
	for form := multipart.NewReader(bytes.NewReader(body), boundary); ; {
		part, err := form.NextRawPart()
		if err == io.EOF {
			return c, nil
		}
		if err != nil {
			return c, badRequest("", "the multipart form is damaged: %v", err)
		}
		field := part.FormName()
		if part.FileName() != "" || field != "model" && field != "stream" && field != "service_tier" {
			continue
		}
		if seen[field] {
			return c, badRequest(field, "the form names %q twice", field)
		}
		seen[field] = true
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

func quote(s string) string {
	if len(s) > 60 {
		s = s[:60] + "…"
	}
	return `"` + s + `"`
}
