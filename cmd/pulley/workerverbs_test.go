package main

import (
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

func TestWorkers(t *testing.T) {
	s := newSite(t)
	s.answer()
	down := beat("gpu-2", subjects.Down, 0, "llama", "qwen")
	down.Reason = "connection refused"
	s.workers = []subjects.Heartbeat{down, beat("gpu-1", subjects.Ready, 3, "llama")}
	s.story(
		step{"worker ls", 0, `NAME   STATE  ENGINE  IN USE  RUNG  DONE  FAILED  POOLS        REASON
gpu-1  ready  vllm       3/8     0    12       0  llama        -
gpu-2  down   vllm       0/8   0-1    12       0  llama, qwen  connection refused\n`},
		step{"worker info gpu-1", 0, `worker   gpu-1\nid       gpu-1-00ff\nstate    ready\n.*slots    8, 3 running, .*pool llama\nnext bid  rung 0, .*measured  nothing yet: .*`},
		step{"worker info gpu-2-", 0, `worker   gpu-2\n.*state    down \(connection refused\)\n.*`},
		step{"worker info gpu", 2, `pulley: worker gpu: which of gpu-1-00ff, gpu-2-00ff\?\nrun .*`},
		step{"worker info gpv-1", 3, `pulley: no worker "gpv-1"; did you mean "gpu-1"\?\n`},
		step{"worker cordon gpu-1", 0, `worker gpu-1 cordoned, policy revision 1\n`},
		step{"worker cordon gpu-1-0", 0, `worker gpu-1 is cordoned already, policy revision 1\n`},
		step{"worker weight gpu-1 2.5", 0, `worker gpu-1 changed, policy revision 2\n`},
		step{"worker weight gpu-1 heavy", 2, `pulley: weight "heavy": want a number, .*`},
		step{"worker weight gpu-1 2e9", 2, `pulley: .*must be 0 .*`},
		step{"worker cordon gpu-9", 3, `pulley: no worker "gpu-9"; did you mean .*`},
	)
	if got, want := s.policy().Workers["gpu-1"], (policy.Worker{Cordoned: true, Weight: 2.5}); got != want {
		t.Errorf("policy %+v, want %+v", got, want)
	}
	s.workers = nil // what was said of one that is gone can be taken back
	s.story(
		step{"worker uncordon gpu-1", 0, `worker gpu-1 uncordoned, policy revision 3\n`},
		step{"worker weight gpu-1 0", 0, `worker gpu-1 changed, policy revision 4\n`},
		step{"worker uncordon gpu-1", 3, `pulley: no worker "gpu-1"; see 'pulley worker ls'\n`},
	)
	if workers := s.policy().Workers; len(workers) != 0 {
		t.Errorf("workers %v are left in the policy", workers)
	}
}

func TestWorkerInfoInWords(t *testing.T) {
	h := beat("gpu-1", subjects.Ready, 3, "llama")
	h.Pools[0] = subjects.PoolStatus{Pool: "llama", Model: "org/llama", Rung: 2, Mean: policy.Mean{Input: 100, Output: 50, Samples: 9},
		Curve: &policy.Curve{Prefill: &policy.Line{A: 0.05, B: 0.001}, ITL: &policy.Line{A: 0.01, B: 0.002}}}
	var p page
	printWorker(&p, h)
	for _, want := range []string{
		"engine's model  org/llama\n",
		"next bid        rung 2, where 0 is the cheapest and 9 the dearest; it expects to take 1.1 s\n",
		"first token     50 ms and 1 ms per input token\n",
		"each token      10 ms and 2 ms per request in flight\n",
		"mean request    100 tokens in, 50 out\n",
	} {
		if !strings.Contains(p.b.String(), want) {
			t.Errorf("worker info:\n%s\nwant %s", &p.b, want)
		}
	}
}

func TestWorkerDrain(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.answer()
	h := beat("gpu-1", subjects.Ready, 2, "llama")
	s.workers = []subjects.Heartbeat{h}
	s.story(
		step{"worker drain gpu-1", 4, `pulley: drain worker gpu-1, so that it finishes what it has and leaves: there is no terminal to ask on; say --force\n`},
		step{"worker drain gpu-1 --force", 1, `pulley: drain worker gpu-1: it does not answer; it may have just left, .*`},
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
	s.story(step{"worker drain gpu-1 --force --no-wait", 0, "worker gpu-1 drains\n"})
	<-drained

	tell := func(state subjects.State, inFlight int) {
		h.State, h.InFlight = state, inFlight
		b, err := json.Marshal(h)
		if err != nil {
			t.Error(err)
		}
		s.nc.Publish(subjects.Heartbeats(h.Worker), b)
	}
	var stdout, stderr syncBuffer
	ended := make(chan int, 1)
	go func() {
		ended <- execute(t.Context(), newRootCommand(), []string{"worker", "drain", "gpu-1", "--force", "--nats", s.url}, &stdout, &stderr)
	}()
	<-drained
	tell(subjects.Draining, 2)
	tell(subjects.Draining, 2)
	tell(subjects.Draining, 1)
	stderr.waitFor(t, "1 request left")
	tell(subjects.Left, 0)
	if code := <-ended; code != 0 || stderr.String() != "worker gpu-1: 2 requests left\nworker gpu-1: 1 request left\n" || !strings.HasPrefix(stdout.String(), "worker gpu-1 has left after ") {
		t.Errorf("exit code %d, %q, %q", code, &stdout, &stderr)
	}

	// Then one that dies meanwhile.
	go func() {
		ended <- execute(t.Context(), newRootCommand(), []string{"worker", "drain", "gpu-1", "--force", "--nats", s.url}, io.Discard, &stderr)
	}()
	<-drained
	tell(subjects.Draining, 7)
	began := time.Now()
	if code := <-ended; code != 1 || !strings.Contains(stderr.String(), "worker gpu-1 fell silent while it drained") {
		t.Errorf("exit code %d after %v, %q", code, time.Since(began), &stderr)
	}
}
