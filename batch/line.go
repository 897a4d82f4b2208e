package batch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/subjects"
)

// maxAnswer bounds the answer of a line, in bytes.
const maxAnswer = 32 << 20

// answer is what a request was answered with. It is an http.ResponseWriter; one goroutine uses it.
type answer struct {
	header  http.Header
	status  int
	body    bytes.Buffer
	tooLong bool
	broken  bool // the answer was broken off
}

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(status int) {
	if a.status == 0 && status >= 200 {
		a.status = status
	}
}

func (a *answer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	if a.body.Len()+len(p) > maxAnswer {
		a.tooLong = true
		return 0, errors.New("the answer is too long")
	}
	return a.body.Write(p)
}

// runLine has a request run, and returns its answer.
func runLine(ctx context.Context, do gateway.Do, who gateway.Caller, tier, endpoint string, body []byte) (a *answer) {
	a = &answer{header: make(http.Header)}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, bytes.NewReader(body))
	if err != nil {
		panic(err) // the endpoints are fixed
	}
	r.RequestURI, r.Host, r.RemoteAddr = endpoint, "batch", "127.0.0.1:0"
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Content-Length", strconv.Itoa(len(body)))
	if endpoint == "/v1/messages" {
		r.Header.Set("Anthropic-Version", "2023-06-01")
	}
	defer func() {
		if v := recover(); v == http.ErrAbortHandler {
			a.broken = true
		} else if v != nil {
			panic(v)
		}
	}()
	do(a, r, who, tier)
	return a
}

// verdict is what an answer means for its line.
type verdict int

const (
	answered  verdict = iota // the line is finished
	noRoom                   // it runs again when there is room
	failed                   // it runs again a few times
	keyGone                  // no line of the batch can run any more
	takenBack                // it waited in the queue, and runs as an ordinary call
)

// verdict judges an answer.
func (a *answer) verdict() verdict {
	switch {
	case a.tooLong:
		return answered
	case a.broken || a.status == 0:
		return failed
	case a.status == http.StatusUnauthorized:
		return keyGone
	case a.status == http.StatusTooManyRequests, a.status == http.StatusServiceUnavailable:
		return noRoom
	case a.status >= 500, a.ok() && !jsontext.Value(a.body.Bytes()).IsValid():
		return failed
	}
	return answered
}

func (a *answer) ok() bool { return a.status >= 200 && a.status < 300 && !a.tooLong && !a.broken }

const (
	// mostTries is how often a line is run that fails. Each time the gateway itself tries as often as the tier's policy says.
	mostTries = 3

	// longestPause bounds how long a batch pauses because it was told to.
	longestPause = time.Minute
)

// pause is how long an answer asks to wait.
func (a *answer) pause() time.Duration {
	secs, err := strconv.Atoi(a.header.Get("Retry-After"))
	if err != nil || secs < 0 {
		secs = 1
	}
	return min(max(time.Duration(secs)*time.Second, time.Second/4), longestPause)
}

// outputLine is a line of a file of results.
type outputLine struct {
	ID       string         `json:"id"`
	CustomID string         `json:"custom_id"`
	Response *lineResponse  `json:"response"`
	Error    *lineErrorCode `json:"error"`
}

type lineResponse struct {
	Status    int            `json:"status_code"`
	RequestID string         `json:"request_id"`
	Body      jsontext.Value `json:"body"`
}

type lineErrorCode struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// lineID is the id of a line's result, the same each time.
func lineID(batch string, n int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", batch, n))
	return "batch_req_" + hex.EncodeToString(sum[:16])
}

// outcome makes the result of a line of its answer.
func (b *record) outcome(l *line, a *answer) result {
	r := result{n: l.n, ok: a.ok(), tokens: l.tokens}
	if a.tooLong || a.broken || a.status == 0 {
		why := lineErrorCode{"answer_broken_off", "the answer was broken off, each time the request was run"}
		if a.tooLong {
			why = lineErrorCode{"answer_too_long", fmt.Sprintf("the answer is longer than %d bytes", maxAnswer)}
		}
		r.json = b.withoutAnswer(l.n, l.customID, why)
		return r
	}
	body := jsontext.Value(a.body.Bytes())
	if body.Compact() != nil { // it is no JSON
		body, _ = jsontext.AppendQuote(nil, a.body.Bytes())
	} else if r.ok {
		r.usage = usageIn(body)
	}
	if b.Messages {
		r.json = messagesResult(l.customID, a.status, body)
		return r
	}
	r.json = subjects.MustMarshal(outputLine{ID: lineID(b.ID, l.n), CustomID: l.customID, Response: &lineResponse{a.status, a.header.Get("X-Request-Id"), body}})
	return r
}

// withoutAnswer is the result of a line that has no answer.
func (b *record) withoutAnswer(n int, customID string, why lineErrorCode) []byte {
	if b.Messages {
		return messagesWithoutAnswer(customID, why)
	}
	return subjects.MustMarshal(outputLine{ID: lineID(b.ID, n), CustomID: customID, Error: &why})
}

// usageIn is the usage that an answer reports, in the words of any of the APIs.
func usageIn(body []byte) usage {
	var in struct {
		Usage struct {
			Prompt        int64 `json:"prompt_tokens"`
			Completion    int64 `json:"completion_tokens"`
			Input         int64 `json:"input_tokens"`
			Output        int64 `json:"output_tokens"`
			CacheRead     int64 `json:"cache_read_input_tokens"`
			CacheCreation int64 `json:"cache_creation_input_tokens"`
			PromptDetails *struct {
				Cached int64 `json:"cached_tokens"`
			} `json:"prompt_tokens_details"`
			InputDetails *struct {
				Cached int64 `json:"cached_tokens"`
			} `json:"input_tokens_details"`
			CompletionDetails *struct {
				Reasoning int64 `json:"reasoning_tokens"`
			} `json:"completion_tokens_details"`
			OutputDetails *struct {
				Reasoning int64 `json:"reasoning_tokens"`
			} `json:"output_tokens_details"`
		} `json:"usage"`
	}
	if json.Unmarshal(body, &in) != nil {
		return usage{}
	}
	v := in.Usage
	u := usage{Input: v.Prompt + v.Input + v.CacheRead + v.CacheCreation, Output: v.Completion + v.Output, Cached: v.CacheRead}
	if v.PromptDetails != nil {
		u.Cached += v.PromptDetails.Cached
	}
	if v.InputDetails != nil {
		u.Cached += v.InputDetails.Cached
	}
	if v.CompletionDetails != nil {
		u.Reasoning += v.CompletionDetails.Reasoning
	}
	if v.OutputDetails != nil {
		u.Reasoning += v.OutputDetails.Reasoning
	}
	return u
}
