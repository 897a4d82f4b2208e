package fleet_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/subjects"
)

// The list of workers may be larger than a message, as with a hundred workers that have
// eight GPUs each.
func TestLongListOfWorkers(t *testing.T) {
	url, _ := clitest.Broker(t, broker.Config{})
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	clitest.Gateway(t, nc)
	var list []subjects.Heartbeat
	const n = 20
	for began := time.Now(); len(list) != n; {
		if time.Since(began) > time.Minute {
			t.Fatalf("%d workers, want %d: %v", len(list), n, err)
		}
		for i := range n {
			h := clitest.Beat(fmt.Sprint("w", i), subjects.Ready, 0)
			h.Reason = strings.Repeat("x", 60<<10)
			fleet.PublishJSON(nc, subjects.Heartbeats(h.Worker), h)
		}
		nc.Flush()
		list, err = fleet.AskAny[subjects.Heartbeat](t.Context(), nc, subjects.AskWorkers) // a busy machine may take too long
	}
}
