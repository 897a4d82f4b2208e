package api

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/cespare/xxhash/v2"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/pulley-lb/pulley/subjects"
)

// API is one of the APIs that clients and engines speak. It decides what an error looks like, how a
// stream ends, and where a body has its conversation.
type API string

const (
	Chat        API = "chat"        // /v1/chat/completions
	Completions API = "completions" // /v1/completions
	Embeddings  API = "embeddings"  // /v1/embeddings
	Responses   API = "responses"   // /v1/responses
	Messages    API = "messages"    // Anthropic's /v1/messages, and what is below it
	OpenAI      API = "openai"      // any other path under /v1/: audio, images, rerank
	Other       API = "other"       // any other path; the form of its streams is unknown
)

// suffixes are the ends of the paths of the APIs that are identified by their path alone. Of two
// that match, the longer one comes first.
var suffixes = []struct {
	suffix string
	api    API
}{
	{"/chat/completions", Chat}, {"/completions", Completions}, {"/embeddings", Embeddings}, {"/responses", Responses}, {"/messages", Messages},
}

// Of returns the API that a path, with or without a query, belongs to.
func Of(path string) API {
	path, _, _ = strings.Cut(path, "?")
	if below, ok := strings.CutPrefix(path, "/v1/messages"); ok && (below == "" || !isWord(below[0])) { // such as /count_tokens, or a path that is refused
		return Messages
	}
	for _, s := range suffixes {
		if strings.HasSuffix(path, s.suffix) {
			return s.api
		}
	}
	if strings.HasPrefix(path, "/v1/") {
		return OpenAI
	}
	return Other
}

func isWord(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}

// Suffix is the end of the API's path, after /v1; "" for OpenAI and Other.
func (a API) Suffix() string {
	for _, s := range suffixes {
		if s.api == a {
			return s.suffix
		}
	}
	return ""
}

// completes reports whether the API is one of OpenAI's two completions, whose streams end with [DONE].
func (a API) completes() bool { return a == Chat || a == Completions }

// hasLastEvent reports whether every stream of the API ends with a final event.
func (a API) hasLastEvent() bool { return a.completes() || a == Responses || a == Messages }

// EventStream reports whether a client of the API that asks for a stream is always answered with server-sent events, so
// that it can be sent comments before the answer begins. Speech, for example, streams as bytes.
func (a API) EventStream() bool {
	switch a {
	case Chat, Completions, Responses, Messages:
		return true
	}
	return false
}

// openAIErrors reports whether an error in a stream of the API is an event with an OpenAI error object.
func (a API) openAIErrors() bool { return a.completes() || a == Embeddings || a == OpenAI }

// conversationField is the name of the body's member that holds the conversation.
func (a API) conversationField() string {
	if a == Responses {
		return "input"
	}
	return "messages"
}

// Call holds the fields of a request that Pulley acts on.
type Call struct {
	Model     string
	ModelAt   subjects.ModelAt
	Stream    bool
	Tier      string // requested tier
	CacheKey  string // prompt_cache_key, the client's own name for a conversation
	Previous  string // previous_response_id, the response that a request of the Responses API continues
	MaxTokens int    // bound on the answer; 0: not set

	named  bool     // the body has a member or a part for the model, whatever is in it
	tierAt [2]int   // where the body has the tier, as a JSON string; zero: nowhere
	prefix []uint64 // hashes of the conversation: see conversation
}

// ErrNoModel is what Scan returns, with all else that it has found, for a call that names no model.
var ErrNoModel error = BadRequest("model", "you must provide a model")

// Scan finds the few fields that matter, without changing or keeping the body. The body is read as engines read it, or
// refused: a field that occurs twice is an error, because engines take the last one.
func Scan(r *http.Request, body []byte) (Call, error) {
	if enc := strings.Join(r.Header["Content-Encoding"], ", "); enc != "" && !strings.EqualFold(enc, "identity") {
		return Call{}, Errorf(http.StatusUnsupportedMediaType, "unsupported_encoding",
			"Content-Encoding %s is not supported: send the body uncompressed", Quote(enc))
	}
	if len(r.Header["Content-Type"]) > 1 {
		return Call{}, BadRequest("", "the request has more than one Content-Type")
	}
	var c Call
	var err error
	switch model, at, inPath := modelInPath(r.URL); {
	case inPath:
		c.Model, c.ModelAt = model, at
	case subjects.MediaType(r.Header) == "multipart/form-data":
		_, params, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
		c, err = scanForm(body, params["boundary"])
	default:
		c, err = scanJSON(body, Of(r.URL.Path).conversationField())
	}
	if err != nil {
		return Call{}, err
	}
	if c.Model == "" {
		return c, ErrNoModel
	}
	if len(c.Model) > subjects.MaxName {
		return Call{}, BadRequest("model", "model name of %d bytes: at most %d", len(c.Model), subjects.MaxName)
	}
	return c, nil
}

// WithModel returns the body of a call that names no model, with a model in it, and notes that in c: in place of null or "",
// else as the first member of the object, or the first part of the form. Nothing else changes. A body in which that is
// not possible without another reader finding a different model is ErrNoModel.
func (c *Call) WithModel(h http.Header, body []byte, model string) ([]byte, error) {
	model = strings.ToValidUTF8(model, "\ufffd") // as JSON has it
	at, text := c.ModelAt, ""
	switch {
	case at.In == subjects.ModelInJSON:
		text = string(jsonString(model))
		body = slices.Replace(body, at.From, at.To, []byte(text)...)
		c.moveTier(at.From, len(text)-(at.To-at.From))
		at.To = at.From + len(text)
	case at.In == subjects.ModelInForm && !strings.ContainsAny(model, "\r\n"):
		body = slices.Replace(body, at.From, at.To, []byte(model)...)
		at.To = at.From + len(model)
	case c.named:
		return nil, ErrNoModel
	case subjects.MediaType(h) == "multipart/form-data":
		_, params, _ := mime.ParseMediaType(h.Get("Content-Type"))
		open := "--" + params["boundary"] + "\r\n"
		if !bytes.HasPrefix(body, []byte(open)) || strings.ContainsAny(model, "\r\n") {
			return nil, ErrNoModel
		}
		head := open + "Content-Disposition: form-data; name=\"model\"\r\n\r\n"
		at = subjects.ModelAt{In: subjects.ModelInForm, From: len(head), To: len(head) + len(model)}
		body = slices.Insert(body, 0, []byte(head+model+"\r\n")...)
	default:
		const member = `"model":`
		from := bytes.IndexByte(body, '{') + 1
		text = member + string(jsonString(model))
		at = subjects.ModelAt{In: subjects.ModelInJSON, From: from + len(member), To: from + len(text)}
		if body[skipSpace(body, from)] != '}' {
			text += ","
		}
		body = slices.Insert(body, from, []byte(text)...)
		c.moveTier(from, len(text))
	}
	c.Model, c.ModelAt = model, at
	return body, nil
}

// moveTier notes that what stands behind a place in the body has moved.
func (c *Call) moveTier(behind, by int) {
	if c.tierAt != [2]int{} && c.tierAt[0] > behind {
		c.tierAt[0] += by
		c.tierAt[1] += by
	}
}

// WithEngineTier returns a body that any engine accepts: some refuse a service tier that is not one of OpenAI's, so any
// other tier becomes "auto". It changes the body in place if there is room, and adjusts ModelAt.
func (c *Call) WithEngineTier(body []byte) []byte {
	engineTiers := []string{"", "auto", "default", "flex", "scale", "priority", "standard_only"}
	if c.tierAt == [2]int{} || slices.Contains(engineTiers, c.Tier) {
		return body
	}
	was := len(body)
	body = slices.Replace(body, c.tierAt[0], c.tierAt[1], []byte(`"auto"`)...)
	moved := len(body) - was
	if c.ModelAt.In == subjects.ModelInJSON && c.ModelAt.From >= c.tierAt[1] {
		c.ModelAt.From += moved
		c.ModelAt.To += moved
	}
	c.tierAt[1] += moved
	return body
}

// jsonString is s as JSON; invalid UTF-8 becomes U+FFFD.
func jsonString(s string) []byte {
	b, _ := jsontext.AppendQuote(nil, s)
	return b
}

// modelInPath finds the model in KServe's paths: /v2/models/{model}[/versions/{v}]/infer.
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

// RequestURI is the path with the query, as received. A query may contain bytes that are not UTF-8
// and that JSON cannot hold: these are escaped.
func RequestURI(u *url.URL) string {
	uri := u.RequestURI()
	if utf8.ValidString(uri) {
		return uri
	}
	var b strings.Builder
	for i := range len(uri) {
		if c := uri[i]; c < utf8.RuneSelf {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// fields are the members of a JSON body that are read.
var fields = []string{
	"model", "stream", "service_tier", "prompt_cache_key", "messages", "input", // decisive: at most once
	"max_completion_tokens", "max_tokens", "max_output_tokens", // the first one present counts
	"tools", "functions", "system", "instructions", "conversation", "previous_response_id", // precede the messages in a prompt
}

var (
	decisive    = fields[:6]
	tokenLimits = fields[6:9]
	preceding   = fields[9:]
)

// scanJSON reads a JSON object's top level; messages is the member that holds its conversation. Of
// a field that is not decisive and occurs twice, the last one counts, as for engines.
//
// What Python's parsers accept is accepted: a byte order mark, and numbers that are none. Other engines refuse it with an
// error of their own.
func scanJSON(body []byte, messages string) (Call, error) {
	t := cursor{b: body, lax: true}
	if bytes.HasPrefix(body, byteOrderMark) {
		t.at = len(byteOrderMark)
	}
	if t.peek() != '{' {
		return Call{}, BadRequest("", "the body is not a JSON object%s", encodingOf(body))
	}
	var c Call
	var talk conversation
	var limits [3]int
	seen := make(map[string]bool, len(decisive))
	t.open()
	for name := t.name(); name != nil; name = t.name() {
		field, exact := fieldOf(name)
		if slices.Contains(decisive, field) {
			if seen[field] {
				return c, BadRequest(field, "the body names %q twice", field)
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
		case "prompt_cache_key": // a hint: an unusual one is ignored
			if v := t.value(); exact && len(v) <= MaxField && len(v) > 0 && v[0] == '"' {
				c.CacheKey = unquoted(v)
			}
		case "model", "stream", "service_tier":
			if err := c.decide(field, exact, &t); err != nil {
				return c, err
			}
		case "max_completion_tokens", "max_tokens", "max_output_tokens":
			n, err := strconv.Atoi(string(t.value()))
			if err != nil || n < 0 { // the engine will refuse it
				n = 0
			}
			limits[slices.Index(tokenLimits, field)] = n
		default:
			from := skipSpace(body, t.at)
			talk.precede(field, &t)
			if field == "previous_response_id" {
				c.Previous = shortString(body[min(from, t.at):t.at])
			}
		}
	}
	if t.bad {
		return c, whyNotJSON(body)
	}
	if t.peek(); t.at < len(body) {
		return c, BadRequest("", "the body has data after its JSON object")
	}
	c.MaxTokens, c.named = cmp.Or(limits[:]...), seen["model"]
	c.prefix = talk.chain()
	return c, nil
}

// decide reads a decisive field's value. A name that does not match exactly is not read, but it
// counts as an occurrence of the field.
func (c *Call) decide(field string, exact bool, t *cursor) error {
	kind, from := t.peek(), t.at
	if kind == '{' || kind == '[' {
		return BadRequest(field, "%q must be a single value", field)
	}
	v := t.value()
	if t.bad || !exact {
		return nil
	}
	if len(v) > MaxField {
		return BadRequest(field, "%q is too long", field)
	}
	switch {
	case kind == 'n': // null means absent
		if field == "model" {
			c.ModelAt = subjects.ModelAt{In: subjects.ModelInJSON, From: from, To: t.at}
		}
	case field == "model" && kind == '"':
		c.Model = unquoted(v)
		c.ModelAt = subjects.ModelAt{In: subjects.ModelInJSON, From: from, To: t.at}
	case field == "service_tier" && kind == '"':
		c.Tier = unquoted(v)
		c.tierAt = [2]int{from, t.at}
	case field == "stream":
		stream, ok := boolOf(v)
		if !ok {
			return BadRequest(field, `"stream" must be true or false`)
		}
		c.Stream = stream
	default:
		return BadRequest(field, "%q must be a string", field)
	}
	return nil
}

// boolOf reads a boolean as pydantic does, which most engines are written with: also from a word or a number.
func boolOf(v []byte) (value, ok bool) {
	word := string(v)
	if v[0] == '"' {
		word = strings.ToLower(unquoted(v))
	}
	switch word {
	case "true", "1", "1.0", "t", "yes", "y", "on":
		return true, true
	case "false", "0", "0.0", "f", "no", "n", "off":
		return false, true
	}
	return false, false
}

// fieldOf returns the field that a quoted name means, and whether the name matches exactly. A decisive field is found
// in any case, as by the laxest engines, so that no spelling is accepted twice.
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

// byteOrderMark precedes UTF-8 that some tools of Windows write.
var byteOrderMark = []byte("\ufeff")

// encodingOf explains a body that is not UTF-8 text; empty if it looks like it.
func encodingOf(body []byte) string {
	switch {
	case bytes.HasPrefix(body, []byte{0xff, 0xfe}), bytes.HasPrefix(body, []byte{0xfe, 0xff}), len(body) > 1 && (body[0] == 0 || body[1] == 0):
		return ": it looks like UTF-16; send UTF-8"
	case bytes.HasPrefix(body, []byte{0x1f, 0x8b}), bytes.HasPrefix(body, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return ": it looks compressed; send it uncompressed"
	}
	return ""
}

// whyNotJSON describes what is wrong with a body that the cursor refused.
func whyNotJSON(body []byte) *Error {
	if why := encodingOf(body); why != "" {
		return BadRequest("", "the body is not valid JSON%s", why)
	}
	err := jsontext.NewDecoder(bytes.NewBuffer(bytes.TrimPrefix(body, byteOrderMark)), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)).SkipValue()
	if err == nil {
		return BadRequest("", "the body is not valid JSON")
	}
	return BadRequest("", "the body is not valid JSON: %s", WhyNotJSON(err))
}

// unquoted is the value of a JSON string; invalid UTF-8 becomes U+FFFD, as everywhere in Go.
func unquoted(v jsontext.Value) string {
	b, _ := jsontext.AppendUnquote(make([]byte, 0, 64), v)
	return string(b)
}

// MaxField bounds, in bytes, a field that is read: of a form, of a JSON body, or of a header that names a session.
const MaxField = 4 << 10

// scanForm reads the fields of a multipart form.
func scanForm(body []byte, boundary string) (Call, error) {
	var c Call
	if boundary == "" {
		return c, BadRequest("", "multipart/form-data without a boundary")
	}
	inForm := []string{"model", "stream", "service_tier"}
	seen := make(map[string]bool, len(inForm))
	src := bytes.NewReader(body)
	for form := multipart.NewReader(src, boundary); ; {
		part, err := form.NextRawPart()
		if err == io.EOF && !bytes.Contains(body, []byte("--"+boundary+"--")) {
			err = io.ErrUnexpectedEOF // in a part's header, which the reader takes for the end
		}
		if err == io.EOF {
			return c, nil
		}
		if err != nil {
			return c, BadRequest("", "the multipart form is malformed: %v", err)
		}
		field := part.FormName()
		if field == "" || manyNamed(part) {
			return c, BadRequest("", "the multipart form is malformed: a part without one plain name")
		}
		if !slices.Contains(inForm, field) {
			continue
		}
		if seen[field] {
			return c, BadRequest(field, "the form names %q twice", field)
		}
		seen[field] = true
		if part.FileName() != "" {
			return c, BadRequest(field, "%q must be a plain field of the form, not a file", field)
		}
		v, err := io.ReadAll(io.LimitReader(part, MaxField))
		if err != nil {
			return c, BadRequest(field, "the multipart form is malformed: %v", err)
		}
		switch field {
		case "model":
			c.Model, c.named = string(v), true
			c.ModelAt = valueInForm(body[:len(body)-src.Len()], boundary, v)
		case "service_tier":
			c.Tier = string(v)
		case "stream":
			if len(v) > 0 {
				c.Stream, _ = boolOf(bytes.ToLower(v))
			}
		}
	}
}

// valueInForm finds the value of the part named model that was just read of a form; read is the part of the body that
// was consumed. It searches backwards for a part with that value and reads it again, since the reader does not report
// positions. A value that is not found, for example in a form with bare line feeds, is not replaced.
func valueInForm(read []byte, boundary string, value []byte) subjects.ModelAt {
	delim := []byte("\r\n--" + boundary)
	for end := bytes.LastIndex(read, delim); end >= 0; end = bytes.LastIndex(read[:end], delim) {
		if !bytes.HasSuffix(read[:end], value) {
			continue
		}
		from := end - len(value)
		begin := bytes.LastIndex(read[:from], delim) + len("\r\n")
		if begin < len("\r\n") {
			begin = 0 // the first part's delimiter has no line break before it
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

// manyNamed reports whether another parser might read another name: RFC 7578 has no name*=, which
// some parsers accept and others ignore.
func manyNamed(part *multipart.Part) bool {
	d := part.Header["Content-Disposition"]
	return len(d) > 1 || strings.Contains(strings.ReplaceAll(strings.ToLower(d[0]), "filename*", ""), "name*")
}

// Quote quotes a client's text for a message, at most 60 bytes of it.
func Quote(s string) string {
	if len(s) > 60 {
		s = s[:60] + "…"
	}
	return `"` + s + `"`
}

// conversation builds a chain of hashes of a request's messages, by which a follow-up finds the
// worker that has the start of the conversation in its cache:
//
//	prefix[k] = hash(what comes before the messages, hash(message 0 , … , message k))
//
// A request's worker is remembered under the last hash of its chain (ConversationHash). A request is a follow-up of an
// earlier one if one of its own prefixes, except the last, was the last of the earlier chain (PrefixHashes): it
// contains everything that the earlier one contained, and more. So neither identical requests nor requests that share
// only a system prompt collect on one worker: what they share is soon in every cache, and the price spreads them.
//
// The hash is XXH64 of the messages' bytes as the client wrote them, without the white space between them, so it is the
// same in every gateway and needs no parsing beyond the scan's. A client that writes an old message differently when it
// sends it again, for example with other white space in it, starts a new conversation. Only "cache_control" is left
// out, because Anthropic's clients put it on the newest messages and remove it from the older ones in every request.
//
// What engines put before the messages (tools, system, instructions) may come after them in the
// body, so its hash is mixed into each prefix at the end.
//
// The hash is not a security boundary: a client that constructs two conversations with the same
// hash is at worst sent to a worker without its prefix.
type conversation struct {
	sum    xxhash.Digest // hash of the messages so far, each with a comma
	prefix []uint64
	before [6]uint64 // by the index in preceding; 0: absent
	again  cursor    // reads a value that is hashed without some of its members
}

// maxPrefix bounds a chain. For a longer conversation the last prefixes are kept, at least half as
// many: a follow-up adds few messages, so the hash that is looked for is near the end.
const maxPrefix = 512

// read adds the messages of the array that t is at.
func (c *conversation) read(t *cursor) {
	c.sum.Reset()
	t.open()
	for t.element() {
		t.cache = false
		message := t.value()
		if message == nil {
			return
		}
		if len(c.prefix) == maxPrefix {
			c.prefix = append(c.prefix[:0], c.prefix[maxPrefix/2:]...)
		}
		c.hash(&c.sum, message, t.cache)
		c.sum.WriteString(",")
		c.prefix = append(c.prefix, c.sum.Sum64())
	}
}

// precede adds the field that t is at, one that engines put before the messages.
func (c *conversation) precede(field string, t *cursor) {
	to := &c.before[slices.Index(preceding, field)]
	t.cache = false
	value := t.value()
	if *to = 0; string(value) == "null" {
		return
	}
	var sum xxhash.Digest
	sum.Reset()
	c.hash(&sum, value, t.cache)
	*to = sum.Sum64()
}

// chain completes and returns the prefixes. It is nil for a body without messages.
func (c *conversation) chain() []uint64 {
	var both [16]byte
	var sum xxhash.Digest
	sum.Reset()
	for _, h := range c.before {
		binary.LittleEndian.PutUint64(both[:], h)
		sum.Write(both[:8])
	}
	binary.LittleEndian.PutUint64(both[:], sum.Sum64())
	for i, h := range c.prefix {
		binary.LittleEndian.PutUint64(both[8:], h)
		c.prefix[i] = xxhash.Sum64(both[:])
	}
	return c.prefix
}

// cacheControl is the member that is left out of a hash.
const cacheControl = `"cache_control"`

// hash adds a JSON value to a hash. cache says that it contains members "cache_control", which are
// left out. They are found by their quotes, which are escaped inside a string.
func (c *conversation) hash(sum *xxhash.Digest, v []byte, cache bool) {
	t := &c.again
	for cache {
		before, after, found := bytes.Cut(v, []byte(cacheControl))
		if !found {
			break
		}
		if t.b, t.at = after, 0; t.peek() == ':' {
			t.at++
			t.value()
			after = after[t.at:]
			var comma bool
			if before, comma = bytes.CutSuffix(bytes.TrimRight(before, jsonSpace), []byte(",")); !comma {
				after = bytes.TrimPrefix(bytes.TrimLeft(after, jsonSpace), []byte(","))
			}
		} else { // it is not a member's name
			before = v[:len(before)+len(cacheControl)]
		}
		sum.Write(before)
		v = after
	}
	sum.Write(v)
}

const jsonSpace = " \t\r\n"

// ConversationHash is the hash under which this request's worker is remembered; 0: none.
func (c *Call) ConversationHash() uint64 {
	if len(c.prefix) == 0 {
		return 0
	}
	return c.prefix[len(c.prefix)-1]
}

// PrefixHashes yields the hashes under which the worker of an earlier part of this conversation may
// have been remembered, the longest prefix first.
func (c *Call) PrefixHashes(yield func(uint64) bool) {
	for i := len(c.prefix) - 2; i >= 0; i-- {
		if !yield(c.prefix[i]) {
			return
		}
	}
}

// RenameModel replaces the client's name for the model in a request by the engine's, and changes no other byte. A
// request whose model has no known place is unchanged. The body itself is not modified.
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
