package fleet_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/subjects"
)

func TestOnce(t *testing.T) {
	for about, c := range map[string]struct{ reports, want string }{ // gateway, event, and the seconds that have passed
		"one gateway":                             {"A:up/0 A:down/1 A:up/2 A:up/2", "up down up up"},
		"two gateways":                            {"A:up/0 B:up/0 B:down/1 A:down/2", "up down"},
		"in another order":                        {"A:down/0 A:up/0 B:up/0 B:down/0", "down up"},
		"twice, at two gateways":                  {"A:up/0 A:down/1 B:up/1 A:up/2 B:down/2 B:up/3 A:down/3 B:down/4", "up down up down"},
		"three gateways, one is behind":           {"A:up/0 B:up/0 A:up/1 B:up/1 C:up/2 C:up/2", "up up"},
		"one gateway has not seen the first":      {"A:up/0 A:up/3 B:up/3", "up up"},
		"again after a while, by the other alone": {"A:up/0 B:up/0 B:up/11", "up up"},
		"a queue stays full":                      {"A:full/0 B:full/5 A:full/10 B:full/15 A:full/20", "full full full"},
		"a third gateway later":                   {"A:up/0 B:up/9 C:up/18", "up"},
	} {
		var once fleet.Once
		var got []string
		for r := range strings.FieldsSeq(c.reports) {
			gateway, rest, _ := strings.Cut(r, ":")
			text, after, _ := strings.Cut(rest, "/")
			seconds := 0
			fmt.Sscan(after, &seconds)
			now := clitest.Noon.Add(time.Duration(seconds) * time.Second)
			if once.IsNew(subjects.Event{At: now, Kind: subjects.EventWorkerState, From: "gateway " + gateway, Worker: "w", Text: text}, now) {
				got = append(got, text)
			}
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %s, want %s", about, strings.Join(got, " "), c.want)
		}
	}
	var once fleet.Once
	for i, e := range []subjects.Event{ // all differ
		{Kind: subjects.EventFull, Pool: "a", Text: "full"}, {Kind: subjects.EventFull, Pool: "b", Text: "full"}, {Kind: subjects.EventFull, Pool: "a", Tier: "batch", Text: "full"},
		{Kind: subjects.EventDead, Request: "1"}, {Kind: subjects.EventDead, Request: "2"}, {Kind: subjects.EventShift, Model: "m", Text: "10 %"}, {Kind: subjects.EventShift, Model: "m", Text: "20 %"},
	} {
		if e.From = fmt.Sprint("gateway ", i%2); !once.IsNew(e, clitest.Noon) {
			t.Errorf("%+v is a repeat", e)
		}
	}
}
