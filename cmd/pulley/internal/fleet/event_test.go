package fleet_test

import (
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/subjects"
)

func TestEventLine(t *testing.T) {
	e := subjects.Event{At: clitest.Noon, Kind: subjects.EventWorkerLost, Text: "worker \x1b[2J fell\nsilent"}
	if got, want := fleet.EventLine(&term.Page{}, e), `12:00:00  worker-lost      worker \x1b[2J fell\nsilent`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := fleet.EventLine(&term.Page{Terminal: term.Terminal{Color: true}}, e); !strings.Contains(got, "\x1b[31mworker-lost") {
		t.Errorf("in colour: %q", got)
	}
}
