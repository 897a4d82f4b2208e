package cli

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/pflag"
	"github.com/synadia-io/orbit.go/natscontext"

	"github.com/pulley-lb/pulley/plain"
)

// ConnectFlags are the flags that say how a command connects to NATS.
type ConnectFlags struct {
	nats         string
	server       string
	context      string
	creds        string
	nkey         string
	user         string
	passwordFile string
	tokenFile    string
	tlsCA        string
	tlsCert      string
	tlsKey       string
}

// AddConnectFlags declares the flags of a command that connects to NATS.
func AddConnectFlags(fs *pflag.FlagSet) *ConnectFlags {
	c := &ConnectFlags{}
	fs.StringVar(&c.nats, "nats", "", "NATS server `URL`s, separated by commas (default $NATS_URL, else "+nats.DefaultURL+")")
	fs.StringVar(&c.server, "server", "", "alias of --nats")
	fs.Lookup("server").Hidden = true
	fs.StringVar(&c.context, "context", "", "`name` of a NATS context with servers and credentials (default $NATS_CONTEXT)")
	fs.StringVar(&c.creds, "creds", "", "NATS credentials `file`")
	fs.StringVar(&c.nkey, "nkey", "", "`file` with an nkey seed for NATS")
	AddPasswordFlags(fs, &c.user, &c.passwordFile, &c.tokenFile)
	fs.StringVar(&c.tlsCA, "tls-ca", "", "PEM `file` with the certificate authorities for the NATS servers")
	fs.StringVar(&c.tlsCert, "tls-cert", "", "PEM `file` with the client certificate for NATS")
	fs.StringVar(&c.tlsKey, "tls-key", "", "PEM `file` with the key of --tls-cert")
	return c
}

// AddPasswordFlags declares the credentials that a broker and its clients share, so that one configuration file serves
// both.
func AddPasswordFlags(fs *pflag.FlagSet, user, passwordFile, tokenFile *string) {
	fs.StringVar(user, "nats-user", "", "NATS user `name`; needs --nats-password-file")
	fs.StringVar(passwordFile, "nats-password-file", "", "`file` with the password of --nats-user")
	fs.StringVar(tokenFile, "nats-token-file", "", "`file` with a NATS token, in place of a user")
}

// ReadPassword reads what the flags of addPasswordFlags name.
func ReadPassword(user, passwordFile, tokenFile string) (password, token string, err error) {
	if (user == "") != (passwordFile == "") {
		return "", "", Usagef("--nats-user and --nats-password-file must be used together")
	}
	if user != "" && tokenFile != "" {
		return "", "", Usagef("--nats-user and --nats-token-file exclude each other")
	}
	if passwordFile != "" {
		if password, err = readSecret(passwordFile); err != nil {
			return "", "", Usagef("--nats-password-file: %w", err)
		}
	}
	if tokenFile != "" {
		if token, err = readSecret(tokenFile); err != nil {
			return "", "", Usagef("--nats-token-file: %w", err)
		}
	}
	return password, token, nil
}

// readSecret reads a file that holds a secret, without the newline that editors add.
func readSecret(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	secret := strings.TrimRight(string(b), "\r\n")
	if secret == "" {
		return "", fmt.Errorf("%s is empty", path)
	}
	return secret, nil
}

// Secret returns a function that reads a file with a secret. While that fails later on it returns the last secret, and logs
// that what the secret is was not read.
func Secret(path, what string, log *slog.Logger) (func() string, error) {
	secret, err := readSecret(path)
	if err != nil {
		return nil, err
	}
	return reread(path, secret, what, log), nil
}

// reread returns a function that reads a file with a secret again. While that fails it returns the last secret.
func reread(path, last, what string, log *slog.Logger) func() string {
	var mu sync.Mutex
	failing := ""
	return func() string {
		secret, err := readSecret(path)
		mu.Lock()
		news := err != nil && err.Error() != failing
		if failing = ""; err != nil {
			failing, secret = err.Error(), last
		}
		last = secret
		mu.Unlock()
		if news {
			log.Warn(what+" not read; the last ones are used", "err", err)
		}
		return secret
	}
}

// Check says what is wrong with the flags, and with the files that they name. It dials nothing.
func (c *ConnectFlags) Check(ctx context.Context) error {
	urls, _ := c.target()
	_, err := c.credentials(Logger(ctx))
	return errors.Join(err, checkURLs(urls))
}

// Connect opens a connection for an operator's verb. It fails within seconds if no server answers; once connected it
// reconnects forever. Events of the connection go to the logger in ctx. name is the client name that the servers show.
func (c *ConnectFlags) Connect(ctx context.Context, name string, opts ...nats.Option) (*nats.Conn, error) {
	nc, err := c.dial(ctx, name, opts)
	if errors.Is(err, nats.ErrNoServers) {
		return nil, fmt.Errorf("%w; is 'pulley up' or 'pulley broker' running?", err)
	}
	return nc, err
}

// ConnectPatiently opens a connection for a part that keeps running: while no server answers it tries again, until ctx
// ends. Invalid settings and refused credentials are errors at once.
func (c *ConnectFlags) ConnectPatiently(ctx context.Context, name string, opts ...nats.Option) (*nats.Conn, error) {
	const every, warnEvery = 250 * time.Millisecond, 30 * time.Second
	var warned time.Time
	for {
		nc, err := c.dial(ctx, name, opts)
		if _, ok := errors.AsType[unreachableError](err); !ok {
			return nc, err
		}
		if time.Since(warned) >= warnEvery {
			warned = time.Now()
			Logger(ctx).Warn("waiting for NATS", "err", err)
		}
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// unreachableError says that no server accepted the connection.
type unreachableError struct {
	servers string
	err     error
}

func (e unreachableError) Error() string {
	reason := plain.Error(e.err)
	if errors.Is(e.err, nats.ErrNoServers) { // the client's error for it
		reason = "connection refused"
	}
	return fmt.Sprintf("cannot reach NATS at %s: %s", e.servers, reason)
}

func (e unreachableError) Unwrap() error { return e.err }

// dial tries to connect once.
func (c *ConnectFlags) dial(ctx context.Context, name string, opts []nats.Option) (*nats.Conn, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	credentials, err := c.credentials(Logger(ctx))
	if err != nil {
		return nil, err
	}
	urls, natsContext := c.target()
	if err := checkURLs(urls); err != nil {
		return nil, err
	}

	// The last option sees the settings that the others have made. If it does not run, one of the others has failed,
	// and nothing was dialled.
	dialled := ""
	last := func(o *nats.Options) error {
		if urls != "" {
			o.Servers = strings.Split(urls, ",")
		}
		dialled = redact(o.Servers)
		return nil
	}
	all := slices.Concat(credentials, ConnOptions(Logger(ctx), name), opts, []nats.Option{last})
	var nc *nats.Conn
	if natsContext == "" {
		nc, err = nats.Connect(urls, all...)
	} else if nc, _, err = natscontext.Connect(natsContext, all...); err != nil && dialled == "" {
		return nil, Usagef("--context %s: %w", natsContext, err)
	}
	switch {
	case err == nil:
		return nc, nil
	case dialled == "":
		return nil, Usagef("NATS settings: %w", err)
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked):
		return nil, Refusedf("NATS at %s refuses the credentials: %w", dialled, err)
	}
	return nil, unreachableError{dialled, err}
}

// target returns the servers to dial and the NATS context for the other settings; one of them may be empty. Servers
// that are given replace those of the context. The context that 'nats context select' has chosen is not used unless it
// is named: a gateway creates streams where it connects, and must not do so in an account that happens to be selected.
func (c *ConnectFlags) target() (urls, natsContext string) {
	urls, natsContext = cmp.Or(c.server, c.nats), c.context
	if urls == "" && natsContext == "" {
		urls, natsContext = os.Getenv("NATS_URL"), os.Getenv("NATS_CONTEXT")
	}
	if urls == "" && natsContext == "" {
		urls = nats.DefaultURL
	}
	return urls, natsContext
}

// credentials returns the options for credentials and TLS. It reads the files, so that a wrong name is an error before
// anything is dialled. They are read again for each connection, except for an nkey, which is the user's identity.
func (c *ConnectFlags) credentials(log *slog.Logger) ([]nats.Option, error) {
	password, token, err := ReadPassword(c.user, c.passwordFile, c.tokenFile)
	if err != nil {
		return nil, err
	}
	given := 0
	for _, v := range []string{c.creds, c.nkey, c.user, c.tokenFile} {
		if v != "" {
			given++
		}
	}
	if given > 1 {
		return nil, Usagef("--creds, --nkey, --nats-user and --nats-token-file exclude each other")
	}

	var opts []nats.Option
	switch {
	case c.creds != "":
		if _, err := os.Stat(c.creds); err != nil {
			return nil, Usagef("--creds: %w", err)
		}
		opts = append(opts, nats.UserCredentials(c.creds))
	case c.nkey != "":
		opt, err := nats.NkeyOptionFromSeed(c.nkey)
		if err != nil {
			return nil, Usagef("--nkey %s: %w", c.nkey, err)
		}
		opts = append(opts, opt)
	case c.user != "":
		read := reread(c.passwordFile, password, "credentials for NATS", log)
		opts = append(opts, func(o *nats.Options) error {
			o.User, o.Password, o.UserInfo = "", "", func() (string, string) { return c.user, read() }
			return nil
		})
	case token != "":
		read := reread(c.tokenFile, token, "credentials for NATS", log)
		opts = append(opts, func(o *nats.Options) error {
			o.Token, o.TokenHandler = "", read
			return nil
		})
	}
	if (c.tlsCert == "") != (c.tlsKey == "") {
		return nil, Usagef("--tls-cert and --tls-key must be used together")
	}
	secure, err := c.tls(log)
	if err != nil {
		return nil, Usagef("NATS settings: %w", err)
	}
	return append(opts, secure...), nil
}

// tls returns the options for TLS. The files are read again for each connection; while that fails the last ones are used.
func (c *ConnectFlags) tls(log *slog.Logger) (opts []nats.Option, err error) {
	if c.tlsCert != "" {
		cert, err := readFiles("client certificate for NATS", log, func() (tls.Certificate, error) { return tls.LoadX509KeyPair(c.tlsCert, c.tlsKey) }, c.tlsCert, c.tlsKey)
		if err != nil {
			return nil, fmt.Errorf("--tls-cert: %w", err)
		}
		opts = append(opts, func(o *nats.Options) error {
			o.Secure, o.TLSCertCB = true, func() (tls.Certificate, error) { return cert.get(), nil }
			return nil
		})
	}
	if c.tlsCA != "" {
		ca, err := readFiles("authorities for NATS", log, func() (*x509.CertPool, error) { return readAuthorities(c.tlsCA) }, c.tlsCA)
		if err != nil {
			return nil, fmt.Errorf("--tls-ca: %w", err)
		}
		opts = append(opts, func(o *nats.Options) error {
			o.Secure, o.RootCAsCB = true, func() (*x509.CertPool, error) { return ca.get(), nil }
			return nil
		})
	}
	if opts != nil {
		opts = append(opts, func(o *nats.Options) error {
			if o.TLSConfig == nil {
				o.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12}
			}
			return nil
		})
	}
	return opts, nil
}

// ConnOptions returns the options of every connection. It reconnects forever, within a fraction of a second if a server
// is there.
func ConnOptions(log *slog.Logger, name string) []nats.Option {
	problems := &repeats{log: log}
	return []nats.Option{
		nats.Name(name),
		nats.MaxReconnects(-1),
		nats.IgnoreAuthErrorAbort(), // files with credentials may be renewed
		nats.ReconnectWait(250 * time.Millisecond),
		nats.ReconnectJitter(100*time.Millisecond, 250*time.Millisecond),
		nats.PingInterval(10 * time.Second),
		nats.FlusherTimeout(2 * time.Second), // while a write waits for a frozen server, the client cannot go to another
		nats.ReconnectBufSize(-1),            // what was refused meanwhile must not be sent later
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				problems.warn("disconnected from NATS", "err", err)
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			log.Info("reconnected to NATS", "url", nc.ConnectedUrlRedacted())
		}),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			if sub == nil {
				problems.warn("NATS reports an error", "err", err)
				return
			}
			dropped, _ := sub.Dropped()
			log.Warn("NATS reports an error", "err", err, "subject", sub.Subject, "dropped", dropped)
		}),
	}
}

// repeatAfter is how long the same warning about a connection is not logged again.
const repeatAfter = 30 * time.Second

// repeats logs warnings that may come several times a second, such as that the credentials are refused, once in a while.
type repeats struct {
	log *slog.Logger

	mu   sync.Mutex
	last map[string]repeat // by text
}

// repeat is when a warning was logged, and how often it came since.
type repeat struct {
	at time.Time
	n  int
}

func (r *repeats) warn(text, key string, err error) {
	now, what := time.Now(), fmt.Sprint(text, err)
	r.mu.Lock()
	if r.last == nil || len(r.last) > 100 { // texts with ports or the like
		r.last = make(map[string]repeat)
	}
	was := r.last[what]
	due := now.Sub(was.at) >= repeatAfter
	if due {
		r.last[what] = repeat{at: now}
	} else {
		r.last[what] = repeat{was.at, was.n + 1}
	}
	r.mu.Unlock()
	switch {
	case due && was.n > 0:
		r.log.Warn(text, key, err, "repeated", was.n)
	case due:
		r.log.Warn(text, key, err)
	}
}

func checkURLs(urls string) error {
	if urls == "" {
		return nil
	}
	for s := range strings.SplitSeq(urls, ",") {
		if u, err := parseURL(s); err != nil || u.Hostname() == "" {
			return Usagef("--nats %q: must be a URL such as %s", s, nats.DefaultURL)
		}
	}
	return nil
}

// parseURL parses a server's URL as the NATS client does: the scheme is optional.
func parseURL(s string) (*url.URL, error) {
	s = strings.TrimSpace(s)
	if !strings.Contains(s, "://") {
		s = "nats://" + s
	}
	return url.Parse(s)
}

// redact joins the URLs of servers, without their passwords.
func redact(servers []string) string {
	var list []string
	for _, s := range servers {
		if u, err := parseURL(s); err == nil {
			list = append(list, u.Redacted())
		}
	}
	return strings.Join(list, ",")
}
