// Package page is the live page on a gateway's admin port: what the fleet is doing, and the operator's actions.
//
// One goroutine (Page.Run) asks the gateway for its view once a second while somebody looks, makes sections of JSON of it,
// and publishes those that have changed. Each viewer's handler (Page.live) sends the sections that are newer than what its
// viewer has. So a section is made once for all viewers, and one that does not read holds nothing but its own handler, which
// sends it the latest state once it reads again, or gives up.
package page

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	every     = time.Second     // between two views
	hourEvery = 5 * time.Second // between two readings of the last hour
	deadEvery = 5 * time.Second // between two readings of the dead letters

	// askShare bounds the time in which other gateways list their requests to a fifth.
	askShare = 5

	readTimeout = 3 * time.Second
)

// Source is what a page shows.
type Source struct {
	View func() gateway.View
	Hour func() []gateway.Period
}

// Page is the page of one gateway. Make it with New, and Run it beside the gateway.
type Page struct {
	nc      *nats.Conn
	js      jetstream.JetStream
	log     *slog.Logger
	version string
	acts    bool // there is a token for actions

	wake  [2]chan struct{}                    // somebody looks: for Run and for readLoop; capacity 1
	peers atomic.Bool                         // there are other gateways
	view  atomic.Pointer[func() gateway.View] // nil until Run
	far   atomic.Pointer[far]                 // never nil

	mu       sync.Mutex
	viewers  int
	sections []section
	stamp    uint64        // counts changes of sections
	changed  chan struct{} // closed at the next change
}

// section is a part of the state, as JSON.
type section struct {
	name  string
	stamp uint64 // of its last change
	data  []byte
}

// New makes a page. version is shown; acts says that the admin port has a token, so that the page offers actions.
func New(nc *nats.Conn, version string, acts bool, log *slog.Logger) (*Page, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	p := &Page{nc: nc, js: js, log: log, version: version, acts: acts, wake: [2]chan struct{}{make(chan struct{}, 1), make(chan struct{}, 1)}, changed: make(chan struct{})}
	p.far.Store(new(far))
	return p, nil
}

// Run makes the state while somebody looks, until ctx is done.
func (p *Page) Run(ctx context.Context, src Source) error {
	p.view.Store(&src.View)
	var reading sync.WaitGroup
	defer reading.Wait()
	reading.Go(func() { p.readLoop(ctx) })
	tick := time.NewTicker(every)
	defer tick.Stop()
	m := maker{hour: src.Hour, version: p.version, acts: p.acts}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.wake[0]:
			m.hourAt = time.Time{}
		case <-tick.C:
		}
		if p.watched() {
			v := src.View()
			p.peers.Store(len(v.Peers) > 0)
			p.publish(m.sections(&v, p.far.Load()))
		}
	}
}

// publish replaces the sections that have changed.
func (p *Page) publish(made []section) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.viewers == 0 { // the last one has just left
		return
	}
	before := p.stamp
	for i := range made {
		if i < len(p.sections) && bytes.Equal(p.sections[i].data, made[i].data) {
			continue
		}
		p.stamp = before + 1
		made[i].stamp = p.stamp
		if i < len(p.sections) {
			p.sections[i] = made[i]
		} else {
			p.sections = append(p.sections, made[i])
		}
	}
	if p.stamp != before {
		close(p.changed)
		p.changed = make(chan struct{})
	}
}

// since returns the sections that are newer than a stamp, the stamp of the newest, and a channel that is closed when there are
// newer ones.
func (p *Page) since(stamp uint64) (newer []section, now uint64, changed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.sections {
		if s.stamp > stamp {
			newer = append(newer, s)
		}
	}
	return newer, p.stamp, p.changed
}

func (p *Page) watched() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.viewers > 0
}

// maxViewers bounds the viewers of a page.
const maxViewers = 64

// enter counts a viewer. It returns false if there are too many.
func (p *Page) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.viewers == maxViewers {
		return false
	}
	if p.viewers++; p.viewers == 1 {
		for _, wake := range p.wake {
			select {
			case wake <- struct{}{}:
			default:
			}
		}
	}
	return true
}

// leave forgets a viewer, and with the last one the state, which nobody keeps up to date any more.
func (p *Page) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.viewers--; p.viewers == 0 {
		p.sections = nil
	}
}

// far is what a gateway does not know itself: it is read from the broker and from the other gateways.
type far struct {
	requests []subjects.RequestInfo // of all gateways, if there are others
	results  []subjects.PoolResults // of all gateways, if there are others; else nil
	dead     []fleet.DeadLetter     // the latest, the oldest first
	deadAll  uint64
	unread   map[string]string // what could not be read, and why; it is never changed
}

// readLoop reads what the gateway does not know, while somebody looks.
func (p *Page) readLoop(ctx context.Context) {
	var now far
	var deadRead time.Time
	for {
		begun := time.Now()
		if p.watched() && p.nc.IsConnected() {
			now.requests, now.results, now.unread = nil, nil, nil
			if p.peers.Load() {
				list, err := fleet.AskAll[subjects.RequestInfo](ctx, p.nc, subjects.AskRequests)
				now.results, _ = fleet.AskAll[subjects.PoolResults](ctx, p.nc, subjects.AskResults) // older gateways do not answer
				if now.requests = list; err != nil {
					now.unread = map[string]string{"requests": err.Error()}
				}
			}
			if begun.Sub(deadRead) >= deadEvery {
				deadRead = begun
				within, cancel := context.WithTimeout(ctx, readTimeout)
				if list, all, err := fleet.LatestDeadLetters(within, p.js, deadShown); err == nil {
					now.dead, now.deadAll = list, all
				}
				cancel()
			}
			copied := now
			p.far.Store(&copied)
		}
		select {
		case <-ctx.Done():
			return
		case <-p.wake[1]:
			deadRead = time.Time{}
		case <-time.After(max(every, askShare*time.Since(begun))):
		}
	}
}
