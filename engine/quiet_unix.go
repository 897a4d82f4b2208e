//go:build unix

package engine

import "syscall"

const canAsk = true

// quiet tells whether an idle connection is open, with nothing to read: an engine that has closed it, or talks unasked, is
// not to be sent a request on it.
func (c *conn) quiet() bool {
	var n int
	var err error
	var b [1]byte
	asked := c.raw.Read(func(fd uintptr) bool {
		n, err = syscall.Read(int(fd), b[:])
		return true // do not wait
	})
	return asked == nil && n < 0 && err == syscall.EAGAIN
}
