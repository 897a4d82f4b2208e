package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

var stock = flag.Bool("stock", false, "build a nats-server, and try attacks on it too")

// secured is a broker with the configuration that pulley nats-config has written, and what runs on it.
type secured struct {
	t    *testing.T
	dir  string
	tls  bool
	url  string
	stop func() // ends the broker

	mu     sync.Mutex
	denied map[string][]string // what the broker has denied, by user
}

// secure writes a configuration with more flags, and runs a broker with it.
func secure(t *testing.T, flags ...string) *secured {
	t.Helper()
	s := &secured{t: t, dir: filepath.Join(t.TempDir(), "nats"), denied: make(map[string][]string), tls: slices.Contains(flags, "--tls-self-signed")}
	s.config(flags...)
	s.url, s.stop = clitest.Broker(t, broker.Config{Listen: "127.0.0.1:0", ConfigFile: filepath.Join(s.dir, "nats.conf")})
	return s
}

// secureStock is like secure, with a nats-server as its makers ship it.
func secureStock(t *testing.T, flags ...string) *secured {
	t.Helper()
	if !*stock {
		t.Skip("needs -stock: see make stock")
	}
	s := &secured{t: t, dir: filepath.Join(t.TempDir(), "nats"), denied: make(map[string][]string), tls: slices.Contains(flags, "--tls-self-signed")}
	s.config(append(flags, "--store-dir", t.TempDir())...)
	bin, ports := filepath.Join(t.TempDir(), "nats-server"), t.TempDir()
	if out, err := exec.Command("go", "build", "-o", bin, "github.com/nats-io/nats-server/v2").CombinedOutput(); err != nil {
		t.Fatalf("build nats-server: %v\n%s", err, out)
	}
	cmd := exec.Command(bin, "-c", filepath.Join(s.dir, "nats.conf"), "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", ports)
	log := new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.stop = sync.OnceFunc(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	t.Cleanup(func() {
		s.stop()
		if t.Failed() {
			t.Logf("nats-server: %s", log)
		}
	})
	for end := time.Now().Add(30 * time.Second); s.url == ""; time.Sleep(20 * time.Millisecond) {
		files, _ := filepath.Glob(filepath.Join(ports, "*.ports"))
		var at struct {
			Nats []string `json:"nats"`
		}
		if len(files) == 1 {
			if b, err := os.ReadFile(files[0]); err == nil && json.Unmarshal(b, &at) == nil && len(at.Nats) > 0 {
				s.url = at.Nats[0]
			}
		}
		if time.Now().After(end) {
			t.Fatal("nats-server does not listen")
		}
	}
	return s
}

func (s *secured) config(flags ...string) {
	s.t.Helper()
	if code, _, stderr := clitest.Run(newRootCommand(), append([]string{"nats-config", "--out", s.dir, "--listen", "127.0.0.1:4222"}, flags...)...); code != 0 {
		s.t.Fatalf("pulley nats-config: exit code %d: %s", code, stderr)
	}
}

func (s *secured) key(user string) string { return filepath.Join(s.dir, user+".nk") }

// flags are what a command of a user needs to connect.
func (s *secured) flags(user string) []string {
	list := []string{"--nats", s.url, "--nkey", s.key(user)}
	if s.tls {
		list = append(list, "--tls-ca", filepath.Join(s.dir, "ca.pem"))
	}
	return list
}

// connect connects as a user.
func (s *secured) connect(user string) *nats.Conn {
	s.t.Helper()
	key, err := nats.NkeyOptionFromSeed(s.key(user))
	if err != nil {
		s.t.Fatal(err)
	}
	opts := []nats.Option{key, nats.ReconnectBufSize(-1), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.denied[user] = append(s.denied[user], err.Error())
	})}
	if s.tls {
		opts = append(opts, nats.RootCAs(filepath.Join(s.dir, "ca.pem")))
	}
	nc, err := nats.Connect(s.url, opts...)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(nc.Close)
	return nc
}

// denials returns what the broker has denied a user since the last call.
func (s *secured) denials(user string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.denied[user]
	delete(s.denied, user)
	return strings.Join(list, "; ")
}

// run runs a part until the test ends.
func (s *secured) run(run func(context.Context) error) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	stop = sync.OnceValue(func() error { cancel(); return <-ended })
	s.t.Cleanup(func() { stop() })
	return stop
}

func (s *secured) log(name string) *slog.Logger {
	return slog.New(slog.NewTextHandler(s.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})).With("part", name)
}

// gateway runs a gateway and returns its URL.
func (s *secured) gateway() (url string, gw *gateway.Gateway) {
	s.t.Helper()
	gw, err := gateway.New(gateway.Config{Auth: gateway.AuthOff, Logger: s.log("gateway")}, s.connect("gateway"))
	if err != nil {
		s.t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	s.run(func(ctx context.Context) error { return gw.Run(ctx, l, nil) })
	return "http://" + l.Addr().String(), gw
}

// worker runs a worker with a simulated engine that serves models.
func (s *secured) worker(id string, itl time.Duration, models ...string) (w *worker.Worker, stop func() error) {
	s.t.Helper()
	engine, err := sim.New(sim.Config{Name: id, Models: models, Slots: 8, ITLBase: itl})
	if err != nil {
		s.t.Fatal(err)
	}
	server := httptest.NewServer(engine)
	s.t.Cleanup(server.Close)
	w, err = worker.New(worker.Config{ID: id, Name: id, Engine: server.URL, Slots: 8, Logger: s.log(id)}, s.connect("worker-"+strings.TrimSuffix(id, "-2")))
	if err != nil {
		s.t.Fatal(err)
	}
	return w, s.run(w.Run)
}

// served waits until a gateway serves models.
func (s *secured) served(gw *gateway.Gateway, models ...string) {
	s.t.Helper()
	for end := time.Now().Add(15 * time.Second); gw.NotReady() != "" || !slices.Equal(gw.Models(), models); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("not ready: %q, models %v, want %v", gw.NotReady(), gw.Models(), models)
		}
	}
	time.Sleep(time.Second) // until the bids are parked
}

// chat sends a request to a gateway and reads the answer.
func chatAt(t *testing.T, url, model string, stream bool, tokens int, text string, header ...string) (status int, body string) {
	t.Helper()
	in := fmt.Sprintf(`{"model":%q,"stream":%t,"max_tokens":%d,"messages":[{"role":"user","content":%q}]}`, model, stream, tokens, text)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/chat/completions", strings.NewReader(in))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return resp.StatusCode, err.Error()
	}
	return resp.StatusCode, string(b)
}

// With the configuration that pulley nats-config writes, each role can do all that it has to.
func TestRolesCanDoTheirWork(t *testing.T) {
	t.Parallel()
	s := secure(t, "--tls-self-signed", "--worker", "gpu-1,engines=2", "--worker", "edge,pools=m+other pool")
	url, gw := s.gateway()
	_, second := s.gateway()
	s.worker("gpu-1", time.Millisecond, "big", "m")
	s.worker("gpu-1-2", time.Millisecond, "other pool")
	edge, stopEdge := s.worker("edge", time.Millisecond, "m")
	models := []string{"big", "m", "other pool"}
	s.served(gw, models...)
	s.served(second, models...)

	for _, c := range []struct {
		model  string
		stream bool
		text   string
	}{{"m", false, "Hello!"}, {"m", true, "Hello!"}, {"big", true, "Hello!"}, {"other pool", true, "Hello!"}, {"m", true, strings.Repeat("long ", 100_000)}} {
		for range 4 { // whichever worker it is
			status, body := chatAt(t, url, c.model, c.stream, 5, c.text, "x-session-id", "s")
			if status != 200 || c.stream && !strings.Contains(body, "[DONE]") {
				t.Errorf("a request of %d bytes to %s, stream %t: %d %.300s", len(c.text), c.model, c.stream, status, body)
			}
		}
	}

	operator := func(args ...string) (code int, stdout, stderr string) {
		return clitest.Run(newRootCommand(), append(args, s.flags("operator")...)...)
	}
	running := make(chan string, 1)
	go func() {
		_, body := chatAt(t, url, "big", true, 100_000, "Hello!")
		running <- body
	}()
	var id string
	if !within(time.Minute, func() bool {
		_, list, _ := operator("request", "ls", "-o", "json")
		_, id, _ = strings.Cut(list, `"id": "`)
		return len(id) >= 36
	}) {
		t.Fatal("pulley request ls shows none")
	}
	id = id[:36]
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"worker", "ls"}, 0, "gpu-1-2"},
		{[]string{"worker", "info", "edge"}, 0, "edge"},
		{[]string{"pool", "ls"}, 0, "other pool"},
		{[]string{"queue", "ls"}, 0, "big"},
		{[]string{"request", "ls"}, 0, id},
		{[]string{"request", "info", id}, 0, "big"},
		{[]string{"request", "cancel", id, "--force"}, 0, "cancelled"},
		{[]string{"tier", "set", "standard", "--share", "5"}, 0, "standard"},
		{[]string{"tier", "ls"}, 0, "standard"},
		{[]string{"route", "set", "alias", "--to", "m"}, 0, "alias"},
		{[]string{"pool", "pause", "big"}, 0, "big"},
		{[]string{"pool", "resume", "big"}, 0, "big"},
		{[]string{"worker", "cordon", "gpu-1"}, 0, "gpu-1"},
		{[]string{"worker", "uncordon", "gpu-1"}, 0, "gpu-1"},
		{[]string{"policy", "history"}, 0, "REVISION"},
		{[]string{"key", "add", "--tenant", "acme"}, 0, "sk-pulley-"},
		{[]string{"key", "ls"}, 0, "acme"},
		{[]string{"dead", "ls"}, 0, ""},
		{[]string{"queue", "purge", "big", "--force"}, 0, ""},
		{[]string{"doctor"}, 0, "workers"},
		{[]string{"worker", "drain", "edge", "--force"}, 0, "edge"},
	} {
		code, stdout, stderr := operator(c.args...)
		if code != c.code || !strings.Contains(stdout+stderr, c.want) {
			t.Errorf("pulley %s: exit code %d, want %d and %q\n%s%s", strings.Join(c.args, " "), code, c.code, c.want, stdout, stderr)
		}
	}
	select {
	case body := <-running:
		if !strings.Contains(body, "operator") {
			t.Errorf("the request that was cancelled: %.300s", body)
		}
	case <-time.After(5 * time.Second):
		t.Error("the request that was cancelled runs on")
	}
	if err := stopEdge(); !errors.Is(err, worker.ErrDrained) {
		t.Errorf("worker %s was drained, and left with %v", edge.ID(), err)
	}
	if status, body := chatAt(t, url, "alias", true, 5, "Hello!"); status != 200 {
		t.Errorf("after all that: %d %s", status, body)
	}

	monitor := func(args ...string) (code int, out string) {
		code, stdout, stderr := clitest.Run(newRootCommand(), append(args, s.flags("monitor")...)...)
		return code, stdout + stderr
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"worker", "ls"}, "gpu-1"}, {[]string{"request", "ls"}, ""}, {[]string{"queue", "ls"}, "big"}, {[]string{"tier", "ls"}, "standard"},
		{[]string{"pool", "ls"}, "big"}, {[]string{"route", "ls"}, "alias"},
		{[]string{"top", "-o", "json"}, "gpu-1"},
	} {
		if code, out := monitor(c.args...); code != 0 || !strings.Contains(out, c.want) {
			t.Errorf("a monitor, pulley %s: exit code %d, want %q\n%s", strings.Join(c.args, " "), code, c.want, out)
		}
	}
	for _, args := range [][]string{{"key", "ls"}, {"tier", "set", "standard", "--share", "7"}, {"worker", "drain", "gpu-1", "--force"}, {"dead", "ls"}, {"queue", "purge", "m", "--force"}} {
		if code, out := monitor(args...); code == 0 {
			t.Errorf("a monitor, pulley %s: exit code 0\n%s", strings.Join(args, " "), out)
		}
	}
	for _, user := range []string{"gateway", "worker-gpu-1", "worker-edge"} {
		if denied := s.denials(user); denied != "" {
			t.Errorf("%s was denied: %s", user, denied)
		}
	}
}

// attacker is a program with the credentials of a worker.
type attacker struct {
	*secured
	nc *nats.Conn
	id string // of a worker that does not run
	in *nats.Subscription
}

func (s *secured) attacker(t *testing.T, user, id string) *attacker {
	t.Helper()
	a := &attacker{secured: s, nc: s.connect(user), id: id + ".evil"}
	var err error
	if a.in, err = a.nc.SubscribeSync(subjects.Worker(a.id) + ".>"); err != nil {
		s.t.Fatal(err)
	}
	a.flush()
	t.Cleanup(a.nc.Close) // and with it its bids
	return a
}

func (a *attacker) flush() {
	a.t.Helper()
	if err := a.nc.FlushTimeout(time.Minute); err != nil {
		a.t.Fatal(err)
	}
}

// bid asks for requests of the lane of a pool, to be delivered to a subject.
func (a *attacker) bid(n int, pool, lane, to string) {
	for range n {
		a.nc.PublishRequest(subjects.BidSubject("standard", pool, lane), to,
			subjects.MustMarshal(subjects.Bid{Batch: 1, Expires: int64(10 * time.Second), Group: subjects.PriorityGroup}))
	}
	a.flush()
}

// next returns the next delivery, nil if there is none within a time.
func (a *attacker) next(within time.Duration) *nats.Msg {
	for end := time.Now().Add(within); ; {
		m, err := a.in.NextMsg(time.Until(end))
		if err != nil {
			return nil
		}
		if m.Reply != "" && strings.HasPrefix(m.Reply, "$JS.ACK.") {
			return m
		}
	}
}

// heartbeat returns a heartbeat of a worker.
func heartbeat(id string, state subjects.State, pools ...string) []byte {
	h := subjects.Heartbeat{Worker: id, Name: subjects.StableID(id), State: state, Slots: 100, Weight: 1}
	for _, p := range pools {
		h.Pools = append(h.Pools, subjects.PoolStatus{Pool: p})
	}
	return subjects.MustMarshal(h)
}

// beats sends heartbeats of the attacker until the test ends.
func (a *attacker) beats(t *testing.T, pools ...string) {
	stop := make(chan struct{})
	var loop sync.WaitGroup
	loop.Go(func() {
		for {
			a.nc.Publish(subjects.Heartbeats(a.id), heartbeat(a.id, subjects.Ready, pools...))
			select {
			case <-stop:
				return
			case <-time.After(subjects.HeartbeatEvery):
			}
		}
	})
	t.Cleanup(func() { close(stop); loop.Wait() })
}

// forge claims a delivery with an ack subject and answers it.
func (a *attacker) forge(m *nats.Msg, ack string) {
	req, err := subjects.ParseRequest(m)
	if err != nil {
		a.t.Fatal(err)
	}
	const mark = 42
	claim, err := (&subjects.Claim{ID: req.ID, Attempt: mark, Worker: a.id, Name: a.id, Ack: ack}).Bytes()
	if err != nil {
		a.t.Fatal(err)
	}
	w := subjects.NewWriter(req.ID, mark)
	body := `{"choices":[{"message":{"role":"assistant","content":"forged"}}]}`
	w.Head(&subjects.Head{Status: 200, Header: http.Header{"Content-Type": {"application/json"}}, Length: int64(len(body))})
	w.Commit(copy(w.Grow(len(body)), body))
	w.End(&subjects.End{OutputTokens: 1})
	msg := subjects.AppendItem(make([]byte, subjects.LinkHeader), subjects.ItemClaim, claim)
	msg = subjects.AppendItem(msg, subjects.ItemFrames, w.Take())
	n := uint64(time.Now().UnixNano())
	subjects.PutLinkHeader(msg, n, n)
	a.nc.Publish(subjects.GatewayLink(req.Gateway, a.id), msg)
	a.flush()
}

// What an attacker with the credentials of a worker tries has no effect: each row of the table of attacks, and the answers of
// JetStream's APIs that go where the attacker names.
func TestWorkerCredentialsAreWorthLittle(t *testing.T) {
	attackers := []string{"--worker", "gpu-1", "--worker", "evil", "--worker", "limited,pools=x"}
	t.Run("pulley broker", func(t *testing.T) {
		t.Parallel()
		testWorkerCredentials(t, secure(t, attackers...))
	})
	t.Run("nats-server", func(t *testing.T) {
		t.Parallel()
		testWorkerCredentials(t, secureStock(t, attackers...))
	})
}

func testWorkerCredentials(t *testing.T, s *secured) {
	url, gw := s.gateway()
	victim, _ := s.worker("gpu-1", 20*time.Millisecond, "m")
	s.served(gw, "m")
	operator := s.connect("operator")
	js, err := jetstream.New(operator)
	if err != nil {
		t.Fatal(err)
	}
	store, err := policystore.Open(t.Context(), operator)
	if err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := clitest.Run(newRootCommand(), append([]string{"key", "add", "--tenant", "acme"}, s.flags("operator")...)...); code != 0 {
		t.Fatal(stderr)
	}
	if code, _, stderr := clitest.Run(newRootCommand(), append([]string{"tier", "set", "standard", "--share", "5"}, s.flags("operator")...)...); code != 0 {
		t.Fatal(stderr)
	}
	type state struct {
		policy, keys string
		streams      string
	}
	look := func() (st state) {
		t.Helper()
		v, err := store.Load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		keys, err := store.Keys(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		st.policy, st.keys = fmt.Sprint(v.Revision), fmt.Sprint(keys)
		var names []string
		for info := range js.ListStreams(t.Context()).Info() {
			names = append(names, info.Config.Name)
			if slices.Contains([]string{subjects.DeadStream, "KV_PULLEY_POLICY", "KV_PULLEY_KEYS"}, info.Config.Name) {
				names = append(names, fmt.Sprint(info.State.LastSeq, info.State.Msgs, info.State.Consumers))
			}
		}
		slices.Sort(names)
		st.streams = strings.Join(names, " ")
		return st
	}
	if _, err := s.connect("gateway").Request(subjects.Dead("standard", "m"), []byte("a dead letter"), time.Minute); err != nil {
		t.Fatal(err)
	}
	if status, body := chatAt(t, url, "m", false, 3, "Hello!"); status != 200 {
		t.Fatalf("before any attack: %d %s", status, body)
	}
	testenv.Eventually(t, "the gateway creates the stream of usage", time.Minute, func() bool {
		_, err := js.Stream(t.Context(), subjects.UsageStream)
		return err == nil
	})
	works := func(t *testing.T) {
		t.Helper()
		begun := time.Now()
		if status, body := chatAt(t, url, "m", false, 3, "Hello!"); status != 200 || strings.Contains(body, "forged") {
			t.Errorf("afterwards: %d %s", status, body)
		}
		if took := time.Since(begun); took > 3*time.Second {
			t.Errorf("afterwards: an answer after %v", took)
		}
	}
	unchanged := func(t *testing.T, before state) {
		t.Helper()
		if now := look(); now != before {
			t.Errorf("changed:\n%+v\nwas\n%+v", now, before)
		}
	}
	// silent says that none of the requests, with each of the bodies, gets an answer other than that it is not possible here.
	silent := func(t *testing.T, nc *nats.Conn, list []string, bodies ...string) {
		t.Helper()
		inbox := nats.NewInbox()
		in, err := nc.SubscribeSync(inbox + ".*")
		if err != nil {
			t.Fatal(err)
		}
		for i, subject := range list {
			for _, body := range bodies {
				nc.PublishRequest(subject, fmt.Sprint(inbox, ".", i), []byte(body))
			}
		}
		nc.Flush()
		for end := time.Now().Add(500 * time.Millisecond); ; {
			m, err := in.NextMsg(time.Until(end))
			if errors.Is(err, nats.ErrNoResponders) {
				continue
			}
			if err != nil {
				return
			}
			text := string(m.Data)
			if !strings.Contains(text, "JetStream not enabled for account") && !strings.Contains(text, "invalid JSON") {
				i, _ := strconv.Atoi(subjects.LastToken(m.Subject))
				t.Errorf("%s was answered: %.200s", list[i], text)
			}
		}
	}

	t.Run("streams, policy, keys and requests", func(t *testing.T) {
		before, a := look(), s.attacker(t, "worker-evil", "evil")
		var list []string
		for _, api := range []string{
			"STREAM.DELETE.PULLEY_DEAD", "STREAM.PURGE.PULLEY_DEAD", "STREAM.MSG.GET.PULLEY_REQ_STANDARD", "STREAM.LIST", "STREAM.NAMES", "INFO",
			"STREAM.INFO.KV_PULLEY_POLICY", "STREAM.INFO.KV_PULLEY_KEYS", "CONSUMER.CREATE.KV_PULLEY_KEYS.x", "DIRECT.GET.KV_PULLEY_KEYS",
			"DIRECT.GET.PULLEY_REQ_STANDARD", "DIRECT.GET.PULLEY_DEAD", "CONSUMER.DELETE.PULLEY_REQ_STANDARD.m=shared", "STREAM.MSG.DELETE.PULLEY_REQ_STANDARD",
			"CONSUMER.MSG.NEXT.PULLEY_DEAD.x", "DIRECT.GET.KV_PULLEY_KEYS.$KV.PULLEY_KEYS.key.x", "DIRECT.GET.KV_PULLEY_WORKERS",
		} {
			list = append(list, "$JS.API."+api)
		}
		silent(t, a.nc, append(list,
			"$KV.PULLEY_POLICY.policy", "$KV.PULLEY_KEYS.key.x", "$KV.PULLEY_POOLS.x", "$KV.PULLEY_WORKERS."+victim.ID(), "$KV.PULLEY_LEARNED._.gpu-1",
			subjects.Req("standard", "m", subjects.Shared), subjects.Dead("standard", "m"),
		), "", `{"seq":1}`)
		unchanged(t, before)
		works(t)
	})

	t.Run("orders to others", func(t *testing.T) {
		a := s.attacker(t, "worker-evil", "evil")
		heard := make(chan string, 100)
		for _, subject := range []string{subjects.Worker(victim.ID()) + ".cancel", subjects.WorkerDrain(victim.ID()), "pulley.ask.>", "pulley.do.>", "pulley.policy", "pulley.homes", "pulley.usage", "pulley.sides", "pulley.gw.*.told"} {
			// An operator may not subscribe to these; a user of the system could. The gateway can.
			nc := s.connect("gateway")
			nc.Subscribe(subject, func(m *nats.Msg) {
				if strings.Contains(string(m.Data), "attack") {
					heard <- m.Subject
				}
			})
			nc.Flush()
		}
		list := []string{
			subjects.WorkerCancel(victim.ID()), subjects.WorkerDrain(victim.ID()), subjects.AskRequests, subjects.AskWorkers, subjects.AskResults, subjects.AskRequest, subjects.DoCancel,
			subjects.DoPurge, subjects.DoRetry, subjects.PolicyChanges, subjects.AffinityReports, subjects.UsageReports, subjects.ShiftReports,
			subjects.GatewayHeld(gw.ID()), subjects.GatewayRef("evil"), subjects.GatewayRelease(gw.ID()), "pulley.gw." + gw.ID() + ".left." + victim.ID(),
			"pulley.gw." + gw.ID() + ".stored.1",
		}
		for _, subject := range list {
			a.nc.Publish(subject, []byte(`{"by":"attack","pool":"m"}`))
		}
		silent(t, a.nc, list, `{"by":"attack","pool":"m"}`)
		select {
		case subject := <-heard:
			t.Errorf("the attacker reached %s", subject)
		default:
		}
		works(t)
	})

	t.Run("spy", func(t *testing.T) {
		a := s.attacker(t, "worker-evil", "evil")
		var mu sync.Mutex
		var got []string
		for _, subject := range []string{">", "pulley.>", "pulley.wk.*.>", "pulley.wk.>", subjects.Worker(victim.ID()) + ".>", "pulley.gw.*.link.>", "pulley.gw.>", "pulley.req.>", "$KV.>", "$JS.>", "_INBOX.>", "_R_.>", "pulley.ev.>", "pulley.hb.>"} {
			a.nc.Subscribe(subject, func(m *nats.Msg) {
				mu.Lock()
				defer mu.Unlock()
				if m.Subject != subjects.GatewayRef(gw.ID()) && m.Subject != subjects.PolicyChanges {
					got = append(got, fmt.Sprintf("%s %.100s", m.Subject, m.Data))
				}
			})
		}
		a.flush()
		time.Sleep(200 * time.Millisecond)
		works(t)
		time.Sleep(500 * time.Millisecond)
		mu.Lock()
		defer mu.Unlock()
		if len(got) > 0 {
			t.Errorf("the attacker reads: %v", got)
		}
	})

	t.Run("another's heartbeat", func(t *testing.T) {
		before := look()
		a := s.attacker(t, "worker-evil", "evil")
		running := make(chan string, 1)
		go func() {
			status, body := chatAt(t, url, "m", true, 50, "Hello!")
			running <- fmt.Sprint(status, strings.Contains(body, "[DONE]"))
		}()
		time.Sleep(300 * time.Millisecond)
		a.nc.Publish(subjects.Heartbeats(victim.ID()), heartbeat(victim.ID(), subjects.Left, "m"))
		a.nc.Publish(subjects.Heartbeats(a.id), heartbeat(victim.ID(), subjects.Left, "m"))
		a.nc.Publish(subjects.Heartbeats("gpu-1.evil"), heartbeat("gpu-1.evil", subjects.Ready, "m"))
		a.bid(1, "m", subjects.Shared, subjects.Heartbeats(victim.ID()))
		a.flush()
		if got := <-running; got != "200 true" {
			t.Errorf("the stream of the victim: %s", got)
		}
		if list := gw.Models(); !slices.Equal(list, []string{"m"}) {
			t.Errorf("models %v", list)
		}
		unchanged(t, before)
	})

	t.Run("answers of JetStream", func(t *testing.T) {
		before, a := look(), s.attacker(t, "worker-evil", "evil")
		a.nc.Publish(subjects.KVSubject(subjects.LearnedBucket, subjects.LearnedKey("", "evil")), []byte(`{"policy":{"tiers":[]}}`))
		a.flush()
		next := subjects.BidSubject("standard", "m", subjects.Shared)
		learned := subjects.DirectGetKey(subjects.LearnedBucket, subjects.LearnedKey("", "evil"))
		for _, target := range []string{
			"$JS.API.STREAM.DELETE.PULLEY_DEAD", "$JS.API.STREAM.PURGE.PULLEY_DEAD", "$JS.API.STREAM.DELETE.KV_PULLEY_KEYS", "$KV.PULLEY_POLICY.policy",
			"$KV.PULLEY_KEYS.key.x", subjects.WorkerDrain(victim.ID()), subjects.Heartbeats(victim.ID()), subjects.WorkerCancel(victim.ID()),
			subjects.GatewayLink(gw.ID(), victim.ID()), subjects.PolicyChanges,
		} {
			a.nc.PublishRequest(next, target, []byte(`{"batch":1,"no_wait":true,"group":"pulley"}`)) // status 404, no body
			a.nc.PublishRequest(next, target, []byte(`{"batch":1,"expires":1000000,"group":"pulley"}`))
			a.nc.PublishRequest(learned, target, nil) // a body of the attacker's choice
			a.nc.PublishRequest(subjects.DirectGet(subjects.KVStream(subjects.PolicyBucket)), target, []byte(`{"seq":1}`))
			a.nc.PublishRequest(subjects.GatewayBody(gw.ID(), a.id), target, subjects.MustMarshal(subjects.BodyRequest{ID: subjects.NewID()})) // an empty body
		}
		a.flush()
		time.Sleep(500 * time.Millisecond)
		unchanged(t, before)
		works(t)
	})

	t.Run("what a worker reads", func(t *testing.T) {
		a := s.attacker(t, "worker-evil", "evil")
		for seq := range 20 {
			m, err := a.nc.Request(subjects.DirectGet(subjects.KVStream(subjects.PolicyBucket)), fmt.Appendf(nil, `{"seq":%d}`, seq+1), time.Second)
			if err == nil && (strings.Contains(string(m.Data), "hash") || strings.Contains(string(m.Data), "acme")) {
				t.Errorf("message %d of the bucket of the policy has a key: %s", seq+1, m.Data)
			}
		}
	})

	t.Run("claims", func(t *testing.T) {
		for about, c := range map[string]struct {
			announced []string
			ack       func(delivery string) string
		}{
			"without a heartbeat": {nil, func(d string) string { return d }},
			"an order":            {[]string{"m"}, func(string) string { return subjects.WorkerDrain(victim.ID()) }},
			"the policy":          {[]string{"m"}, func(string) string { return "$KV.PULLEY_POLICY.policy" }},
		} {
			t.Run(about, func(t *testing.T) {
				before := look()
				a := s.attacker(t, "worker-evil", "evil")
				a.id += strings.ReplaceAll(about, " ", "")
				if c.announced != nil {
					a.beats(t, c.announced...)
					time.Sleep(300 * time.Millisecond)
				}
				a.in, _ = a.nc.SubscribeSync(subjects.Worker(a.id) + ".>")
				a.bid(8, "m", subjects.Shared, subjects.Worker(a.id)+".bid.1")
				answers := make(chan string, 12)
				for range 12 {
					go func() {
						status, body := chatAt(t, url, "m", false, 3, "Hello!")
						answers <- fmt.Sprint(status, strings.Contains(body, "forged"))
					}()
				}
				taken := 0
				for m := a.next(time.Second); m != nil; m = a.next(time.Second) {
					taken++
					a.forge(m, c.ack(m.Reply))
				}
				for range 12 {
					if got := <-answers; got != "200 false" {
						t.Errorf("an answer: %s", got)
					}
				}
				t.Logf("the attacker took %d deliveries", taken)
				unchanged(t, before)
			})
		}
	})

	t.Run("hole", func(t *testing.T) {
		a := s.attacker(t, "worker-evil", "evil")
		running := make(chan int, 2)
		for range 2 { // so that the victim bids at a higher price
			go func() {
				status, _ := chatAt(t, url, "m", true, 300, "Hello!")
				running <- status
			}()
		}
		time.Sleep(500 * time.Millisecond)
		a.bid(2, "m", subjects.Shared, subjects.Worker(a.id)+".bid.1")
		begun := time.Now()
		if status, body := chatAt(t, url, "m", false, 3, "Hello!"); status != 200 || time.Since(begun) > 2*2*time.Second+time.Second {
			t.Errorf("two deliveries without a claim: %d %s after %v", status, body, time.Since(begun))
		}
		_, stdout, _ := clitest.Run(newRootCommand(), append([]string{"doctor"}, s.flags("operator")...)...)
		if !strings.Contains(strings.Join(strings.Fields(stdout), " "), "a worker takes requests and keeps silent") {
			t.Errorf("doctor does not say that requests are taken: %s", stdout)
		}
		for range 2 {
			if status := <-running; status != 200 {
				t.Errorf("a stream: %d", status)
			}
		}
	})

	t.Run("pools of others", func(t *testing.T) {
		a := s.attacker(t, "worker-limited", "limited")
		a.bid(100, "m", subjects.Shared, subjects.Worker(a.id)+".bid.1")
		a.bid(100, "m", "gpu-1", subjects.Worker(a.id)+".bid.1")
		for range 5 {
			works(t)
		}
		if m := a.next(200 * time.Millisecond); m != nil {
			t.Errorf("the attacker got a request of a pool that it may not pull from: %s", m.Data)
		}
		running := make(chan int, 1)
		go func() {
			status, _ := chatAt(t, url, "m", true, 100, "Hello!")
			running <- status
		}()
		consumer, err := js.Consumer(t.Context(), subjects.ReqStream("standard"), subjects.ReqConsumer("m", subjects.Shared))
		if err != nil {
			t.Fatal(err)
		}
		delivered := func() (info *jetstream.ConsumerInfo) { // waits until a delivery is not settled
			if !within(time.Minute, func() bool {
				info, err = consumer.Info(t.Context())
				return err == nil && info.NumAckPending > 0
			}) {
				t.Fatalf("no request is delivered: %v", err)
			}
			return info
		}
		before := delivered()
		for seq := uint64(1); seq <= before.Delivered.Stream; seq++ {
			a.nc.Publish(subjects.AckSubject(subjects.ReqStream("standard"), subjects.ReqConsumer("m", subjects.Shared), seq, before.Delivered.Consumer), subjects.Term("attack"))
		}
		a.flush()
		time.Sleep(200 * time.Millisecond)
		if info, err := consumer.Info(t.Context()); err != nil || info.NumAckPending != before.NumAckPending {
			t.Errorf("%d deliveries are not settled, were %d; %v", info.NumAckPending, before.NumAckPending, err)
		}
		if status := <-running; status != 200 {
			t.Errorf("the request whose delivery was attacked: %d", status)
		}
		// One of the same pool can settle it: that costs the request nothing.
		same := s.attacker(t, "worker-evil", "evil")
		whole := make(chan string, 1)
		go func() {
			status, body := chatAt(t, url, "m", true, 100, "Hello!")
			whole <- fmt.Sprint(status, strings.Contains(body, "[DONE]"))
		}()
		info := delivered()
		for _, how := range [][]byte{subjects.Nak, subjects.Term("attack"), subjects.Ack} {
			for seq := uint64(1); seq <= info.Delivered.Stream; seq++ {
				same.nc.Publish(subjects.AckSubject(subjects.ReqStream("standard"), subjects.ReqConsumer("m", subjects.Shared), seq, info.Delivered.Consumer), how)
			}
		}
		same.flush()
		if got := <-whole; got != "200 true" {
			t.Errorf("the stream whose delivery one of the same pool has settled: %s", got)
		}
	})

	t.Run("pools without end", func(t *testing.T) {
		a := s.attacker(t, "worker-evil", "evil")
		consumers := func() int {
			st, err := js.Stream(t.Context(), subjects.ReqStream("standard"))
			if err != nil {
				t.Fatal(err)
			}
			return st.CachedInfo().State.Consumers
		}
		before := consumers()
		var pools []string
		for n := range 300 {
			pools = append(pools, fmt.Sprint("p", n))
		}
		for start := range 3 {
			id := fmt.Sprint("evil.", start)
			a.nc.Publish(subjects.Heartbeats(id), heartbeat(id, subjects.Ready, pools...))
			a.flush()
			time.Sleep(700 * time.Millisecond)
		}
		if n := consumers() - before; n > 2*subjects.MaxPools {
			t.Errorf("%d consumers in a tier, want at most %d", n, 2*subjects.MaxPools)
		}
		works(t)
	})
}

// What the broker reads again when it is told to: a worker that was added can connect, and one that was removed cannot.
func TestWorkersAreAddedAndRemoved(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "nats")
	config := func(flags ...string) {
		t.Helper()
		if code, _, stderr := clitest.Run(newRootCommand(), append([]string{"nats-config", "--out", dir, "--listen", "127.0.0.1:4222"}, flags...)...); code != 0 {
			t.Fatalf("exit code %d: %s", code, stderr)
		}
	}
	config("--worker", "a")
	b, err := broker.New(broker.Config{Listen: "127.0.0.1:0", StoreDir: t.TempDir(), ConfigFile: filepath.Join(dir, "nats.conf")})
	if err != nil {
		t.Fatal(err)
	}
	s := &secured{t: t, dir: dir, denied: make(map[string][]string)}
	s.run(b.Run)
	<-b.Ready()
	s.url = b.ClientURL()
	url, gw := s.gateway()
	s.worker("a", time.Millisecond, "m")
	s.served(gw, "m")
	seed, err := os.ReadFile(s.key("worker-a"))
	if err != nil {
		t.Fatal(err)
	}
	config("--worker", "a", "--worker", "b")
	if err := b.Reload(); err != nil {
		t.Fatal(err)
	}
	if now, _ := os.ReadFile(s.key("worker-a")); string(now) != string(seed) {
		t.Error("the key of a worker that stays is another one")
	}
	s.worker("b", time.Millisecond, "n")
	s.served(gw, "m", "n")
	for _, model := range []string{"m", "n"} {
		if status, body := chatAt(t, url, model, true, 5, "Hello!"); status != 200 {
			t.Errorf("%s: %d %s", model, status, body)
		}
	}
	config("--worker", "b")
	if err := b.Reload(); err != nil {
		t.Fatal(err)
	}
	s.served(gw, "n")
	if status, body := chatAt(t, url, "n", true, 5, "Hello!"); status != 200 {
		t.Errorf("the worker that stays: %d %s", status, body)
	}
	key, err := nats.NkeyOptionFromSeed(s.key("worker-a"))
	if err != nil {
		t.Fatal(err)
	}
	if nc, err := nats.Connect(s.url, key); err == nil {
		nc.Close()
		t.Error("the worker that was removed can connect")
	}
	if err := os.WriteFile(filepath.Join(dir, "accounts.conf"), []byte("accounts {"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.Reload(); err == nil {
		t.Error("a broken configuration was put in force")
	}
	if status, body := chatAt(t, url, "n", true, 5, "Hello!"); status != 200 {
		t.Errorf("after a broken configuration: %d %s", status, body)
	}
}

// Three brokers with the configuration form a cluster over TLS, and a worker serves whatever member it is connected to.
func TestRolesInACluster(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "nats")
	hosts := []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"}
	port := 0
	for try := 0; port == 0; try++ {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_, text, _ := net.SplitHostPort(l.Addr().String())
		port, _ = strconv.Atoi(text)
		for _, h := range hosts[1:] {
			other, err := net.Listen("tcp", net.JoinHostPort(h, text))
			if err != nil && try > 10 {
				t.Skipf("no second address on this machine: %v", err)
			}
			if err != nil {
				port = 0
				break
			}
			other.Close()
		}
		l.Close()
	}
	args := []string{"nats-config", "--out", dir, "--tls-self-signed", "--worker", "gpu-1", "--cluster-port", strconv.Itoa(port)}
	for i, h := range hosts {
		args = append(args, "--node", fmt.Sprintf("b%d=%s", i, h))
	}
	if code, _, stderr := clitest.Run(newRootCommand(), args...); code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	s := &secured{t: t, dir: dir, tls: true, denied: make(map[string][]string)}
	var urls []string
	var stops []func()
	for i := range hosts {
		url, stop := clitest.Broker(t, broker.Config{Listen: "127.0.0.1:0", SyncInterval: time.Minute, ConfigFile: filepath.Join(dir, fmt.Sprintf("nats-b%d.conf", i))})
		urls, stops = append(urls, url), append(stops, stop)
	}
	s.url = urls[0]
	t.Cleanup(func() { // a member takes seconds to leave
		var all sync.WaitGroup
		for _, stop := range stops {
			all.Go(stop)
		}
		all.Wait()
	})
	nc := s.connect("gateway")
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); ; {
		if _, err = js.AccountInfo(t.Context()); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("no leader of the cluster: %v", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	gw, err := gateway.New(gateway.Config{Auth: gateway.AuthOff, Replicas: 3, Logger: s.log("gateway")}, nc)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.run(func(ctx context.Context) error { return gw.Run(ctx, l, nil) })
	url := "http://" + l.Addr().String()
	for _, at := range urls[2:] {
		s.url = at
		w, stop := s.worker("gpu-1", time.Millisecond, "m")
		s.served(gw, "m")
		for range 5 {
			if status, body := chatAt(t, url, "m", true, 20, "Hello!"); status != 200 || !strings.Contains(body, "[DONE]") {
				t.Errorf("worker at %s: %d %s", at, status, body)
			}
		}
		if code, stdout, stderr := clitest.Run(newRootCommand(), append([]string{"worker", "drain", w.ID(), "--force"}, s.flags("operator")...)...); code != 0 {
			t.Errorf("drain at %s: exit code %d: %s%s", at, code, stdout, stderr)
		}
		if err := stop(); !errors.Is(err, worker.ErrDrained) {
			t.Errorf("the worker left with %v", err)
		}
	}
	for _, user := range []string{"gateway", "worker-gpu-1"} {
		if denied := s.denials(user); denied != "" {
			t.Errorf("%s was denied: %s", user, denied)
		}
	}
	if anonymous, err := nats.Connect(urls[1], nats.RootCAs(filepath.Join(dir, "ca.pem"))); err == nil {
		anonymous.Close()
		t.Error("a client without a key can connect")
	}
}

func TestNATSConfigCommand(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	out := filepath.Join(dir, "nats")
	run := func(args string) (code int, stdout, stderr string) {
		return clitest.Run(newRootCommand(), append([]string{"nats-config"}, strings.Fields(strings.ReplaceAll(args, "OUT", out))...)...)
	}
	for args, want := range map[string]string{
		"":                                                         "missing flag: --out",
		"--out OUT --worker a.b":                                   `id "a.b": must have`,
		"--out OUT --worker a,pool=m":                              `unknown key "pool"; did you mean "pools"?`,
		"--out OUT --worker a,engines=0":                           "engines=0: must be 1 to 64",
		"--out OUT --worker a,pools=":                              `"pools=" has no value`,
		"--out OUT --worker a,pools=m++n":                          "has an empty name",
		"--out OUT --worker a,lengths=8192":                        "for a worker with pools=",
		"--out OUT --worker a,pools=m,lengths=x":                   "must be numbers of tokens",
		"--out OUT --worker a --worker a":                          "given twice",
		"--out OUT --gateway operator":                             "given twice",
		"--out OUT --listen 4222":                                  "must be host:port",
		"--out OUT --tier Gold":                                    "not the name of a tier",
		"--out OUT --node b1=10.0.0.1":                             "at least two servers",
		"--out OUT --node b1=10.0.0.1 --node b1=10.0.0.2":          "another one has that name",
		"--out OUT --node 10.0.0.1 --node b=10.0.0.2":              "must be NAME=HOST",
		"--out OUT --tls-self-signed --tls-cert c.pem":             "exclude each other",
		"--out OUT --tls-cert /nowhere.pem":                        "must be used together",
		"--out OUT --tls-cert /nowhere.pem --tls-key /nowhere.pem": "no such file",
	} {
		if code, _, stderr := run(args); code != cli.ExitUsage || !strings.Contains(stderr, want) {
			t.Errorf("%s: exit code %d, %s; want %q", args, code, stderr, want)
		}
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("a command that was refused has written something")
	}
	code, stdout, stderr := run("--out OUT --worker gpu-1 --worker gpu-2,engines=2 --tls-self-signed --tls-host broker")
	if code != 0 || stderr != "" {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	for _, want := range []string{
		"pulley broker --nats-config " + filepath.Join(out, "nats.conf"), "pulley gateway --nats tls://broker:4222 --tls-ca " + filepath.Join(out, "ca.pem"),
		"--nkey " + filepath.Join(out, "worker-gpu-2.nk") + " --id gpu-2 --engine URL --engine URL\n",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
	files, err := os.ReadDir(out)
	if err != nil {
		t.Fatal(err)
	}
	before := make(map[string]string)
	for _, f := range files {
		text, err := os.ReadFile(filepath.Join(out, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		before[f.Name()] = string(text)
		fi, _ := f.Info()
		if public := f.Name() == "ca.pem" || f.Name() == "server.pem"; fi.Mode().Perm() != 0o600 && !public {
			t.Errorf("%s has mode %v, want 0600", f.Name(), fi.Mode())
		}
	}
	if code, _, stderr = run("--out OUT --worker gpu-1 --worker gpu-2,engines=2 --tls-self-signed --tls-host broker"); code != 0 {
		t.Fatalf("again: exit code %d: %s", code, stderr)
	}
	for name, text := range before {
		if now, err := os.ReadFile(filepath.Join(out, name)); err != nil || string(now) != text {
			t.Errorf("%s is another one after the same command: %v", name, err)
		}
	}
	if code, _, stderr = run("--out OUT --listen 0.0.0.0:4222"); code != 0 || !strings.Contains(stderr, "without TLS") || !strings.Contains(stderr, "no --worker") {
		t.Errorf("exit code %d, warnings %q", code, stderr)
	}
	if err := os.WriteFile(filepath.Join(out, "nats.conf"), []byte("listen: 4222"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr = run("--out OUT --worker gpu-1"); code != cli.ExitRefused || !strings.Contains(stderr, "was not written by this command") {
		t.Errorf("over a foreign file: exit code %d: %s", code, stderr)
	}
	if text, _ := os.ReadFile(filepath.Join(out, "nats.conf")); string(text) != "listen: 4222" {
		t.Error("a foreign file was replaced")
	}
}
