package subjects

import "sync"

// Local connects the workers and gateways of one process without the broker. A claim and its frames
// are calls, which saves each request two messages and the encoding of their contents. Everything
// else, above all the queue, goes through the broker as between any gateway and worker. The zero
// value has no gateways yet; a nil Local never has any.
type Local struct {
	gateways sync.Map // map of gateway id to LocalGateway
}

// LocalGateway is a gateway as the workers of its process see it. Its methods may be called from
// many goroutines at once and never block; the calls of one attempt are sequential.
type LocalGateway interface {
	// Request returns a request that waits or runs at the gateway, which must not be modified; nil
	// if there is none.
	Request(id ID) *Request
	// Claim answers a claim as the message would be answered; nil means granted.
	Claim(c Claim) *Refusal
	// Frames delivers what would be one message. The gateway keeps what the frames point to, but
	// not the slice itself.
	Frames(p Prefix, frames []Frame)
}

// Open registers a gateway under its id until the returned function is called.
func (l *Local) Open(id string, gw LocalGateway) (shut func()) {
	if l == nil {
		return func() {}
	}
	l.gateways.Store(id, gw)
	return func() { l.gateways.Delete(id) }
}

// Gateway returns the gateway with an id, if it is in this process.
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
