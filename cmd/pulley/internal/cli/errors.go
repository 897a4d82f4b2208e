package cli

import (
	"errors"
	"fmt"
)

// The exit codes of pulley, as its help documents them.
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

// UsageError is an error in the command line or the configuration.
type UsageError struct{ Err error }

func (e UsageError) Error() string { return e.Err.Error() }

func (e UsageError) Unwrap() error { return e.Err }

// Usagef makes a UsageError.
func Usagef(format string, args ...any) error { return UsageError{fmt.Errorf(format, args...)} }

// NotFoundError says that an object does not exist.
type NotFoundError struct{ Err error }

func (e NotFoundError) Error() string { return e.Err.Error() }

func (e NotFoundError) Unwrap() error { return e.Err }

// NotFoundf makes a NotFoundError.
func NotFoundf(format string, args ...any) error { return NotFoundError{fmt.Errorf(format, args...)} }

// RefusedError says that an operation is not possible in the present state of an
// object, or not allowed.
type RefusedError struct{ Err error }

func (e RefusedError) Error() string { return e.Err.Error() }

func (e RefusedError) Unwrap() error { return e.Err }

// Refusedf makes a RefusedError.
func Refusedf(format string, args ...any) error { return RefusedError{fmt.Errorf(format, args...)} }
