package gateway

import (
	"io"
	"net/http"
	"strings"
	"time"
)

const (
	// readByServer is how much of a body that a handler has not read net/http reads itself, before it answers.
	readByServer = 256 << 10

	// smallFor is how long it may read that.
	smallFor = 10 * time.Second

	// lingerFor and lingerMost bound what is read of a body after its request was refused. A connection that is closed
	// while the client still sends is reset, and many clients then never see the answer.
	lingerFor  = 30 * time.Second
	lingerMost = 64 << 20
)

// unreadError is an error of a request whose body has not been read to its end.
type unreadError struct{ error }

func (e unreadError) Unwrap() error { return e.error }

// mustLinger says whether the client may still send more of its body than net/http reads, once it is refused.
func mustLinger(r *http.Request) bool {
	if strings.EqualFold(r.Header.Get("Expect"), "100-continue") { // it waits for the answer first
		return false
	}
	return r.ContentLength < 0 || r.ContentLength > readByServer
}

// linger takes in, and drops, the rest of the body of a request that has been refused.
func linger(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	if rc.Flush() != nil {
		return
	}
	rc.SetReadDeadline(time.Now().Add(lingerFor))
	io.CopyN(io.Discard, r.Body, lingerMost)
}
