package broker_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server/ats"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/broker"
)

// TestMain starts the server's process-wide access-time ticker outside any bubble; inside one it
// would stop the bubble's clock.
func TestMain(m *testing.M) {
	ats.Register()
	m.Run()
}

// start runs a broker until the returned function stops it, or the test ends,
// and returns it when it is ready.
func start(t testing.TB, cfg broker.Config) (b *broker.Broker, stop func()) {
	t.Helper()
	b, err := broker.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	select {
	case <-b.Ready():
	case err := <-ended:
		cancel()
		t.Fatalf("Run ended before it was ready: %v", err)
	}
	t.Cleanup(stop)
	return b, stop
}

func connect(t testing.TB, url string, opts ...nats.Option) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(url, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func TestStreamsOutliveTheBroker(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "store")
	cfg := broker.Config{Listen: "127.0.0.1:0", StoreDir: dir}
	b, stop := start(t, cfg)
	if u := b.ClientURL(); !strings.HasPrefix(u, "nats://127.0.0.1:") || strings.HasSuffix(u, ":0") {
		t.Errorf("ClientURL() = %q, want the chosen port on 127.0.0.1", u)
	}
	js := connect(t, b.ClientURL())
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "s", []byte("kept")); err != nil {
		t.Fatal(err)
	}
	name := js.Conn().ConnectedServerName()
	stop()

	fi, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if fi.Mode().Perm() != 0o700 {
		t.Errorf("store dir has mode %o, want 700", fi.Mode().Perm())
	}

	b, _ = start(t, cfg)
	js = connect(t, b.ClientURL())
	s, err := js.Stream(t.Context(), "S")
	if err != nil {
		t.Fatal(err)
	}
	msg, err := s.GetMsg(t.Context(), 1)
	if err != nil || string(msg.Data) != "kept" {
		t.Errorf("first message = %v, %v; want kept", msg, err)
	}
	if got := js.Conn().ConnectedServerName(); got != name {
		t.Errorf("server name after a restart = %q, want %q as before", got, name)
	}
}

func TestRunsInVirtualTime(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b, stop := start(t, broker.Config{StoreDir: dir})
		if b.ClientURL() != "" {
			t.Errorf("ClientURL() = %q, want none in process", b.ClientURL())
		}
		nc, err := nats.Connect("", nats.InProcessServer(b))
		if err != nil {
			t.Fatal(err)
		}
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		s, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, MaxAge: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := js.Publish(t.Context(), "s", nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour)
		info, err := s.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if info.State.Msgs != 0 {
			t.Errorf("%d messages after two virtual hours, want 0: they live for one", info.State.Msgs)
		}
		nc.Close()
		stop()
		if _, err := b.InProcessConn(); err == nil {
			t.Error("InProcessConn after the end: want an error")
		}
	})
}

func TestServerLimits(t *testing.T) {
	b, _ := start(t, broker.Config{StoreDir: t.TempDir()})
	js := connect(t, "", nats.InProcessServer(b))
	if got := js.Conn().MaxPayload(); got != 1<<20 {
		t.Errorf("max payload = %d, want 1 MiB", got)
	}
	s, err := js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "S", Subjects: []string{"s.>"}, Storage: jetstream.MemoryStorage,
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1001 {
		if _, err := s.CreateConsumer(t.Context(), jetstream.ConsumerConfig{
			Durable: fmt.Sprint("c", i), AckPolicy: jetstream.AckExplicitPolicy, MemoryStorage: true,
		}); err != nil {
			t.Fatalf("consumer %d: %v; want no bound on consumers", i, err)
		}
	}
}

func TestCredentials(t *testing.T) {
	users := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(users, []byte(`authorization { users: [ {user: ann, password: s3cret} ] }`), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		cfg  broker.Config
		good nats.Option
	}{
		"user and password": {broker.Config{Username: "ann", Password: "s3cret"}, nats.UserInfo("ann", "s3cret")},
		"token":             {broker.Config{Token: "s3cret"}, nats.Token("s3cret")},
		"config file":       {broker.Config{ConfigFile: users}, nats.UserInfo("ann", "s3cret")},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tt.cfg.StoreDir = t.TempDir()
			tt.cfg.Listen = "127.0.0.1:0"
			b, _ := start(t, tt.cfg)
			connect(t, b.ClientURL(), tt.good)
			connect(t, "", nats.InProcessServer(b), tt.good)
			if nc, err := nats.Connect(b.ClientURL()); err == nil {
				nc.Close()
				t.Error("connected without credentials, want an authorization violation")
			}
		})
	}
}

// The address is that of the configuration file, unless another one is set; a file without one leaves the broker without a
// socket.
func TestListenAsTheFileSays(t *testing.T) {
	file := filepath.Join(t.TempDir(), "nats.conf")
	for about, c := range map[string]struct {
		content, listen string
		socket          bool
	}{
		"in the file":     {"listen: 127.0.0.1:-1", "", true},
		"in both":         {"listen: 127.0.0.2:1", "127.0.0.1:0", true},
		"in neither":      {"max_payload: 2MB", "", false},
		"in the settings": {"max_payload: 2MB", "127.0.0.1:0", true},
	} {
		if err := os.WriteFile(file, []byte(c.content), 0o600); err != nil {
			t.Fatal(err)
		}
		b, stop := start(t, broker.Config{Listen: c.listen, StoreDir: t.TempDir(), ConfigFile: file})
		if u := b.ClientURL(); (u != "") != c.socket || c.socket && !strings.HasPrefix(u, "nats://127.0.0.1:") {
			t.Errorf("%s: %q", about, u)
		}
		stop()
	}
}

// Reload puts in force what the file says now: users come and go, and a file that is not valid changes nothing.
func TestReload(t *testing.T) {
	file := filepath.Join(t.TempDir(), "nats.conf")
	users := func(names ...string) {
		t.Helper()
		var text strings.Builder
		text.WriteString("authorization { users: [")
		for _, n := range names {
			text.WriteString(fmt.Sprintf("{user: %s, password: s3cret},", n))
		}
		if err := os.WriteFile(file, []byte(text.String()+"] }"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	users("ann", "bob")
	b, _ := start(t, broker.Config{Listen: "127.0.0.1:0", StoreDir: t.TempDir(), ConfigFile: file})
	connects := func(name string) bool {
		nc, err := nats.Connect(b.ClientURL(), nats.UserInfo(name, "s3cret"))
		if err != nil {
			return false
		}
		nc.Close()
		return true
	}
	stays := connect(t, b.ClientURL(), nats.UserInfo("ann", "s3cret"))
	users("ann", "eve")
	if err := b.Reload(); err != nil {
		t.Fatal(err)
	}
	if !connects("ann") || !connects("eve") || connects("bob") {
		t.Errorf("ann %t, eve %t, bob %t", connects("ann"), connects("eve"), connects("bob"))
	}
	if _, err := stays.AccountInfo(t.Context()); err != nil || !stays.Conn().IsConnected() {
		t.Errorf("a user that stays was disconnected: %v", err)
	}
	if err := os.WriteFile(file, []byte("authorization {"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.Reload(); err == nil || !connects("eve") {
		t.Errorf("with a broken file: %v, eve connects %t", err, connects("eve"))
	}
}

func TestNewNamesTheSettingAtFault(t *testing.T) {
	tests := map[string]struct {
		cfg  broker.Config
		want string
	}{
		"no store dir":             {broker.Config{}, "store dir: required"},
		"listen without a port":    {broker.Config{StoreDir: "d", Listen: "localhost"}, `listen "localhost": must be host:port`},
		"listen with a wrong port": {broker.Config{StoreDir: "d", Listen: ":70000"}, `listen ":70000": port "70000"`},
		"payload too large":        {broker.Config{StoreDir: "d", MaxPayload: 64 << 20}, "max payload 67108864: must be between"},
		"payload too small":        {broker.Config{StoreDir: "d", MaxPayload: 1000}, "max payload 1000: must be between"},
		"user without password":    {broker.Config{StoreDir: "d", Username: "u"}, "username, password: need each other"},
		"key without certificate":  {broker.Config{StoreDir: "d", TLSKey: "k.pem"}, "tls: missing 'cert_file'"},
		"next to no store":         {broker.Config{StoreDir: "d", MaxStore: broker.MinStore - 1}, "max store 16777215: must be at least 16 MiB"},
		"next to no memory":        {broker.Config{StoreDir: "d", MaxMemory: 1}, "max memory 1: must be at least 16 MiB"},
		"cluster without a name":   {broker.Config{StoreDir: "d", Routes: []string{"a:1"}}, "cluster name: required"},
		"cluster without listen":   {broker.Config{StoreDir: "d", ClusterName: "c", ClusterListen: "127.0.0.1:0", Routes: []string{"a:1"}}, `listen: required in cluster "c"`},
		"cluster without routes":   {broker.Config{StoreDir: "d", Listen: ":0", ClusterName: "c", ClusterListen: "127.0.0.1:0"}, `routes: required in cluster "c"`},
		"route without a port":     {broker.Config{StoreDir: "d", Listen: ":0", ClusterName: "c", ClusterListen: "127.0.0.1:0", Routes: []string{"a"}}, `route "a": must be host:port`},
		"config file is missing":   {broker.Config{StoreDir: "d", ConfigFile: "/nowhere.conf"}, "nats config /nowhere.conf: "},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := broker.New(tt.cfg)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("New: %v, want %q", err, tt.want)
			}
		})
	}
}

func TestRunNamesTheSettingAtFault(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := l.Addr().String()
	held := t.TempDir()
	start(t, broker.Config{StoreDir: held})
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}

	tests := map[string]struct {
		cfg  broker.Config
		want string
	}{
		"port in use": {
			broker.Config{Listen: taken, StoreDir: t.TempDir()},
			"listen on " + taken + ": address already in use"},
		"cluster port in use": {
			broker.Config{Listen: "127.0.0.1:0", StoreDir: t.TempDir(), ClusterName: "c", ClusterListen: taken, Routes: []string{taken}},
			"cluster listen on " + taken + ": address already in use"},
		"store dir in use":   {broker.Config{StoreDir: held}, "store dir " + held + ": in use by another broker"},
		"store dir a file":   {broker.Config{StoreDir: file}, "store dir " + file + ": not a directory"},
		"store dir in /proc": {broker.Config{StoreDir: "/proc/pulley"}, "store dir /proc/pulley: "},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b, err := broker.New(tt.cfg)
			if err != nil {
				t.Fatal(err)
			}
			err = b.Run(t.Context())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Run: %v, want %q", err, tt.want)
			}
			select {
			case <-b.Ready():
				t.Error("Ready is closed after a failed start")
			default:
			}
		})
	}
}

// A member that stops hands its streams over at once: otherwise they would have no leader for some
// four seconds, until its absence is noticed.
func TestClusterMemberLeavesQuietly(t *testing.T) {
	var routes []string
	for range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		routes = append(routes, l.Addr().String())
		l.Close()
	}
	var members []*broker.Broker
	stop := map[string]func(){}
	for i, addr := range routes {
		b, stopOne := start(t, broker.Config{
			Listen: "127.0.0.1:0", StoreDir: t.TempDir(), ServerName: fmt.Sprint("b", i),
			ClusterName: "test", ClusterListen: addr, Routes: routes,
			Username: "u", Password: "p", SyncInterval: time.Minute,
		})
		if b.ClusterAddr() != addr {
			t.Errorf("ClusterAddr() = %q, want %q", b.ClusterAddr(), addr)
		}
		members = append(members, b)
		stop[fmt.Sprint("b", i)] = stopOne
	}

	urls := []string{members[0].ClientURL(), members[1].ClientURL(), members[2].ClientURL()}
	js := connect(t, strings.Join(urls, ","), nats.UserInfo("u", "p"), nats.ReconnectWait(10*time.Millisecond), nats.MaxReconnects(-1))
	var s jetstream.Stream
	eventually(t, "create a stream with three replicas", func() (err error) {
		s, err = js.CreateOrUpdateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Replicas: 3})
		return err
	})
	info, err := s.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if _, err := js.Publish(t.Context(), "s", nil); err != nil {
			t.Fatal(err)
		}
	}

	stopped := make(chan struct{})
	go func() { stop[info.Cluster.Leader](); close(stopped) }()
	begin := time.Now()
	time.Sleep(50 * time.Millisecond) // the leader has started to leave
	eventually(t, "publish to the new leader", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, err := js.Publish(ctx, "s", nil)
		return err
	})
	if d := time.Since(begin); d > 3*time.Second {
		t.Errorf("no leader for %s after a member left, want a handover in well under a second", d)
	}
	<-stopped
}

func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
