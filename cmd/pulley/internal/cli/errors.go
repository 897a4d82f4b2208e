package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
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

// ErrInterrupted is the cause of a command's context after the first SIGINT or SIGTERM. A second one ends the process
// at once.
var ErrInterrupted = errors.New("interrupted")

// Error is an error that decides the exit code. The code of any other error is ExitFailed.
type Error struct {
	Code int
	Err  error
}

func (e Error) Error() string { return e.Err.Error() }

func (e Error) Unwrap() error { return e.Err }

// Usagef makes an error in the command line or the configuration.
func Usagef(format string, args ...any) error { return Error{ExitUsage, fmt.Errorf(format, args...)} }

// NotFoundf makes an error that says that an object does not exist.
func NotFoundf(format string, args ...any) error {
	return Error{ExitNotFound, fmt.Errorf(format, args...)}
}

// Refusedf makes an error that says that an operation is not possible in the present state of an object, or not allowed.
func Refusedf(format string, args ...any) error {
	return Error{ExitRefused, fmt.Errorf(format, args...)}
}

// NoSuch says that an object does not exist, and suggests a similar name among the known ones, or the command that lists
// them.
func NoSuch(kind, name string, known []string) error {
	hint := DidYouMean(name, known)
	if hint == "" {
		hint = fmt.Sprintf("; see 'pulley %s ls'", kind)
	}
	return NotFoundf("no %s %q%s", kind, name, hint)
}

// Ambiguous is a usage error: a name could be any of several.
func Ambiguous(kind, name string, candidates []string) error {
	return Usagef("%s %s is ambiguous: it may be %s", kind, name, term.Shorten(OneOf(candidates), 160))
}

// DidYouMean returns a clause that suggests the known word most similar to word, or "" if none is similar.
func DidYouMean(word string, known []string) string {
	if s := nearest(word, known); s != "" {
		return fmt.Sprintf("; did you mean %q?", s)
	}
	return ""
}

// nearest returns the known word with the smallest edit distance to word, if that is at most a third of its length, or
// two.
func nearest(word string, known []string) string {
	best, most := "", max(2, len(word)/3)
	for _, k := range known {
		if d := editDistance(strings.ToLower(word), strings.ToLower(k)); d <= most {
			best, most = k, d-1
		}
	}
	return best
}

// editDistance is the number of bytes to insert, delete or replace to turn a into b.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			d := diagonal
			if a[i] != b[j] {
				d = 1 + min(d, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], d
		}
	}
	return row[len(b)]
}

// OneOf lists choices as "a, b or c".
func OneOf(choices []string) string {
	if len(choices) < 2 {
		return strings.Join(choices, "")
	}
	last := len(choices) - 1
	return strings.Join(choices[:last], ", ") + " or " + choices[last]
}
