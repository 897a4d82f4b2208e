package ops

import (
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/subjects"
)

func TestRequests(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.answer()
	first := held("01", "llama", "standard", "running", 90*time.Second)
	first.Header = map[string][]string{"Authorization": {"Bearer sk-pulley-secret"}, "X-Color": {"red\x1b[31m"}}
	first.Body, first.BodySize, first.Deadline = []byte("tell me\nof \x1b[31mdragons"), 500, time.Now().Add(time.Hour)
	s.held = []subjects.RequestDetail{first, held("02", "llama", "batch", "queued", 5*time.Second)}
	s.story(
		step{"request ls", 0, `ID +POOL +TIER +TENANT +STATE +WORKER +ATTEMPT +QUEUED +AGE +BYTES OUT
0197b2f0-7d4c-7e1a-9a4e-3f1c5be2a901 +llama +standard +acme +running +gpu-1 +1 +1m30s +1m30s +0 B
0197b2f0-7d4c-7e1a-9a4e-3f1c5be2a902 +llama +batch +acme +queued +- +0 +5\.0s +5\.0s +0 B\n`},
		step{"request ls --older 30s --worker gpu-1 --tenant acme", 0, `ID.*\n\S+901 .*`},
		step{"request ls --tier batch --state queued --pool llama", 0, `ID.*\n\S+902 .*`},
		step{"request ls --pool qwen", 0, "none of 2 requests matches\n"},
		step{"request ls --state dead", 2, `pulley: --state "dead": must be queued, running or answering\nrun .*`},
		step{"request info 0197", 2, `pulley: request 0197 is ambiguous: it may be 0197b2f0-7d4c-7e1a-9a4e-3f1c5be2a901 or .*902\nrun .*`},
		step{"request info abc", 3, `pulley: no request abc in progress: it has ended, or went to another broker; .*`},
		step{"request info 0197b2f0-7d4c-7e1a-9a4e-3f1c5be2a9ff", 3, `pulley: no request .*`},
		step{"request cancel a902", 4, `pulley: cancel request 0197b2f0-7d4c-7e1a-9a4e-3f1c5be2a902: needs a confirmation, .*`},
		step{"request cancel a902 --force", 0, `request 0197b2f0-7d4c-7e1a-9a4e-3f1c5be2a902 cancelled\n`},
		step{"request cancel 0197b2f0-7d4c-7e1a-9a4e-3f1c5be2a9ff --force", 3, `pulley: no request .*`},
	)
	if got := s.takeOrders(); !strings.HasPrefix(got, "cancel 0197b2f0-7d4c-7e1a-9a4e-3f1c5be2a902 by ") {
		t.Errorf("the gateway received %q", got)
	}
	for _, output := range []string{"table", "json", "yaml"} {
		out := s.ok("request info 901 -o " + output)
		if strings.Contains(out, "dragons") || strings.Contains(out, "sk-pulley") || strings.Contains(out, "\x1b") {
			t.Errorf("request info -o %s shows too much:\n%s", output, out)
		}
		if out := s.ok("request info 901 --show-body -o " + output); !strings.Contains(out, "tell me") {
			t.Errorf("request info --show-body -o %s:\n%s", output, out)
		}
	}
}
