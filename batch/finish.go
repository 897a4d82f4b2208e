package batch

import (
	"context"
	"errors"
	"time"
)

// Why a line has no answer.
var (
	lineCancelled = lineErrorCode{"batch_cancelled", "the batch was cancelled before this request was answered"}
	lineExpired   = lineErrorCode{"batch_expired", "this request could not be executed before the completion window expired"}
)

// finish makes the files of a batch whose lines do not run any more, and ends it.
//
// Their ids are new each time. A service that was frozen here, and wakes when another has ended the batch, touches none of the files
// of that one.
func (r *run) finish(ctx context.Context, b *record, f *file, finished []bool, logged uint64) (err error) {
	s := r.s
	keep := time.Duration(b.Keep) * time.Second
	outputs := map[bool]*output{true: {id: newID("file-"), name: b.ID + "_output.jsonl"}, false: {id: newID("file-"), name: b.ID + "_error.jsonl"}}
	var earlier []string // of a try that was interrupted
	if err := r.change(ctx, func(now *record) {
		earlier = []string{now.OutputID, now.ErrorID}
		now.OutputID, now.ErrorID = outputs[true].id, outputs[false].id
	}); err != nil {
		return err
	}
	for _, id := range earlier {
		if id == "" {
			continue
		}
		if err := s.store.removeFile(ctx, &file{ID: id, Tenant: b.Tenant}); err != nil {
			return err
		}
	}
	defer func() {
		if errors.Is(err, errLost) || errors.Is(context.Cause(ctx), errLost) {
			r.forget(context.WithoutCancel(ctx), outputs)
		}
	}()
	for _, o := range outputs {
		o.writer = s.store.newWriter(ctx, o.id, keep, func(context.Context) error { return nil })
	}
	if b.Messages { // one file for both
		outputs[false] = outputs[true]
	}
	var last uint64
	written := make([]bool, len(finished))
	for res, err := range s.store.results(ctx, b.ID, &last) {
		if err != nil {
			return err
		}
		if res.n >= len(written) || written[res.n] {
			continue
		}
		written[res.n] = true
		if err := outputs[res.ok].add(res.json); err != nil {
			return err
		}
	}
	if last < logged {
		return errors.New("the log of results was read from a broker that is behind")
	}
	left, err := r.unanswered(ctx, b, f, written, outputs[false])
	if err != nil {
		return err
	}
	for _, o := range outputs {
		if o.lines == 0 || o.closed {
			continue
		}
		o.closed = true
		purpose := purposeOutput
		if b.Messages {
			purpose = purposeHidden
		}
		if _, err := s.finishFile(ctx, b.Tenant, o.writer, file{ID: o.id, Name: o.name, Purpose: purpose, Lines: o.lines}, keep); err != nil {
			return err
		}
	}
	r.mu.Lock()
	r.progress.Failed += left
	if b.Ending == Expired {
		r.progress.Expired = left
	} else {
		r.progress.Cancelled = left
	}
	r.mu.Unlock()
	if err := r.change(ctx, func(now *record) {
		now.HasOutput, now.HasErrors = outputs[true].lines > 0, outputs[false].lines > 0
		now.Ending = b.Ending
		now.become(b.Ending)
	}); err != nil {
		return err
	}
	return r.close(ctx)
}

// forget removes files that were made in vain.
func (r *run) forget(ctx context.Context, outputs map[bool]*output) {
	for _, o := range outputs {
		o.writer.group.Wait()
		if err := r.s.store.removeFile(ctx, &file{ID: o.id, Tenant: r.tenant}); err != nil {
			r.log.Debug("cannot remove a file of results", "file", o.id, "err", err)
		}
	}
}

// output is a file of results that is made.
type output struct {
	id, name string
	writer   *writer
	lines    int
	closed   bool
}

func (o *output) add(json []byte) error {
	o.lines++
	if _, err := o.writer.Write(json); err != nil {
		return err
	}
	_, err := o.writer.Write([]byte("\n"))
	return err
}

// unanswered writes that the lines which are not written have no answer, and returns how many they are.
func (r *run) unanswered(ctx context.Context, b *record, f *file, written []bool, to *output) (left int, err error) {
	for _, w := range written {
		if !w {
			left++
		}
	}
	if left == 0 || f == nil {
		return left, nil
	}
	why := lineCancelled
	if b.Ending == Expired {
		why = lineExpired
	}
	n := -1
	for raw, err := range r.s.store.lines(ctx, f) {
		if errors.Is(err, errGone) || errors.Is(err, errLongLine) { // there is no more to tell
			return left, nil
		}
		if err != nil {
			return left, err
		}
		if n++; n >= len(written) {
			break
		}
		if written[n] {
			continue
		}
		l, _, _ := parse(raw.data, b.Endpoint)
		if err := to.add(b.withoutAnswer(n, l.customID, why)); err != nil {
			return left, err
		}
	}
	return left, nil
}
