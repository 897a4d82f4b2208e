// Package natsconf writes configurations for NATS servers that give each part of Pulley the rights that it needs: accounts,
// users with nkeys, permissions, TLS, clusters. A stock nats-server and the broker of Pulley read the same files.
//
// # Why accounts
//
// Permissions of users alone do not hold anyone who may publish to an API of JetStream. The request names the subject of the
// answer, and the server publishes there with its own rights: a bid whose reply subject is $JS.API.STREAM.DELETE.<stream>
// deletes that stream when it expires, and one whose reply subject is $KV.PULLEY_POLICY.policy empties the policy. So each
// worker has an account, which imports what the worker needs from the account of the gateways and the streams; answers
// stay in the account that asked. Monitors, who ask for the state of streams, have one too.
package natsconf

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pulley-lb/pulley/subjects"
)

// The accounts. That of a worker has the worker's id behind workerAccount.
const (
	Account        = "PULLEY"
	MonitorAccount = "PULLEY_MONITOR"
	workerAccount  = "PULLEY_WORKER_"
)

// Plan says what a configuration is to contain.
type Plan struct {
	Gateways  []string // names of users
	Operators []string
	Monitors  []string
	Workers   []Worker
	Tiers     []string // whose queues workers may pull from

	Servers     []Server // one, or the members of a cluster
	ClusterName string   // empty for one server
	RoutesUser  string   // who members of the cluster are to each other
	RoutesPass  string
	StoreDir    string
	MaxPayload  int64 // bytes; 0: the server's default
}

// Worker is a process with the right to pull requests.
type Worker struct {
	ID      string
	Engines int      // how many --engine it has: each has an id, see subjects.EngineID
	Pools   []string // that it may pull from; empty: all
	Lengths []int64  // of the contexts of engines in these pools, if they differ: see subjects.LongLane
}

// Server is a NATS server.
type Server struct {
	Name    string // empty for a single server: it then has one of its own
	Listen  string // host:port for clients
	Cluster string // host:port for the other members; empty for a single server
	Cert    string // PEM files, by the path that the server is to read; empty: no TLS
	Key     string
	CA      string // of the other members
}

// Users are the names of all users of a plan. A user's key is in the file of that name with .nk.
func (p *Plan) Users() (names []string) {
	for _, list := range [][]string{p.Gateways, p.Operators, p.Monitors} {
		names = append(names, list...)
	}
	for _, w := range p.Workers {
		names = append(names, WorkerUser(w.ID))
	}
	return names
}

// WorkerUser is the name of a worker's user.
func WorkerUser(id string) string { return "worker-" + id }

// Check says what is wrong with a plan.
func (p *Plan) Check() error {
	seen := make(map[string]bool)
	for _, name := range p.Users() {
		if name == "" || strings.Trim(name, letters) != "" {
			return fmt.Errorf("name %q: must have letters, digits, hyphens and underscores only", name)
		}
		if seen[name] {
			return fmt.Errorf("name %s: given twice", name)
		}
		seen[name] = true
	}
	if len(p.Tiers) == 0 {
		return errors.New("no tier")
	}
	ids := make(map[string]string)
	for _, w := range p.Workers {
		for _, id := range w.ids() {
			if other := ids[id]; other != "" {
				return fmt.Errorf("workers %s and %s: both have the id %s", other, w.ID, id)
			}
			ids[id] = w.ID
		}
	}
	for _, s := range p.Servers {
		for _, text := range []string{s.Name, s.Listen, s.Cluster, s.Cert, s.Key, s.CA, p.StoreDir, p.ClusterName} {
			if strings.ContainsAny(text, "\"\\\r\n") {
				return fmt.Errorf("%q: a quotation mark, a backslash or a line break cannot be written to the configuration", text)
			}
		}
	}
	return nil
}

const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"

// ServerConfig is the configuration of the i-th server. It includes accounts, the name of a file in the same directory.
func (p *Plan) ServerConfig(i int, accounts string) string {
	s := p.Servers[i]
	var b strings.Builder
	b.WriteString("# NATS server for Pulley, written by 'pulley nats-config'. Start it with nats-server -c, or with\n# 'pulley broker --nats-config'. It has no secret of a user, but the password of the cluster, if there is one.\n\n")
	if s.Name != "" {
		fmt.Fprintf(&b, "server_name: %q\n", s.Name)
	}
	fmt.Fprintf(&b, "listen: %q\n", s.Listen)
	if p.MaxPayload > 0 {
		fmt.Fprintf(&b, "max_payload: %d\n", p.MaxPayload)
	}
	fmt.Fprintf(&b, `
jetstream {
  store_dir: %q
  # Before each acknowledgement: with the default of 2 minutes, a power cut of all servers loses most of what was acknowledged.
  sync_interval: always
  limits {
    # Each queue of a pool has a consumer; the default of nats-server 2.15 is 1000 a stream. Remove this for older servers.
    default_max_consumers: -1
  }
}
`, p.StoreDir)
	if s.Cert != "" {
		b.WriteString("\ntls {\n")
		writeTLS(&b, s)
		b.WriteString("}\n")
	}
	if s.Cluster != "" {
		fmt.Fprintf(&b, "\ncluster {\n  name: %q\n  listen: %q\n  authorization {\n    user: %q\n    password: %q\n    timeout: 5\n  }\n", p.ClusterName, s.Cluster, p.RoutesUser, p.RoutesPass)
		if s.Cert != "" {
			b.WriteString("  tls {\n")
			writeTLS(&b, s)
			b.WriteString("  verify: true\n  timeout: 5\n  }\n")
		}
		b.WriteString("  routes: [\n")
		for _, other := range p.Servers {
			fmt.Fprintf(&b, "    \"nats://%s:%s@%s\"\n", p.RoutesUser, p.RoutesPass, other.Cluster)
		}
		b.WriteString("  ]\n}\n")
	}
	fmt.Fprintf(&b, "\ninclude %q\n", accounts)
	return b.String()
}

func writeTLS(b *strings.Builder, s Server) {
	fmt.Fprintf(b, "  cert_file: %q\n  key_file: %q\n", s.Cert, s.Key)
	if s.CA != "" {
		fmt.Fprintf(b, "  ca_file: %q\n", s.CA)
	}
}

// ids are the stable ids of the workers in a process.
func (w *Worker) ids() (ids []string) {
	for n := range max(w.Engines, 1) {
		ids = append(ids, subjects.EngineID(w.ID, n+1))
	}
	return ids
}

// shares says whether a worker may serve a pool.
func (w *Worker) shares(pool string) bool { return len(w.Pools) == 0 || slices.Contains(w.Pools, pool) }
