package idempotency

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"net/http"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/api"
)

const (
	askEvery   = 2 * time.Second  // how often the owner is asked whether it runs
	silentFor  = 10 * time.Second // after which an owner that does not answer is taken for dead
	lookEvery  = time.Second      // how often a follower looks without being woken: a message that wakes it may be lost
	brokerFor  = 30 * time.Second // how long the broker may not answer
	slowClient = 30 * time.Second
	keepAlive  = 10 * time.Second // between comments in a stream that is silent
)

// follower writes the answer of a run to a client, from what is stored of it.
type follower struct {
	service *Service
	ctx     context.Context // of the client
	w       http.ResponseWriter
	rc      *http.ResponseController
	subject string
	claim   uint64
	owner   string
	run     *run // nil: it is at another gateway, or has ended
	replays bool // the run is that of another call

	last    uint64 // sequence of the last entry that was read
	part    int    // its number
	begun   bool   // something was written
	kind    kind
	between bool // it is a stream of events, and none is half written

	// Of a client that has the beginning of a stream.
	skips bool     // it has what comes next
	at    position // where that begins
	until uint64   // how many events it has
}

// follow writes the answer until its end.
func (f *follower) follow() error {
	var wake chan struct{}
	answered, looked, wrote := time.Now(), time.Now(), time.Now()
	asked := time.Now()
	if f.run == nil {
		asked = time.Time{} // so that the owner knows soon that somebody waits
	}
	lost, patience := false, time.Duration(0)
	for f.ctx.Err() == nil {
		over := f.run != nil && isClosed(f.run.done)
		e, news, err := f.next(over)
		switch {
		case err == nil && (e.run() != f.claim || e.Part != f.part+1):
			return f.fail("the request with the same key was ended, or its answer has expired; send it again")
		case err == nil:
			f.last, f.part = e.seq, e.Part
			if err := f.write(e); err != nil {
				return err
			}
			if e.End != running {
				if e.End == broken {
					return f.fail("the request broke off; send it again")
				}
				return nil
			}
			looked, wrote, answered, lost, patience = time.Now(), time.Now(), time.Now(), false, 0
			continue
		case !errors.Is(err, errNone):
			if time.Since(looked) > brokerFor {
				if f.begun {
					panic(http.ErrAbortHandler)
				}
				return f.service.refusal(err)
			}
			f.wait(nil, lookEvery/4)
			continue
		}
		looked = time.Now()
		if over || lost {
			if f.run != nil && f.run.err != nil && !f.begun {
				return f.service.refusal(f.run.err)
			}
			return f.fail("the gateway that ran the request is gone, or has lost the broker; send it again")
		}
		if f.run != nil {
			wake = news
		} else if wake == nil { // and look again: it may have come before
			wake = make(chan struct{}, 1)
			sub, err := f.service.store.nc.Subscribe(f.subject, func(*nats.Msg) {
				select {
				case wake <- struct{}{}:
				default:
				}
			})
			if err != nil {
				return f.service.refusal(err)
			}
			defer sub.Unsubscribe()
			continue
		}
		if f.run == nil && time.Since(asked) > askEvery {
			asked = time.Now()
			switch f.service.ask(f.ctx, f.owner) {
			case runs:
				answered = time.Now()
			case gone:
				if time.Since(answered) > lookEvery { // not only for a moment
					lost = true
					continue
				}
				asked = time.Now().Add(-askEvery * 7 / 8)
			case silent:
				if time.Since(answered) > silentFor {
					f.takeAway()
					lost = true
					continue
				}
			}
		}
		if f.between && time.Since(wrote) > keepAlive {
			wrote = time.Now()
			if err := f.send([]byte(": working\n\n")); err != nil {
				return err
			}
		}
		if patience == 0 {
			patience = lookEvery
		}
		if f.wait(wake, patience) { // the message is being stored
			patience = time.Millisecond
		} else {
			patience = min(2*patience, lookEvery)
		}
	}
	return f.ctx.Err()
}

// next is the entry after the last one: of a run here that goes on, from the run, which says by news when there is more; else from
// the store.
func (f *follower) next(over bool) (e *entry, news chan struct{}, err error) {
	if f.run != nil {
		e, news, err = f.run.after(f.part)
		if err == nil || !over && err != errPast {
			return e, news, err
		}
	}
	e, err = f.service.store.next(f.ctx, f.subject, f.last+1)
	return e, news, err
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// wait waits a while, or until something may have come, and says whether it was woken.
func (f *follower) wait(wake chan struct{}, d time.Duration) bool {
	var done chan struct{}
	if f.run != nil && wake != nil {
		done = f.run.done
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-wake:
		return true
	case <-f.ctx.Done():
	case <-timer.C:
	case <-done:
	}
	return false
}

// takeAway frees the key of an owner that does not answer. It cannot add anything to its answer then.
func (f *follower) takeAway() {
	ctx, cancel := context.WithTimeout(f.ctx, askEvery)
	defer cancel()
	f.service.store.append(ctx, f.subject, &entry{Owner: f.service.newOwner(), Run: f.claim, Part: f.part + 1, End: broken}, f.last)
}

// fail ends the answer with an error that asks for a retry: as a status while nothing was written, else by closing the connection.
func (f *follower) fail(why string) error {
	if f.begun {
		panic(http.ErrAbortHandler)
	}
	return api.Unavailable("idempotent_request_lost", 0, "%s", why)
}

// notCopied are headers of an answer that belong to one connection or one call.
var notCopied = map[string]bool{
	"Connection": true, "Transfer-Encoding": true, "Keep-Alive": true, "Date": true, "X-Client-Request-Id": true,
}

// write writes an entry to the client.
func (f *follower) write(e *entry) error {
	if e.Part == 1 && e.Status != 0 && !f.begun {
		f.begin(e)
	}
	data := e.data
	if f.skips {
		data = data[f.at.read(f.kind, data, f.until):]
		f.skips = len(data) == 0
	}
	if len(data) == 0 {
		return nil
	}
	f.between = f.kind == events && (bytes.HasSuffix(data, []byte("\n\n")) || bytes.HasSuffix(data, []byte("\r\n\r\n")))
	return f.send(data)
}

// begin writes the status and the headers, which are those of the first entry.
func (f *follower) begin(first *entry) {
	h := f.w.Header()
	maps.Copy(h, f.headers(first.Header))
	if f.replays {
		h.Set(Replayed, "true")
	}
	f.begun, f.kind = true, kindOf(first.Header)
	f.rc.SetWriteDeadline(time.Now().Add(slowClient))
	f.w.WriteHeader(first.Status)
}

// ofWhole are headers that are not right for a part of an answer.
var ofWhole = map[string]bool{"Content-Length": true, "Content-Digest": true, "Content-Md5": true, "Digest": true}

// headers are those of an answer that this client gets.
func (f *follower) headers(stored http.Header) http.Header {
	out := make(http.Header, len(stored))
	for name, values := range stored {
		switch {
		case notCopied[name], f.skips && ofWhole[name], f.replays && strings.Contains(name, "Ratelimit-"):
		case f.w.Header()[name] != nil && name == "Vary":
			out[name] = append(f.w.Header()[name], values...)
		default:
			out[name] = values
		}
	}
	return out
}

// send writes to the client.
func (f *follower) send(b []byte) error {
	f.rc.SetWriteDeadline(time.Now().Add(slowClient))
	_, err := f.w.Write(b)
	if err == nil {
		err = f.rc.Flush()
	}
	if err != nil && f.ctx.Err() == nil { // it reads too slowly
		panic(http.ErrAbortHandler)
	}
	return f.ctx.Err()
}
