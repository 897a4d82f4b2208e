package gateway

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/testenv"
)

// testBroker is a running broker and makes connections to it.
type testBroker struct {
	t testing.TB
	b *broker.Broker
}

func startBroker(t testing.TB) *testBroker {
	t.Helper()
	b, err := broker.New(broker.Config{StoreDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	p := testenv.Start(b.Run)
	t.Cleanup(func() { p.Stop() })
	p.Await(t, b.Ready())
	return &testBroker{t, b}
}

func (b *testBroker) connect() *nats.Conn {
	b.t.Helper()
	nc, err := nats.Connect("", nats.InProcessServer(b.b), nats.Timeout(time.Minute))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(nc.Close)
	return nc
}

// testGateway is a gateway that does not run, with a connection to a broker.
func testGateway(t testing.TB) *Gateway {
	t.Helper()
	g, err := New(Config{}, startBroker(t).connect())
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// runningGateway serves the model m with a testWorker in the same process.
type runningGateway struct {
	*Gateway
	client *http.Client // reaches it at http://gateway, its admin side at http://admin
	nc     *nats.Conn   // of the worker, and for whoever asks
}

// runGateway starts a broker, a gateway and a worker that answers each claimed request with what answer returns: the
// messages, each of some frames. It returns when requests are served.
func runGateway(t testing.TB, answer func() [][]subjects.Frame) *runningGateway {
	t.Helper()
	b := startBroker(t)
	local := new(subjects.Local)
	g, err := New(Config{Local: local}, b.connect())
	if err != nil {
		t.Fatal(err)
	}
	ingress, admin := testenv.NewListener(), testenv.NewListener()
	p := testenv.Start(func(ctx context.Context) error { return g.Run(ctx, ingress, admin) })
	transport := &http.Transport{MaxIdleConnsPerHost: 100, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		if addr == "admin:80" {
			return admin.DialContext(ctx, network, addr)
		}
		return ingress.DialContext(ctx, network, addr)
	}}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	})
	w := &testWorker{nc: b.connect(), local: local, answer: answer}
	w.run(t)
	for end := time.Now().Add(time.Minute); g.NotReady() != "" || len(g.Models()) == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not ready: %q, models %v", g.NotReady(), g.Models())
		}
	}
	return &runningGateway{Gateway: g, client: &http.Client{Transport: transport}, nc: w.nc}
}

// chat sends a chat request and reads the answer.
func (g *runningGateway) chat(ctx context.Context, stream bool) (status int, body string, err error) {
	in := `{"model":"m","messages":[{"role":"user","content":"Hello!"}]}`
	if stream {
		in = `{"model":"m","stream":true,"messages":[{"role":"user","content":"Hello!"}]}`
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://gateway"+chatPath, strings.NewReader(in))
	if err != nil {
		return 0, "", err
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := g.client.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// testWorker is a worker as a gateway sees one, without an engine: it sends heartbeats, keeps bids open on the shared lane
// of the pool m, claims what it is delivered, and answers.
type testWorker struct {
	nc     *nats.Conn
	local  *subjects.Local
	answer func() [][]subjects.Frame
	busy   sync.WaitGroup
}

const testWorkerID = "w-1"

// run starts the worker; the test's cleanup ends it.
func (w *testWorker) run(t testing.TB) {
	t.Helper()
	const bids = 32
	sub, err := w.nc.Subscribe(subjects.WorkerBids(testWorkerID), w.delivered)
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var loop sync.WaitGroup
	loop.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for range bids {
			w.bid()
		}
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				w.nc.Publish(subjects.Heartbeats(testWorkerID), subjects.MustMarshal(subjects.Heartbeat{
					Worker: testWorkerID, Name: "w", State: subjects.Ready, Slots: bids, Weight: 1, Pools: []subjects.PoolStatus{{Pool: "m"}}}))
			}
		}
	})
	t.Cleanup(func() {
		close(stop)
		loop.Wait()
		sub.Unsubscribe()
		w.busy.Wait()
	})
}

func (w *testWorker) bid() {
	w.nc.PublishRequest(subjects.BidSubject("standard", "m", subjects.Shared), subjects.WorkerBids(testWorkerID),
		subjects.MustMarshal(subjects.Bid{Batch: 1, Expires: int64(time.Minute), Group: subjects.PriorityGroup}))
}

// delivered handles the answer to a bid: a request, or a status where the consumer does not exist yet.
func (w *testWorker) delivered(m *nats.Msg) {
	if m.Header.Get("Status") != "" {
		time.AfterFunc(10*time.Millisecond, w.bid)
		return
	}
	id, gw, ok := subjects.Sender(m)
	g, here := w.local.Gateway(gw)
	if !ok || !here {
		return
	}
	w.busy.Go(func() {
		defer w.bid()
		mark := rand.Uint64()
		if g.Claim(subjects.Claim{ID: id, Attempt: mark, Worker: testWorkerID, Name: "w", Ack: m.Reply}) != nil {
			return
		}
		for i, frames := range w.answer() {
			g.Frames(subjects.Prefix{ID: id, Attempt: mark, Seq: uint32(i + 1)}, frames)
		}
	})
}

// plainAnswer is one short JSON body, streamAnswer a stream of two events.
func plainAnswer() [][]subjects.Frame {
	body := []byte(llama)
	return [][]subjects.Frame{{
		{Kind: subjects.KindHead, Head: &subjects.Head{Status: 200, Header: http.Header{"Content-Type": {"application/json"}}, Length: int64(len(body))}},
		{Kind: subjects.KindData, Data: body},
		{Kind: subjects.KindEnd, End: &subjects.End{InputTokens: 5, OutputTokens: 5}},
	}}
}

func streamAnswer() [][]subjects.Frame {
	return [][]subjects.Frame{
		{{Kind: subjects.KindHead, Head: &subjects.Head{Status: 200, Header: http.Header{"Content-Type": {stream}}, Length: -1}}, {Kind: subjects.KindData, Data: []byte("data: " + llama + "\n\n")}},
		{{Kind: subjects.KindData, Data: []byte("data: [DONE]\n\n")}, {Kind: subjects.KindEnd, End: &subjects.End{InputTokens: 5, OutputTokens: 5}}},
	}
}
