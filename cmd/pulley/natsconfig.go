package main

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/natsconf"
	"github.com/pulley-lb/pulley/plain"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/worker"
)

// accountsFile is the part of the configuration that all servers have in common.
const accountsFile = "accounts.conf"

// natsConfig are the flags of pulley nats-config.
type natsConfig struct {
	out        string
	installDir string
	workers    []string
	nodes      []string
	listen     string
	routes     int
	selfSigned bool
	tlsHosts   []string
	cert, key  string
	ca         string
	maxPayload int64
	plan       natsconf.Plan
}

func newNATSConfigCommand() *cobra.Command {
	n := &natsConfig{}
	cmd := &cobra.Command{
		Use:   "nats-config",
		Short: "Write a NATS configuration with accounts, keys and permissions",
		Long: `Write the configuration of a NATS server, or of a cluster, that gives each part of
Pulley the rights that it needs and no others. A stock nats-server and 'pulley broker
--nats-config' read the same files. Without users, whoever reaches the broker can read
and write every request.

  gateway    puts requests into queues, and creates streams; trusted
  operator   all other commands: policy, keys, queues; trusted
  monitor    reads the state of the fleet, no content of requests
  worker     pulls requests, and speaks for itself only; each has an account

Each user has an nkey. Its seed is in a file of mode 0600, NAME.nk: give it to the
machine where the part runs, and to no other. The configuration has public keys only,
and the password of the cluster if there is one.

--worker ID names a worker, which is started with --id ID. Keys, after commas:
pools=A+B are the pools that it may pull from (default all); engines=N is how many
--engine its process has; lengths=N+M are the lengths of contexts, in tokens, where
those of its pools differ. A worker sees the content of the requests of its pools.

Run the command again with all its flags to add or remove a worker: keys that exist
stay. Then reload the servers, with 'nats-server --signal reload' or SIGHUP to 'pulley
broker'.

docs/security.md says what each role can do, and what nothing prevents.`,
		Example: `  pulley nats-config --out nats --worker gpu-1 --worker gpu-2 --tls-self-signed --tls-host broker-1
  pulley nats-config --out nats --worker 'edge-1,pools=llama-8b+embed' --worker 'gpu-1,engines=4'
  pulley nats-config --out nats --node b1=10.0.0.1 --node b2=10.0.0.2 --node b3=10.0.0.3 \
    --tls-self-signed --worker gpu-1
  pulley broker --nats-config nats/nats-b1.conf --store-dir /var/lib/pulley`,
		RunE: func(cmd *cobra.Command, _ []string) error { return n.run(cmd) },
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&n.out, "out", "", "`directory` for the files (required)")
	fs.StringVar(&n.installDir, "install-dir", "", "`directory` where the servers will find the certificates of --tls-self-signed, if you copy them (default that of --out)")
	fs.StringArrayVar(&n.workers, "worker", nil, "`ID[,pools=A+B][,engines=N][,lengths=N+M]` of a worker (repeatable)")
	cmd.RegisterFlagCompletionFunc("worker", completeWorkerGrant)
	fs.StringSliceVar(&n.plan.Gateways, "gateway", []string{"gateway"}, "`names` of users for gateways; any number of gateways can use one")
	fs.StringSliceVar(&n.plan.Operators, "operator", []string{"operator"}, "`names` of users for operators")
	fs.StringSliceVar(&n.plan.Monitors, "monitor", []string{"monitor"}, "`names` of users that only read")
	fs.StringSliceVar(&n.plan.Tiers, "tier", tierNames(), "`names` of all tiers; run the command again after you create one")
	fs.StringVar(&n.listen, "listen", "0.0.0.0:4222", "`host:port` for clients")
	fs.StringVar(&n.plan.StoreDir, "store-dir", "/var/lib/pulley", "`directory` of a stock nats-server for the streams; pulley broker has its own --store-dir")
	cli.SizeVar(fs, &n.maxPayload, "max-payload", 0, "maximum size of a message, 1MiB to 8MiB (default 1MiB)")
	fs.StringArrayVar(&n.nodes, "node", nil, "`NAME=HOST` of a server in a cluster (three times for a cluster of three)")
	fs.StringVar(&n.plan.ClusterName, "cluster-name", "pulley", "`name` of the cluster")
	fs.IntVar(&n.routes, "cluster-port", 6222, "`port` for the other members of the cluster")
	fs.BoolVar(&n.selfSigned, "tls-self-signed", false, "create a certificate authority and certificates for the servers")
	fs.StringSliceVar(&n.tlsHosts, "tls-host", nil, "host `names` and addresses by which clients reach the server, for --tls-self-signed (default those of --node, localhost and 127.0.0.1)")
	fs.StringVar(&n.cert, "tls-cert", "", "PEM `file` with the certificate of the servers")
	fs.StringVar(&n.key, "tls-key", "", "PEM `file` with the key of --tls-cert")
	fs.StringVar(&n.ca, "tls-ca", "", "PEM `file` with the authority of --tls-cert, for clients and for the members of a cluster")
	for _, name := range []string{"out", "install-dir", "worker", "node", "tls-self-signed"} {
		fs.SetAnnotation(name, cli.CommandLineOnly, []string{})
	}
	return cmd
}

func tierNames() (names []string) {
	for _, t := range policy.DefaultTiers() {
		names = append(names, t.Name)
	}
	return names
}

func (n *natsConfig) run(cmd *cobra.Command) error {
	if err := n.complete(); err != nil {
		return err
	}
	if err := os.MkdirAll(n.out, 0o700); err != nil {
		return err
	}
	for i := range n.plan.Servers {
		if err := n.mayWrite(n.fileOf(i)); err != nil {
			return err
		}
	}
	if err := n.mayWrite(accountsFile); err != nil {
		return err
	}
	made, public, err := n.keys()
	if err != nil {
		return err
	}
	if err := n.certificates(); err != nil {
		return err
	}
	if n.plan.ClusterName != "" {
		if err := n.routesPassword(); err != nil {
			return err
		}
	}
	if err := natsconf.WriteSecret(filepath.Join(n.out, accountsFile), []byte(n.plan.AccountsConfig(public))); err != nil {
		return err
	}
	for i := range n.plan.Servers {
		if err := natsconf.WriteSecret(filepath.Join(n.out, n.fileOf(i)), []byte(n.plan.ServerConfig(i, accountsFile))); err != nil {
			return err
		}
	}
	n.report(cmd, made)
	return nil
}

// complete checks the flags and makes the plan.
func (n *natsConfig) complete() error {
	if n.out == "" {
		return cli.Usagef("missing flag: --out DIRECTORY")
	}
	host, port, err := net.SplitHostPort(n.listen)
	if err != nil {
		return cli.Usagef("--listen %q: must be host:port, such as 0.0.0.0:4222", n.listen)
	}
	for _, spec := range n.workers {
		w, err := parseWorkerGrant(spec)
		if err != nil {
			return err
		}
		n.plan.Workers = append(n.plan.Workers, w)
	}
	for _, t := range n.plan.Tiers {
		if !policy.IsTierName(t) {
			return cli.Usagef("--tier %q: not the name of a tier", t)
		}
	}
	if n.maxPayload != 0 && (n.maxPayload < 1<<20 || n.maxPayload > 8<<20) {
		return cli.Usagef("--max-payload: must be between 1MiB and 8MiB")
	}
	n.plan.MaxPayload = n.maxPayload
	given := n.cert != "" || n.key != "" || n.ca != ""
	switch {
	case given && n.selfSigned:
		return cli.Usagef("--tls-self-signed and --tls-cert exclude each other")
	case (n.cert == "") != (n.key == ""), n.ca != "" && n.cert == "":
		return cli.Usagef("--tls-cert and --tls-key must be used together")
	case len(n.nodes) > 0 && n.cert != "" && n.ca == "":
		return cli.Usagef("--tls-ca: required for a cluster, whose members verify each other")
	case len(n.nodes) == 1:
		return cli.Usagef("--node: a cluster has at least two servers, and survives the loss of one with three")
	}
	for _, file := range []*string{&n.cert, &n.key, &n.ca} { // the server may be started elsewhere
		if *file != "" {
			if _, err := os.Stat(*file); err != nil {
				return cli.Usagef("%w", err)
			}
			if *file, err = filepath.Abs(*file); err != nil {
				return err
			}
		}
	}
	if len(n.nodes) == 0 {
		n.plan.ClusterName = ""
		n.plan.Servers = []natsconf.Server{{Listen: n.listen}}
	}
	for _, spec := range n.nodes {
		name, at, ok := strings.Cut(spec, "=")
		if !ok || name == "" || at == "" || strings.ContainsAny(at, "/:") && net.ParseIP(at) == nil || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
			return cli.Usagef("--node %q: must be NAME=HOST, such as b1=10.0.0.1", spec)
		}
		if slices.ContainsFunc(n.plan.Servers, func(s natsconf.Server) bool { return s.Name == name }) {
			return cli.Usagef("--node %q: another one has that name", spec)
		}
		n.plan.Servers = append(n.plan.Servers, natsconf.Server{
			Name: name, Listen: net.JoinHostPort(host, port), Cluster: net.JoinHostPort(at, strconv.Itoa(n.routes)),
		})
	}
	if err := n.plan.Check(); err != nil {
		return cli.Usagef("%w", err)
	}
	return nil
}

// parseWorkerGrant parses a value of --worker.
func parseWorkerGrant(spec string) (w natsconf.Worker, err error) {
	bad := func(format string, args ...any) (natsconf.Worker, error) {
		return w, cli.Usagef("--worker %q: %s", spec, fmt.Sprintf(format, args...))
	}
	parts := strings.Split(spec, ",")
	w.ID = parts[0]
	if err := worker.CheckID(w.ID); err != nil {
		return bad("%s", plain.Error(err))
	}
	for _, p := range parts[1:] {
		k, v, _ := strings.Cut(p, "=")
		if v == "" {
			return bad("%q has no value", p)
		}
		switch k {
		case "pools":
			w.Pools = append(w.Pools, strings.Split(v, "+")...)
		case "engines":
			if w.Engines, err = strconv.Atoi(v); err != nil || w.Engines < 1 || w.Engines > 64 {
				return bad("engines=%s: must be 1 to 64", v)
			}
		case "lengths":
			for text := range strings.SplitSeq(v, "+") {
				length, err := strconv.ParseInt(text, 10, 64)
				if err != nil || length < 1 {
					return bad("lengths=%s: must be numbers of tokens, such as 8192+131072", v)
				}
				w.Lengths = append(w.Lengths, length)
			}
		default:
			return bad("unknown key %q%s; keys: %s", k, cli.DidYouMean(k, grantKeys), strings.Join(grantKeys, ", "))
		}
	}
	if slices.Contains(w.Pools, "") {
		return bad("pools= has an empty name")
	}
	if len(w.Lengths) > 0 && len(w.Pools) == 0 {
		return bad("lengths= is for a worker with pools=")
	}
	return w, nil
}

var grantKeys = []string{"pools", "engines", "lengths"}

func completeWorkerGrant(_ *cobra.Command, _ []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	i := strings.LastIndexByte(toComplete, ',') + 1
	var list []string
	for _, k := range grantKeys {
		if i > 0 && strings.HasPrefix(k, toComplete[i:]) {
			list = append(list, toComplete[:i]+k+"=")
		}
	}
	return list, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
}

// fileOf is the name of the configuration of the i-th server.
func (n *natsConfig) fileOf(i int) string {
	if name := n.plan.Servers[i].Name; name != "" {
		return "nats-" + name + ".conf"
	}
	return "nats.conf"
}

// mayWrite refuses to replace a file that this command has not written.
func (n *natsConfig) mayWrite(name string) error {
	text, err := os.ReadFile(filepath.Join(n.out, name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !bytes.Contains(text, []byte("written by 'pulley nats-config'")):
		return cli.Refusedf("%s exists, and was not written by this command: choose another --out, or move it away", filepath.Join(n.out, name))
	}
	return nil
}

// keys reads the keys of all users, and makes those that are missing.
func (n *natsConfig) keys() (made []string, public map[string]string, err error) {
	public = make(map[string]string)
	for _, name := range n.plan.Users() {
		key, isNew, err := natsconf.UserKey(filepath.Join(n.out, name+".nk"))
		if err != nil {
			return nil, nil, err
		}
		if public[name] = key; isNew {
			made = append(made, name)
		}
	}
	return made, public, nil
}

// certificates fills in the certificates of the servers, and makes those that are missing or are for other hosts.
func (n *natsConfig) certificates() error {
	if !n.selfSigned {
		for i := range n.plan.Servers {
			s := &n.plan.Servers[i]
			s.Cert, s.Key, s.CA = n.cert, n.key, n.ca
		}
		return nil
	}
	a, err := natsconf.OpenAuthority(n.out)
	if err != nil {
		return err
	}
	for i := range n.plan.Servers {
		s := &n.plan.Servers[i]
		name := cmp.Or(s.Name, "server")
		dir := n.installDir
		if dir == "" { // a path that is not absolute would be read where the server is started
			if dir, err = filepath.Abs(n.out); err != nil {
				return err
			}
		}
		cert, key := name+".pem", name+"-key.pem"
		s.Cert, s.Key, s.CA = filepath.Join(dir, cert), filepath.Join(dir, key), filepath.Join(dir, "ca.pem")
		hosts := slices.Concat(n.tlsHosts, []string{"localhost", "127.0.0.1", "::1"})
		if host, _, err := net.SplitHostPort(s.Cluster); err == nil {
			hosts = append(hosts, host)
		}
		if s.Name != "" {
			hosts = append(hosts, s.Name)
		}
		slices.Sort(hosts)
		hosts = slices.Compact(hosts)
		if cert, key = filepath.Join(n.out, cert), filepath.Join(n.out, key); natsconf.IsFor(cert, hosts) {
			continue
		}
		if err := a.Issue(cert, key, name, hosts); err != nil {
			return err
		}
	}
	return nil
}

// routesPassword sets the password by which the members of the cluster know each other: the one that they have, or a new one.
func (n *natsConfig) routesPassword() error {
	n.plan.RoutesUser, n.plan.RoutesPass = "route", rand.Text()
	text, err := os.ReadFile(filepath.Join(n.out, n.fileOf(0)))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	if _, rest, ok := strings.Cut(string(text), `password: "`); ok {
		if password, _, ok := strings.Cut(rest, `"`); ok && password != "" {
			n.plan.RoutesPass = password
		}
	}
	return nil
}

// report says what was written, and how each part is started with it.
func (n *natsConfig) report(cmd *cobra.Command, made []string) {
	out := cmd.OutOrStdout()
	in := func(name string) string { return filepath.Join(n.out, name) }
	_, port, _ := net.SplitHostPort(n.listen)
	scheme, ca := "nats", ""
	switch {
	case n.selfSigned:
		scheme, ca = "tls", " --tls-ca "+in("ca.pem")
	case n.cert != "":
		scheme = "tls"
		if n.ca != "" {
			ca = " --tls-ca " + n.ca
		}
	}
	var urls []string
	for _, s := range n.plan.Servers {
		host, _, err := net.SplitHostPort(s.Cluster)
		if err != nil {
			host = "BROKER"
			if len(n.tlsHosts) > 0 {
				host = n.tlsHosts[0]
			}
		}
		urls = append(urls, scheme+"://"+net.JoinHostPort(host, port))
	}
	nats := "--nats " + strings.Join(urls, ",") + ca
	fmt.Fprintf(out, "Wrote the configuration to %s.\n\nServers (accounts.conf belongs beside each):\n\n", n.out)
	for i := range n.plan.Servers {
		fmt.Fprintf(out, "  pulley broker --nats-config %s --store-dir DIR\n  nats-server -c %s\n", in(n.fileOf(i)), in(n.fileOf(i)))
	}
	fmt.Fprintf(out, "\nParts, each with its own key (%d new):\n\n", len(made))
	for _, name := range n.plan.Gateways {
		replicas := ""
		if len(n.plan.Servers) >= 3 {
			replicas = " --replicas 3"
		}
		fmt.Fprintf(out, "  pulley gateway %s --nkey %s%s\n", nats, in(name+".nk"), replicas)
	}
	for _, w := range n.plan.Workers {
		engines := strings.Repeat(" --engine URL", max(w.Engines, 1))
		fmt.Fprintf(out, "  pulley worker %s --nkey %s --id %s%s\n", nats, in(natsconf.WorkerUser(w.ID)+".nk"), w.ID, engines)
	}
	for _, name := range n.plan.Operators {
		fmt.Fprintf(out, "  pulley worker ls %s --nkey %s\n", nats, in(name+".nk"))
	}
	for _, name := range n.plan.Monitors {
		fmt.Fprintf(out, "  pulley top %s --nkey %s\n", nats, in(name+".nk"))
	}
	if host, _, _ := net.SplitHostPort(n.listen); scheme == "nats" && !loopback(host) {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning: without TLS, whoever sees the network reads every request: use --tls-self-signed, or --tls-cert and --tls-key")
	}
	if len(n.plan.Workers) == 0 {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning: no --worker: nobody may pull requests")
	}
}
