package ops

import (
	"maps"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

func TestWorkers(t *testing.T) {
	s := newSite(t)
	s.answer()
	down := clitest.Beat("gpu-2", subjects.Down, 0, "llama", "qwen")
	down.Reason = "connection refused"
	s.workers = []subjects.Heartbeat{down, clitest.Beat("gpu-1", subjects.Ready, 3, "llama")}
	s.story(
		step{"worker ls", 0, `NAME   STATE  ENGINE  IN FLIGHT  RUNG  DONE  FAILED  POOLS        REASON
gpu-1  ready  vllm          3/8     0    12       0  llama        -
gpu-2  down   vllm          0/8   0-1    12       0  llama, qwen  connection refused\n`},
		step{"worker info gpu-1", 0, `worker   gpu-1\nid       gpu-1-00ff\nstate    ready\n.*slots    8, 3 in flight, .*pool llama\nnext bid  rung 0 .*measured  nothing yet: .*`},
		step{"worker info gpu-2-", 0, `worker   gpu-2\n.*state    down \(connection refused\)\n.*`},
		step{"worker info gpu", 2, `pulley: worker gpu is ambiguous: it may be gpu-1-00ff or gpu-2-00ff\nrun .*`},
		step{"worker info gpv-1", 3, `pulley: no worker "gpv-1"; did you mean "gpu-1"\?\n`},
		step{"worker cordon gpu-1", 0, `worker gpu-1 cordoned, policy revision 1\n`},
		step{"worker cordon gpu-1-0", 0, `worker gpu-1 already cordoned, policy revision 1\n`},
		step{"worker cordon gpu-1 gpu-9", 3, `pulley: no worker "gpu-9".*`},
		step{"worker weight gpu-1 2.5", 0, `worker gpu-1 changed, policy revision 2\n`},
		step{"worker weight gpu-1 heavy", 2, `pulley: weight "heavy": not a number; .*`},
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

// One command does the same to several workers, in one revision of the policy, or to none of them.
func TestSeveralWorkers(t *testing.T) {
	s := newSite(t)
	s.answer()
	s.workers = []subjects.Heartbeat{clitest.Beat("gpu-1", subjects.Ready, 0, "llama"), clitest.Beat("gpu-2", subjects.Ready, 0, "llama"), clitest.Beat("gpu-3", subjects.Ready, 0, "llama")}
	s.story(
		step{"worker cordon gpu-1 gpu-2", 0, `worker gpu-1 cordoned, policy revision 1\nworker gpu-2 cordoned, policy revision 1\n`},
		step{"worker cordon gpu-3 gpu-2", 0, `worker gpu-3 cordoned, policy revision 2\nworker gpu-2 already cordoned, policy revision 2\n`},
		step{"worker uncordon gpu-1 gpu-9 gpu-2", 3, `pulley: no worker "gpu-9".*`},
		step{"worker uncordon gpu-1 gpu-2", 0, `worker gpu-1 uncordoned, policy revision 3\nworker gpu-2 uncordoned, policy revision 3\n`},
		step{"worker info gpu-1 gpu-3", 0, `worker   gpu-1\n.*\n\nworker   gpu-3\n.*`},
		step{"worker info gpu-1 gpu-3 -o json", 0, `\[\n  {\n.*gpu-1.*gpu-3.*\]\n`},
		step{"worker info gpu-1 -o json", 0, `{\n.*gpu-1.*}\n`},
		step{"worker drain gpu-1 gpu-2", 4, `pulley: drain 2 workers: gpu-1, gpu-2, so that they finish their requests and exit: needs a confirmation, .*`},
		step{"worker drain gpu-1 gpu-2 --force", 1, `pulley: drain worker gpu-1: no answer; .*\ndrain worker gpu-2: no answer; .*`},
	)
	if got, want := s.policy().Workers, (map[string]policy.Worker{"gpu-3": {Cordoned: true}}); !maps.Equal(got, want) {
		t.Errorf("policy %+v, want %+v", got, want)
	}
	left := make(chan string, 2)
	for _, h := range s.workers[:2] { // each leaves once both were told to
		sub, err := s.nc.Subscribe(subjects.WorkerDrain(h.Worker), func(m *nats.Msg) {
			respondJSON(m, subjects.Outcome{From: h.Worker})
			if left <- h.Worker; len(left) == 2 {
				for range 2 {
					id := <-left
					b, err := subjects.Marshal(subjects.Heartbeat{Worker: id, State: subjects.Left})
					if err != nil {
						t.Error(err)
					}
					s.nc.Publish(subjects.Heartbeats(id), b)
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		defer sub.Unsubscribe()
	}
	s.nc.Flush()
	s.story(step{"worker drain gpu-1 gpu-2 --force", 0, `worker gpu-1 has left after .*\nworker gpu-2 has left after .*\n`})
}

func TestWorkersWithRoom(t *testing.T) {
	s := newSite(t)
	s.answer()
	a, b := clitest.BeatOn("node-1", "a", subjects.Ready, clitest.GPU(0)), clitest.BeatOn("node-2", "b", subjects.Fenced, clitest.GPU(2, clitest.Lost))
	a.Capacity = &subjects.Capacity{Profile: "balanced", Total: 16, Bound: policy.BoundKV, Headroom: 0.08, Limit: 21.7}
	b.Reason = "GPU 2: XID 79 (fallen off the bus)"
	b.Capacity = &subjects.Capacity{Profile: "latency", Bound: policy.BoundFence}
	b.Slots, b.InFlight = 0, 0
	s.workers = []subjects.Heartbeat{a, b}
	s.story(step{"worker ls", 0, `NAME  STATE   ENGINE  IN FLIGHT  BOUND  RUNG  DONE  FAILED  POOLS  REASON
a     ready   vllm         3/16  kv        0    12       0  llama  -
b     fenced  vllm          0/0  fence     0    12       0  llama  GPU 2: XID 79 \(fallen off the bus\)\n`})
	wide := s.ok("worker ls -o wide")
	for _, want := range []string{"HEADROOM  PROFILE   LIMIT  GPUS", "8%  balanced     21  0 ", "0%  latency       -  2 fenced"} {
		if !strings.Contains(wide, want) {
			t.Errorf("no %q in\n%s", want, wide)
		}
	}
}
