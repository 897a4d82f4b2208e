package ops

import (
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

func TestPools(t *testing.T) {
	s := newSite(t)
	s.story(step{"pool ls", 0, "no pools; they appear with the first worker\n"})
	s.serve("llama", "old")
	s.answer()
	down := clitest.Beat("gpu-2", subjects.Down, 0, "llama")
	down.Reason = "connection refused"
	s.workers = []subjects.Heartbeat{clitest.Beat("gpu-1", subjects.Ready, 3, "llama", "qwen"), down}
	s.held = []subjects.RequestDetail{held("01", "llama", "standard", "running", time.Second), held("02", "llama", "batch", "queued", 90*time.Second)}
	s.story(
		step{"pool set llama --balance sticky:weighted --stick hard=2m --spill qwen --spill old=4", 0, `pool llama changed, .*warning: .* qwen\n`},
		step{"pool ls -o wide", 0, `POOL   STATE      WORKERS  SLOTS  IN FLIGHT  WAITING  BALANCE   AFFINITY  STICK FOR  SPILL
llama  ready          1/2      8          1        1  weighted  session          2m  qwen \+2, old \+4
old    no worker        0      0          0        0  price     auto              -  -
qwen   ready            1      8          0        0  price     auto              -  -\n`},
	)
}

func TestPoolSettings(t *testing.T) {
	s := newSite(t)
	s.serve("llama")
	tests := []struct {
		args string
		want policy.Pool
	}{
		{"--balance least-loaded", policy.Pool{Balance: policy.LeastLoaded}},
		{"--balance sticky", policy.Pool{Balance: policy.LeastLoaded, Affinity: policy.AffinitySession}},
		{"--balance sticky:round-robin --stick hard", policy.Pool{Balance: policy.RoundRobin, Affinity: policy.AffinitySession, StickFor: policy.Duration(30 * time.Second)}},
		{"--stick hard=2m --balance price", policy.Pool{Balance: policy.Price, Affinity: policy.AffinitySession, StickFor: policy.Duration(2 * time.Minute)}},
		{"--stick-for 5s --spill qwen --spill eu=4", policy.Pool{Balance: policy.Price, Affinity: policy.AffinitySession, StickFor: policy.Duration(5 * time.Second),
			Spill: []policy.Spill{{Pool: "qwen", Penalty: 2}, {Pool: "eu", Penalty: 4}}}},
		{"--stick off --spill= --affinity off", policy.Pool{Balance: policy.Price, Affinity: policy.AffinityOff}},
	}
	for _, tt := range tests {
		s.ok("pool set llama " + tt.args)
		if got := s.policy().Pools["llama"]; jsonOf(t, got) != jsonOf(t, tt.want) {
			t.Errorf("pool set %s: %+v, want %+v", tt.args, got, tt.want)
		}
	}
	s.story(
		step{"pool set llama --stick-for 5s", 2, `pulley: --stick-for: needs affinity\nrun .*`},
		step{"pool set llama --balance fastest", 2, `pulley: --balance "fastest": must be price, .*`},
		step{"pool set llama --balance sticky:fastest", 2, `pulley: --balance "sticky:fastest": must be price, .*`},
		step{"pool set llama --affinity maybe", 2, `pulley: --affinity: "maybe": must be auto, session or off\nrun .*`},
		step{"pool set llama --stick soft", 2, `pulley: --stick "soft": must be hard, hard=DURATION or off\nrun .*`},
		step{"pool set llama --stick hard --stick-for 1s", 2, `pulley: --stick and --stick-for exclude each other\nrun .*`},
		step{"pool set llama --spill qwen=0.5", 2, `pulley: --spill "qwen=0.5": the number of rungs must be whole: must be POOL or POOL=RUNGS\nrun .*`},
		step{"pool set llama --spill llama", 2, `pulley: --spill: "llama": is the pool itself\nrun .*`},
		step{"pool set lama --balance weighted", 0, `pool lama changed, .*warning: no worker has ever served pool lama; did you mean "llama"\?\n`},
		step{"pool rm qwen --force", 3, `pulley: pool "qwen" has no settings\n`},
		step{"pool rm llama", 4, `pulley: reset pool llama to defaults: needs a confirmation, .*`},
		step{"pool rm llama --force", 0, `pool llama reset to defaults, policy revision \d+\n`},
	)
	s.ok("pool rm lama --force")
	s.ok("pool pause llama")
	if !s.policy().Pools["llama"].Paused {
		t.Error("the pool is not paused")
	}
	s.story(
		step{"pool pause llama", 0, `pool llama already paused, .*`},
		step{"pool resume llama", 0, `pool llama resumed, .*`},
		step{"pool resume llama", 0, `pool llama was not paused, .*`},
		step{"pool resume lamma", 3, `pulley: no pool "lamma"; did you mean "llama"\?\n`},
	)
	if pools := s.policy().Pools; len(pools) != 0 {
		t.Errorf("pools %v: a pool with default settings is not in the policy", pools)
	}
}

func TestPoolInfo(t *testing.T) {
	s := newSite(t)
	s.serve("llama")
	s.answer()
	first := clitest.Beat("gpu-1", subjects.Ready, 3, "llama")
	first.Pools[0].Curve = &policy.Curve{Prefill: &policy.Line{A: 0.05, B: 0.001}, ITL: &policy.Line{A: 0.01, B: 0.002}}
	first.Pools[0].Mean = policy.Mean{Input: 100, Output: 50, Samples: 9}
	s.workers = []subjects.Heartbeat{first}
	s.ok("route set chat --to llama")
	s.ok("route set safe --to qwen --fallback llama")
	out := s.ok("pool info llama")
	for _, want := range []string{"routes    chat, safe (fallback)\n", "gpu-1  ready          3      8     0       1       150 ms      18 ms\n", "batch           0       -      10000          0     0\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("pool info:\n%s\nwant %s", out, want)
		}
	}
	s.story(step{"pool info qwn", 3, `pulley: no pool "qwn".*`})
}
