package worker

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/subjects"
)

// ErrReplaced is returned by Run when another process has started with the id of this worker, and this one has drained.
var ErrReplaced = errors.New("another process has started with the same id")

// maxID bounds the length of a configured id, in bytes.
const maxID = 64

// identity is the worker's id, whose first token stays when the worker is started again, and finds out about other
// processes that have the same one. Each has subjects of its own, by the second token, so that none gets what is for
// another.
type identity struct {
	// Fixed.
	id    string // with both tokens
	given bool   // the first token is configured
	host  string
	nc    *nats.Conn
	log   *slog.Logger
	order *order

	started time.Time // when Run began
}

func newIdentity(cfg *Config, nc *nats.Conn, log *slog.Logger, o *order) *identity {
	host, _ := os.Hostname()
	stable := cfg.ID
	if stable == "" {
		sum := sha256.Sum256([]byte(host + "\x00" + cfg.Engine + "\x00" + cfg.Name))
		stable = subjects.Token(cfg.Name) + "-" + hex.EncodeToString(sum[:3])
	}
	var start [4]byte
	rand.Read(start[:])
	return &identity{id: stable + "." + hex.EncodeToString(start[:]), given: cfg.ID != "", host: host, nc: nc, log: log, order: o}
}

// CheckID says what is wrong with an id that a worker is to have.
func CheckID(id string) error {
	if id == "" || len(id) > maxID || strings.Trim(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
		return fmt.Errorf("id %.80q: must have 1 to %d letters, digits, hyphens and underscores", id, maxID)
	}
	return nil
}

// learnedKey is the key under which the broker keeps what is measured of the engine.
func (i *identity) learnedKey(name string) string {
	if i.given {
		return subjects.LearnedKey("", subjects.StableID(i.id))
	}
	return subjects.LearnedKey(i.host, name)
}

// announce tells other processes with the same id that this one has started, or is connected again.
func (i *identity) announce() {
	i.nc.PublishRequest(subjects.WorkerStarted(subjects.StableID(i.id)), subjects.WorkerRival(i.id), subjects.MustMarshal(i.said()))
}

func (i *identity) said() subjects.Started {
	return subjects.Started{Worker: i.id, Host: i.host, Process: os.Getpid(), At: i.started, Given: i.given}
}

// onStarted handles what another process with the same id announces. If that id is configured, the process that has started
// later serves, and the others drain: to run two would be a mistake, since they have the same credentials. If it is not,
// both serve.
func (i *identity) onStarted(m *nats.Msg) {
	var other subjects.Started
	if subjects.Unmarshal(m.Data, &other) != nil || other.Worker == i.id || subjects.StableID(other.Worker) != subjects.StableID(i.id) {
		return
	}
	i.nc.Publish(subjects.WorkerRival(other.Worker), subjects.MustMarshal(i.said()))
	switch {
	case !i.given || !other.Given:
		i.warn(&other)
	case cmp.Or(i.started.Compare(other.At), strings.Compare(i.id, other.Worker)) < 0:
		i.log.Error("another process has started with the id of this worker, which drains and leaves: give each worker its own id",
			"id", subjects.StableID(i.id), "host", other.Host, "pid", other.Process, "started", other.At)
		i.order.give(ErrReplaced)
	}
}

// onRival handles the answer of another process with the same id. One that has started before, and has not heard of this one,
// hears now.
func (i *identity) onRival(m *nats.Msg) {
	var other subjects.Started
	if subjects.Unmarshal(m.Data, &other) != nil || other.Worker == i.id || subjects.StableID(other.Worker) != subjects.StableID(i.id) {
		return
	}
	switch {
	case !i.given || !other.Given:
		i.warn(&other)
	case cmp.Or(i.started.Compare(other.At), strings.Compare(i.id, other.Worker)) < 0:
		i.onStarted(m)
	default:
		i.log.Warn("another process has the id of this worker; it drains and leaves", "id", subjects.StableID(i.id), "host", other.Host, "pid", other.Process, "started", other.At)
	}
}

func (i *identity) warn(other *subjects.Started) {
	i.log.Warn("another process has the id of this worker, for the same engine on a host of the same name; both serve. Give each worker its own id or name",
		"id", subjects.StableID(i.id), "host", other.Host, "pid", other.Process, "started", other.At)
}

// order is an order to leave.
type order struct {
	given chan struct{} // closed when there is one
	once  sync.Once     // closes it
	why   error         // ErrDrained or ErrReplaced; set before given is closed
}

func newOrder() *order { return &order{given: make(chan struct{})} }

// give gives the order. The first one counts.
func (o *order) give(why error) {
	o.once.Do(func() {
		o.why = why
		close(o.given)
	})
}
