//go:build unix

package engine

import "syscall"

const canAsk = true

// peek is a try to read from an idle connection.
type peek struct {
	try     func(fd uintptr) bool // made once: it costs two allocations
	into    [1]byte
	nothing bool // was there, and the connection is open
}

// quiet tells whether an idle connection is open, with nothing to read: an engine that has closed it, or talks unasked, is
// not to be sent a request on it.
func (c *conn) quiet() bool {
	p := &c.peek
	if p.try == nil {
		p.try = func(fd uintptr) bool {
			n, err := syscall.Read(int(fd), p.into[:])
			p.nothing = n < 0 && err == syscall.EAGAIN
			return true // do not wait
		}
	}
	return c.raw.Read(p.try) == nil && p.nothing
}
