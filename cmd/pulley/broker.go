package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
)

func newBrokerCommand() *cobra.Command {
	var cfg broker.Config
	var maxPayload int64
	var sync, passwordFile, tokenFile string
	var admin *adminFlags
	cmd := &cobra.Command{
		Use:   "broker",
		Short: "Run a NATS server with JetStream, alone or in a cluster",
		Long: `Run a NATS server with JetStream, alone or as a member of a cluster. Gateways and
workers work with any NATS server of version 2.12 or later; this one is built in so
that no other binary is needed.

A cluster of three members survives the loss of one. Give each member the same
--cluster-name, and the --cluster-listen addresses of all three as --routes.

'pulley nats-config' writes a configuration with accounts and keys for --nats-config.
SIGHUP reads it again, and the files with certificates: users that were added can
connect, those that were removed cannot.`,
		Example: `  pulley broker --listen 127.0.0.1:4222 --store-dir /var/lib/pulley
  pulley broker --listen broker-1:4222 --store-dir /var/lib/pulley \
    --cluster-name gpu --cluster-listen broker-1:6222 \
    --routes broker-1:6222,broker-2:6222,broker-3:6222
  pulley broker --nats-config nats/nats.conf --store-dir /var/lib/pulley`,
		PreRunE: func(cmd *cobra.Command, _ []string) (err error) {
			if cfg.SyncInterval, err = parseSync(sync); err != nil {
				return err
			}
			if cfg.Password, cfg.Token, err = cli.ReadPassword(cfg.Username, passwordFile, tokenFile); err != nil {
				return err
			}
			cfg.MaxPayload = int(maxPayload)
			if cfg.ConfigFile != "" && !cmd.Flag("listen").Changed {
				cfg.Listen = "" // that of the file
			}
			cfg.Logger = cli.Logger(cmd.Context())
			_, err = broker.New(cfg)
			return err
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return runBroker(cmd, cfg, admin) },
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&cfg.Listen, "listen", "127.0.0.1:4222", "`host:port` for clients; port 0 chooses a free one (with --nats-config that of the file)")
	fs.StringVar(&cfg.StoreDir, "store-dir", cli.DefaultStoreDir(), "`directory` for the streams")
	fs.StringVar(&sync, "sync", "always", "`when` streams are synced to disk: always (before each acknowledgement), or an interval such as 2m")
	cli.SizeVar(fs, &maxPayload, "max-payload", 0, "maximum size of a message, 1MiB to 8MiB (default 1MiB)")
	cli.SizeVar(fs, &cfg.MaxMemory, "max-memory", 0, "maximum size of all streams in memory, 16MiB or more (default three quarters of the memory)")
	cli.SizeVar(fs, &cfg.MaxStore, "max-store", 0, "maximum size of all streams on disk, 16MiB or more (default the free space)")
	fs.StringVar(&cfg.ServerName, "server-name", "", "`name` of this server in the cluster (default generated once, and kept in --store-dir)")
	fs.StringVar(&cfg.ClusterName, "cluster-name", "", "`name` of the cluster to join")
	fs.StringVar(&cfg.ClusterListen, "cluster-listen", "", "`host:port` for the other members of the cluster")
	fs.StringSliceVar(&cfg.Routes, "routes", nil, "`addresses` of all members of the cluster")
	cli.AddPasswordFlags(fs, &cfg.Username, &passwordFile, &tokenFile)
	fs.StringVar(&cfg.TLSCert, "tls-cert", "", "PEM `file` with the certificate of the server; makes TLS mandatory")
	fs.StringVar(&cfg.TLSKey, "tls-key", "", "PEM `file` with the key of --tls-cert")
	fs.StringVar(&cfg.TLSCA, "tls-ca", "", "PEM `file` with the certificate authorities for members, and for clients with --tls-verify")
	fs.BoolVar(&cfg.TLSVerify, "tls-verify", false, "require a certificate from clients")
	fs.StringVar(&cfg.ConfigFile, "nats-config", "", "nats-server configuration `file`, for accounts, permissions and the like")
	admin = addAdminFlags(fs, "127.0.0.1:8084")
	return cmd
}

// runBroker runs a broker until the command is interrupted. It prints one line when clients can connect.
func runBroker(cmd *cobra.Command, cfg broker.Config, admin *adminFlags) error {
	b, err := broker.New(cfg)
	if err != nil {
		return cli.Usagef("%w", err)
	}
	port, err := admin.open(cfg.Logger)
	if err != nil {
		return err
	}
	return port.during(cmd.Context(), []prometheus.Collector{b.Collector()}, b.NotReady, func() error {
		return serveBroker(cmd, cfg, b, port)
	})
}

func serveBroker(cmd *cobra.Command, cfg broker.Config, b *broker.Broker, port *adminServer) error {
	ctx, cancel := context.WithCancel(cmd.Context())
	var awake sync.WaitGroup
	defer awake.Wait()
	defer cancel()
	awake.Go(func() { stayAwake(ctx) })
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	var err error
	select {
	case err := <-ended:
		return err
	case <-b.Ready():
	}
	fmt.Fprintln(cmd.OutOrStdout(), startLine(b, cfg))
	if port != nil {
		cfg.Logger.Info("admin port open", "url", port.url())
	}
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	for running := true; running; {
		select {
		case err = <-ended:
			running = false
		case <-hangup:
			if err := b.Reload(); err != nil {
				cfg.Logger.Error("configuration not read again; the last one stays in force", "err", err)
			} else {
				cfg.Logger.Info("configuration read again")
			}
		}
	}
	cfg.Logger.Info("broker stopped")
	return err
}

func startLine(b *broker.Broker, cfg broker.Config) string {
	var line strings.Builder
	fmt.Fprintf(&line, "pulley broker ready: %s, store %s", b.ClientURL(), cfg.StoreDir)
	if cfg.SyncInterval > 0 {
		fmt.Fprintf(&line, ", sync every %s", cfg.SyncInterval)
	}
	if cfg.ClusterName != "" {
		fmt.Fprintf(&line, ", cluster %s at %s", cfg.ClusterName, b.ClusterAddr())
	}
	return line.String()
}

// parseSync parses --sync; always is 0.
func parseSync(s string) (time.Duration, error) {
	if s == "always" {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, cli.Usagef("--sync %q: must be always, or an interval such as 2m", s)
	}
	return d, nil
}
