package cli

import (
	"errors"
	"fmt"
)

const (
	ExitOK          = 0
	ExitFailed      = 1
	ExitUsage       = 2
	ExitNotFound    = 3
	ExitRefused     = 4
	ExitInterrupted = 130
)

// ErrInterrupted is the cause of a command's context after the first SIGINT or
// SIGTERM. A second one ends the process at once.
var ErrInterrupted = errors.New("interrupted")

// UsageError says that the command cannot be run as it was asked for.
type UsageError struct{ Err error }

func (e UsageError) Error() string { return e.Err.Error() }

func (e UsageError) Unwrap() error { return e.Err }

func Usagef(format string, args ...any) error { return UsageError{fmt.Errorf(format, args...)} }

// NotFoundError says that the thing named does not exist.
type NotFoundError struct{ Err error }

func (e NotFoundError) Error() string { return e.Err.Error() }

func (e NotFoundError) Unwrap() error { return e.Err }

func NotFoundf(format string, args ...any) error { return NotFoundError{fmt.Errorf(format, args...)} }

// refusedError says that the thing named is in no state for what was asked, or
// that the one who asked may not.
type refusedError struct{ err error }

func (e refusedError) Error() string { return e.err.Error() }

func (e refusedError) Unwrap() error { return e.err }

func Refusedf(format string, args ...any) error { return refusedError{fmt.Errorf(format, args...)} }
