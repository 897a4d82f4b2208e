package main

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/subjects"
)

func TestQueueList(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.story(step{"queue ls", 0, "no queues; they appear with the first worker\n"})
	s.serve("llama", "qwen")
	s.ok("pool pause qwen")
	s.put("standard", "llama", "gw", "{}")
	s.story(step{"queue ls --tier standard", 0, `POOL   TIER      WAITING  OLDEST   MAX  RUNNING  BIDS  STATE
llama  standard        1       -  2000        0     0  -
qwen   standard        0       -  2000        0     0  paused\n`})
	s.answer()
	s.held = []subjects.RequestDetail{held("01", "llama", "standard", "queued", 8*time.Second), held("02", "llama", "standard", "queued", 3*time.Second),
		held("03", "llama", "standard", "answering", time.Minute)}
	s.story(
		step{"queue ls --pool llama", 0, `POOL   TIER      WAITING  OLDEST    MAX  RUNNING  BIDS
llama  priority        0       -   2000        0     0
llama  standard        2    8\.0s   2000        1     0
llama  batch           0       -  10000        0     0\n`},
		step{"queue ls --pool llama --tier standard -o wide", 0, `POOL   TIER      LANE    IN BROKER  RUNNING  BIDS\nllama  standard  shared          1        0     0\n`},
	)
}

func TestQueuePeek(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve("llama")
	s.answer()
	first := s.put("batch", "llama", "gw", "tell me of dragons")
	second := s.put("standard", "llama", "gw", "second")
	running := s.put("standard", "llama", "gw", "is running")
	s.held = []subjects.RequestDetail{{RequestInfo: subjects.RequestInfo{ID: running, State: "running"}}}
	out := s.ok("queue peek llama")
	if !regexp.MustCompile(`(?s)^WAITS .*` + first + ` +batch +acme +llama +7 +18 B +59m.*` + second + ` +standard .*`).MatchString(out) {
		t.Errorf("queue peek:\n%s", out)
	}
	if strings.Contains(out, running) {
		t.Errorf("queue peek shows a request that runs:\n%s", out)
	}
	for args, shows := range map[string]bool{"queue peek llama -o json": false, "queue peek llama": false,
		"queue peek llama --tier batch --show-body": true, "queue peek llama -n 1 --show-body -o yaml": true} {
		if out := s.ok(args); strings.Contains(out, "dragons") != shows {
			t.Errorf("%s shows a body: %v, want %v\n%s", args, !shows, shows, out)
		}
	}
	s.story(
		step{"queue peek lama", 3, `pulley: no pool "lama"; did you mean "llama"\?\n`},
		step{"queue peek llama --tier gold", 3, `pulley: no tier "gold"; see .*`},
		step{"queue peek llama -n 0", 2, `pulley: --number 0: want 1 or more\nrun .*`},
	)
	if out := s.ok("queue peek llama -o json"); strings.Count(out, `"id"`) != 2 {
		t.Errorf("peeking took something:\n%s", out)
	}
}

func TestQueuePurge(t *testing.T) {
	s := newSite(t)
	s.serve("llama")
	s.answer()
	s.put("standard", "llama", "gone-gateway", "orphan")
	s.put("standard", "llama", "gw", "the gateway's own business")
	s.put("batch", "llama", "gone-gateway", "orphan")
	s.story(
		step{"queue purge llama --tier standard", 4, `pulley: drop all requests of pool llama, tier standard that wait: there is no terminal to ask on; say --force\n`},
		step{"queue purge lama --force", 3, `pulley: no pool "lama".*`},
		step{"queue purge llama --tier standard --force", 0, "3 requests dropped, and 1 that no gateway knew\n"},
	)
	if got := s.wasOrdered(); got != "purge llama standard" {
		t.Errorf("the gateway was told %q", got)
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
