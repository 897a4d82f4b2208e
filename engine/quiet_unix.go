//go:build unix

package engine

import "syscall"

const canAsk = true

// peek is an attempt to read from an idle connection.
type peek struct {
	try     func(fd uintptr) bool // allocated once: creating it costs two allocations
	into    [1]byte
	nothing bool // nothing to read, and the connection is open
}

// quiet reports whether an idle connection is open with nothing to read. A connection that the
// engine has closed, or on which it has sent something unasked, must not be used for a request.
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
