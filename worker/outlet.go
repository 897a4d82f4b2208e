package worker

import (
	"bytes"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/subjects"
)

// outlet is the way of an attempt's answer to its gateway: frames that arrive
// together are gathered and sent as one. Not safe for concurrent use.
type outlet interface {
	Head(h *subjects.Head) // h belongs to the gateway from then on
	Grow(n int) []byte     // where to read up to n bytes of data in
	Commit(n int)          // how many they were
	End(e *subjects.End)
	Fail(f *subjects.Fail)
	Sent() uint32 // how often something was sent
	Free()        // gives its memory to the next attempt

	// send sends what has gathered. False: there is no such gateway any more.
	send() bool
}

// outlet is that of an attempt whose request is known.
func (w *Worker) outlet(a *attempt) outlet {
	if _, ok := w.cfg.Local.Gateway(a.req.Gateway); ok {
		return newNear(w.cfg.Local, a.req, a.mark)
	}
	return &far{
		Writer: subjects.NewWriter(a.req.ID, a.mark), nc: w.nc,
		to: subjects.GatewayFrames(a.req.Gateway), gone: subjects.WorkerGone(w.id, a.req.Gateway),
	}
}

// far is the way through the broker.
type far struct {
	*subjects.Writer
	nc   *nats.Conn
	to   string
	gone string // where the broker says that nobody listens there
}

func (f *far) send() bool {
	f.nc.PublishRequest(f.to, f.gone, f.Take())
	return true
}

// near is the way to a gateway of this process.
type near struct {
	local   *subjects.Local
	gateway string
	prefix  subjects.Prefix
	frames  []subjects.Frame
	buf     []byte
}

var nears = sync.Pool{New: func() any { return new(near) }}

func newNear(local *subjects.Local, req *subjects.Request, attempt uint64) *near {
	n := nears.Get().(*near)
	n.local, n.gateway, n.prefix = local, req.Gateway, subjects.Prefix{ID: req.ID, Attempt: attempt}
	return n
}

func (n *near) Head(h *subjects.Head) {
	n.frames = append(n.frames, subjects.Frame{Kind: subjects.KindHead, Head: h})
}

func (n *near) Grow(size int) []byte {
	if cap(n.buf) < size {
		n.buf = make([]byte, size)
	}
	return n.buf[:size]
}

func (n *near) Commit(size int) {
	n.frames = append(n.frames, subjects.Frame{Kind: subjects.KindData, Data: bytes.Clone(n.buf[:size])})
}

func (n *near) End(e *subjects.End) {
	n.frames = append(n.frames, subjects.Frame{Kind: subjects.KindEnd, End: e})
}

func (n *near) Fail(f *subjects.Fail) {
	f.Reason = strings.ToValidUTF8(f.Reason, "\ufffd") // it may quote an engine
	n.frames = append(n.frames, subjects.Frame{Kind: subjects.KindFail, Fail: f})
}

func (n *near) Sent() uint32 { return n.prefix.Seq }

func (n *near) send() bool {
	gw, ok := n.local.Gateway(n.gateway)
	if ok {
		n.prefix.Seq++
		gw.Frames(n.prefix, n.frames)
	}
	clear(n.frames)
	n.frames = n.frames[:0]
	return ok
}

func (n *near) Free() {
	clear(n.frames)
	*n = near{frames: n.frames[:0], buf: n.buf}
	nears.Put(n)
}
