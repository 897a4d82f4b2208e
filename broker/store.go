package broker

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/nats-io/nuid"
)

// store is the broker's directory, locked while the broker runs. The server itself would let two processes write to the
// same streams.
type store struct {
	dir  string
	lock *os.File
}

var errLocked = errors.New("in use by another broker")

// openStore creates dir if necessary, and locks it.
func openStore(dir string) (*store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("store dir %s: %w", dir, cause(err))
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("store dir %s: not writable: %w", dir, cause(err))
	}
	if err := lockFile(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("store dir %s: %w", dir, err)
	}
	return &store{dir: dir, lock: f}, nil
}

// serverName is the name that belongs to the stored data. A cluster member that came back under another name would
// count as an additional one.
func (s *store) serverName() (string, error) {
	path := filepath.Join(s.dir, "server-name")
	b, err := os.ReadFile(path)
	if err == nil && len(b) > 0 {
		return strings.TrimSpace(string(b)), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("store dir %s: %w", s.dir, err)
	}
	name := "pulley-" + strings.ToLower(nuid.Next()[14:])
	if err := os.WriteFile(path, []byte(name+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("store dir %s: %w", s.dir, err)
	}
	return name, nil
}

// close unlocks the directory. The lock file stays: removing it would race with the next broker.
func (s *store) close() { s.lock.Close() }

// cause is err without the operation and the path, which the caller adds.
func cause(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}
