package top

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
)

func testRoot() *cobra.Command { return cli.NewRoot("", "test", NewCommand()) }

func TestTopOnce(t *testing.T) {
	t.Parallel()
	url, _ := clitest.Broker(t, broker.Config{})
	clitest.StandIn(t, url)
	code, stdout, stderr := clitest.Run(testRoot(), "top", "-o", "json", "--nats", url)
	var s struct {
		Gateways []string
		Totals   struct{ Workers, Slots, Waiting int }
		Pools    []struct{ Pool string }
		Workers  []struct {
			DonePerSecond float64 `json:"done_per_second"`
		}
		Requests []struct{ ID string }
	}
	if err := json.Unmarshal([]byte(stdout), &s); err != nil {
		t.Fatalf("exit code %d, stdout %q, stderr %q: %v", code, stdout, stderr, err)
	}
	if code != cli.ExitOK || !slices.Equal(s.Gateways, []string{"gw1"}) || s.Totals.Slots != 4 || s.Totals.Waiting != 3 || len(s.Pools) != 1 || len(s.Requests) != 1 {
		t.Errorf("exit code %d, got %+v", code, s)
	}
	if got := s.Workers[0].DonePerSecond; got < 3 || got > 7 {
		t.Errorf("%v done/s, want about 5", got)
	}
}

func TestTopNeedsATerminal(t *testing.T) {
	url, _ := clitest.Broker(t, broker.Config{})
	code, _, stderr := clitest.Run(testRoot(), "top", "--nats", url)
	if code != cli.ExitUsage || !strings.Contains(stderr, "use --once") {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
}

func TestSnapshotAsText(t *testing.T) {
	s := clitest.SnapshotAtNoon()
	var p term.Page
	printSnapshot(&p, &s, unicodeGlyphs)
	got := p.String()
	for _, want := range []string{"pulley  2 gateways", "\npools\n", "\ntiers\n", "\nworkers\n", "\nrequests\n", "\nevents\n", "remedy: pulley worker uncordon idle", "IN FLIGHT", "POOLS\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "\x1b") {
		t.Errorf("escape sequences without a terminal: %q", got)
	}
}
