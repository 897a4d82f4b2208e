package ops

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/subjects"
)

func TestEventFilter(t *testing.T) {
	e := subjects.Event{Kind: subjects.EventDead, Pool: "llama", Worker: "gpu.1"}
	tests := map[string]struct {
		only  eventFilter
		wants bool
		says  string
	}{
		"all":                 {eventFilter{}, true, "all events"},
		"its kind":            {eventFilter{kinds: []string{"full", "dead"}}, true, "full, dead events"},
		"another kind":        {eventFilter{kinds: []string{"full"}}, false, "full events"},
		"its pool":            {eventFilter{pool: "llama"}, true, "all events of pool llama"},
		"another pool":        {eventFilter{pool: "lla"}, false, "all events of pool lla"},
		"its worker":          {eventFilter{worker: "gpu.1"}, true, "all events of worker gpu.1"},
		"another worker":      {eventFilter{worker: "gpu"}, false, "all events of worker gpu"},
		"its kind, not pool":  {eventFilter{kinds: []string{"dead"}, pool: "qwen"}, false, "dead events of pool qwen"},
		"its kind and worker": {eventFilter{kinds: []string{"dead"}, worker: "gpu.1"}, true, "dead events of worker gpu.1"},
	}
	for about, tt := range tests {
		if got := tt.only.wants(e); got != tt.wants {
			t.Errorf("%s: wanted is %v", about, got)
		}
		if got := tt.only.String(); got != tt.says {
			t.Errorf("%s: says %q, want %q", about, got, tt.says)
		}
	}
	e.Worker = subjects.Token("gpu.1") + "-0a1b2c" // an id
	if !(eventFilter{worker: "gpu.1"}).wants(e) || (eventFilter{worker: "gpu"}).wants(e) {
		t.Error("an id is not known by its name alone")
	}
}

func TestUnknownEventKind(t *testing.T) {
	code, _, stderr := clitest.Run(testRoot(), "events", "--kind", "worker-list")
	if code != cli.ExitUsage || !strings.Contains(stderr, `--kind "worker-list": must be worker-joined, `) || !strings.Contains(stderr, `did you mean "worker-lost"?`) {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
	if _, stdout, _ := clitest.Run(testRoot(), "__complete", "events", "--kind", ""); !strings.Contains(stdout, "worker-lost\ta worker stopped sending heartbeats\n") {
		t.Errorf("completion: %q", stdout)
	}
}

func TestFollowEvents(t *testing.T) {
	url, _ := clitest.Broker(t, broker.Config{})
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	for format, check := range map[string]func(t *testing.T, out string){
		"text": func(t *testing.T, out string) {
			if want := "12:00:00  dead             given up\n"; out != want {
				t.Errorf("got %q, want %q", out, want)
			}
		},
		"json": func(t *testing.T, out string) {
			var e subjects.Event
			if err := json.Unmarshal([]byte(out), &e); err != nil || strings.Count(out, "\n") != 1 || e.Pool != "llama" || !e.At.Equal(clitest.Noon) {
				t.Errorf("got %q: %v, want an event on a line", out, err)
			}
		},
	} {
		t.Run(format, func(t *testing.T) {
			ctx, stop := context.WithCancelCause(t.Context())
			var stdout bytes.Buffer
			var stderr clitest.Buffer
			code := make(chan int)
			go func() { // ends with its context
				code <- cli.Execute(ctx, testRoot(), []string{"events", "--nats", url, "--kind", "dead", "-o", format}, &stdout, &stderr)
			}()
			stderr.WaitFor(t, "following dead events on "+url)
			for _, e := range []subjects.Event{{Kind: subjects.EventFull, Text: "not asked for"}, {Kind: subjects.EventDead, At: clitest.Noon, Pool: "llama", Text: "given up"}} {
				fleet.PublishJSON(nc, subjects.EventSubject(e.Kind), e)
			}
			nc.Publish(subjects.EventSubject("damaged"), []byte("{"))
			stderr.WaitFor(t, "event dropped") // so the others are printed
			stop(cli.ErrInterrupted)
			select {
			case c := <-code:
				if c != cli.ExitOK {
					t.Errorf("exit code %d after Ctrl-C, stderr %q", c, &stderr)
				}
			case <-time.After(time.Minute):
				t.Fatal("does not end")
			}
			check(t, stdout.String())
		})
	}
}
