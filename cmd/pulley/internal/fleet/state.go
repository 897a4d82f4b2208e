package fleet

import (
	"strings"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
)

// StateStyle returns the colour for the state of a worker, a pool, a request, a shift
// or a key.
func StateStyle(s string) term.Style {
	switch state, _, _ := strings.Cut(s, " "); state {
	case "ready", "answering", "running", "done", "active":
		return term.Green
	case "paused", "draining", "cordoned", "queued", "rotating":
		return term.Yellow
	case "down", "left", "fenced", "aborted", "expired", "no":
		return term.Red
	}
	return term.Unstyled
}
