package gateway

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/pulley-lb/pulley/subjects"
)

// call is what a request says of itself, as far as Pulley acts on it.
type call struct {
	model     string
	modelAt   subjects.ModelAt
	stream    bool
	tier      string   // as asked for
	tierAt    [2]int   // where the body says so, as a JSON string; zero: nowhere
	cacheKey  string   // prompt_cache_key: the client's own word for a conversation
	maxTokens int      // of the answer; 0: not said
	prefix    []uint64 // the conversation: see conversation
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
	var c call
	var err error
	switch model, at, inPath := modelInPath(r.URL); {
	case inPath:
		c.model, c.modelAt = model, at
	case subjects.MediaType(r.Header) == "multipart/form-data":
		_, params, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
		c, err = scanForm(body, params["boundary"])
	default:
		c, err = scanJSON(body, messagesField(dialectOf(r.URL.Path)))
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

// withEngineTier makes the body one that any engine takes: some refuse a
// service tier that is not one of OpenAI's, so ours becomes "auto". It changes
// the body in place where there is room, and moves modelAt along.
func (c *call) withEngineTier(body []byte) []byte {
	switch c.tier {
	case "", "auto", "default", "flex", "scale", "priority", "standard_only":
		return body
	}
	if c.tierAt == [2]int{} {
		return body
	}
	was := len(body)
	body = spliceTier(body, c.tierAt, "auto")
	moved := len(body) - was
	if c.modelAt.In == subjects.ModelInJSON && c.modelAt.From >= c.tierAt[1] {
		c.modelAt.From += moved
		c.modelAt.To += moved
	}
	c.tierAt[1] += moved
	return body
}

// spliceTier puts a service tier in the place of another, and changes no other
// byte. It may use the body's memory.
func spliceTier(body []byte, at [2]int, tier string) []byte {
	return slices.Replace(body, at[0], at[1], jsonString(tier)...)
}

// jsonString is s as JSON; invalid UTF-8 in it becomes U+FFFD.
func jsonString(s string) []byte {
	b, _ := jsontext.AppendQuote(nil, s)
	return b
}

// modelInPath is KServe's way: /v2/models/{model}[/versions/{v}]/infer.
func modelInPath(u *url.URL) (name string, at subjects.ModelAt, ok bool) {
	const before = "/v2/models/"
	rest, ok := strings.CutPrefix(u.EscapedPath(), before)
	if !ok {
		return "", subjects.ModelAt{}, false
	}
	segment, _, _ := strings.Cut(rest, "/")
	name, err := url.PathUnescape(segment)
	return name, subjects.ModelAt{In: subjects.ModelInPath, From: len(before), To: len(before) + len(segment)}, err == nil
}

// fields of a JSON body that are read.
var fields = []string{
	"model", "stream", "service_tier", "prompt_cache_key", "messages", "input", // decisive: once at most
	"max_completion_tokens", "max_tokens", "max_output_tokens", // the first that is there counts
	"tools", "functions", "system", "instructions", "conversation", "previous_response_id", // come before the messages in a prompt
}

var (
	decisive    = fields[:6]
	tokenLimits = fields[6:9]
	preceding   = fields[9:]
)

// scanJSON reads a JSON object's top level; messages is the field that holds
// its conversation. Of a field that is not decisive and named twice, the last
// counts, as for engines.
func scanJSON(body []byte, messages string) (call, error) {
	t := text{b: body}
	if t.peek() != '{' {
		return call{}, badRequest("", "the body is not a JSON object")
	}
	var c call
	var talk conversation
	var limits [3]int
	seen := make(map[string]bool, len(decisive))
	t.open()
	for name := t.name(); name != nil; name = t.name() {
		field, exact := fieldOf(name)
		if slices.Contains(decisive, field) {
			if seen[field] {
				return c, badRequest(field, "the body names %q twice", field)
			}
			seen[field] = true
		}
		switch field {
		case "":
			t.value()
		case "messages", "input":
			if exact && field == messages && t.peek() == '[' {
				talk.read(&t)
			} else {
				t.value()
			}
		case "prompt_cache_key": // a hint: an odd one is none
			if v := t.value(); exact && len(v) <= maxField && len(v) > 0 && v[0] == '"' {
				c.cacheKey = unquoted(v)
			}
		case "model", "stream", "service_tier":
			if err := c.decide(field, exact, &t); err != nil {
				return c, err
			}
		case "max_completion_tokens", "max_tokens", "max_output_tokens":
			n, err := strconv.Atoi(string(t.value()))
			if err != nil || n < 0 { // the engine's to refuse
				n = 0
			}
			limits[slices.Index(tokenLimits, field)] = n
		default:
			talk.precede(field, &t)
		}
	}
	if t.bad {
		return c, whyNotJSON(body)
	}
	if t.peek(); t.at < len(body) {
		return c, badRequest("", "the body goes on after its JSON object")
	}
	c.maxTokens = cmp.Or(limits[:]...)
	c.prefix = talk.chain()
	return c, nil
}

// decide reads a decisive field's value. One that is not named to the letter is
// not ours to read, but nobody else may name it either.
func (c *call) decide(field string, exact bool, t *text) error {
	kind, from := t.peek(), t.at
	if kind == '{' || kind == '[' {
		return badRequest(field, "%q must be a single value", field)
	}
	v := t.value()
	if t.bad || !exact {
		return nil
	}
	if len(v) > maxField {
		return badRequest(field, "%q is too long", field)
	}
	switch {
	case kind == 'n': // null is absent
	case field == "model" && kind == '"':
		c.model = unquoted(v)
		c.modelAt = subjects.ModelAt{In: subjects.ModelInJSON, From: from, To: t.at}
	case field == "service_tier" && kind == '"':
		c.tier = unquoted(v)
		c.tierAt = [2]int{from, t.at}
	case field == "stream" && (kind == 't' || kind == 'f'):
		c.stream = kind == 't'
	case field == "stream":
		return badRequest(field, `"stream" must be true or false`)
	default:
		return badRequest(field, "%q must be a string", field)
	}
	return nil
}

// fieldOf is the field that a quoted name is, and whether it is that to the
// letter. A decisive one is found as the laxest engines do, without case, so
// that no spelling passes twice.
func fieldOf(name []byte) (field string, exact bool) {
	const longest = 6*len("max_completion_tokens") + 2 // each letter as \u0073
	if len(name) > longest {
		return "", false
	}
	plain := name[1 : len(name)-1]
	for _, f := range fields {
		if string(plain) == f {
			return f, true
		}
	}
	if !bytes.ContainsFunc(plain, func(r rune) bool { return r == '\\' || r >= utf8.RuneSelf || 'A' <= r && r <= 'Z' }) {
		return "", false
	}
	s := unquoted(name)
	for _, f := range decisive {
		if strings.EqualFold(s, f) {
			return f, s == f
		}
	}
	if i := slices.Index(fields, s); i >= 0 {
		return fields[i], true
	}
	return "", false
}

// whyNotJSON says in words what is wrong with a body that text refused.
func whyNotJSON(body []byte) *Error {
	err := jsontext.NewDecoder(bytes.NewBuffer(body), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)).SkipValue()
	if err == nil {
		return badRequest("", "the body is not valid JSON")
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return badRequest("", "the body is not valid JSON: it ends too early")
	}
	msg := strings.TrimPrefix(err.Error(), "jsontext: ")
	if len(msg) > 200 {
		msg = msg[:200] + "…"
	}
	return badRequest("", "the body is not valid JSON: %s", msg)
}

// unquoted is what a JSON string means; invalid UTF-8 in it becomes U+FFFD, as
// everywhere in Go.
func unquoted(v jsontext.Value) string {
	b, _ := jsontext.AppendUnquote(make([]byte, 0, 64), v)
	return string(b)
}

// maxField bounds a field that is read, in a form or as JSON.
const maxField = 4 << 10

// scanForm reads the fields of a multipart form.
func scanForm(body []byte, boundary string) (call, error) {
	var c call
	if boundary == "" {
		return c, badRequest("", "multipart/form-data without a boundary")
	}
	inForm := []string{"model", "stream", "service_tier"}
	seen := make(map[string]bool, len(inForm))
	src := bytes.NewReader(body)
	for form := multipart.NewReader(src, boundary); ; {
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
		if !slices.Contains(inForm, field) {
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
			c.modelAt = valueInForm(body[:len(body)-src.Len()], boundary, v)
		case "service_tier":
			c.tier = string(v)
		case "stream":
			c.stream = string(v) == "true" || string(v) == "1" || string(v) == "True"
		}
	}
}

// valueInForm finds the value of the part named model that was just read of a
// form, of which read has gone by. It looks back for a part of that value and
// reads it once more, since the reader does not tell where it is. One that it
// does not find, such as in a form with bare line feeds, is not replaced.
func valueInForm(read []byte, boundary string, value []byte) subjects.ModelAt {
	delim := []byte("\r\n--" + boundary)
	for end := bytes.LastIndex(read, delim); end >= 0; end = bytes.LastIndex(read[:end], delim) {
		if !bytes.HasSuffix(read[:end], value) {
			continue
		}
		from := end - len(value)
		begin := bytes.LastIndex(read[:from], delim) + len("\r\n")
		if begin < len("\r\n") {
			begin = 0 // no delimiter before it: that of the first part has no line before it
		}
		part, err := multipart.NewReader(bytes.NewReader(read[begin:end+len(delim)]), boundary).NextRawPart()
		if err != nil || part.FormName() != "model" {
			continue
		}
		if v, err := io.ReadAll(part); err == nil && bytes.Equal(v, value) {
			return subjects.ModelAt{In: subjects.ModelInForm, From: from, To: end}
		}
	}
	return subjects.ModelAt{}
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
