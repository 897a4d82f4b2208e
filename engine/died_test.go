package engine_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"syscall"
	"testing"

	"github.com/pulley-lb/pulley/engine"
)

// A call breaks if the engine had the request: one that cannot be connected to never had it.
func TestBroke(t *testing.T) {
	during := func(op string, err error) error {
		return &url.Error{Op: "Post", URL: "http://e", Err: &net.OpError{Op: op, Net: "tcp", Err: os.NewSyscallError(op, err)}}
	}
	for _, err := range []error{
		io.EOF, fmt.Errorf("transport connection broken: %w", io.ErrUnexpectedEOF), during("read", syscall.ECONNRESET), during("write", syscall.EPIPE),
		during("read", syscall.ETIMEDOUT), during("write", syscall.EHOSTUNREACH),
		errors.New("http2: client connection lost"), fmt.Errorf("read: %w", errors.New("http2: server sent GOAWAY and closed the connection; LastStreamID=1")),
	} {
		if !engine.Broke(err) {
			t.Errorf("%v: the engine had the request", err)
		}
	}
	for _, err := range []error{
		during("dial", syscall.ECONNREFUSED), during("dial", syscall.ETIMEDOUT), during("dial", syscall.EHOSTUNREACH), during("dial", syscall.ECONNRESET),
		os.ErrDeadlineExceeded, errors.New("no such host"),
	} {
		if engine.Broke(err) {
			t.Errorf("%v: the engine never had the request", err)
		}
	}
}
