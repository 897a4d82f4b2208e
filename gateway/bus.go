package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/brokerconn"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// bus is what the parts of a gateway share: the way to the broker and the log, and the policy in force.
type bus struct {
	id    string // the gateway's id, a subject token
	nc    *nats.Conn
	conn  *brokerconn.Watch // says whether nc hears anybody
	js    jetstream.JetStream
	log   *slog.Logger
	rules atomic.Pointer[rules] // policyFollower sets it

	replicated atomic.Bool // the tiers' streams have replicas; streams sets it

	cancels cancels
	warned  warnings
	events  eventLog
}

// warnings remembers when each warning was last logged, by its text: what others send can cause any number of them.
type warnings struct {
	mu sync.Mutex
	at map[string]time.Time
}

const (
	warnAgain   = 30 * time.Second
	maxWarnings = 256 // remembered at once
)

func (w *warnings) due(text string, now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now.Sub(w.at[text]) < warnAgain {
		return false
	}
	if w.at == nil || len(w.at) >= maxWarnings {
		w.at = make(map[string]time.Time)
	}
	w.at[text] = now
	return true
}

// seldom logs a warning, unless the same one of the same worker or subject was logged a moment ago. The first of args is that
// attribute.
func (b *bus) seldom(text string, args ...any) {
	if b.warned.due(fmt.Sprint(text, args[:2]), time.Now()) {
		b.log.Warn(text, args...)
	}
}

// explain says why something that is asked of the broker fails, and what to do about it.
func (b *bus) explain(err error) string {
	if !b.nc.IsConnected() {
		return b.disconnected()
	}
	if denied := b.denied(); denied != "" {
		return denied
	}
	return explainStore(err)
}

func (b *bus) disconnected() string {
	if why := b.conn.Refused(); why != "" {
		return "no connection to the broker: " + why
	}
	return "no connection to the broker"
}

// denied says what NATS denies of that without which a gateway cannot serve; empty if nothing.
func (b *bus) denied() string {
	what := b.conn.Denied(func(o brokerconn.Operation) bool {
		if o.Subscribe {
			return o.Subject == subjects.Gateway(b.id)+".>" || o.Subject == subjects.AllHeartbeats || strings.HasPrefix(o.Subject, "_INBOX.")
		}
		for _, needed := range []string{"$JS.API.", "pulley.req.", "pulley.wk.", subjects.Gateway(b.id) + "."} {
			if strings.HasPrefix(o.Subject, needed) {
				return true
			}
		}
		return false
	})
	if what == "" {
		return ""
	}
	return "NATS denies this user to " + what + ": the credentials may be those of another role; a gateway needs those of a gateway"
}

// publish publishes a message of package subjects as JSON.
func (b *bus) publish(subject string, v any) { b.nc.Publish(subject, subjects.MustMarshal(v)) }

// respond answers a message, unless the answer would go where only a gateway may publish: whoever asks chooses the subject.
func (b *bus) respond(m *nats.Msg, data []byte) { b.respondWith(m, data, nil) }

func (b *bus) respondWith(m *nats.Msg, data []byte, header nats.Header) {
	switch {
	case m.Reply == "":
		return
	case !subjects.MayAnswer(m.Reply):
		b.seldom("question not answered: its reply subject is none of an inbox", "subject", m.Subject, "reply", m.Reply)
		return
	}
	b.nc.PublishMsg(&nats.Msg{Subject: m.Reply, Header: header, Data: data})
}

// event publishes an event for operators. The broker does not store events: without a subscriber they are lost.
func (b *bus) event(e subjects.Event) {
	e.At, e.From = time.Now().UTC(), "gateway "+b.id
	b.events.add(e)
	b.publish(subjects.EventSubject(e.Kind), e)
}

// every calls do at each interval until ctx is done.
func every(ctx context.Context, interval time.Duration, do func()) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			do()
		}
	}
}

// holds says whether a stream still has a message of a request. The sequence alone does not show that: a broker that lost a
// stream in memory counts from 1 again. Any replica may say that it has the message; that there is none is up to the leader,
// since a replica that has restarted may be behind. A stream on disk is asked by its leader alone: nats-server answers a direct get
// on the goroutine that reads the gateway's connection, so that while the disk hangs nothing else would come from it.
func (b *bus) holds(ctx context.Context, id subjects.ID, stream string, seq uint64) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if !b.onDisk(stream) {
		m, err := b.nc.RequestWithContext(ctx, subjects.DirectGet(stream), fmt.Appendf(nil, `{"seq":%d,`+subjects.DirectGetBound+`}`, seq))
		if err != nil {
			return false, fmt.Errorf("look for message %d: %w", seq, err)
		}
		if there := m.Header.Get("Status") == "" && isOf(m.Header, id); there || !b.replicated.Load() {
			return there, nil
		}
	}
	m, err := b.nc.RequestWithContext(ctx, subjects.GetMsg(stream), fmt.Appendf(nil, `{"seq":%d}`, seq))
	if err != nil {
		return false, fmt.Errorf("look for message %d at the leader: %w", seq, err)
	}
	var got struct {
		Message *struct {
			Header []byte `json:"hdrs"`
		} `json:"message"`
		Error *jetstream.APIError `json:"error"`
	}
	switch err := json.Unmarshal(m.Data, &got); {
	case err != nil:
		return false, fmt.Errorf("look for message %d at the leader: %w", seq, err)
	case got.Error != nil && got.Error.ErrorCode != noSuchMessage:
		return false, fmt.Errorf("look for message %d at the leader: %w", seq, got.Error)
	case got.Error != nil || got.Message == nil:
		return false, nil
	}
	header, err := nats.DecodeHeadersMsg(got.Message.Header)
	return err == nil && isOf(header, id), nil
}

// onDisk says whether the stream of requests is one on disk, by the policy.
func (b *bus) onDisk(stream string) bool {
	return slices.ContainsFunc(b.rules.Load().Policy.Tiers, func(t policy.Tier) bool {
		return t.Storage == policy.File && subjects.ReqStream(t.Name) == stream
	})
}

// noSuchMessage is the broker's error code for a message that a stream does not have.
const noSuchMessage jetstream.ErrorCode = 10037

// isOf says whether a message with that header is one of a request.
func isOf(h nats.Header, id subjects.ID) bool {
	return strings.HasPrefix(h.Get(subjects.HeaderMsgID), id.String())
}

// deleteMessage asks a stream to delete a message.
func (b *bus) deleteMessage(stream string, seq uint64) {
	b.nc.Publish(subjects.DeleteMsg(stream), fmt.Appendf(nil, `{"seq":%d,"no_erase":true}`, seq))
}

// deleteNow deletes a message that is there. When it returns nil, the message will not be delivered any more.
func (b *bus) deleteNow(ctx context.Context, stream string, seq uint64) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	m, err := b.nc.RequestWithContext(ctx, subjects.DeleteMsg(stream), fmt.Appendf(nil, `{"seq":%d,"no_erase":true}`, seq))
	if err != nil {
		return fmt.Errorf("delete message %d: %w", seq, err)
	}
	var did struct {
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &did); err != nil {
		return fmt.Errorf("delete message %d: %w", seq, err)
	}
	if did.Error != nil {
		return fmt.Errorf("delete message %d: %w", seq, did.Error)
	}
	return nil
}
