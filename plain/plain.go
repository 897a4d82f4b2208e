// Package plain says in plain words what went wrong. Errors of the standard library and of the NATS client name functions,
// system calls and types; whoever runs Pulley should read what was tried with what, and why it failed.
package plain

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

// Error returns the text of err with the words of libraries and of the system replaced, wherever err wraps them. What the
// wrapping errors say is not changed. It returns "" for nil. The text is for people; it may change.
func Error(err error) string {
	if err == nil {
		return ""
	}
	if text, ok := known(err); ok {
		return text
	}
	text := err.Error()
	wrapped := causes(err)
	for _, cause := range wrapped {
		was := cause.Error()
		at := strings.LastIndex(text, was)
		if at < 0 || was == "" {
			continue
		}
		before := text[:at]
		if file, ok := errors.AsType[*fs.PathError](cause); ok && cause == error(file) { // named once
			before = strings.TrimSuffix(before, file.Path+": ")
		}
		text = before + Error(cause) + text[at+len(was):]
	}
	if len(wrapped) == 0 {
		text = withoutPackage(text)
	}
	return text
}

// causes returns what err wraps.
func causes(err error) []error {
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		if cause := e.Unwrap(); cause != nil {
			return []error{cause}
		}
	case interface{ Unwrap() []error }:
		return e.Unwrap()
	}
	return nil
}

// known returns the text for the errors that are understood as a whole.
func known(err error) (string, bool) {
	switch e := err.(type) {
	case *url.Error:
		return connection(e.URL, e.Err), true
	case *net.OpError:
		return operation(e), true
	case *net.DNSError:
		if e.IsNotFound {
			return "no such host: " + e.Name, true
		}
		return "cannot look up host " + e.Name + ": " + e.Err, true
	case *fs.PathError:
		return e.Path + ": " + Error(e.Err), true
	case *os.LinkError:
		return e.New + ": " + Error(e.Err), true
	case *os.SyscallError:
		return Error(e.Err), true
	case *strconv.NumError:
		return fmt.Sprintf("%q is %s", e.Num, map[bool]string{true: "out of range", false: "not a number"}[errors.Is(e, strconv.ErrRange)]), true
	case *json.SyntaxError:
		return fmt.Sprintf("not valid JSON at byte %d: %s", e.Offset, e.Error()), true
	case *json.UnmarshalTypeError:
		return fmt.Sprintf("%s: a JSON %s is not possible here", e.Field, e.Value), true
	case *tls.CertificateVerificationError:
		return Error(e.Err), true
	case x509.UnknownAuthorityError:
		return "its certificate is of an unknown authority", true
	case x509.HostnameError:
		return "its certificate is not for " + e.Host, true
	case x509.CertificateInvalidError:
		if e.Reason == x509.Expired {
			return "its certificate has expired or is not valid yet", true
		}
	case tls.RecordHeaderError:
		return "the other side does not speak TLS", true
	case syscall.Errno:
		if text, ok := errnos[e]; ok {
			return text, true
		}
	}
	switch {
	case err == context.DeadlineExceeded, err == os.ErrDeadlineExceeded, isTimeout(err):
		return "no answer in time", true
	case err == context.Canceled:
		return "interrupted", true
	case err == io.EOF, err == io.ErrUnexpectedEOF:
		return "the connection was closed", true
	case err == net.ErrClosed:
		return "the connection is closed", true
	}
	text, ok := texts[err.Error()]
	return text, ok
}

// isTimeout says whether err itself, and nothing that it wraps, is a timeout.
func isTimeout(err error) bool {
	t, ok := err.(interface{ Timeout() bool })
	return ok && t.Timeout() && len(causes(err)) == 0
}

// errnos are the system's errors whose usual text is no help.
var errnos = map[syscall.Errno]string{
	syscall.EADDRNOTAVAIL: "this machine does not have that address",
	syscall.EADDRINUSE:    "address already in use",
	syscall.ECONNRESET:    "the other side closed the connection",
	syscall.EPIPE:         "the other side closed the connection",
	syscall.EHOSTUNREACH:  "no way to that host",
	syscall.ENETUNREACH:   "no way to that network",
}

// texts are the errors of the NATS client, and those of the standard library that have no type, by what they say.
var texts = map[string]string{
	"nats: timeout": "no answer in time",
	"nats: no responders available for request":       "nobody answers",
	"nats: no servers available for connection":       "no NATS server can be reached",
	"nats: connection closed":                         "the connection to NATS is closed",
	"nats: no response from stream":                   "the stream does not answer",
	"http: server gave HTTP response to HTTPS client": "the other side does not speak TLS",
}

// connection says what became of a request to a URL.
func connection(url string, err error) string {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return Error(err) // it says which address
	}
	return url + ": " + Error(err)
}

func operation(e *net.OpError) string {
	why := Error(e.Err)
	if e.Timeout() {
		why = "no answer in time"
	}
	at := ""
	switch {
	case e.Op == "listen" && e.Addr != nil:
		return "cannot listen on " + e.Addr.String() + ": " + why
	case e.Op == "listen":
		return why
	case e.Addr != nil:
		at = " to " + e.Addr.String()
	}
	if e.Op == "dial" {
		if _, ok := errors.AsType[*net.DNSError](e.Err); ok {
			return why
		}
		return "cannot connect" + at + ": " + why
	}
	return "connection" + at + ": " + why
}

var (
	apiError    = regexp.MustCompile(`^nats: API error: code=\d+ err_code=\d+ description=`)
	packageName = regexp.MustCompile(`^(nats|tls|x509|yaml|json|jsontext|time|http|net/http|bufio|url|strconv|exec|os|pflag): `)
)

// withoutPackage returns the text of an error without the name of the package that made it.
func withoutPackage(text string) string {
	if short := apiError.ReplaceAllString(text, ""); short != text {
		return short
	}
	return packageName.ReplaceAllString(text, "")
}
