package subjects

import "sync"

// Local lets the workers of a process reach its gateways without the broker: a
// claim and frames are calls there, which spares each request two messages, and
// what they say is not made bytes of. All else, the queue above all, goes by the
// broker as between any gateway and worker. The zero value has no gateways yet;
// nil never has any.
type Local struct {
	gateways sync.Map // LocalGateway by id
}

// LocalGateway is a gateway as the workers of its process see it. Its methods may
// be called at once from many goroutines and never block; the calls of one
// attempt come one after the other.
type LocalGateway interface {
	// Request is one that waits or runs there, and that nobody may change; nil if
	// there is none.
	Request(id ID) *Request
	// Claim answers a claim as the message would be; nil is a grant.
	Claim(c Claim) *Refusal
	// Frames takes in what would be one message. What the frames hold is the
	// gateway's from then on, the slice itself is not.
	Frames(p Prefix, frames []Frame)
}

// Open makes a gateway known by its id until the returned function is called.
func (l *Local) Open(id string, gw LocalGateway) (shut func()) {
	if l == nil {
		return func() {}
	}
	l.gateways.Store(id, gw)
	return func() { l.gateways.Delete(id) }
}

// Gateway is the gateway of an id, if it is in this process.
func (l *Local) Gateway(id string) (gw LocalGateway, ok bool) {
	if l == nil {
		return nil, false
	}
	v, ok := l.gateways.Load(id)
	if !ok {
		return nil, false
	}
	return v.(LocalGateway), true
}
