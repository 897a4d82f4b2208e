package batch

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	messagesEndpoint = "/v1/messages"

	// keepMessages is how long the results of a batch of messages are kept, by the API.
	keepMessages = 29 * 24 * time.Hour

	// keepMessagesInput is how long its requests are kept if no gateway is there to end it.
	keepMessagesInput = window + 7*24*time.Hour
)

// messageBatch is a batch in Anthropic's API.
type messageBatch struct {
	ID                string        `json:"id"`
	Type              string        `json:"type"`
	Status            string        `json:"processing_status"`
	Counts            messageCounts `json:"request_counts"`
	EndedAt           *time.Time    `json:"ended_at"`
	CreatedAt         time.Time     `json:"created_at"`
	ExpiresAt         time.Time     `json:"expires_at"`
	ArchivedAt        *time.Time    `json:"archived_at"`
	CancelInitiatedAt *time.Time    `json:"cancel_initiated_at"`
	ResultsURL        *string       `json:"results_url"`
	Progress          requestCounts `json:"progress"`      // Pulley's: the API has no counts until the end
	Late              int           `json:"late,omitzero"` // Pulley's
}

// messageCounts add up to the number of requests. All but the first are zero until the batch has ended.
type messageCounts struct {
	Processing int `json:"processing"`
	Succeeded  int `json:"succeeded"`
	Errored    int `json:"errored"`
	Canceled   int `json:"canceled"`
	Expired    int `json:"expired"`
}

func (b *record) messageCounts() messageCounts {
	if !b.Status.ended() {
		return messageCounts{Processing: b.Lines}
	}
	p := b.Progress
	return messageCounts{Succeeded: p.Completed, Errored: b.Lines - p.Completed - p.Cancelled - p.Expired, Canceled: p.Cancelled, Expired: p.Expired}
}

// messageObject is b in Anthropic's API. base is the URL of the gateway.
func (b *record) messageObject(base string) messageBatch {
	o := messageBatch{
		ID: b.ID, Type: "message_batch", Status: "in_progress", Counts: b.messageCounts(), CreatedAt: b.Since[Validating].UTC(), ExpiresAt: b.Until.UTC(),
		Progress: requestCounts{b.Lines, b.Progress.Completed, b.Progress.Failed}, Late: b.Late,
	}
	if t, ok := b.Since[Cancelling]; ok {
		o.CancelInitiatedAt = new(t.UTC())
	}
	switch {
	case b.Status.ended():
		o.Status, o.EndedAt = "ended", new(b.Since[b.Status].UTC())
		if archived := o.EndedAt.Add(time.Duration(b.Keep) * time.Second); time.Now().Before(archived) {
			o.ResultsURL = new(base + "/v1/messages/batches/" + b.ID + "/results")
		} else {
			o.ArchivedAt = &archived
		}
	case b.Status == Cancelling:
		o.Status = "canceling"
	}
	return o
}

// hostName is what a header may name as the gateway's host.
var hostName = regexp.MustCompile(`^[a-zA-Z0-9.:\[\]_-]{1,255}$`)

// baseURL is the URL at which a client has called the gateway.
func baseURL(r *http.Request) string {
	scheme, host := "http", r.Host
	if r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https" {
		scheme = "https"
	}
	if h := r.Header.Get("X-Forwarded-Host"); hostName.MatchString(h) {
		host = h
	}
	return scheme + "://" + host
}

// messageInput is a request of a batch in Anthropic's API.
type messageInput struct {
	CustomID *string        `json:"custom_id"`
	Params   jsontext.Value `json:"params"`
}

// customID is the form of a custom_id in Anthropic's API.
var customID = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,64}$`)

// messageReader reads the body of a call that makes a batch of messages. Its requests become lines of a file.
type messageReader struct {
	body   *bodyReader
	dec    *jsontext.Decoder
	to     io.Writer
	most   int // requests
	seen   map[[16]byte]bool
	lines  int
	tokens int64
	model  string // if all have the same one
	models int
}

// read reads the whole body.
func (m *messageReader) read() error {
	none := true
	if err := m.token('{'); err != nil {
		return err
	}
	for m.dec.PeekKind() == '"' {
		name, err := m.dec.ReadToken()
		if err != nil {
			return m.malformed(err)
		}
		if name.String() != "requests" {
			if err := m.dec.SkipValue(); err != nil {
				return m.malformed(err)
			}
			continue
		}
		none = false
		if k := m.dec.PeekKind(); k != '[' && k != 0 {
			return api.BadRequest("requests", "requests: must be an array")
		}
		if err := m.token('['); err != nil {
			return err
		}
		for k := m.dec.PeekKind(); k != ']' && k != 0; k = m.dec.PeekKind() {
			m.body.value = 0
			v, err := m.dec.ReadValue()
			if err != nil {
				return m.malformed(err)
			}
			if err := m.request(v); err != nil {
				return err
			}
		}
		if err := m.token(']'); err != nil {
			return err
		}
	}
	if err := m.token('}'); err != nil {
		return err
	}
	switch _, err := m.dec.ReadToken(); {
	case err != io.EOF && err != nil:
		return m.malformed(err)
	case err == nil:
		return api.BadRequest("", "the body has data after its JSON object")
	case none:
		return api.BadRequest("requests", "requests: field required")
	case m.lines == 0:
		return api.BadRequest("requests", "requests: must have at least one request")
	}
	return nil
}

// token reads a bracket.
func (m *messageReader) token(want jsontext.Kind) error {
	if k := m.dec.PeekKind(); k != want && k != 0 {
		return api.BadRequest("", "the body must be a JSON object with an array of requests")
	}
	if _, err := m.dec.ReadToken(); err != nil {
		return m.malformed(err)
	}
	return nil
}

// malformed is the error of a body that cannot be read, or is no JSON.
func (m *messageReader) malformed(err error) error {
	if m.body.err != nil {
		return m.body.err
	}
	return api.BadRequest("", "the body is not valid JSON: %s", api.WhyNotJSON(err))
}

// request takes in a request. v is valid until the next.
func (m *messageReader) request(v jsontext.Value) error {
	at := fmt.Sprintf("requests.%d", m.lines)
	bad := func(field, format string, args ...any) error {
		return api.BadRequest(at+field, "%s%s: %s", at, field, fmt.Sprintf(format, args...))
	}
	if m.lines++; m.lines > m.most {
		return api.BadRequest("requests", "requests: more than %d, which is the most of a batch here", m.most)
	}
	var in messageInput
	if err := json.Unmarshal(v, &in); err != nil {
		return bad("", "must be an object with custom_id and params: %s", api.WhyNotJSON(err))
	}
	switch {
	case in.CustomID == nil:
		return bad(".custom_id", "field required")
	case !customID.MatchString(*in.CustomID):
		return bad(".custom_id", "must match %s", customID)
	case in.Params == nil:
		return bad(".params", "field required")
	case in.Params.Kind() != '{':
		return bad(".params", "must be an object")
	}
	sum := sha256.Sum256([]byte(*in.CustomID))
	if id := [16]byte(sum[:16]); m.seen[id] {
		return bad(".custom_id", "%s is that of an earlier request; each must be unique", *in.CustomID)
	} else {
		m.seen[id] = true
	}
	if bytes.ContainsRune(in.Params, '\n') { // between members: a line must have none
		if err := in.Params.Compact(); err != nil {
			return bad(".params", "%s", api.WhyNotJSON(err))
		}
	}
	l, model, wrong := parseBody(*in.CustomID, in.Params, messagesEndpoint)
	switch {
	case wrong != nil:
		return bad(strings.Replace(wrong.Param, "body", ".params", 1), "%s", wrong.Message)
	case l.limit == 0:
		return bad(".params.max_tokens", "must be at least 1 in a batch")
	}
	m.tokens += l.tokens
	if m.models == 0 || model != m.model {
		m.model = strings.Clone(model)
		m.models++
	}
	_, err := fmt.Fprintf(m.to, `{"custom_id":%q,"method":"POST","url":%q,"body":%s}`+"\n", *in.CustomID, messagesEndpoint, []byte(in.Params))
	return err
}

// bodyReader reads a body that may be long.
type bodyReader struct {
	r      io.Reader
	extend func() // called before each read
	most   int64  // bytes
	n      int64  // that were read
	value  int64  // of these, since this was set to 0
	err    error  // why it cannot be read on; io.EOF is none
}

func (b *bodyReader) Read(p []byte) (n int, err error) {
	if b.err != nil {
		return 0, b.err
	}
	b.extend()
	n, err = b.r.Read(p)
	b.n += int64(n)
	b.value += int64(n)
	switch {
	case b.n > b.most:
		b.err = tooLarge(b.most)
	case b.value > maxLine+int64(len(p)): // it has read ahead of the value
		b.err = api.Errorf(http.StatusRequestEntityTooLarge, "request_too_large", "a request is larger than %d bytes", maxLine)
	case err != nil && err != io.EOF:
		b.err = brokenOff(err)
	default:
		return n, err
	}
	return 0, b.err
}

func (s *Service) createMessages(w http.ResponseWriter, r *http.Request, who gateway.Caller) (err error) {
	ctx, most := r.Context(), s.cfg.maxMessagesSize
	if err := s.queueHasRoom(ctx, who.Tenant, 0, 0); err != nil {
		return err
	}
	left, err := s.roomFor(ctx, who.Tenant, r.ContentLength, most)
	if err != nil {
		return err
	}
	id, began := newID("file-"), time.Now()
	content := s.store.newWriter(ctx, id, keepMessagesInput, s.room)
	body := &bodyReader{r: r.Body, extend: func() { extend(w, began) }, most: most}
	in := &messageReader{body: body, dec: jsontext.NewDecoder(body), to: content, most: s.cfg.maxMessages, seen: make(map[[16]byte]bool)}
	err = in.read()
	if err == nil && content.size+int64(len(content.buf)) > left {
		err = tenantFull(s.cfg.TenantDisk)
	}
	var f *file
	if err == nil {
		http.NewResponseController(w).SetReadDeadline(time.Time{})
		f, err = s.finishFile(ctx, who.Tenant, content, file{ID: id, Name: "requests.jsonl", Purpose: purposeHidden, Lines: in.lines}, keepMessagesInput)
	}
	if err != nil {
		content.discard()
		return err
	}
	b := &record{
		ID: newID("msgbatch_"), Messages: true, Endpoint: messagesEndpoint, Window: "24h", Keep: int(keepMessages.Seconds()), Tokens: in.tokens,
	}
	if in.models == 1 {
		b.Model = in.model
	}
	if err := s.accept(ctx, who, b, f, window); err != nil {
		s.store.removeFile(ctx, f) // else it expires
		return err
	}
	return writeJSON(w, b.messageObject(baseURL(r)))
}

func (s *Service) showMessages(w http.ResponseWriter, r *http.Request, who gateway.Caller) error {
	b, err := s.batchOf(r, who, true)
	if err != nil {
		return err
	}
	return writeJSON(w, b.messageObject(baseURL(r)))
}

// messagePage is a page of a list in Anthropic's API.
type messagePage struct {
	Data    []messageBatch `json:"data"`
	HasMore bool           `json:"has_more"`
	FirstID *string        `json:"first_id"`
	LastID  *string        `json:"last_id"`
}

func (s *Service) listMessages(w http.ResponseWriter, r *http.Request, who gateway.Caller) error {
	p, err := pageOf(r, 20, 1000)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	if p.after, p.before, p.ascending = q.Get("after_id"), q.Get("before_id"), false; p.after != "" && p.before != "" {
		return api.BadRequest("before_id", "only one of before_id and after_id may be set")
	}
	all, err := s.store.batches(r.Context(), who.Tenant)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(b *record) bool { return !b.Messages })
	list, more := cut(p, all, func(b *record) string { return b.ID })
	page := messagePage{Data: make([]messageBatch, len(list)), HasMore: more}
	for i, b := range list {
		page.Data[i] = b.messageObject(baseURL(r))
	}
	if n := len(list); n > 0 {
		page.FirstID, page.LastID = &list[0].ID, &list[n-1].ID
	}
	return writeJSON(w, page)
}

func (s *Service) cancelMessages(w http.ResponseWriter, r *http.Request, who gateway.Caller) error {
	b, err := s.batchOf(r, who, true)
	if err != nil {
		return err
	}
	if !b.Status.ended() {
		b, err = s.cancel(r.Context(), who.Tenant, b.ID)
	}
	if _, told := errors.AsType[*api.Error](err); told || err == nil && b.Status.ended() && b.Status != Cancelled {
		return api.BadRequest("", "the batch %s has ended; it cannot be canceled any more", b.ID)
	}
	if err != nil {
		return err
	}
	return writeJSON(w, b.messageObject(baseURL(r)))
}

func (s *Service) deleteMessages(w http.ResponseWriter, r *http.Request, who gateway.Caller) error {
	b, err := s.batchOf(r, who, true)
	if err != nil {
		return err
	}
	if !b.Status.ended() {
		return api.BadRequest("", "the batch %s has not ended; cancel it first", b.ID)
	}
	// Its gateway may not have come to that: once the record is gone, nobody knows of the input.
	if err := s.store.closeBatch(r.Context(), b.Tenant, b.ID, b.hiddenInput()); err != nil {
		return err
	}
	if err := s.store.removeFile(r.Context(), &file{ID: b.OutputID, Tenant: b.Tenant}); err != nil {
		return err
	}
	if err := s.store.remove(r.Context(), subjects.RecordsStream, subjectOf(b.Tenant, b.ID)); err != nil {
		return err
	}
	return writeJSON(w, map[string]string{"id": b.ID, "type": "message_batch_deleted"})
}

func (s *Service) messagesResults(w http.ResponseWriter, r *http.Request, who gateway.Caller) error {
	b, err := s.batchOf(r, who, true)
	if err != nil {
		return err
	}
	if !b.Status.ended() {
		return api.BadRequest("", "the batch %s has not ended; its results are there then", b.ID)
	}
	f, err := s.store.file(r.Context(), who.Tenant, b.OutputID)
	switch {
	case errors.Is(err, errNotFound) && b.HasOutput:
		return api.Errorf(http.StatusNotFound, "not_found", "the results of the batch %s have expired", b.ID)
	case errors.Is(err, errNotFound):
		f = &file{}
	case err != nil:
		return err
	}
	return s.sendContent(w, r, f, "application/x-jsonl")
}

// messagesLine is a result in Anthropic's API.
type messagesLine struct {
	CustomID string         `json:"custom_id"`
	Result   messagesOutput `json:"result"`
}

type messagesOutput struct {
	Type    string         `json:"type"`
	Message jsontext.Value `json:"message,omitzero"`
	Error   jsontext.Value `json:"error,omitzero"`
}

// messagesResult is the result of a request that was answered.
func messagesResult(customID string, status int, body jsontext.Value) []byte {
	if status >= 200 && status < 300 {
		return subjects.MustMarshal(messagesLine{customID, messagesOutput{Type: "succeeded", Message: body}})
	}
	var said struct {
		Type  string         `json:"type"`
		Error jsontext.Value `json:"error"`
	}
	if json.Unmarshal(body, &said) != nil || said.Type != "error" || said.Error.Kind() != '{' { // it is an engine's own
		body = (&api.Error{Status: status, Code: "upstream_error", Message: messageOf(status, body)}).Body(api.Messages, "")
	}
	return subjects.MustMarshal(messagesLine{customID, messagesOutput{Type: "errored", Error: bytes.Clone(body)}})
}

// messageOf is the text of an error that an engine has answered in another form than Anthropic's.
func messageOf(status int, body jsontext.Value) string {
	var said struct {
		Message string `json:"message"`
		Error   struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	json.Unmarshal(body, &said)
	switch {
	case said.Error.Message != "":
		return said.Error.Message
	case said.Message != "":
		return said.Message
	}
	return fmt.Sprintf("the engine answered %d", status)
}

// messagesWithoutAnswer is the result of a request that has no answer.
func messagesWithoutAnswer(customID string, why lineErrorCode) []byte {
	out := messagesOutput{Type: "errored"}
	switch why.Code {
	case lineCancelled.Code:
		out.Type = "canceled"
	case lineExpired.Code:
		out.Type = "expired"
	default:
		out.Error = (&api.Error{Status: http.StatusInternalServerError, Code: why.Code, Message: why.Message}).Body(api.Messages, "")
	}
	return subjects.MustMarshal(messagesLine{customID, out})
}
