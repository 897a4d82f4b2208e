package natsconf_test

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/natsconf"
	"github.com/pulley-lb/pulley/subjects"
)

// write writes the files of a plan, and returns those of the servers.
func write(t *testing.T, p *natsconf.Plan) (files []string, public map[string]string) {
	t.Helper()
	dir := t.TempDir()
	public = make(map[string]string)
	for _, name := range p.Users() {
		key, made, err := natsconf.UserKey(filepath.Join(dir, name+".nk"))
		if err != nil || !made {
			t.Fatalf("%s: made %t, %v", name, made, err)
		}
		public[name] = key
	}
	if err := natsconf.WriteSecret(filepath.Join(dir, "accounts.conf"), []byte(p.AccountsConfig(public))); err != nil {
		t.Fatal(err)
	}
	for i := range p.Servers {
		file := filepath.Join(dir, fmt.Sprintf("%d.conf", i))
		if err := natsconf.WriteSecret(file, []byte(p.ServerConfig(i, "accounts.conf"))); err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	return files, public
}

// options are what a stock nats-server reads of a file.
func options(t *testing.T, file string) *server.Options {
	t.Helper()
	o := &server.Options{}
	if err := o.ProcessConfigFile(file); err != nil { // warnings too
		text, _ := os.ReadFile(file)
		t.Fatalf("%v\n%s", err, text)
	}
	return o
}

func plan() *natsconf.Plan {
	return &natsconf.Plan{
		Gateways: []string{"gateway"}, Operators: []string{"operator", "ann"}, Monitors: []string{"monitor"},
		Workers:  []natsconf.Worker{{ID: "gpu-1"}, {ID: "gpu_2", Engines: 3}},
		Tiers:    []string{"priority", "batch"},
		Servers:  []natsconf.Server{{Listen: "127.0.0.1:4222"}},
		StoreDir: "/var/lib/pulley",
	}
}

func TestServersReadTheConfiguration(t *testing.T) {
	for about, change := range map[string]func(*natsconf.Plan){
		"usual":       func(*natsconf.Plan) {},
		"no worker":   func(p *natsconf.Plan) { p.Workers = nil },
		"no monitor":  func(p *natsconf.Plan) { p.Monitors = nil },
		"one gateway": func(p *natsconf.Plan) { p.Operators, p.Monitors, p.Workers = nil, nil, nil },
		"many workers": func(p *natsconf.Plan) {
			for i := range 200 {
				p.Workers = append(p.Workers, natsconf.Worker{ID: fmt.Sprint(i)})
			}
		},
		"odd pools": func(p *natsconf.Plan) {
			p.Workers = append(p.Workers, natsconf.Worker{ID: "edge", Pools: []string{"org/m:7b", `q"uo\te`, "*", ">", "a b", "ü", strings.Repeat("long", 64)}, Lengths: []int64{8192, 131072}})
		},
		"limits": func(p *natsconf.Plan) { p.MaxPayload = 4 << 20 },
	} {
		p := plan()
		change(p)
		if err := p.Check(); err != nil {
			t.Errorf("%s: %v", about, err)
			continue
		}
		files, public := write(t, p)
		o := options(t, files[0])
		if o.Host != "127.0.0.1" || o.Port != 4222 || o.StoreDir != "/var/lib/pulley" || !o.SyncAlways || !o.JetStream || int64(o.MaxPayload) != p.MaxPayload {
			t.Errorf("%s: %s:%d, store %s, sync always %t, max payload %d", about, o.Host, o.Port, o.StoreDir, o.SyncAlways, o.MaxPayload)
		}
		var users []string
		for _, u := range o.Nkeys {
			users = append(users, u.Nkey)
		}
		for name, key := range public {
			if !slices.Contains(users, key) {
				t.Errorf("%s: %s is no user", about, name)
			}
		}
		if len(users) != len(public) || len(o.Users) != 0 || o.NoAuthUser != "" {
			t.Errorf("%s: %d users with keys, %d with passwords, want %d", about, len(users), len(o.Users), len(public))
		}
		accounts := make(map[string]bool)
		for _, a := range o.Accounts {
			accounts[a.Name] = true
		}
		if want := 1 + min(len(p.Monitors), 1) + len(p.Workers); len(accounts) != want {
			t.Errorf("%s: %d accounts, want %d", about, len(accounts), want)
		}
		if _, err := server.NewServer(o); err != nil { // checks imports and exports
			t.Errorf("%s: %v", about, err)
		}
	}
}

func TestClusterConfiguration(t *testing.T) {
	p := plan()
	p.ClusterName, p.RoutesUser, p.RoutesPass, p.Servers = "gpu", "route", "s3cret", nil
	dir := t.TempDir()
	a, err := natsconf.OpenAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		cert, key := filepath.Join(dir, fmt.Sprint(i, ".pem")), filepath.Join(dir, fmt.Sprint(i, "-key.pem"))
		if err := a.Issue(cert, key, fmt.Sprint("b", i), []string{"10.0.0.1", "b.example.com"}); err != nil {
			t.Fatal(err)
		}
		p.Servers = append(p.Servers, natsconf.Server{Name: fmt.Sprint("b", i), Listen: "0.0.0.0:4222", Cluster: fmt.Sprintf("10.0.0.%d:6222", i+1), Cert: cert, Key: key, CA: filepath.Join(dir, "ca.pem")})
	}
	files, _ := write(t, p)
	for i, file := range files {
		o := options(t, file)
		if o.ServerName != fmt.Sprint("b", i) || o.Cluster.Name != "gpu" || o.Cluster.Port != 6222 || len(o.Routes) != 3 || o.Cluster.Username != "route" || o.Cluster.Password != "s3cret" {
			t.Errorf("server %d: name %q, cluster %+v, routes %v", i, o.ServerName, o.Cluster, o.Routes)
		}
		if o.TLSConfig == nil || o.Cluster.TLSConfig == nil || o.TLSVerify {
			t.Errorf("server %d: TLS for clients %t, for routes %t, client certificates %t", i, o.TLSConfig != nil, o.Cluster.TLSConfig != nil, o.TLSVerify)
		}
	}
	again, err := natsconf.OpenAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	cert, key := filepath.Join(dir, "late.pem"), filepath.Join(dir, "late-key.pem")
	if err := again.Issue(cert, key, "late", []string{"localhost"}); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	ca, _ := os.ReadFile(filepath.Join(dir, "ca.pem"))
	pool.AppendCertsFromPEM(ca)
	text, _ := os.ReadFile(cert)
	block, _ := pem.Decode(text)
	parsed, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parsed.Verify(x509.VerifyOptions{Roots: pool, DNSName: "localhost"}); err != nil {
		t.Errorf("a certificate of the authority as it was read again: %v", err)
	}
	if !natsconf.IsFor(cert, []string{"localhost"}) || natsconf.IsFor(cert, []string{"localhost", "other"}) || natsconf.IsFor(cert+"x", nil) {
		t.Error("IsFor does not tell for which hosts a certificate is")
	}
	for _, secret := range []string{"ca-key.pem", "late-key.pem"} {
		if fi, err := os.Stat(filepath.Join(dir, secret)); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600", secret, fi.Mode(), err)
		}
	}
}

// A worker has what it needs in its own account and nothing else: each import is of its own id, of its pools' queues, or of
// what all workers read.
func TestImportsOfAWorker(t *testing.T) {
	p := plan()
	p.Workers = []natsconf.Worker{{ID: "all"}, {ID: "few", Engines: 2, Pools: []string{"m", "org/n"}, Lengths: []int64{8192}}, {ID: "none", Pools: []string{"x"}}}
	_, public := write(t, p)
	text := p.AccountsConfig(public)
	_, few, _ := strings.Cut(text, `"PULLEY_WORKER_few" {`)
	few, _, _ = strings.Cut(few, "  }\n\n")
	for _, want := range []string{
		subjects.BidSubject("priority", "m", subjects.Shared), subjects.BidSubject("batch", "org/n", subjects.Shared), subjects.BidSubject("batch", "m", "few-2"),
		subjects.BidSubject("batch", "m", "all"), subjects.BidSubject("batch", "m", subjects.LongLane(8192)),
		"$JS.ACK.PULLEY_REQ_BATCH.m=shared.>", "pulley.hb.few.*", "pulley.hb.few-2.*", "pulley.gw.*.link.few-2.*", "pulley.wk.few.>", "pulley.drain.few-2.*",
		"pulley.gw.*.ref", "$JS.API.DIRECT.GET.KV_PULLEY_POLICY",
	} {
		if !strings.Contains(few, `"`+want+`"`) {
			t.Errorf("few may not use %s", want)
		}
	}
	for _, not := range []string{"NEXT.PULLEY_REQ_BATCH.*", "x=shared", "m=none", "pulley.hb.>", "pulley.hb.all", "PULLEY_KEYS", "STREAM.", "CONSUMER.CREATE", "pulley.req", `"$KV.PULLEY_POLICY`, "PULLEY_DEAD", "$JS.ACK.PULLEY_REQ_BATCH.*"} {
		if i := strings.Index(few, not); i >= 0 {
			t.Errorf("few may use %s: %.80s", not, few[i:])
		}
	}
}

func TestKeysOfUsers(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "worker-a.nk")
	public, made, err := natsconf.UserKey(file)
	if err != nil || !made || !nkeys.IsValidPublicUserKey(public) {
		t.Fatalf("key %q, made %t, %v", public, made, err)
	}
	if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", fi.Mode(), err)
	}
	if again, made, err := natsconf.UserKey(file); again != public || made || err != nil {
		t.Errorf("again: %q, made %t, %v; want %q", again, made, err, public)
	}
	account, err := nkeys.CreateAccount()
	if err != nil {
		t.Fatal(err)
	}
	seed, _ := account.Seed()
	for about, content := range map[string]string{"nothing": "", "no seed": "hello", "the seed of an account": string(seed), "a public key": public} {
		bad := filepath.Join(dir, "bad.nk")
		if err := os.WriteFile(bad, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if key, _, err := natsconf.UserKey(bad); err == nil {
			t.Errorf("%s: key %q, want an error", about, key)
		}
		if now, _ := os.ReadFile(bad); string(now) != content {
			t.Errorf("%s: the file has changed", about)
		}
	}
}

func TestPlansThatAreRefused(t *testing.T) {
	for want, change := range map[string]func(*natsconf.Plan){
		"given twice":              func(p *natsconf.Plan) { p.Operators = []string{"gateway"} },
		"letters, digits":          func(p *natsconf.Plan) { p.Gateways = []string{"a b"} },
		`name "../x"`:              func(p *natsconf.Plan) { p.Monitors = []string{"../x"} },
		"both have the id gpu_2-2": func(p *natsconf.Plan) { p.Workers = append(p.Workers, natsconf.Worker{ID: "gpu_2-2"}) },
		"no tier":                  func(p *natsconf.Plan) { p.Tiers = nil },
		"cannot be written":        func(p *natsconf.Plan) { p.StoreDir = "/a\"b" },
	} {
		p := plan()
		change(p)
		if err := p.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
