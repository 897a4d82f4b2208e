package fleet

import (
	"fmt"
	"time"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/subjects"
)

// EventLine formats an event as one line.
func EventLine(p *term.Page, e subjects.Event) string {
	return p.Paint(term.Dim, e.At.Local().Format(time.TimeOnly)) + "  " + p.Paint(eventStyle(e.Kind), fmt.Sprintf("%-15s", term.Printable(string(e.Kind)))) + "  " + term.Printable(e.Text)
}

// eventStyle returns the colour of a kind of event: red for failures.
func eventStyle(k subjects.EventKind) term.Style {
	switch k {
	case subjects.EventWorkerLost, subjects.EventWorkerFenced, subjects.EventDead:
		return term.Red
	case subjects.EventFull, subjects.EventWorkerLeft, subjects.EventWorkerState:
		return term.Yellow
	case subjects.EventWorkerJoined, subjects.EventWorkerUnfenced:
		return term.Green
	}
	return term.Unstyled
}
