package gateway

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/testenv"
)

// lines are the lines of a log.
type lines struct {
	mu  sync.Mutex
	log bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.log.Write(b)
}

// with counts the lines that have all texts.
func (l *lines) with(texts ...string) (n int) {
	for line := range strings.Lines(l.String()) {
		if !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(line, text) }) {
			n++
		}
	}
	return n
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.log.String()
}

// limited writes a configuration of the broker in which the account of all users has limits, and returns its path.
func limited(t *testing.T, limits string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "nats.conf")
	text := "accounts { PULLEY { jetstream { " + limits + " }, users: [ { user: u, password: p } ] } }\nno_auth_user: u\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A gateway that cannot create its streams says why: in the log, once, at /readyz, and in what doctor reads.
func TestSaysWhyThereIsNoQueue(t *testing.T) {
	for about, c := range map[string]struct {
		cfg  broker.Config
		with Config
		want []string
	}{
		"next to no disk":     {broker.Config{ConfigFile: limited(t, "max_file: 512KB, max_mem: 64MB")}, Config{}, []string{"PULLEY_DEAD", "insufficient storage resources", "--max-store", "NATS account"}},
		"no disk at all":      {broker.Config{ConfigFile: limited(t, "max_file: 0, max_mem: 64MB")}, Config{}, []string{"PULLEY_REQ_BATCH", "insufficient storage resources", "--max-store"}},
		"too many replicas":   {broker.Config{}, Config{Replicas: 3}, []string{"PULLEY_REQ_", "replicas"}},
		"more than ever work": {broker.Config{}, Config{Replicas: 9}, []string{"PULLEY_REQ_", "replicas"}},
	} {
		t.Run(about, func(t *testing.T) {
			t.Parallel()
			nc := testenv.Broker(t, c.cfg)
			refs, err := nc.SubscribeSync(subjects.AllGateways)
			if err != nil {
				t.Fatal(err)
			}
			log := new(lines)
			c.with.Logger = slog.New(slog.NewTextHandler(log, nil))
			g, err := New(c.with, nc)
			if err != nil {
				t.Fatal(err)
			}
			running := testenv.Start(func(ctx context.Context) error { return g.Run(ctx, testenv.NewListener(), nil) })
			t.Cleanup(func() { running.Stop() })
			told, why := "", ""
			says := func(text string) bool {
				return !slices.ContainsFunc(c.want, func(want string) bool { return !strings.Contains(text, want) })
			}
			for end := time.Now().Add(time.Minute); (!says(told) || !says(why)) && time.Now().Before(end); why = g.NotReady() {
				m, err := refs.NextMsg(time.Minute)
				if err != nil {
					t.Fatal(err)
				}
				var ref subjects.Reference
				if err := subjects.Unmarshal(m.Data, &ref); err != nil {
					t.Fatal(err)
				}
				told = ref.Trouble
			}
			if !says(told) || !says(why) {
				t.Errorf("want %q: /readyz says %q, doctor is told %q", c.want, why, told)
			}
			time.Sleep(2 * retryStreams) // it tries again
			if n := log.with(append(c.want, "queue not available")...); n != 1 {
				t.Errorf("logged %d times: %s", n, log)
			}
		})
	}
}

// A broker that has no room for a request says so, and so does the gateway.
func TestSaysThatTheBrokerIsFull(t *testing.T) {
	p := newPublisher(&bus{log: slog.New(slog.DiscardHandler)}, nil)
	for _, code := range []string{"10002", "10023", "10028", "10047"} {
		_, err := subjects.ParsePublishAck(&nats.Msg{Data: []byte(`{"error":{"code":500,"err_code":` + code + `,"description":"no room"}}`)})
		if err == nil || !isExhausted(err) {
			t.Errorf("code %s: %v, want that the broker is exhausted", code, err)
		}
		if text := explainStore(err); !strings.HasPrefix(text, "no room. ") {
			t.Errorf("code %s: %q", code, text)
		}
		now := time.Now()
		p.noteRefusal(err, now)
		if p.trouble(now.Add(time.Second)) == "" || p.trouble(now.Add(2*troubleFor)) != "" {
			t.Errorf("code %s: trouble %q, and %q later", code, p.trouble(now.Add(time.Second)), p.trouble(now.Add(2*troubleFor)))
		}
	}
	if _, err := subjects.ParsePublishAck(&nats.Msg{Data: []byte(`{"error":{"code":503,"err_code":10077,"description":"full"}}`)}); isExhausted(err) {
		t.Error("the bound of a lane is not the broker's room")
	}
}

// A gateway starts on any broker that starts: what dead letters reserve fits its store, and leaves room for the rest.
func TestStartsOnASmallStore(t *testing.T) {
	for about, c := range map[string]struct {
		cfg  broker.Config
		dead int64 // bytes that dead letters may have
	}{
		"the least":           {broker.Config{MaxStore: broker.MinStore, MaxMemory: broker.MinMemory}, 8 << 20},
		"100 MB":              {broker.Config{MaxStore: 100e6}, 64 << 20},
		"1 GiB, to the byte":  {broker.Config{MaxStore: 1 << 30}, 512 << 20},
		"a little more":       {broker.Config{MaxStore: 1<<30 + 1<<20}, 1 << 30},
		"20 GiB":              {broker.Config{MaxStore: 20 << 30}, 1 << 30},
		"an account's limits": {broker.Config{ConfigFile: limited(t, "max_file: 300MB, max_mem: 64MB")}, 256 << 20},
	} {
		for _, before := range []bool{false, true} { // an older gateway has created the dead letters, and no more
			t.Run(fmt.Sprintf("%s, an older gateway %v", about, before), func(t *testing.T) {
				t.Parallel()
				nc := testenv.Broker(t, c.cfg)
				js, err := jetstream.New(nc)
				if err != nil {
					t.Fatal(err)
				}
				if before {
					js.CreateStream(t.Context(), jetstream.StreamConfig{Name: subjects.DeadStream, Subjects: []string{"pulley.dead.>"}, MaxBytes: 1 << 30, Discard: jetstream.DiscardOld})
				}
				g, err := New(Config{}, nc)
				if err != nil {
					t.Fatal(err)
				}
				running := testenv.Start(func(ctx context.Context) error { return g.Run(ctx, testenv.NewListener(), nil) })
				t.Cleanup(func() { running.Stop() })
				testenv.Eventually(t, "gateway ready", time.Minute, func() bool { return g.NotReady() == "" })
				s, err := js.Stream(t.Context(), subjects.DeadStream)
				if err != nil {
					t.Fatal(err)
				}
				if got := s.CachedInfo().Config.MaxBytes; got != c.dead {
					t.Errorf("dead letters reserve %d bytes, want %d", got, c.dead)
				}
				if _, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: subjects.Dead("standard", "m"), Data: make([]byte, 100_000)}); err != nil {
					t.Errorf("store a dead letter: %v", err)
				}
			})
		}
	}
}

// hanging is a JetStream of which some streams do not answer, as on a disk that does not answer.
type hanging struct {
	jetstream.JetStream
	streams []string
}

func (h *hanging) Stream(ctx context.Context, name string) (jetstream.Stream, error) {
	if slices.Contains(h.streams, name) {
		return nil, fmt.Errorf("stream %s: %w", name, context.DeadlineExceeded) // after streamAnswersIn
	}
	return h.JetStream.Stream(ctx, name)
}

// A stream of one tier that does not answer leaves the others available, and is named until it answers. At the start all have to
// answer, and later one.
func TestQueueDoesNotAnswer(t *testing.T) {
	g := testGateway(t)
	log := new(lines)
	g.bus.log = slog.New(slog.NewTextHandler(log, nil))
	js := &hanging{JetStream: g.bus.js}
	g.bus.js = js
	created := make(map[string]time.Time)
	once := func(hang ...string) error {
		js.streams = hang
		err := g.streams.check(t.Context(), created)
		g.streams.ready.Store(err == nil)
		return err
	}
	check := func(hang ...string) (err error) { // a machine that is short of time may need several
		for range 10 {
			if err = once(hang...); err == nil && (len(hang) > 0 || g.streams.trouble() == "") {
				break
			}
		}
		return err
	}
	priority, standard, batch := subjects.ReqStream("priority"), subjects.ReqStream("standard"), subjects.ReqStream("batch")
	if err := once(batch); err == nil {
		t.Error("a gateway that starts needs all streams")
	}
	if err := check(); err != nil || g.streams.trouble() != "" {
		t.Fatalf("%v, trouble %q", err, g.streams.trouble())
	}
	for i, hang := range [][]string{{batch}, {priority}, {standard, batch}} {
		for range 3 {
			if err := check(hang...); err != nil {
				t.Errorf("%v: %v, want that the others are available", hang, err)
			}
		}
		if why := g.streams.trouble(); !strings.Contains(why, hang[len(hang)-1]) {
			t.Errorf("trouble %q does not name %s", why, hang[len(hang)-1])
		}
		if n, want := log.with(hang[len(hang)-1]+": context"), []int{1, 1, 2}[i]; n != want {
			t.Errorf("%v: logged %d times, want %d: once for each", hang, n, want)
		}
		if err := check(); err != nil || g.streams.trouble() != "" {
			t.Errorf("after %v: %v, trouble %q", hang, err, g.streams.trouble())
		}
	}
	if err := check(priority, standard, batch); err != nil {
		t.Errorf("the broker does not answer questions, and takes requests: %v", err)
	}
	for _, stream := range []string{priority, standard, batch} {
		if err := js.DeleteStream(t.Context(), stream); err != nil {
			t.Fatal(err)
		}
	}
	if err := once(priority, standard, batch); err == nil {
		t.Error("no stream is there, and that is no error")
	}
}

// A stream is stuck from when it was found so until it stores a message, or a minute after it was last found so.
func TestStuck(t *testing.T) {
	var s stuck
	now := time.Now()
	if s.works("A") || s.trouble(now) != "" {
		t.Error("nothing is stuck at first")
	}
	if s.note("A", "full", now) {
		t.Error("noted though nobody asked")
	}
	if !s.ask("A", now) || s.ask("A", now.Add(lookAtStuckEvery/2)) || !s.ask("B", now) {
		t.Error("the broker is asked about a stream again after a while, and about each of them")
	}
	if s.why("A", now) != "" || s.trouble(now) != "" {
		t.Error("stuck before it was found so")
	}
	if !s.note("A", "full", now) || s.note("A", "full", now.Add(time.Second)) {
		t.Error("found once is news, twice is not")
	}
	if s.why("A", now) != "full" || s.why("B", now) != "" || s.trouble(now) != "full" {
		t.Errorf("A %q, B %q, trouble %q", s.why("A", now), s.why("B", now), s.trouble(now))
	}
	if late := now.Add(2 * troubleFor); s.why("A", late) != "" || s.trouble(late) != "" || !s.note("A", "full", late) {
		t.Error("it is forgotten after a while, and then news again")
	}
	if s.works("B") || !s.works("A") || s.works("A") || s.why("A", now) != "" {
		t.Error("a message that is stored ends it, once")
	}
}

// Whether a stream on disk has a message is asked of its leader. A direct get would hold up the gateway's connection while the disk
// hangs.
func TestStreamsOnDiskAreNotReadDirectly(t *testing.T) {
	b := startBroker(t)
	g, err := New(Config{}, b.connect())
	if err != nil {
		t.Fatal(err)
	}
	if err := g.streams.check(t.Context(), make(map[string]time.Time)); err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(b.connect())
	if err != nil {
		t.Fatal(err)
	}
	direct := make(chan string, 100)
	watch := b.connect()
	if _, err := watch.Subscribe("$JS.API.DIRECT.GET.>", func(m *nats.Msg) { direct <- m.Subject }); err != nil {
		t.Fatal(err)
	}
	if err := watch.Flush(); err != nil {
		t.Fatal(err)
	}
	holds := func(id subjects.ID, stream string, seq uint64) (there bool, err error) {
		for range 10 { // a machine that is short of time may need several
			if there, err = g.bus.holds(t.Context(), id, stream, seq); err == nil {
				break
			}
		}
		return there, err
	}
	for _, tier := range []string{"priority", "standard", "batch"} {
		id := subjects.NewID()
		m := nats.NewMsg(subjects.Req(tier, "m", subjects.Shared))
		m.Header.Set(subjects.HeaderMsgID, id.String())
		ack, err := js.PublishMsg(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		for seq, want := range map[uint64]bool{ack.Sequence: true, ack.Sequence + 1: false} {
			if there, err := holds(id, ack.Stream, seq); err != nil || there != want {
				t.Errorf("%s %d: there %v, %v, want %v", ack.Stream, seq, there, err, want)
			}
		}
		if there, err := holds(subjects.NewID(), ack.Stream, ack.Sequence); err != nil || there {
			t.Errorf("%s: has a message of another request: %v, %v", ack.Stream, there, err)
		}
	}
	watch.Flush()
	for len(direct) > 0 {
		if subject := <-direct; strings.HasSuffix(subject, "BATCH") {
			t.Error(subject)
		}
	}
}
