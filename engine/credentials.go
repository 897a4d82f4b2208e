package engine

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// A Secret is a text that is not shown: formatted, logged or encoded it is "(secret)", or empty.
type Secret string

func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "(secret)"
}

// GoString is like String.
func (s Secret) GoString() string { return fmt.Sprintf("%q", s.String()) }

// MarshalText is like String.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue is like String.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// Credentials are what an engine, or a proxy in front of it, wants of its callers: an API key, which is sent as a bearer
// token, or a user and a password, for basic authentication. The zero value is none.
type Credentials struct {
	Key Secret
	// KeyFile has the key. It is read again at least once a second while the engine is called, and when the engine
	// refuses the key. Default "".
	KeyFile  string
	User     string
	Password Secret
	// PasswordFile has the password. It is read again like KeyFile. Default "".
	PasswordFile string
}

// Given reports whether there are any.
func (c Credentials) Given() bool { return c != Credentials{} }

// InFile reports whether they may change while the engine is called.
func (c Credentials) InFile() bool { return c.KeyFile+c.PasswordFile != "" }

// With returns the credentials with those of the engine's URL. The URL may have the user of a password that is elsewhere.
func (c Credentials) With(a Address) (Credentials, error) {
	switch {
	case a.User == "":
	case !c.Given(), c.User == "" && c.Key == "" && c.KeyFile == "" && a.Password == "":
		c.User, c.Password = a.User, c.Password+a.Password
	default:
		return c, errors.New("a user in the URL and other credentials exclude each other")
	}
	return c, c.check()
}

// Refused says for people what to look at if the engine refuses the credentials.
func (c Credentials) Refused() string {
	switch {
	case c.KeyFile != "":
		return "the engine refuses the API key in " + c.KeyFile
	case c.Key != "":
		return "the engine refuses the API key"
	case c.PasswordFile != "":
		return fmt.Sprintf("the engine refuses the user %s with the password in %s", c.User, c.PasswordFile)
	case c.User != "":
		return "the engine refuses the user " + c.User + " or the password"
	}
	return "the engine wants credentials, and none are configured"
}

// check reports credentials that contradict each other.
func (c Credentials) check() error {
	switch {
	case c.Key != "" && c.KeyFile != "":
		return errors.New("one API key, not two")
	case (c.Key != "" || c.KeyFile != "") && (c.User != "" || c.Password != "" || c.PasswordFile != ""):
		return errors.New("an API key and a user exclude each other: both are sent in the header Authorization")
	case c.Password != "" && c.PasswordFile != "":
		return errors.New("one password, not two")
	case c.User == "" && (c.Password != "" || c.PasswordFile != ""):
		return errors.New("a password needs a user")
	case strings.Contains(c.User, ":"):
		return errors.New("a user must not contain a colon")
	}
	return nil
}

// header returns the value of the header Authorization with a key or a password.
func (c Credentials) header(secret string) string {
	if c.User != "" {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.User+":"+secret))
	}
	return "Bearer " + secret
}

const (
	// rereadEvery is how often the file with a key or a password is read again at most, while the engine accepts it.
	rereadEvery = time.Second

	// againAfter is how long the key before is used after the engine refused the new one. A file is often replaced
	// before the engine knows the new key.
	againAfter = 2 * time.Second

	maxSecret = 64 << 10 // bytes of a file with a secret
)

// keys are the credentials that an engine is sent now. A file with a key may be replaced before or after the engine begins
// to want the new one. So the key before is kept until the engine has accepted the new one in a call that it does not
// answer for everybody.
type keys struct {
	cfg  Credentials // fixed
	file string      // fixed; empty: they never change

	mu       sync.Mutex
	read     time.Time // when the file was last read, or begun to be
	secret   string    // what the file has
	current  string    // header of it
	before   string    // what the file had
	previous string    // header of it; empty: current has been accepted
	accepted bool      // the engine has accepted current
	refused  time.Time // when the engine refused current and accepted previous; zero: it did not
	failing  string    // why the file could not be read the last time; empty: it could
}

// newKeys reads the credentials; nil if there are none.
func newKeys(cfg Credentials) (*keys, error) {
	if err := cfg.check(); err != nil || !cfg.Given() {
		return nil, err
	}
	k := &keys{cfg: cfg, file: cfg.KeyFile + cfg.PasswordFile, read: time.Now()}
	secret := string(cfg.Key + cfg.Password)
	if k.file != "" {
		var err error
		if secret, err = readSecret(k.file); err != nil {
			return nil, err
		}
	}
	if strings.ContainsFunc(secret, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return nil, errors.New("the key or password has control characters")
	}
	k.secret, k.current = secret, cfg.header(secret)
	return k, nil
}

// readSecret reads a file that holds a secret, without white space around it. Errors do not show what the file has.
func readSecret(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return "", err
	}
	secret := strings.TrimSpace(string(b))
	switch {
	case secret == "":
		return "", fmt.Errorf("%s is empty", path)
	case len(b) > maxSecret:
		return "", fmt.Errorf("%s is longer than %d KiB", path, maxSecret>>10)
	case strings.ContainsFunc(secret, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return "", fmt.Errorf("%s must have one line, without control characters", path)
	}
	return secret, nil
}

// reread is what reading the file again has shown.
type reread struct {
	changed bool
	failed  string // why it could not be read, if that is new
}

// refresh reads the file again if it is time to, or if the caller must know. The last key stays while it cannot be read.
func (k *keys) refresh(must bool, now time.Time) (news reread) {
	k.mu.Lock()
	due := k.file != "" && (must || now.Sub(k.read) >= rereadEvery)
	if due {
		k.read = now
	}
	k.mu.Unlock()
	if !due {
		return news
	}
	secret, err := readSecret(k.file)
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil {
		if k.failing != err.Error() {
			k.failing = err.Error()
			news.failed = k.failing
		}
		return news
	}
	k.failing = ""
	h := k.cfg.header(secret)
	if h == k.current {
		return news
	}
	if k.accepted || k.previous == "" {
		k.before, k.previous = k.secret, k.current
	}
	k.secret, k.current, k.accepted, k.refused = secret, h, false, time.Time{}
	return reread{changed: true}
}

// secrets returns what may have been sent.
func (k *keys) secrets() (list []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, s := range []string{k.secret, k.before, strings.TrimPrefix(k.current, "Basic "), strings.TrimPrefix(k.previous, "Basic ")} {
		if s != "" {
			list = append(list, s)
		}
	}
	return list
}

// header returns the header to send now.
func (k *keys) header(now time.Time) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.refused.IsZero() && now.Sub(k.refused) < againAfter {
		return k.previous
	}
	return k.current
}

// other returns another header to try after the engine refused the ones in tried; empty if there is none.
func (k *keys) other(tried ...string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, h := range []string{k.current, k.previous} {
		for _, t := range tried {
			if h == t {
				h = ""
			}
		}
		if h != "" {
			return h
		}
	}
	return ""
}

// onAccepted notes that the engine accepted a header. certain says that it would have refused another one: some of its
// pages are for everybody. current was refused in the same call if wasRefused is set.
func (k *keys) onAccepted(header string, certain, wasRefused bool, now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case header == k.current && certain:
		k.accepted, k.previous, k.refused = true, "", time.Time{}
	case header == k.previous && wasRefused:
		k.refused = now
	}
}

// authorized returns a copy of a request with a header Authorization. Its body can be read again if r.GetBody is set.
func authorized(r *http.Request, header string) *http.Request {
	c := new(http.Request)
	*c = *r
	if c.Header = r.Header.Clone(); c.Header == nil {
		c.Header = make(http.Header)
	}
	c.Header.Set("Authorization", header)
	return c
}
