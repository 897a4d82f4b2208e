package worker

import (
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/brokerconn"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	// bundleTime is how long a part of an answer may wait for those of other attempts, to travel with them.
	bundleTime = 500 * time.Microsecond

	// resendAfter is how long the worker waits for a gateway to acknowledge its messages, the first time; then up to eight
	// times as long. A gateway does after a quarter of this time.
	resendAfter = time.Second

	// maxKept bounds, in bytes, what is kept for one gateway until it acknowledges it.
	maxKept = 256 << 20

	// probeEvery is how often a message asks the broker to say if there is no such gateway. A broker with accounts keeps the way
	// back of each such message for a while.
	probeEvery = 200 * time.Millisecond

	// probeIdle is how long after the last such message one is sent only to ask, while something runs for the gateway. With
	// noGatewayFor, what a gateway leaves behind that is killed runs for less than 2 s.
	probeIdle = 400 * time.Millisecond

	// leaveTime bounds how long a worker that leaves waits for gateways to acknowledge its last messages. They do after
	// half of that time; it is shorter than subjects.WorkerDeadline.
	leaveTime = resendAfter / 2
)

// links are the worker's ways to the gateways of other processes.
type links struct {
	nc     *nats.Conn
	conn   *brokerconn.Watch // says whether nc hears anybody
	worker string

	log  *slog.Logger
	dial dialer

	mu        sync.Mutex
	byGateway map[string]*link
	highest   uint64 // number of any message of the links that were dropped
	closed    bool

	directs sync.WaitGroup // the direct connections, each with a goroutine
}

func newLinks(nc *nats.Conn, worker string, dial dialer, log *slog.Logger) *links {
	return &links{nc: nc, conn: brokerconn.New(nc, log), worker: worker, log: log, dial: dial, byGateway: make(map[string]*link)}
}

// get returns the link to a gateway. The first call makes it.
func (ls *links) get(gateway string) *link {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.byGateway[gateway]
	if l == nil {
		// A gateway that was taken for gone may come back. It must not take the messages of the new link for old ones.
		l = newLink(ls.nc, subjects.GatewayLink(gateway, ls.worker), subjects.WorkerGone(ls.worker, gateway))
		l.last = max(uint64(time.Now().UnixNano()), ls.highest)
		ls.byGateway[gateway] = l
	}
	return l
}

func (ls *links) all() []*link {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	all := make([]*link, 0, len(ls.byGateway))
	for _, l := range ls.byGateway {
		all = append(all, l)
	}
	return all
}

// tend sends again what gateways have not acknowledged for long, and forgets the links to those that are gone.
func (ls *links) tend(gone []string, now time.Time) {
	ls.resend(false, now)
	for _, gateway := range gone {
		ls.drop(gateway)
	}
}

// drop forgets the link to a gateway that is gone.
func (ls *links) drop(gateway string) {
	ls.mu.Lock()
	l := ls.byGateway[gateway]
	delete(ls.byGateway, gateway)
	ls.mu.Unlock()
	if l == nil {
		return
	}
	last := l.close()
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.highest = max(ls.highest, last)
}

func (ls *links) onAck(gateway string, m *nats.Msg) {
	var ack subjects.LinkAck
	if subjects.Unmarshal(m.Data, &ack) != nil {
		return
	}
	ls.mu.Lock()
	l := ls.byGateway[gateway]
	ls.mu.Unlock()
	if l != nil {
		l.onAck(ack)
	}
}

// probe asks the broker whether gateways are there for which something runs, unless messages have asked it a moment ago: while
// an engine is silent, or its answer is not a stream, there are none.
func (ls *links) probe(gateways []string, now time.Time) {
	for _, gateway := range gateways {
		ls.mu.Lock()
		l := ls.byGateway[gateway]
		ls.mu.Unlock()
		if l == nil { // it is in this process
			continue
		}
		if l.probe(now) {
			ls.ask(gateway)
		}
	}
}

// ask has the broker say if a gateway is not there.
func (ls *links) ask(gateway string) {
	ls.nc.PublishRequest(subjects.GatewayAlive(gateway, ls.worker), subjects.WorkerGone(ls.worker, gateway), subjects.MustMarshal(subjects.Alive{Worker: ls.worker}))
}

// sendAlive sends a gateway the list of its attempts, behind all that was added to its link: the gateway cancels an attempt
// that is listed before its claim.
func (ls *links) sendAlive(gateway string, list []byte) {
	ls.mu.Lock()
	l := ls.byGateway[gateway]
	ls.mu.Unlock()
	if l != nil {
		if l.current() != nil {
			l.add(subjects.ItemAlive, list, only)
			return
		}
		l.flush()
	}
	ls.nc.PublishRequest(subjects.GatewayAlive(gateway, ls.worker), subjects.WorkerGone(ls.worker, gateway), list)
}

// resend sends again what gateways have not acknowledged for long; if lost is set, all that they have not acknowledged.
func (ls *links) resend(lost bool, now time.Time) {
	for _, l := range ls.all() {
		l.resend(lost, now)
	}
}

// await returns when gateways have acknowledged everything, or when that takes too long.
func (ls *links) await() {
	end := time.Now().Add(leaveTime)
	for _, l := range ls.all() {
		for !l.settled() && time.Now().Before(end) {
			time.Sleep(resendAfter / 50)
		}
	}
}

// link is the way to one gateway. What attempts add to it travels in as few messages as possible: an engine that serves
// many requests at once has a token for each of them at nearly the same time, and one message has them all. Each message
// is kept until the gateway has acknowledged it. So a message that the broker loses, when it restarts or a node of it
// fails, breaks no stream.
type link struct {
	// Fixed.
	nc       *nats.Conn
	to, gone string
	most     int           // size of a message, in bytes
	timer    *time.Timer   // calls onTimer when a message has waited for bundleTime
	turn     chan struct{} // held by the goroutine that sends; not a lock of the state

	mu      sync.Mutex
	direct  *direct   // the connection past the broker; nil: there is none
	open    []byte    // the message that is filled, behind room for the header of a direct connection; empty if there is none
	items   int       // how many items it has
	due     bool      // it is to be sent
	kept    [][]byte  // the messages that are not acknowledged, oldest first
	next    int       // which of them is to be published next
	last    uint64    // the number of the newest
	resent  int       // how often in a row everything was sent again, since nothing was acknowledged
	size    int       // bytes kept
	free    [][]byte  // memory of messages that were acknowledged, to be used again
	sentAt  time.Time // when a message was last published
	probed  time.Time // when one was published whose answer says that the gateway is not there
	sending []byte    // the message that is published now; nil: none
	streams int       // attempts that have begun to answer, and go on
	closed  bool
}

func newLink(nc *nats.Conn, to, gone string) *link {
	l := &link{nc: nc, to: to, gone: gone, most: int(min(nc.MaxPayload()/2, subjects.MaxFrame)), turn: make(chan struct{}, 1)}
	l.timer = time.AfterFunc(time.Hour, l.onTimer)
	l.timer.Stop()
	return l
}

// when says what an item means for the attempt that it is of.
type when int

const (
	during when = iota // others of its kind follow
	first              // it is the first of a stream; it does not wait for other attempts
	last               // it is the last of a stream; neither does it, since the client may be about to ask again
	only               // it is the only one; it does not wait for other attempts
)

// add adds an item to the next message. It reports false if the gateway is gone.
func (l *link) add(kind subjects.ItemKind, payload []byte, w when) bool {
	l.mu.Lock()
	if l.closed || l.size > maxKept {
		l.mu.Unlock()
		return false
	}
	if l.items > 0 && len(l.open)-subjects.DirectHeader+subjects.ItemSize(len(payload)) > l.most {
		l.closeLocked()
	}
	if l.items == 0 {
		l.beginLocked()
	}
	l.open = subjects.AppendItem(l.open, kind, payload)
	l.items++
	switch w {
	case first:
		l.streams++
	case last:
		l.streams--
	}
	switch {
	case w != during, l.items >= l.streams:
		l.due = true
		if l.items > 1 {
			l.timer.Stop()
		}
	case l.items == 1:
		l.timer.Reset(bundleTime)
	}
	send := l.dueLocked()
	l.mu.Unlock()
	if send {
		l.send()
	}
	return true
}

// abandon notes that a stream does not go on.
func (l *link) abandon() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.streams--
}

// onTimer sends the message that waits: nothing more comes now.
func (l *link) onTimer() { l.flush() }

// flush sends the message that waits.
func (l *link) flush() {
	l.mu.Lock()
	l.due = l.due || l.items > 0
	send := l.dueLocked()
	l.mu.Unlock()
	if send {
		l.send()
	}
}

// Memory of messages that were acknowledged is kept for mostFree messages of at most largeMessage bytes. For a single
// stream that saves an allocation for each token.
const (
	mostFree     = 64
	largeMessage = 64 << 10
)

// beginLocked begins a message.
func (l *link) beginLocked() {
	l.open = make([]byte, 0, 512)
	if n := len(l.free); n > 0 {
		l.open, l.free = l.free[n-1], l.free[:n-1]
	}
	l.open = l.open[:subjects.DirectHeader+subjects.LinkHeader]
}

// closeLocked completes the message that is filled.
func (l *link) closeLocked() {
	l.last++
	l.kept = append(l.kept, l.open)
	l.size += len(l.open)
	subjects.PutDirectHeader(l.open)
	l.open, l.items, l.due = nil, 0, false
}

// dueLocked reports whether there is something to send.
func (l *link) dueLocked() bool { return !l.closed && (l.due || l.next < len(l.kept)) }

// send sends what is due, and returns when that has been done. The goroutines that call it take turns, so that the
// messages keep their order, and that each goes on when its own item has left: the next bid follows the end of an answer.
func (l *link) send() {
	l.turn <- struct{}{}
	defer func() { <-l.turn }()
	for {
		msg, direct, gone := l.nextMessage(time.Now())
		switch {
		case msg == nil:
			return
		case direct != nil:
			if direct.write(msg) != nil {
				l.onDirectLost(direct)
			}
		case gone == "":
			l.nc.Publish(l.to, msg[subjects.DirectHeader:])
		default:
			l.nc.PublishRequest(l.to, gone, msg[subjects.DirectHeader:])
		}
	}
}

// nextMessage returns the message that is to be sent now, with the header of a direct connection; nil if there is none. It
// goes by the direct connection, or, if there is none, through the broker, which is to say on gone that the gateway is not
// there. The caller holds the turn.
func (l *link) nextMessage(now time.Time) (msg []byte, direct *direct, gone string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.next >= len(l.kept) && l.due {
		l.closeLocked()
	}
	if l.next >= len(l.kept) || l.closed {
		l.sending = nil
		return nil, nil, ""
	}
	msg = l.kept[l.next]
	oldest := l.oldestLocked()
	subjects.PutLinkHeader(msg[subjects.DirectHeader:], oldest+uint64(l.next), oldest)
	l.next++
	if l.direct == nil && now.Sub(l.probed) >= probeEvery {
		l.probed, gone = now, l.gone
	}
	l.sentAt, l.sending = now, msg
	return msg, l.direct, gone
}

// oldestLocked is the number of the oldest message that is kept; if there is none, of the next one.
func (l *link) oldestLocked() uint64 { return l.last - uint64(len(l.kept)) + 1 }

// onAck forgets what the gateway has, and sends again what it misses.
func (l *link) onAck(ack subjects.LinkAck) {
	if l.acknowledge(ack) {
		l.send()
	}
}

// acknowledge forgets what the gateway has. It reports whether something is to be sent.
func (l *link) acknowledge(ack subjects.LinkAck) (due bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	oldest := l.oldestLocked()
	if ack.Next < oldest || ack.Next > l.last+1 {
		return false
	}
	n := int(ack.Next - oldest)
	if n > 0 {
		l.resent = 0
	}
	for _, msg := range l.kept[:n] {
		l.size -= len(msg)
		if len(l.free) < mostFree && cap(msg) <= largeMessage && (len(l.sending) == 0 || &l.sending[0] != &msg[0]) {
			l.free = append(l.free, msg)
		}
	}
	l.kept = slices.Delete(l.kept, 0, n)
	l.next = max(l.next-n, 0)
	if ack.Again {
		l.next = 0
	}
	return l.dueLocked()
}

// probe reports whether it is time to ask whether the gateway is there.
func (l *link) probe(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.probed) < probeIdle {
		return false
	}
	l.probed = now
	return true
}

func (l *link) resend(lost bool, now time.Time) {
	l.mu.Lock()
	if late := now.Sub(l.sentAt) >= resendAfter<<min(l.resent, 3); len(l.kept) > 0 && (lost || late) {
		l.next = 0
		l.resent++
	}
	send := l.dueLocked()
	l.mu.Unlock()
	if send {
		l.send()
	}
}

// settled reports whether the gateway has all that was added.
func (l *link) settled() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed || len(l.kept) == 0 && l.items == 0
}

// close ends the link, and returns the number of its newest message.
func (l *link) close() (last uint64) {
	l.timer.Stop()
	if d := l.current(); d != nil {
		defer d.conn.Close()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	last = l.last
	l.closed, l.open, l.kept, l.free, l.items, l.next, l.size = true, nil, nil, nil, 0, 0, 0
	return last
}
