package sim

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime/multipart"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pulley-lb/pulley/engine"
)

const (
	maxBody       = 256 << 20
	maxField      = 1 << 20 // bytes of a form field
	maxOutput     = 1 << 20 // tokens; in place of a real engine's context length
	defaultOutput = 64      // tokens
)

// An endpoint is what differs between the inference APIs.
type endpoint struct {
	idPrefix  string
	anthropic bool // errors have Anthropic's shape
	decodes   bool // produces tokens after the prefill
	form      bool // reads a multipart form instead of JSON
	needs     string
	needed    func(*body) bool
	answer    func(*body, *work) answer
}

// A body is a request in any of the APIs.
type body struct {
	Model         string `json:"model"`
	ID            string `json:"id"`
	Stream        bool   `json:"stream"`
	StreamOptions struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`

	MaxCompletionTokens *int `json:"max_completion_tokens"`
	MaxTokens           *int `json:"max_tokens"`
	MaxOutputTokens     *int `json:"max_output_tokens"`

	System       texts `json:"system"`
	Instructions texts `json:"instructions"`
	Messages     texts `json:"messages"`
	Prompt       texts `json:"prompt"`
	Input        texts `json:"input"`
	Query        texts `json:"query"`
	Documents    texts `json:"documents"`
	Inputs       []struct {
		Data texts `json:"data"`
	} `json:"inputs"`

	Tools []struct {
		Name     string `json:"name"`
		Function struct {
			Name string `json:"name"`
		} `json:"function"`
	} `json:"tools"`
	ToolChoice     json.RawMessage `json:"tool_choice"`
	ResponseFormat json.RawMessage `json:"response_format"`
	EncodingFormat string          `json:"encoding_format"`
	Dimensions     int             `json:"dimensions"`
	TopN           *int            `json:"top_n"`
	N              int             `json:"n"`
}

func (b *body) prompt() []string {
	all := slices.Concat(b.System, b.Instructions, b.Messages, b.Prompt, b.Input, b.Query, b.Documents)
	for _, in := range b.Inputs {
		all = append(all, in.Data...)
	}
	return all
}

func (e endpoint) read(w http.ResponseWriter, r *http.Request) (*body, error) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	read := readJSON
	if e.form {
		read = readForm
	}
	b, err := read(r)
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, errorOf(http.StatusRequestEntityTooLarge, "the body is too large")
	}
	if err != nil {
		return nil, badRequest("", "cannot read the request body: %v", err)
	}
	if m := r.PathValue("model"); m != "" {
		b.Model = m
	}
	if b.Model == "" {
		return nil, badRequest("model", "you must provide a model")
	}
	return b, nil
}

func readJSON(r *http.Request) (*body, error) {
	var buf bytes.Buffer
	if n := r.ContentLength; n > 0 && n < maxBody {
		buf.Grow(int(n) + bytes.MinRead)
	}
	if _, err := buf.ReadFrom(r.Body); err != nil {
		return nil, err
	}
	b := new(body)
	return b, json.Unmarshal(buf.Bytes(), b)
}

func readForm(r *http.Request) (*body, error) {
	parts, err := r.MultipartReader()
	if err != nil {
		return nil, err
	}
	b := new(body)
	file := false
	for {
		p, err := parts.NextPart()
		if err == io.EOF && !file {
			return nil, errors.New("the form has no file")
		}
		if err == io.EOF {
			_, err = io.Copy(io.Discard, r.Body) // only then does net/http notice a disconnecting client
			return b, err
		}
		if err != nil {
			return nil, err
		}
		file = file || p.FormName() == "file"
		if err := b.readPart(p); err != nil {
			return nil, err
		}
	}
}

func (b *body) readPart(p *multipart.Part) error {
	if p.FormName() == "file" {
		_, err := io.Copy(io.Discard, p)
		return err
	}
	value, err := io.ReadAll(io.LimitReader(p, maxField))
	if err != nil {
		return err
	}
	switch p.FormName() {
	case "model":
		b.Model = string(value)
	case "prompt":
		b.Prompt = texts{string(value)}
	case "stream":
		b.Stream = string(value) == "true"
	case "response_format":
		b.ResponseFormat = strconv.AppendQuote(nil, string(value))
	}
	return nil
}

// work is a request as the engine processes it.
type work struct {
	id       string
	engine   string
	model    string // as the client named it
	served   string // as the engine lists it
	created  int64
	in, out  int // tokens
	cached   int // part of in; known after the prefill, as the next two
	computed int
	read     time.Duration
	blocks   []uint64 // blocks of the prompt, if the engine caches prompts
	hash     uint64
	capped   bool // the request set its output length
	stream   bool
	usage    bool // the stream ends with the usage
	caches   bool // this engine caches prompts
	ollama   bool
	timed    bool // it says how long the prompt took: llama.cpp
}

func (s *Engine) newWork(r *http.Request, e endpoint, b *body) (*work, error) {
	model, ok := s.modelNamed(b.Model)
	if !ok {
		return nil, s.unknownModel(b.Model, r.URL.Path)
	}
	wk := &work{
		id:      e.idPrefix + s.cfg.Name + "-" + strconv.FormatUint(s.lastID.Add(1), 10),
		engine:  s.cfg.Name,
		model:   b.Model,
		served:  model,
		created: time.Now().Unix(),
		stream:  b.Stream,
		usage:   b.StreamOptions.IncludeUsage,
		caches:  e.decodes && s.batch.cache != nil,
		ollama:  s.cfg.Dialect == engine.DialectOllama,
		timed:   s.cfg.Dialect == engine.DialectLlamaCpp && e.decodes,
	}
	block := 0
	if wk.caches {
		block = cacheBlock
	}
	wk.hash, wk.in, wk.blocks = hashWords(b.prompt(), block)
	if s.cfg.Dialect == engine.DialectLlamaCpp {
		wk.model = model // it answers with its own name
	}
	if err := wk.setOutput(b); err != nil {
		return nil, s.unreadable(err)
	}
	if !e.decodes {
		wk.out, wk.capped = 1, true // it ends with the prefill
	}
	return wk, s.fit(wk)
}

func (wk *work) setOutput(b *body) *apiError {
	wk.out = defaultOutput
	for _, limit := range []struct {
		param string
		value *int
	}{
		{"max_completion_tokens", b.MaxCompletionTokens},
		{"max_tokens", b.MaxTokens},
		{"max_output_tokens", b.MaxOutputTokens},
	} {
		if limit.value == nil || wk.ollama && limit.param == "max_completion_tokens" {
			continue
		}
		if n := *limit.value; n < 1 || n > maxOutput {
			return badRequest(limit.param, "%s is %d: must be 1 to %d", limit.param, n, maxOutput)
		}
		wk.out, wk.capped = *limit.value, true
		break
	}
	return nil
}

// contentType is that of a stream.
func (wk *work) contentType() string { return "text/event-stream; charset=utf-8" }

func (wk *work) text() string { return Text(wk.hash, wk.out) }

// piece is the part of the text that the tokens from i until before n add.
func (wk *work) piece(i, n int) string { return string(appendTokens(nil, wk.hash, i, n)) }

// finish returns length if the answer is as long as requested, stop if it ended by itself.
func (wk *work) finish(length, stop string) string {
	if wk.capped {
		return length
	}
	return stop
}

// texts are the strings of a prompt in any of its JSON shapes; see the package documentation. They
// are not nil if the field was present.
type texts []string

// UnmarshalJSON receives valid JSON from package json, so a single pass that looks at little
// suffices, and images of many megabytes cost little.
func (t *texts) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		return nil
	}
	w := textWalker{json: b, found: texts{}}
	w.value(true)
	*t = w.found
	return nil
}

type textWalker struct {
	json  []byte // valid
	at    int
	found texts
}

// value skips one value and, if keep is set, keeps its texts.
func (w *textWalker) value(keep bool) {
	switch c := w.peek(); c {
	case '"':
		s := w.str()
		if keep {
			w.found = append(w.found, unquote(s))
		}
	case '{':
		w.at++
		for w.peek() != '}' {
			key := string(w.str())
			w.peek()
			w.at++ // the colon
			w.value(keep && (key == `"text"` || key == `"content"`))
			w.comma()
		}
		w.at++
	case '[':
		w.array(keep)
	default:
		s := w.literal()
		if keep && isNumber(c) {
			w.found = append(w.found, string(s))
		}
	}
}

func (w *textWalker) array(keep bool) {
	var ids []string
	w.at++
	for w.peek() != ']' {
		if keep && isNumber(w.peek()) {
			ids = append(ids, string(w.literal()))
		} else {
			w.value(keep)
		}
		w.comma()
	}
	w.at++
	if ids != nil {
		w.found = append(w.found, strings.Join(ids, " "))
	}
}

// peek is the next byte that is not white space.
func (w *textWalker) peek() byte {
	for {
		switch c := w.json[w.at]; c {
		case ' ', '\t', '\r', '\n':
			w.at++
		default:
			return c
		}
	}
}

func (w *textWalker) comma() {
	if w.peek() == ',' {
		w.at++
	}
}

// str is the string that starts here, including its quotes.
func (w *textWalker) str() []byte {
	start := w.at
	w.at++
	for {
		w.at += bytes.IndexByte(w.json[w.at:], '"') + 1
		escapes := 0
		for w.json[w.at-2-escapes] == '\\' {
			escapes++
		}
		if escapes%2 == 0 {
			return w.json[start:w.at]
		}
	}
}

// literal is the number or word that starts here.
func (w *textWalker) literal() []byte {
	n := bytes.IndexAny(w.json[w.at:], ",]} \t\r\n")
	if n < 0 {
		n = len(w.json) - w.at
	}
	w.at += n
	return w.json[w.at-n : w.at]
}

func isNumber(c byte) bool { return c == '-' || '0' <= c && c <= '9' }

func unquote(s []byte) string {
	if bytes.IndexByte(s, '\\') < 0 {
		return string(s[1 : len(s)-1])
	}
	var v string
	_ = json.Unmarshal(s, &v) // valid, as UnmarshalJSON says
	return v
}
