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

// A request is found by the id that its client gave it, also if that looks like one of ours; one that two requests share is
// ambiguous, and an id of ours goes first.
func TestRequestByTheClientsID(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.answer()
	own := []string{"", "order-7", "9b2f66aa-6d3c-4b8e-8f0e-0d8d3a6d5f10", "twice", "twice", ""}
	for i, id := range own {
		r := held("0"+string(rune('1'+i)), "llama", "standard", "queued", time.Second)
		r.ClientID = id
		r.Deadline = time.Now().Add(time.Hour)
		s.held = append(s.held, r)
	}
	s.held[0].ClientID = s.held[5].ID
	s.story(
		step{"request info order-7", 0, `request +0197b2f0-7d4c-7e1a-9a4e-3f1c5be2a902\n(?s:.*)client's id +order-7\n(?s:.*)`},
		step{"request info 9b2f66aa-6d3c-4b8e-8f0e-0d8d3a6d5f10", 0, `request +\S+a903\n(?s:.*)`},
		step{"request info " + s.held[5].ID, 0, `request +\S+a906\n(?s:.*)`},
		step{"request info twice", 2, `pulley: request twice is ambiguous: it may be \S+a904 or \S+a905\nrun .*`},
		step{"request info order", 3, `pulley: no request order in progress: .*`},
		step{"request info ORDER-7", 3, `pulley: no request ORDER-7 in progress: .*`},
		step{"request cancel order-7 --force", 0, `request 0197b2f0-7d4c-7e1a-9a4e-3f1c5be2a902 cancelled\n`},
		step{"request ls -o wide", 0, `ID.* CLIENT ID .*\n(?s:.*) order-7 (?s:.*)`},
	)
}
