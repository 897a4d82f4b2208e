package batch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/pulley-lb/pulley/subjects"
)

const (
	// pieceSize is how much of a file is in one message. It is below the max_payload of any broker, and large enough that a
	// broker that syncs each write stores over 50 MB/s.
	pieceSize = 256 << 10

	// pieceAhead is how many pieces of a file are written or read at the same time.
	pieceAhead = 8

	// longestUpload is how long an upload may take. Pieces are kept that much longer than the file, whose time begins when it has
	// come.
	longestUpload = time.Hour

	// checkEvery is after how many pieces a writer asks whether there is still room.
	checkEvery = 128
)

// errFull means that the broker has no room for more.
var errFull = errors.New("no room left on disk")

// isFull says whether the broker refuses to store a message for want of room.
func isFull(err error) bool {
	refusal, ok := errors.AsType[*jetstream.APIError](err)
	if !ok {
		return false
	}
	switch refusal.ErrorCode {
	case 10002, 10023, 10028, 10047, subjects.StreamFull: // limit of the account, no resources, memory, disk, limit of the stream
		return true
	}
	return false
}

// writer stores the content of a file, a few pieces at a time. One goroutine uses it. It ends with close or discard.
type writer struct {
	store *store
	ctx   context.Context // of the call that made it, which the writer does not outlive
	id    string
	ttl   time.Duration
	room  func(context.Context) error // says whether there is room for more

	group  *errgroup.Group
	all    context.Context // ends with the first error
	buf    []byte
	pieces int
	size   int64
}

func (s *store) newWriter(ctx context.Context, id string, ttl time.Duration, room func(context.Context) error) *writer {
	w := &writer{store: s, ctx: ctx, id: id, ttl: ttl, room: room}
	w.group, w.all = errgroup.WithContext(ctx)
	w.group.SetLimit(pieceAhead)
	return w
}

func (w *writer) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		if w.buf == nil {
			w.buf = make([]byte, 0, pieceSize)
		}
		m := min(len(p), pieceSize-len(w.buf))
		w.buf, p, n = append(w.buf, p[:m]...), p[m:], n+m
		if len(w.buf) == pieceSize {
			if err := w.send(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

func (w *writer) send() error {
	if w.all.Err() != nil {
		return w.group.Wait()
	}
	if w.pieces%checkEvery == checkEvery-1 {
		if err := w.room(w.ctx); err != nil {
			return err
		}
	}
	m := &nats.Msg{Subject: subjects.FilePiece(w.id, w.pieces), Data: w.buf, Header: nats.Header{}}
	w.pieces, w.size, w.buf = w.pieces+1, w.size+int64(len(w.buf)), nil
	w.group.Go(func() error {
		return again(w.all, func() error {
			_, err := w.store.publish(w.all, m, w.ttl+longestUpload)
			if isFull(err) {
				err = final{fmt.Errorf("%w: %w", errFull, err)}
			}
			return err
		})
	})
	return nil
}

// close stores what is left.
func (w *writer) close() error {
	var err error
	if len(w.buf) > 0 {
		err = w.send()
	}
	if waited := w.group.Wait(); waited != nil {
		return waited
	}
	return err
}

// discard removes what was stored.
func (w *writer) discard() {
	w.group.Wait()
	if w.pieces > 0 {
		w.store.remove(context.WithoutCancel(w.ctx), subjects.FilesStream, subjects.FileContent(w.id)+".>")
	}
}

// final is an error that another try does not mend.
type final struct{ error }

func (f final) Unwrap() error { return f.error }

// again tries something a few times, such as a call of a broker that restarts, as long as ctx allows.
func again(ctx context.Context, try func() error) (err error) {
	const tries = 8
	for n := range tries {
		if err = try(); err == nil || ctx.Err() != nil {
			return err
		}
		if _, ok := errors.AsType[final](err); ok || errors.Is(err, errNotFound) || errors.Is(err, errChanged) {
			return err
		}
		if n < tries-1 {
			sleep(ctx, 100*time.Millisecond<<n)
		}
	}
	return err
}

// sleep waits for d, or until ctx is done.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// errGone means that content is missing: the file was removed, or has expired.
var errGone = errors.New("the content of the file is gone")

// piece returns the n-th piece of a file.
func (s *store) piece(ctx context.Context, id string, n int) (data []byte, err error) {
	err = again(ctx, func() error {
		data, err = s.direct(ctx, subjects.FilesStream, subjects.FilePiece(id, n))
		return err
	})
	if errors.Is(err, errNotFound) {
		err = errGone
	}
	return data, err
}

// content yields the pieces of a file, and reads a few ahead.
func (s *store) content(ctx context.Context, f *file) iter.Seq2[[]byte, error] {
	type read struct {
		data []byte
		err  error
	}
	return func(yield func([]byte, error) bool) {
		var reads sync.WaitGroup
		defer reads.Wait()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		var ahead []chan read
		for next := 0; next < f.Pieces || len(ahead) > 0; {
			for ; next < f.Pieces && len(ahead) < pieceAhead; next++ {
				n, c := next, make(chan read, 1)
				ahead = append(ahead, c)
				reads.Go(func() {
					data, err := s.piece(ctx, f.ID, n)
					c <- read{data, err}
				})
			}
			r := <-ahead[0]
			if ahead = ahead[1:]; !yield(r.data, r.err) || r.err != nil {
				return
			}
		}
	}
}

// errLongLine means that a line is longer than maxLine.
var errLongLine = fmt.Errorf("a line is longer than %d bytes", maxLine)

// maxLine bounds a line of a file.
const maxLine = 32 << 20

// rawLine is a line of a file. Its data is valid until the next one.
type rawLine struct {
	number int // 1, 2, …
	offset int64
	data   []byte
}

// byteOrderMark is what some editors put before the first line.
var byteOrderMark = []byte("\ufeff")

// lines yields the lines of a file that are not blank. A byte order mark at the beginning is left out.
func (s *store) lines(ctx context.Context, f *file) iter.Seq2[rawLine, error] {
	return func(yield func(rawLine, error) bool) {
		var begun []byte // of a line that goes on in the next piece
		l := rawLine{}
		give := func(data []byte) bool {
			l.number, l.data = l.number+1, data
			if l.number == 1 {
				l.data = bytes.TrimPrefix(data, byteOrderMark)
			}
			ok := len(bytes.TrimSpace(l.data)) == 0 || yield(l, nil)
			l.offset += int64(len(data)) + 1
			return ok
		}
		for data, err := range s.content(ctx, f) {
			if err != nil {
				yield(l, err)
				return
			}
			for {
				whole, rest, ok := bytes.Cut(data, []byte{'\n'})
				if !ok {
					break
				}
				if len(begun) > 0 {
					whole = append(begun, whole...)
				}
				if !give(whole) {
					return
				}
				begun, data = begun[:0], rest
			}
			if begun = append(begun, data...); len(begun) > maxLine {
				l.number++
				yield(l, errLongLine)
				return
			}
		}
		if len(begun) > 0 {
			give(begun)
		}
	}
}
