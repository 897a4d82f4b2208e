package batch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pulley-lb/pulley/subjects"
)

// Status is what has become of a batch, in OpenAI's words.
type Status string

const (
	Validating Status = "validating"
	InProgress Status = "in_progress"
	Cancelling Status = "cancelling"
	Finalizing Status = "finalizing" // results are made into files
	Completed  Status = "completed"
	Failed     Status = "failed"
	Expired    Status = "expired"
	Cancelled  Status = "cancelled"
)

// ended says that nothing changes any more.
func (s Status) ended() bool {
	return s == Completed || s == Failed || s == Expired || s == Cancelled
}

// record is what is stored of a batch.
type record struct {
	ID       string            `json:"id"`
	Tenant   string            `json:"tenant"`
	Key      string            `json:"key"` // id of the API key whose limits hold; empty if there were no keys
	Messages bool              `json:"messages,omitzero"`
	Input    string            `json:"input"` // id of the file
	Endpoint string            `json:"endpoint"`
	Window   string            `json:"window"`
	Metadata map[string]string `json:"metadata,omitzero"`
	Keep     int               `json:"keep"` // seconds, of the files with results

	Status Status               `json:"status"`
	Ending Status               `json:"ending,omitzero"` // what it becomes when its files are made
	Since  map[Status]time.Time `json:"since"`           // when it got each status
	Until  time.Time            `json:"until"`           // when it expires
	Errors []lineError          `json:"errors,omitzero"`

	Model     string    `json:"model,omitzero"`
	Lines     int       `json:"lines"`
	Tokens    int64     `json:"tokens,omitzero"` // of all lines, estimated; 0 until they have been read
	Progress  progress  `json:"progress"`
	Late      int       `json:"late,omitzero"`      // requests that may run as ordinary calls now, since it would miss its window
	Moved     time.Time `json:"moved,omitzero"`     // when the progress changed last
	OutputID  string    `json:"output_id,omitzero"` // of files that may not exist yet
	ErrorID   string    `json:"error_id,omitzero"`
	HasOutput bool      `json:"has_output,omitzero"`
	HasErrors bool      `json:"has_errors,omitzero"`

	Owner string `json:"owner,omitzero"` // the service that runs it
	Beat  int    `json:"beat"`           // counts how often its owner has written it
}

// progress is what the finished lines of a batch amount to.
type progress struct {
	Completed int   `json:"completed"`
	Failed    int   `json:"failed"`
	Cancelled int   `json:"cancelled,omitzero"` // of those that failed: because the batch was cancelled
	Expired   int   `json:"expired,omitzero"`   // because it expired
	Tokens    int64 `json:"tokens,omitzero"`    // that these lines counted in the queue
	Usage     usage `json:"usage"`
}

// usage is a number of tokens.
type usage struct {
	Input     int64 `json:"input,omitzero"`
	Cached    int64 `json:"cached,omitzero"` // of the input
	Output    int64 `json:"output,omitzero"`
	Reasoning int64 `json:"reasoning,omitzero"` // of the output
}

func (u *usage) add(v usage) {
	u.Input += v.Input
	u.Cached += v.Cached
	u.Output += v.Output
	u.Reasoning += v.Reasoning
}

// lineError is an error of a batch's input.
type lineError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Param   string `json:"param,omitzero"`
	Line    int    `json:"line,omitzero"`
}

// become changes the status.
func (b *record) become(s Status) {
	b.Status = s
	if b.Since == nil {
		b.Since = make(map[Status]time.Time)
	}
	b.Since[s] = time.Now()
}

// ends notes what the batch becomes; the first reason counts.
func (b *record) ends(as Status, why ...lineError) {
	if b.Ending == "" {
		b.Ending = as
		b.Errors = append(b.Errors, why...)
	}
}

// keepRecords is how long the record of a batch is kept after its last change.
const keepRecords = 31 * 24 * time.Hour

func subjectOf(tenant, id string) string { return subjects.BatchRecord("batch", tenant, id) }

// batch returns a tenant's batch with the sequence of its record; errNotFound if there is none.
func (s *store) batch(ctx context.Context, tenant, id string) (*record, uint64, error) {
	b := new(record)
	if !validID(id) {
		return nil, 0, errNotFound
	}
	seq, err := s.get(ctx, subjects.RecordsStream, subjectOf(tenant, id), b)
	return b, seq, err
}

// putBatch replaces the record of a batch, if its sequence is still last.
func (s *store) putBatch(ctx context.Context, b *record, last uint64) (uint64, error) {
	return s.put(ctx, subjectOf(b.Tenant, b.ID), b, last, keepRecords)
}

// change changes the record of a batch; change is called again if another was faster, and may return that nothing is to be
// changed.
func (s *store) change(ctx context.Context, tenant, id string, change func(*record) (changed bool, err error)) (b *record, seq uint64, err error) {
	err = again(ctx, func() error {
		for {
			if b, seq, err = s.batch(ctx, tenant, id); err != nil {
				return err
			}
			changed, err := change(b)
			if err != nil {
				return final{err}
			}
			if !changed {
				return nil
			}
			if seq, err = s.putBatch(ctx, b, seq); !errors.Is(err, errChanged) {
				return err
			}
		}
	})
	if f, ok := errors.AsType[final](err); ok {
		err = f.error
	}
	return b, seq, err
}

// openBatch names a batch that has not ended.
type openBatch struct {
	ID     string `json:"id"`
	Tenant string `json:"tenant"`
	Key    string `json:"key"`
}

// open returns the batches of all tenants that have not ended, the oldest first.
func (s *store) open(ctx context.Context) (list []openBatch, err error) {
	for m, err := range s.scan(ctx, subjects.RecordsStream, subjects.OpenBatches) {
		if err != nil {
			return nil, err
		}
		var o openBatch
		if err := subjects.Unmarshal(m.data, &o); err != nil {
			return nil, fmt.Errorf("read %s: %w", m.subject, err)
		}
		list = append(list, o)
	}
	slices.SortFunc(list, func(a, b openBatch) int { return strings.Compare(a.ID, b.ID) })
	return list, nil
}

// openBatches returns a tenant's batches that have not ended.
func (s *store) openBatches(ctx context.Context, tenant string) (list []*record, err error) {
	open, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	for _, o := range open {
		if o.Tenant != tenant {
			continue
		}
		b, _, err := s.batch(ctx, o.Tenant, o.ID)
		if errors.Is(err, errNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if !b.Status.ended() {
			list = append(list, b)
		}
	}
	return list, nil
}

// hiddenInput is the file of the input, if clients cannot see it; else empty.
func (b *record) hiddenInput() string {
	if b.Messages {
		return b.Input
	}
	return ""
}

// closeBatch removes what is kept of a batch only until it has ended. hidden is its hiddenInput.
func (s *store) closeBatch(ctx context.Context, tenant, id, hidden string) error {
	if hidden != "" {
		if err := s.removeFile(ctx, &file{ID: hidden, Tenant: tenant}); err != nil {
			return err
		}
	}
	if err := s.remove(ctx, subjects.ResultsStream, subjects.BatchResults(id)); err != nil {
		return err
	}
	return s.remove(ctx, subjects.RecordsStream, subjects.OpenBatch(id))
}

// newBatch stores a batch that is new, first that it is open.
func (s *store) newBatch(ctx context.Context, b *record) error {
	open := subjects.OpenBatch(b.ID)
	if _, err := s.put(ctx, open, openBatch{b.ID, b.Tenant, b.Key}, 0, time.Until(b.Until)+keepRecords); err != nil {
		return err
	}
	_, err := s.putBatch(ctx, b, 0)
	return err
}

// batches returns the batches of a tenant, the oldest first.
func (s *store) batches(ctx context.Context, tenant string) (list []*record, err error) {
	for m, err := range s.scan(ctx, subjects.RecordsStream, subjects.BatchRecords("batch", tenant)) {
		if err != nil {
			return nil, err
		}
		b := new(record)
		if err := subjects.Unmarshal(m.data, b); err != nil {
			return nil, fmt.Errorf("read %s: %w", m.subject, err)
		}
		list = append(list, b)
	}
	slices.SortFunc(list, func(a, b *record) int { return strings.Compare(a.ID, b.ID) })
	return list, nil
}
