package batch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/subjects"
)

// headerAppend names an append: the owner's mark, a dot and a number.
const headerAppend = "Pulley-Append"

// result is what became of a line. In the log it is a line of text: its fields, and the JSON for the file of results, with spaces
// between. A result may be longer than a message: then it goes on in the next.
type result struct {
	n      int
	ok     bool
	usage  usage
	tokens int64  // that its line counted in the queue: see line.tokens
	json   []byte // an object without newlines
}

func (r *result) append(b []byte) []byte {
	u := r.usage
	return fmt.Appendf(b, "%d %t %d %d %d %d %d %s\n", r.n, r.ok, u.Input, u.Cached, u.Output, u.Reasoning, r.tokens, r.json)
}

func parseResult(text []byte) (r result, err error) {
	fields := bytes.SplitN(text, []byte(" "), 7)
	if len(fields) != 7 {
		return r, errors.New("a result is malformed")
	}
	r.json = fields[6]
	if tokens, rest, ok := bytes.Cut(r.json, []byte(" ")); ok && r.json[0] != '{' {
		r.json = rest
		if r.tokens, err = strconv.ParseInt(string(tokens), 10, 64); err != nil {
			return r, err
		}
	}
	for i, to := range []*int64{&r.usage.Input, &r.usage.Cached, &r.usage.Output, &r.usage.Reasoning} {
		if *to, err = strconv.ParseInt(string(fields[i+2]), 10, 64); err != nil {
			return r, err
		}
	}
	if r.ok, err = strconv.ParseBool(string(fields[1])); err != nil {
		return r, err
	}
	r.n, err = strconv.Atoi(string(fields[0]))
	return r, err
}

// results yields the results in the log of a batch. Their JSON is valid until the next one. last gets the sequence of each message.
func (s *store) results(ctx context.Context, id string, last *uint64) iter.Seq2[result, error] {
	return func(yield func(result, error) bool) {
		var begun []byte // of a result that goes on
		mark := ""
		for m, err := range s.scan(ctx, subjects.ResultsStream, subjects.BatchResults(id)) {
			if err != nil {
				yield(result{}, err)
				return
			}
			*last = m.seq
			owner, _, _ := bytes.Cut([]byte(m.header.Get(headerAppend)), []byte("."))
			if string(owner) != mark { // what an earlier owner has not completed counts as nothing
				mark, begun = string(owner), nil
			}
			data := append(begun, m.data...)
			for {
				end := bytes.IndexByte(data, '\n')
				if end < 0 {
					break
				}
				r, err := parseResult(data[:end])
				if !yield(r, err) || err != nil {
					return
				}
				data = data[end+1:]
			}
			begun = bytes.Clone(data)
		}
	}
}

// errLost means that another service owns the batch now.
var errLost = errors.New("another gateway has taken the batch over")

// appender appends to the log of a batch for one owner. One goroutine uses it.
type appender struct {
	store *store
	id    string
	mark  string // of the owner; no other has it
	ttl   time.Duration
	full  func(error) // is told that an append has to wait, once

	last  uint64 // sequence of the last message
	count int
	told  bool
}

// open makes sure that no earlier owner can append any more, and calls each with the results that are there.
func (a *appender) open(ctx context.Context, begin func(), each func(result)) error {
	const tries = 10
	for range tries {
		begin()
		a.last = 0
		for r, err := range a.store.results(ctx, a.id, &a.last) {
			if err != nil {
				return err
			}
			each(r)
		}
		seq, err := a.publish(ctx, nil)
		if errors.Is(err, errChanged) { // an append of an earlier owner came between
			continue
		}
		a.last = seq
		return err
	}
	return errLost
}

func (a *appender) name() string { return a.mark + "." + strconv.Itoa(a.count) }

func (a *appender) publish(ctx context.Context, data []byte) (uint64, error) {
	m := &nats.Msg{Subject: subjects.BatchResults(a.id), Data: data, Header: nats.Header{headerAppend: {a.name()}}}
	return a.store.publish(ctx, m, a.ttl, jetstream.WithExpectLastSequencePerSubject(a.last))
}

// append stores data, and tries as long as ctx allows. It returns errLost if another owner has appended.
func (a *appender) append(ctx context.Context, data []byte) error {
	a.count++
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		seq, err := a.publish(ctx, data)
		if err == nil {
			a.last = seq
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		last, lookErr := a.store.last(ctx, subjects.ResultsStream, subjects.BatchResults(a.id))
		switch {
		case lookErr == nil && last.header.Get(headerAppend) == a.name(): // it was stored, and the ack lost
			a.last = last.seq
			return nil
		case lookErr == nil && last.seq != a.last, errors.Is(lookErr, errNotFound) && a.last != 0:
			return errLost
		}
		if !a.told {
			a.told = true
			a.full(err)
		}
		sleep(ctx, pause)
	}
}
