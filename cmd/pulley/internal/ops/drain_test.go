package ops

import (
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/subjects"
)

func TestWorkerDrain(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.answer()
	h := clitest.Beat("gpu-1", subjects.Ready, 2, "llama")
	s.workers = []subjects.Heartbeat{h}
	s.story(
		step{"worker drain gpu-1", 4, `pulley: drain worker gpu-1, so that it finishes its requests and exits: needs a confirmation, and standard input is not a terminal; use --force to skip it\n`},
		step{"worker drain gpu-1 --force", 1, `pulley: drain worker gpu-1: no answer; it may have just left, .*`},
	)
	drained := make(chan struct{}, 9)
	sub, err := s.nc.Subscribe(subjects.WorkerDrain(h.Worker), func(m *nats.Msg) {
		respondJSON(m, subjects.Outcome{From: h.Worker})
		drained <- struct{}{}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Unsubscribe()
	s.nc.Flush()
	s.story(step{"worker drain gpu-1 --force --no-wait", 0, "worker gpu-1 is draining\n"})
	<-drained

	beat := func(state subjects.State, inFlight int) {
		h.State, h.InFlight = state, inFlight
		b, err := json.Marshal(h)
		if err != nil {
			t.Error(err)
		}
		s.nc.Publish(subjects.Heartbeats(h.Worker), b)
	}
	var stdout, stderr clitest.Buffer
	ended := make(chan int, 1)
	go func() {
		ended <- cli.Execute(t.Context(), testRoot(), []string{"worker", "drain", "gpu-1", "--force", "--nats", s.url}, &stdout, &stderr)
	}()
	<-drained
	beat(subjects.Draining, 2)
	beat(subjects.Draining, 2)
	beat(subjects.Draining, 1)
	stderr.WaitFor(t, "1 request running")
	beat(subjects.Left, 0)
	if code := <-ended; code != 0 || stderr.String() != "worker gpu-1: 2 requests running\nworker gpu-1: 1 request running\n" || !strings.HasPrefix(stdout.String(), "worker gpu-1 has left after ") {
		t.Errorf("exit code %d, %q, %q", code, &stdout, &stderr)
	}

	// Then a worker that dies during the drain.
	go func() {
		ended <- cli.Execute(t.Context(), testRoot(), []string{"worker", "drain", "gpu-1", "--force", "--nats", s.url}, io.Discard, &stderr)
	}()
	<-drained
	beat(subjects.Draining, 7)
	began := time.Now()
	if code := <-ended; code != 1 || !strings.Contains(stderr.String(), "worker gpu-1 stopped sending heartbeats during the drain") {
		t.Errorf("exit code %d after %v, %q", code, time.Since(began), &stderr)
	}
}
