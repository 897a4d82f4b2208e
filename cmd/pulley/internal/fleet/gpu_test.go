package fleet_test

import (
	"testing"
	"time"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/subjects"
)

// A fence that one worker reports counts, whatever another reports.
func TestGPUIsFencedIfAnyWorkerSaysSo(t *testing.T) {
	fenced := clitest.GPU(0, clitest.Lost)
	later := clitest.GPU(0, func(g *subjects.GPU) { g.At = g.At.Add(time.Second) })
	for _, list := range [][]subjects.Heartbeat{
		{clitest.BeatOn("n", "a", subjects.Ready, later), clitest.BeatOn("n", "b", subjects.Fenced, fenced)},
		{clitest.BeatOn("n", "b", subjects.Fenced, fenced), clitest.BeatOn("n", "a", subjects.Ready, later)},
	} {
		got := fleet.GPUs(list)
		if len(got) != 1 || got[0].Status != "fenced" || got[0].Memory == nil || got[0].Since != fenced.Since {
			t.Errorf("%+v", got)
		}
	}
}
