package batch

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/pulley-lb/pulley/api"
)

// line is a request of a batch.
type line struct {
	n        int // its place among the lines that are not blank: 0, 1, …
	customID string
	body     []byte
	key      uint64 // of its beginning: see body.key
	limit    int    // tokens of its answer, as it says; -1: it does not
	tokens   int64  // estimate of its input and its answer, by which it counts in the queue of its tenant
	tries    int    // how often it was run without an answer
	waits    int    // how often there was no room for it
	stays    bool   // it was refused as an ordinary call, and runs in the tier of batches
}

// inputLine is a line of a batch's input.
type inputLine struct {
	CustomID *string        `json:"custom_id"`
	Method   *string        `json:"method"`
	URL      *string        `json:"url"`
	Body     jsontext.Value `json:"body"`
}

// parse parses a line for an endpoint, or says what is wrong with it.
func parse(raw []byte, endpoint string) (l line, model string, wrong *lineError) {
	var in inputLine
	if err := json.Unmarshal(raw, &in); err != nil {
		return l, "", &lineError{Code: "invalid_json_line", Message: "this line is not a JSON object of a request: " + api.WhyNotJSON(err)}
	}
	missing := func(param string) *lineError {
		return &lineError{Code: "missing_required_parameter", Message: "missing required parameter: " + param, Param: param}
	}
	switch {
	case in.CustomID == nil || *in.CustomID == "":
		return l, "", missing("custom_id")
	case len(*in.CustomID) > longestString:
		return l, "", &lineError{Code: "invalid_custom_id", Message: fmt.Sprintf("custom_id is longer than %d bytes", longestString), Param: "custom_id"}
	case in.Method == nil:
		return l, "", missing("method")
	case *in.Method != "POST":
		return l, "", &lineError{Code: "invalid_method", Message: "the method must be POST", Param: "method"}
	case in.URL == nil:
		return l, "", missing("url")
	case *in.URL != endpoint:
		return l, "", &lineError{Code: "mismatched_url", Message: "the url is not the endpoint of the batch, " + endpoint, Param: "url"}
	case in.Body == nil:
		return l, "", missing("body")
	}
	return parseBody(*in.CustomID, in.Body, endpoint)
}

// parseBody parses what a line asks for, or says what is wrong with it.
func parseBody(customID string, raw jsontext.Value, endpoint string) (l line, model string, wrong *lineError) {
	var b body
	if err := json.Unmarshal(raw, &b); err != nil || raw.Kind() != '{' {
		return l, "", &lineError{Code: "invalid_request", Message: "the body is not a JSON object of a request", Param: "body"}
	}
	if b.Stream != nil && *b.Stream {
		return l, "", &lineError{Code: "stream_not_supported", Message: "requests of a batch cannot be streamed", Param: "body.stream"}
	}
	if b.Background != nil && *b.Background {
		return l, "", &lineError{Code: "background_not_supported", Message: "requests of a batch cannot run in the background", Param: "body.background"}
	}
	l = line{customID: customID, body: raw, key: b.key(), limit: b.limit()}
	l.tokens = max(int64(len(raw))/bytesPerToken, 1)
	switch {
	case endpoint == "/v1/embeddings":
	case l.limit > 0:
		l.tokens += int64(min(l.limit, longestAnswer))
	default:
		l.tokens += usualAnswer
	}
	return l, b.Model, nil
}

// How the tokens of a request are estimated before it has run: as the gateway does where it shares a queue among tenants.
const (
	bytesPerToken = 4
	usualAnswer   = 256
	longestAnswer = 1 << 30
)

// body is what is read of a request: its model, how it wants to be answered, and what it begins with.
type body struct {
	Model        string         `json:"model"`
	Stream       *bool          `json:"stream"`
	Background   *bool          `json:"background"`
	System       jsontext.Value `json:"system"`
	Instructions jsontext.Value `json:"instructions"`
	Messages     jsontext.Value `json:"messages"`
	Prompt       jsontext.Value `json:"prompt"`
	Input        jsontext.Value `json:"input"`

	MaxCompletion jsontext.Value `json:"max_completion_tokens"`
	MaxTokens     jsontext.Value `json:"max_tokens"`
	MaxOutput     jsontext.Value `json:"max_output_tokens"`
}

// limit is the most tokens of the answer; -1 if the request names no number.
func (b *body) limit() int {
	for _, v := range []jsontext.Value{b.MaxCompletion, b.MaxTokens, b.MaxOutput} {
		if n, err := strconv.Atoi(string(v)); err == nil && n >= 0 {
			return n
		}
	}
	return -1
}

// key orders requests so that those with long beginnings in common follow each other: it has 16 bits of a hash of each of four
// beginnings, the shortest first.
func (b *body) key() (key uint64) {
	var begin []byte
	for _, v := range [][]byte{[]byte(b.Model), b.System, b.Instructions, b.Messages, b.Prompt, b.Input} {
		begin = append(append(begin, v[:min(len(v), 8<<10)]...), 0)
	}
	for _, n := range []int{128, 512, 2 << 10, 8 << 10} {
		key = key<<16 | xxhash.Sum64(begin[:min(len(begin), n)])&0xffff
	}
	return key
}

// mostErrors is how many errors of an input are reported.
const mostErrors = 100

// checked is what a batch's input has.
type checked struct {
	lines  int
	model  string // if all lines have the same one
	tokens int64  // estimate, of all lines
	wrong  []lineError
}

// validate checks all lines of a batch's input.
func (s *Service) validate(ctx context.Context, f *file, endpoint string) (checked, error) {
	var c checked
	type seen struct {
		hash   [16]byte // of the custom_id
		number int32
	}
	var ids []seen
	models := 0
	for raw, err := range s.store.lines(ctx, f) {
		if errors.Is(err, errLongLine) {
			c.wrong = append(c.wrong, lineError{Code: "line_too_long", Message: err.Error(), Line: raw.number})
			break
		}
		if err != nil {
			return c, err
		}
		if c.lines++; c.lines > s.cfg.MaxLines {
			c.wrong = []lineError{{Code: "too_many_requests", Message: fmt.Sprintf("the file has more than %d requests, which is the most of a batch here", s.cfg.MaxLines)}}
			return c, nil
		}
		l, m, bad := parse(raw.data, endpoint)
		if bad != nil {
			bad.Line = raw.number
			if c.wrong = append(c.wrong, *bad); len(c.wrong) == mostErrors {
				break
			}
			continue
		}
		c.tokens += l.tokens
		if m != c.model {
			c.model = strings.Clone(m)
			models++
		}
		hash := sha256.Sum256([]byte(l.customID))
		ids = append(ids, seen{[16]byte(hash[:16]), int32(raw.number)})
	}
	if c.lines == 0 && len(c.wrong) == 0 {
		c.wrong = append(c.wrong, lineError{Code: "empty_file", Message: "the file has no requests"})
	}
	slices.SortFunc(ids, func(a, b seen) int {
		return cmp.Or(bytes.Compare(a.hash[:], b.hash[:]), cmp.Compare(a.number, b.number))
	})
	for i := 1; i < len(ids) && len(c.wrong) < mostErrors; i++ {
		if ids[i].hash == ids[i-1].hash {
			c.wrong = append(c.wrong, lineError{Code: "duplicate_custom_id", Message: "an earlier line has the same custom_id", Param: "custom_id", Line: int(ids[i].number)})
		}
	}
	slices.SortStableFunc(c.wrong, func(a, b lineError) int { return cmp.Compare(a.Line, b.Line) })
	if models != 1 {
		c.model = ""
	}
	return c, nil
}

// segmentSize is how much of an input is put in order at a time. Two segments are in memory.
const segmentSize = 8 << 20

// segments sends the lines that are not done to out, one segment of the file after the other, each in the order of keys. It closes
// out.
func (s *Service) segments(ctx context.Context, f *file, endpoint string, done func(n int) bool, out chan<- []line) error {
	defer close(out)
	var segment []line
	size, n := 0, -1
	send := func() error {
		slices.SortStableFunc(segment, func(a, b line) int { return cmp.Compare(a.key, b.key) })
		select {
		case out <- segment:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		segment, size = nil, 0
		return nil
	}
	for raw, err := range s.store.lines(ctx, f) {
		if err != nil {
			return err
		}
		if n++; done(n) {
			continue
		}
		l, _, wrong := parse(raw.data, endpoint)
		if wrong != nil { // it was valid once
			return fmt.Errorf("line %d: %s", raw.number, wrong.Message)
		}
		l.n, l.body = n, bytes.Clone(l.body)
		segment = append(segment, l)
		if size += len(l.body); size >= segmentSize {
			if err := send(); err != nil {
				return err
			}
		}
	}
	if len(segment) > 0 {
		return send()
	}
	return nil
}
