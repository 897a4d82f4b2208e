package batch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/gateway"
)

// endpoints are the paths that a batch may be for.
var endpoints = []string{"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"}

// window is the longest time within which a batch is run.
const window = 24 * time.Hour

// batchObject is a batch in OpenAI's API.
type batchObject struct {
	ID               string            `json:"id"`
	Object           string            `json:"object"`
	Endpoint         string            `json:"endpoint"`
	Model            *string           `json:"model"`
	Errors           *errorList        `json:"errors"`
	InputFileID      string            `json:"input_file_id"`
	CompletionWindow string            `json:"completion_window"`
	Status           Status            `json:"status"`
	OutputFileID     *string           `json:"output_file_id"`
	ErrorFileID      *string           `json:"error_file_id"`
	CreatedAt        int64             `json:"created_at"`
	InProgressAt     *int64            `json:"in_progress_at"`
	ExpiresAt        int64             `json:"expires_at"`
	FinalizingAt     *int64            `json:"finalizing_at"`
	CompletedAt      *int64            `json:"completed_at"`
	FailedAt         *int64            `json:"failed_at"`
	ExpiredAt        *int64            `json:"expired_at"`
	CancellingAt     *int64            `json:"cancelling_at"`
	CancelledAt      *int64            `json:"cancelled_at"`
	RequestCounts    requestCounts     `json:"request_counts"`
	Usage            usageObject       `json:"usage"`
	Metadata         map[string]string `json:"metadata"`
	Late             int               `json:"late,omitzero"` // Pulley's
}

type errorList struct {
	Object string        `json:"object"`
	Data   []errorObject `json:"data"`
}

type errorObject struct {
	Code    string  `json:"code"`
	Message string  `json:"message"`
	Param   *string `json:"param"`
	Line    *int    `json:"line"`
}

type requestCounts struct {
	Total     int `json:"total"`
	Completed int `json:"completed"`
	Failed    int `json:"failed"`
}

type usageObject struct {
	InputTokens        int64 `json:"input_tokens"`
	InputTokensDetails struct {
		CachedTokens int64 `json:"cached_tokens"`
	} `json:"input_tokens_details"`
	OutputTokens        int64 `json:"output_tokens"`
	OutputTokensDetails struct {
		ReasoningTokens int64 `json:"reasoning_tokens"`
	} `json:"output_tokens_details"`
	TotalTokens int64 `json:"total_tokens"`
}

func (b *record) at(s Status) *int64 {
	if t, ok := b.Since[s]; ok {
		return new(t.Unix())
	}
	return nil
}

func (b *record) object() batchObject {
	o := batchObject{
		ID: b.ID, Object: "batch", Endpoint: b.Endpoint, InputFileID: b.Input, CompletionWindow: b.Window, Status: b.Status,
		CreatedAt: b.Since[Validating].Unix(), InProgressAt: b.at(InProgress), ExpiresAt: b.Until.Unix(), FinalizingAt: b.at(Finalizing),
		CompletedAt: b.at(Completed), FailedAt: b.at(Failed), ExpiredAt: b.at(Expired), CancellingAt: b.at(Cancelling), CancelledAt: b.at(Cancelled),
		RequestCounts: requestCounts{b.Lines, b.Progress.Completed, b.Progress.Failed}, Metadata: b.Metadata,
		Late: b.Late,
	}
	if b.Model != "" {
		o.Model = &b.Model
	}
	if b.HasOutput {
		o.OutputFileID = &b.OutputID
	}
	if b.HasErrors {
		o.ErrorFileID = &b.ErrorID
	}
	u := b.Progress.Usage
	o.Usage.InputTokens, o.Usage.OutputTokens, o.Usage.TotalTokens = u.Input, u.Output, u.Input+u.Output
	o.Usage.InputTokensDetails.CachedTokens, o.Usage.OutputTokensDetails.ReasoningTokens = u.Cached, u.Reasoning
	if len(b.Errors) > 0 {
		o.Errors = &errorList{Object: "list"}
		for _, e := range b.Errors {
			to := errorObject{Code: e.Code, Message: e.Message}
			if e.Param != "" {
				to.Param = &e.Param
			}
			if e.Line > 0 {
				to.Line = &e.Line
			}
			o.Errors.Data = append(o.Errors.Data, to)
		}
	}
	return o
}

// smallBody bounds the body of a call that is no upload.
const smallBody = 64 << 10

func readJSON(r *http.Request, v any) error {
	body, err := io.ReadAll(io.LimitReader(r.Body, smallBody+1))
	switch {
	case err != nil:
		return api.BadRequest("", "the body cannot be read: %v", err)
	case len(body) > smallBody:
		return api.Errorf(http.StatusRequestEntityTooLarge, "request_too_large", "the body is larger than %d bytes", smallBody)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return api.BadRequest("", "the body is not the JSON of such a call: %s", api.WhyNotJSON(err))
	}
	return nil
}

func (s *Service) createBatch(w http.ResponseWriter, r *http.Request, who gateway.Caller) error {
	var ask struct {
		Input    string            `json:"input_file_id"`
		Endpoint string            `json:"endpoint"`
		Window   string            `json:"completion_window"`
		Metadata map[string]string `json:"metadata"`
		Keep     *struct {
			Anchor  string `json:"anchor"`
			Seconds int    `json:"seconds"`
		} `json:"output_expires_after"`
	}
	if err := readJSON(r, &ask); err != nil {
		return err
	}
	if !slices.Contains(endpoints, ask.Endpoint) {
		return api.BadRequest("endpoint", "endpoint %s: must be one of %q", api.Quote(ask.Endpoint), endpoints)
	}
	within, err := time.ParseDuration(ask.Window)
	if err != nil || within < time.Minute || within > window {
		return api.BadRequest("completion_window", "completion_window %s: must be 24h, or a shorter time of 1m or more", api.Quote(ask.Window))
	}
	if err := checkMetadata(ask.Metadata); err != nil {
		return err
	}
	keep := defaultExpiry
	if ask.Keep != nil {
		if ask.Keep.Anchor != "created_at" {
			return api.BadRequest("output_expires_after.anchor", `output_expires_after.anchor must be "created_at"`)
		}
		if keep, err = checkExpiry(ask.Keep.Seconds); err != nil {
			return err
		}
	}
	f, err := s.store.file(r.Context(), who.Tenant, ask.Input)
	if errors.Is(err, errNotFound) || err == nil && f.Purpose != purposeInput {
		return api.BadRequest("input_file_id", "input_file_id %s: there is no such file with purpose %q", api.Quote(ask.Input), purposeInput)
	}
	if err != nil {
		return err
	}
	b := &record{ID: newID("batch_"), Endpoint: ask.Endpoint, Window: ask.Window, Metadata: ask.Metadata, Keep: int(keep.Seconds())}
	if err := s.accept(r.Context(), who, b, f, within); err != nil {
		return err
	}
	return writeJSON(w, b.object())
}

// The bounds of metadata, by the API.
const (
	mostMetadata  = 16
	longestKey    = 64
	longestString = 512
)

func checkMetadata(m map[string]string) error {
	if len(m) > mostMetadata {
		return api.BadRequest("metadata", "metadata has %d entries; %d are the most", len(m), mostMetadata)
	}
	for k, v := range m {
		if utf8.RuneCountInString(k) > longestKey || utf8.RuneCountInString(v) > longestString {
			return api.BadRequest("metadata", "metadata %s: keys have %d characters at most, values %d", api.Quote(k), longestKey, longestString)
		}
	}
	return nil
}

// accept stores a batch for a file.
func (s *Service) accept(ctx context.Context, who gateway.Caller, b *record, f *file, within time.Duration) error {
	if err := s.queueHasRoom(ctx, who.Tenant, f.Lines, b.Tokens); err != nil {
		return err
	}
	if err := s.room(ctx); err != nil {
		return err
	}
	b.Tenant, b.Key, b.Input, b.Lines = who.Tenant, who.Key, f.ID, f.Lines
	b.become(Validating)
	b.Until = b.Since[Validating].Add(within)
	if last := f.Expires.Add(-time.Minute); last.Before(b.Until) { // without its input it cannot go on
		b.Until = last
	}
	if b.Messages { // they were checked as they came
		b.become(InProgress)
	}
	if err := s.store.newBatch(ctx, b); err != nil {
		return err
	}
	s.wake()
	return nil
}

// load is what a tenant's batches have in the queue.
type load struct {
	batches, lines int
	tokens         int64
}

func loadOf(open []*record) (l load) {
	for _, b := range open {
		l.batches++
		l.lines += max(b.Lines-b.Progress.Completed-b.Progress.Failed, 0)
		l.tokens += max(b.Tokens-b.Progress.Tokens, 0)
	}
	return l
}

// queueHasRoom returns an error if a tenant may not have another batch in the queue, with these lines and tokens. 0 of either stands
// for any.
func (s *Service) queueHasRoom(ctx context.Context, tenant string, lines int, tokens int64) error {
	open, err := s.store.openBatches(ctx, tenant)
	if err != nil {
		return err
	}
	l := loadOf(open)
	switch {
	case l.batches >= s.cfg.TenantBatches:
		return quota("too_many_batches", "you have %d batches that have not ended, which is the most; wait for one to end, or cancel it", l.batches)
	case l.lines+max(lines, 1) > s.cfg.TenantLines:
		return quota("enqueued_requests_exceeded", "your batches would have %d requests that are not answered yet; %d are the most", l.lines+max(lines, 1), s.cfg.TenantLines)
	case l.tokens+max(tokens, 1) > s.cfg.TenantTokens:
		return quota("enqueued_tokens_exceeded", "%s", tokensExceeded(s.cfg.TenantTokens, l.tokens, tokens))
	}
	return nil
}

// tokensExceeded says why a batch may not enter the queue. asked is 0 if it has not been read yet.
func tokensExceeded(most, used, asked int64) string {
	this := "nothing is left for this batch"
	if asked > 0 {
		this = fmt.Sprintf("this batch asks for %d", asked)
	}
	return fmt.Sprintf("enqueued token limit reached: your limit is %d tokens of requests that are not answered yet, by an estimate of their inputs and longest answers; "+
		"%d are used, and %s; try again when batches have ended, or cancel one", most, used, this)
}

// quota is the error of a tenant that has as much work in the queue as it may. SDKs do not try it again.
func quota(code, format string, args ...any) error {
	e := api.Errorf(http.StatusTooManyRequests, code, format, args...)
	e.NoRetry = true
	return e
}

// batchOf returns the batch that a call names.
func (s *Service) batchOf(r *http.Request, who gateway.Caller, messages bool) (*record, error) {
	b, _, err := s.store.batch(r.Context(), who.Tenant, r.PathValue("id"))
	if errors.Is(err, errNotFound) || err == nil && b.Messages != messages {
		return nil, noBatch(r.PathValue("id"))
	}
	return b, err
}

func noBatch(id string) error {
	return api.Errorf(http.StatusNotFound, "not_found", "No batch found with id %s.", api.Quote(id))
}

func (s *Service) showBatch(w http.ResponseWriter, r *http.Request, who gateway.Caller) error {
	b, err := s.batchOf(r, who, false)
	if err != nil {
		return err
	}
	return writeJSON(w, b.object())
}

func (s *Service) listBatches(w http.ResponseWriter, r *http.Request, who gateway.Caller) error {
	p, err := pageOf(r, 20, 100)
	if err != nil {
		return err
	}
	all, err := s.store.batches(r.Context(), who.Tenant)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(b *record) bool { return b.Messages })
	list, more := cut(p, all, func(b *record) string { return b.ID })
	data := make([]batchObject, len(list))
	for i, b := range list {
		data[i] = b.object()
	}
	return writeJSON(w, listOf(data, more, func(b batchObject) string { return b.ID }))
}

func (s *Service) cancelBatch(w http.ResponseWriter, r *http.Request, who gateway.Caller) error {
	if _, err := s.batchOf(r, who, false); err != nil {
		return err
	}
	b, err := s.cancel(r.Context(), who.Tenant, r.PathValue("id"))
	if err != nil {
		return err
	}
	return writeJSON(w, b.object())
}

// cancel begins to cancel a batch. It is no error if that has begun, or if the batch was cancelled.
func (s *Service) cancel(ctx context.Context, tenant, id string) (*record, error) {
	b, _, err := s.store.change(ctx, tenant, id, func(b *record) (bool, error) {
		switch {
		case b.Status == Cancelling, b.Status == Cancelled:
			return false, nil
		case b.Status.ended():
			return false, api.Errorf(http.StatusConflict, "batch_ended", "the batch is %s; it cannot be cancelled any more", b.Status)
		case b.Status == Finalizing: // every line has its result
			return false, nil
		}
		b.become(Cancelling)
		return true, nil
	})
	s.wake()
	return b, err
}

// page is what a call asks for of a list.
type page struct {
	after, before string
	limit         int
	ascending     bool
}

func pageOf(r *http.Request, usual, most int) (p page, err error) {
	q := r.URL.Query()
	p = page{after: q.Get("after"), limit: usual}
	if v := q.Get("limit"); v != "" {
		if p.limit, err = strconv.Atoi(v); err != nil || p.limit < 1 || p.limit > most {
			return p, api.BadRequest("limit", "limit %s: must be a number from 1 to %d", api.Quote(v), most)
		}
	}
	switch v := q.Get("order"); v {
	case "asc":
		p.ascending = true
	case "", "desc":
	default:
		return p, api.BadRequest("order", "order %s: must be asc or desc", api.Quote(v))
	}
	return p, nil
}

// cut returns the page of a list, which is ordered by id, the oldest first.
func cut[T any](p page, all []T, id func(T) string) (list []T, more bool) {
	if !p.ascending {
		slices.Reverse(all)
	}
	comes := func(a, b string) bool { return a < b == p.ascending && a != b } // a before b
	all = slices.DeleteFunc(all, func(v T) bool {
		return p.after != "" && !comes(p.after, id(v)) || p.before != "" && !comes(id(v), p.before)
	})
	more = len(all) > p.limit
	switch {
	case !more:
		return all, false
	case p.before != "" && p.after == "": // those next to it
		return all[len(all)-p.limit:], true
	}
	return all[:p.limit], true
}

// listObject is a page of a list in OpenAI's API.
type listObject[T any] struct {
	Object  string  `json:"object"`
	Data    []T     `json:"data"`
	FirstID *string `json:"first_id"`
	LastID  *string `json:"last_id"`
	HasMore bool    `json:"has_more"`
}

func listOf[T any](data []T, more bool, id func(T) string) listObject[T] {
	l := listObject[T]{Object: "list", Data: data, HasMore: more}
	if n := len(data); n > 0 {
		l.FirstID, l.LastID = new(id(data[0])), new(id(data[n-1]))
	}
	return l
}
