package broker

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

const (
	// defaultMaxPayload is that of a stock nats-server, so that what works here works with any broker. More would gain
	// nothing, since bodies of more than a quarter of it travel by reference, and would cost latency: one message holds
	// up all others on its connection.
	defaultMaxPayload = 1 << 20

	// maxPayloadLimit is where the server itself advises against larger values.
	maxPayloadLimit = 8 << 20

	// lameDuck bounds how long a member of a cluster takes to disconnect its clients; each reconnects elsewhere within
	// a few milliseconds.
	lameDuckGrace = time.Second
	lameDuck      = 3 * time.Second
)

const (
	// MinMemory and MinStore are the least of what streams need: with less, gateways could not create them, or could not
	// queue a few requests with their bodies.
	MinMemory = 16 << 20
	MinStore  = 16 << 20
)

// Config says how a broker is reached, where it stores data, and which clients it accepts.
type Config struct {
	// Listen is the host:port for clients; port 0 selects a free one. Default "": what ConfigFile says; without that no
	// socket, only this process can connect.
	Listen string

	// StoreDir holds the streams. Required; created with mode 0700. Only one broker may use it at a time.
	StoreDir string

	// ServerName is the name within a cluster. It must be unique there and stay the same across restarts. Default:
	// generated once and kept in StoreDir.
	ServerName string

	// ClusterName, ClusterListen and Routes make the broker a member of a cluster: the cluster's name, the host:port
	// for the other members, and the addresses (host:port or nats://host:port) of all of them; its own among them is
	// fine. All three or none. Default none: a single server.
	ClusterName   string
	ClusterListen string
	Routes        []string

	// MaxPayload bounds one message, in bytes; 1 to 8 MiB. Default 1 MiB.
	MaxPayload int

	// SyncInterval is how often streams on disk are synced. With an interval, a power cut of all members loses what was
	// acknowledged since the last sync; a crash of the process alone loses nothing. Default 0: before every
	// acknowledgement.
	SyncInterval time.Duration

	// MaxMemory and MaxStore bound what streams use, in bytes; at least MinMemory and MinStore. Default 0: three quarters of
	// the memory, and the free disk space.
	MaxMemory int64
	MaxStore  int64

	// TLSCert and TLSKey are PEM files; with them clients and routes must use TLS. TLSCA verifies the other members,
	// and clients if TLSVerify requires a certificate from them. Default none: plain TCP.
	TLSCert   string
	TLSKey    string
	TLSCA     string
	TLSVerify bool

	// Username and Password, or Token, are what clients must present; Username and Password also protect the routes.
	// Default none: anyone who can connect has all permissions.
	Username string
	Password string
	Token    string

	// ConfigFile is a nats-server configuration file for settings without a field here: accounts, permissions, leaf
	// nodes, monitoring. Listen and StoreDir take precedence over it, and so does every other field that is set.
	// Default none.
	ConfigFile string

	// Logger receives the server's log; the server's info level becomes Debug. Default nil: silent.
	Logger *slog.Logger
}

// options converts the configuration for the server, or returns the first invalid setting.
func (c *Config) options() (*server.Options, error) {
	if c.StoreDir == "" {
		return nil, errors.New("store dir: required")
	}
	if c.MaxPayload != 0 && (c.MaxPayload < defaultMaxPayload || c.MaxPayload > maxPayloadLimit) {
		return nil, fmt.Errorf("max payload %d: must be between 1 MiB and 8 MiB", c.MaxPayload)
	}
	if c.SyncInterval < 0 {
		return nil, fmt.Errorf("sync interval %s: must not be negative", c.SyncInterval)
	}
	if c.MaxMemory < 0 || c.MaxStore < 0 {
		return nil, errors.New("max memory, max store: must not be negative")
	}

	o := &server.Options{}
	if err := c.readConfigFile(o); err != nil {
		return nil, err
	}
	o.NoSigs = true
	o.DisableJetStreamBanner = true
	o.JetStream = true
	o.StoreDir = c.StoreDir
	o.ServerName = cmp.Or(c.ServerName, o.ServerName)
	o.MaxPayload = int32(cmp.Or(c.MaxPayload, int(o.MaxPayload), defaultMaxPayload))
	o.JetStreamMaxMemory = cmp.Or(c.MaxMemory, o.JetStreamMaxMemory)
	o.JetStreamMaxStore = cmp.Or(c.MaxStore, o.JetStreamMaxStore)
	if n := o.JetStreamMaxMemory; n > 0 && n < MinMemory {
		return nil, fmt.Errorf("max memory %d: must be at least 16 MiB, or Pulley cannot create its streams", n)
	}
	if n := o.JetStreamMaxStore; n > 0 && n < MinStore {
		return nil, fmt.Errorf("max store %d: must be at least 16 MiB, or Pulley cannot create its streams", n)
	}
	// There is a consumer for each pool, tier and lane, and the gateways bound their number. The server's own bound of
	// 1000 per stream would be reached first.
	o.JetStreamLimits.DefaultMaxConsumers = cmp.Or(o.JetStreamLimits.DefaultMaxConsumers, -1)
	o.LameDuckGracePeriod = lameDuckGrace
	o.LameDuckDuration = lameDuck
	if c.SyncInterval > 0 {
		o.SyncAlways, o.SyncInterval = false, c.SyncInterval
	} else if o.SyncInterval == 0 {
		o.SyncAlways = true
	}

	for _, set := range []func(*server.Options) error{c.setListen, c.setAuth, c.setTLS, c.setCluster} {
		if err := set(o); err != nil {
			return nil, err
		}
	}
	return o, nil
}

func (c *Config) readConfigFile(o *server.Options) error {
	if c.ConfigFile == "" {
		return nil
	}
	err := o.ProcessConfigFile(c.ConfigFile)
	if err == nil {
		return nil
	}
	// The server reports warnings in the same way.
	if w, ok := err.(interface{ Errors() []error }); ok && len(w.Errors()) == 0 {
		return nil
	}
	return fmt.Errorf("nats config %s: %s", c.ConfigFile, strings.TrimSpace(err.Error()))
}

func (c *Config) setListen(o *server.Options) error {
	switch {
	case c.Listen == "" && o.Port != 0: // set by the file
		return nil
	case c.Listen == "":
		o.DontListen = true
		return nil
	}
	var err error
	if o.Host, o.Port, err = splitListen(c.Listen); err != nil {
		return fmt.Errorf("listen %q: %w", c.Listen, err)
	}
	return nil
}

func (c *Config) setAuth(o *server.Options) error {
	if c.Username == "" && c.Password == "" && c.Token == "" {
		return nil
	}
	if (c.Username == "") != (c.Password == "") {
		return errors.New("username, password: need each other")
	}
	if c.Username != "" && c.Token != "" {
		return errors.New("username, token: only one of them")
	}
	if o.Username != "" || o.Authorization != "" || len(o.Users) > 0 || len(o.Nkeys) > 0 || len(o.TrustedOperators) > 0 {
		return fmt.Errorf("username, token: nats config %s has users already", c.ConfigFile)
	}
	o.Username, o.Password, o.Authorization = c.Username, c.Password, c.Token
	return nil
}

func (c *Config) setTLS(o *server.Options) error {
	if c.TLSCert == "" && c.TLSKey == "" {
		if c.TLSCA != "" || c.TLSVerify {
			return errors.New("tls ca, tls verify: need tls cert and tls key")
		}
		return nil
	}
	if c.TLSVerify && c.TLSCA == "" {
		return errors.New("tls verify: needs tls ca")
	}
	files := server.TLSConfigOpts{CertFile: c.TLSCert, KeyFile: c.TLSKey, CaFile: c.TLSCA, Verify: c.TLSVerify}
	clients, err := server.GenTLSConfig(&files)
	if err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	o.TLSConfig, o.TLS, o.TLSVerify = clients, true, c.TLSVerify
	if c.ClusterListen == "" {
		return nil
	}
	files.Verify = true
	if o.Cluster.TLSConfig, err = server.GenTLSConfig(&files); err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	o.Cluster.TLSConfig.RootCAs = o.Cluster.TLSConfig.ClientCAs
	return nil
}

func (c *Config) setCluster(o *server.Options) error {
	if c.ClusterName == "" && c.ClusterListen == "" && len(c.Routes) == 0 {
		return nil
	}
	switch {
	case c.ClusterName == "":
		return errors.New("cluster name: required with cluster listen and routes")
	case c.ClusterListen == "":
		return fmt.Errorf("cluster listen: required in cluster %q", c.ClusterName)
	case len(c.Routes) == 0:
		return fmt.Errorf("routes: required in cluster %q", c.ClusterName)
	case c.Listen == "":
		return fmt.Errorf("listen: required in cluster %q", c.ClusterName)
	}
	host, port, err := splitListen(c.ClusterListen)
	if err != nil {
		return fmt.Errorf("cluster listen %q: %w", c.ClusterListen, err)
	}
	o.Cluster.Name, o.Cluster.Host, o.Cluster.Port = c.ClusterName, host, port
	o.Cluster.Username, o.Cluster.Password = c.Username, c.Password
	o.Routes = nil
	for _, r := range c.Routes {
		u, err := c.route(r)
		if err != nil {
			return fmt.Errorf("route %q: %w", r, err)
		}
		o.Routes = append(o.Routes, u)
	}
	return nil
}

// route parses one of Routes, and adds the credentials if it has none.
func (c *Config) route(s string) (*url.URL, error) {
	if !strings.Contains(s, "://") {
		s = "nats://" + s
	}
	u, err := url.Parse(s)
	if err != nil {
		return nil, err
	}
	if u.Hostname() == "" || u.Port() == "" {
		return nil, errors.New("must be host:port or nats://host:port")
	}
	if u.User == nil && c.Username != "" {
		u.User = url.UserPassword(c.Username, c.Password)
	}
	return u, nil
}

// splitListen parses a host:port into the server's terms: an empty host means all addresses, port 0 is -1.
func splitListen(s string) (host string, port int, err error) {
	host, p, err := net.SplitHostPort(s)
	if err != nil {
		return "", 0, errors.New("must be host:port")
	}
	port, err = strconv.Atoi(p)
	if err != nil || port < 0 || port > 65535 {
		return "", 0, fmt.Errorf("port %q: must be a number from 0 to 65535", p)
	}
	if port == 0 {
		port = server.RANDOM_PORT
	}
	return cmp.Or(host, "0.0.0.0"), port, nil
}
