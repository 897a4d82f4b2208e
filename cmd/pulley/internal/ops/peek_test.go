package ops

import (
	"regexp"
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/subjects"
)

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
	if !regexp.MustCompile(`(?s)^WAITING .*` + first + ` +batch +acme +llama +7 +18 B +59m.*` + second + ` +standard .*`).MatchString(out) {
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
		step{"queue peek llama -n 0", 2, `pulley: --number 0: must be 1 or more\nrun .*`},
	)
	if out := s.ok("queue peek llama -o json"); strings.Count(out, `"id"`) != 2 {
		t.Errorf("peeking took something:\n%s", out)
	}
}
