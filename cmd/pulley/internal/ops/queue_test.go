package ops

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/subjects"
)

func TestQueueList(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.story(step{"queue ls", 0, "no queues: they appear with the first worker\n"})
	s.serve("llama", "qwen")
	s.ok("pool pause qwen")
	s.put("standard", "llama", "gw", "{}")
	s.story(step{"queue ls --tier standard", 0, `POOL   TIER      WAITING  OLDEST  MAX QUEUE  IN FLIGHT  BIDS  STATE
llama  standard        1       -       2000          0     0  -
qwen   standard        0       -       2000          0     0  paused\n`})
	s.answer()
	s.held = []subjects.RequestDetail{held("01", "llama", "standard", "queued", 8*time.Second), held("02", "llama", "standard", "queued", 3*time.Second),
		held("03", "llama", "standard", "answering", time.Minute)}
	s.story(
		step{"queue ls --pool llama", 0, `POOL   TIER      WAITING  OLDEST  MAX QUEUE  IN FLIGHT  BIDS
llama  priority        0       -       2000          0     0
llama  standard        2    8\.0s       2000          1     0
llama  batch           0       -      10000          0     0\n`},
		step{"queue ls --pool llama --tier standard -o wide", 0, `POOL   TIER      LANE    IN BROKER  IN FLIGHT  BIDS\nllama  standard  shared          1          0     0\n`},
	)
}

func TestQueuePurge(t *testing.T) {
	s := newSite(t)
	s.serve("llama")
	s.answer()
	s.put("standard", "llama", "gone-gateway", "orphan")
	s.put("standard", "llama", "gw", "the gateway's own business")
	s.put("batch", "llama", "gone-gateway", "orphan")
	s.story(
		step{"queue purge llama --tier standard", 4, `pulley: drop all waiting requests of pool llama, tier standard: needs a confirmation, and standard input is not a terminal; use --force to skip it\n`},
		step{"queue purge lama --force", 3, `pulley: no pool "lama".*`},
		step{"queue purge llama --tier standard --force", 0, "3 requests dropped, and 1 of gateways that are gone\n"},
	)
	if got := s.takeOrders(); got != "purge llama standard" {
		t.Errorf("the gateway received %q", got)
	}
	for tier, want := range map[string]uint64{"standard": 1, "batch": 1} {
		stream, err := s.js.Stream(t.Context(), subjects.ReqStream(tier))
		if err != nil {
			t.Fatal(err)
		}
		if got := stream.CachedInfo().State.Msgs; got != want {
			t.Errorf("%d requests left in %s, want %d", got, tier, want)
		}
	}
}

// A prune removes what nobody waits for, and nothing else.
func TestQueuePrune(t *testing.T) {
	s := newSite(t)
	s.serve("llama", "qwen")
	s.answer()
	s.put("standard", "llama", "gone-gateway", "orphan")
	s.put("standard", "qwen", "gone-gateway", "orphan")
	s.put("batch", "llama", "gone-gateway", "orphan")
	s.put("standard", "llama", "gw", "the gateway's own business")
	for _, name := range []string{"OLD", "OLDER"} {
		if _, err := s.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "PULLEY_REQ_" + name, Subjects: []string{"pulley.req." + strings.ToLower(name) + ".>"}, AllowMsgTTL: true}); err != nil {
			t.Fatal(err)
		}
	}
	s.put("older", "llama", "gw", "{}")
	s.story(
		step{"queue prune", 4, `pulley: remove the waiting requests of gateways that are gone, and .*: needs a confirmation, .*`},
		step{"queue prune --force", 0, `3 requests of gateways that are gone removed\nstream PULLEY_REQ_OLD removed\nwarning: the stream PULLEY_REQ_OLDER remains, since it has 1 request; .*`},
		step{"queue prune --force", 0, `0 requests of gateways that are gone removed\nwarning: the stream PULLEY_REQ_OLDER remains.*`},
	)
	for tier, want := range map[string]uint64{"standard": 1, "batch": 0} {
		stream, err := s.js.Stream(t.Context(), subjects.ReqStream(tier))
		if err != nil {
			t.Fatal(err)
		}
		if got := stream.CachedInfo().State.Msgs; got != want {
			t.Errorf("%d requests left in %s, want %d", got, tier, want)
		}
	}
}
