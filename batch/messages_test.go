package batch

import (
	"bytes"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// The results of a batch of messages are there for 29 days after its end; then it is archived.
func TestMessageBatchIsArchived(t *testing.T) {
	for age, archived := range map[time.Duration]bool{28 * 24 * time.Hour: false, 30 * 24 * time.Hour: true} {
		ended := time.Now().Add(-age)
		b := &record{
			ID: "msgbatch_1", Status: Completed, Lines: 3, Progress: progress{Completed: 1, Failed: 2, Cancelled: 1}, Keep: int(keepMessages.Seconds()),
			Since: map[Status]time.Time{Validating: ended.Add(-time.Hour), Completed: ended},
		}
		o := b.messageObject("https://example.org")
		if (o.ArchivedAt != nil) != archived || (o.ResultsURL == nil) != archived || o.Counts != (messageCounts{Succeeded: 1, Errored: 1, Canceled: 1}) {
			t.Errorf("after %v: %+v", age, o)
		}
		if !archived && *o.ResultsURL != "https://example.org/v1/messages/batches/msgbatch_1/results" {
			t.Errorf("results_url %s", *o.ResultsURL)
		}
	}
}

// An error that is not in Anthropic's form gets it.
func TestErrorsOfMessages(t *testing.T) {
	for body, want := range map[string]string{
		`{"type":"error","error":{"type":"x","message":"m"},"request_id":"r"}`: `{"custom_id":"a","result":{"type":"errored","error":{"type":"error","error":{"type":"x","message":"m"},"request_id":"r"}}}`,
		`{"error":{"message":"too long"}}`:                                     `"message":"too long"`,
		`{"message":"no such thing"}`:                                          `"message":"no such thing"`,
		`"Bad Request"`:                                                        `"message":"the engine answered 400"`,
		`{"type":"error","error":"x"}`:                                         `"type":"invalid_request_error"`,
	} {
		if got := string(messagesResult("a", 400, jsontext.Value(body))); !strings.Contains(got, want) || !strings.HasPrefix(got, `{"custom_id":"a","result":{"type":"errored","error":{`) {
			t.Errorf("%s: %s", body, got)
		}
	}
}

// A request that comes on several lines is stored on one.
func TestMessagesAreStoredOnALineEach(t *testing.T) {
	var stored bytes.Buffer
	text := "{\"x\": [1],\n\"requests\": [\n{\"custom_id\": \"a\",\r\n \"params\": {\"max_tokens\": 1,\r\n\"system\": \"a\\nb\"}}]}"
	body := &bodyReader{r: strings.NewReader(text), extend: func() {}, most: 1000}
	m := &messageReader{body: body, dec: jsontext.NewDecoder(body), to: &stored, most: 1, seen: make(map[[16]byte]bool)}
	if err := m.read(); err != nil {
		t.Fatal(err)
	}
	want := `{"custom_id":"a","method":"POST","url":"/v1/messages","body":{"max_tokens":1,"system":"a\nb"}}` + "\n"
	if stored.String() != want {
		t.Errorf("%s, want %s", stored.String(), want)
	}
	if _, _, wrong := parse(stored.Bytes()[:stored.Len()-1], "/v1/messages"); wrong != nil {
		t.Error(wrong)
	}
}

// A request that was not answered in time has expired.
func TestMessagesThatExpire(t *testing.T) {
	b := &record{Messages: true, Status: Expired, Lines: 5, Progress: progress{Completed: 2, Failed: 3, Expired: 2}, Since: map[Status]time.Time{Expired: time.Now()}}
	if got, want := string(b.withoutAnswer(0, "a", lineExpired)), `{"custom_id":"a","result":{"type":"expired"}}`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got, want := b.messageObject("").Counts, (messageCounts{Succeeded: 2, Errored: 1, Expired: 2}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// A body is read in parts; what is in memory is one request.
func TestMessagesAreReadInBoundedMemory(t *testing.T) {
	const requests, size = 50, 100 << 10
	one := `,{"custom_id":"c%","params":{"model":"m","max_tokens":7,"messages":[],"x":"` + strings.Repeat("x", size) + `"}}`
	var parts []string
	for i := range requests {
		part := strings.Replace(one, "%", strconv.Itoa(i), 1)
		if i == 0 {
			part = `{"requests":[` + part[1:]
		}
		parts = append(parts, part)
	}
	parts = append(parts, "]}")
	at := 0
	var open bytes.Buffer // what is not read yet of the present part
	body := &bodyReader{extend: func() {
		if open.Len() == 0 && at < len(parts) {
			open.WriteString(parts[at])
			at++
		}
	}, most: 1 << 30}
	body.r = &open
	written, ahead := 0, 0
	m := &messageReader{body: body, dec: jsontext.NewDecoder(body), most: requests, seen: make(map[[16]byte]bool)}
	m.to = writeFunc(func(p []byte) (int, error) {
		written++
		ahead = max(ahead, at-written)
		return len(p), nil
	})
	if err := m.read(); err != nil || m.lines != requests || written != requests || m.model != "m" || m.models != 1 {
		t.Fatalf("%d of %d requests, %+v: %v", written, requests, m, err)
	}
	if ahead > 2 {
		t.Errorf("%d requests were read ahead", ahead)
	}
	if least := int64(requests * size / 4); m.tokens < least || m.tokens > least+requests*100 {
		t.Errorf("%d tokens", m.tokens)
	}
}

type writeFunc func([]byte) (int, error)

func (f writeFunc) Write(p []byte) (int, error) { return f(p) }

// A result is read as it was written, also one that was written without tokens.
func TestResultsKeepTheirTokens(t *testing.T) {
	want := result{n: 3, ok: true, usage: usage{1, 2, 3, 4}, tokens: 55, json: []byte(`{"a": 1}`)}
	text := strings.TrimSuffix(string(want.append(nil)), "\n")
	for text, tokens := range map[string]int64{text: 55, strings.Replace(text, " 55 ", " ", 1): 0} {
		got, err := parseResult([]byte(text))
		if err != nil || got.tokens != tokens || got.n != 3 || !got.ok || got.usage != want.usage || string(got.json) != `{"a": 1}` {
			t.Errorf("%s: %+v %v", text, got, err)
		}
	}
}

// The tokens of a request are estimated by its length, and by the longest answer that it allows.
func TestTokensOfALine(t *testing.T) {
	for body, want := range map[string]int64{
		`{"max_tokens":50}`:                           17/4 + 50,
		`{"max_completion_tokens":7,"max_tokens":50}`: 43/4 + 7,
		`{"max_output_tokens":9}`:                     23/4 + 9,
		`{}`:                                          1 + usualAnswer,
		`{"max_tokens":"no"}`:                         19/4 + usualAnswer,
		`{"max_tokens":99999999999}`:                  26/4 + longestAnswer,
		`{"max_tokens":999999999999999999999999999999999}`: 48/4 + usualAnswer,
	} {
		l, _, wrong := parse([]byte(`{"custom_id":"a","method":"POST","url":"/v1/completions","body":`+body+`}`), "/v1/completions")
		if wrong != nil || l.tokens != want {
			t.Errorf("%s: %d tokens, want %d: %v", body, l.tokens, want, wrong)
		}
	}
	if l, _, _ := parse([]byte(`{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"input":"abcdefg"}}`), "/v1/embeddings"); l.tokens != 19/4 {
		t.Errorf("an embedding: %d tokens", l.tokens)
	}
}
