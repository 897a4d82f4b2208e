package ops

import (
	"testing"
)

func TestRoutes(t *testing.T) {
	s := newSite(t)
	s.serve("llama", "llama-next")
	s.story(
		step{"route ls", 0, "no routes: each model is served by the pool of its name\n"},
		step{"route set gpt-4o --to llama --restore-model", 0, "route gpt-4o created, policy revision 1\n"},
		step{"route set chat --to llama=90% --to llama-nxt=10", 0, `route chat created, policy revision 2\nwarning: no worker has ever served pool llama-nxt; did you mean "llama-next"\?\n`},
		step{"route set chat --to llama=3 --to llama-next --fallback llama --fallback-after 20s --mirror llama-next=5 --sticky-by tenant", 0, "route chat changed, policy revision 3\n"},
		step{"route set chat --mirror=", 0, "route chat changed, policy revision 4\n"},
		step{"route set chat --sticky-by tenant", 0, "route chat unchanged\n"},
		step{"route ls -o wide", 0, `MODEL   TO                         FALLBACK  FALLBACK AFTER  STICKY BY  RESTORE MODEL
chat    llama 75%, llama-next 25%  llama                20s  tenant     no
gpt-4o  llama                      -                      -  session    yes
`},
		step{"route set new --mirror llama", 2, "pulley: missing flag: --to \\(route new does not exist yet\\)\nrun .*"},
		step{"route set chat --to llama=x", 2, `pulley: --to "llama=x": "x" is not a number: must be POOL or POOL=WEIGHT\nrun .*`},
		step{"route set chat --to =1", 2, `pulley: --to "=1": the pool is missing: must be .*`},
		step{"route set chat --to llama=0", 2, `pulley: --to: the weights add up to 0: nothing would be served\nrun .*`},
		step{"route set chat --mirror llama=101", 2, `pulley: --mirror: 101: must be above 0 and at most 100\nrun .*`},
		step{"route set chat --sticky-by ip", 2, `pulley: --sticky-by: "ip": must be session, tenant or none\nrun .*`},
		step{"route rm chta --force", 3, `pulley: no route "chta"; did you mean "chat"\?\n`},
		step{"route rm chat", 4, "pulley: remove route chat, so that its requests go to pool chat: needs a confirmation, and standard input is not a terminal; use --force to skip it\n"},
		step{"route rm chat --force", 0, "route chat removed, policy revision 5\n"},
	)
	if _, there := s.policy().Routes["chat"]; there {
		t.Error("route chat is still there")
	}
}

// The name of a pool may contain =.
func TestParsePart(t *testing.T) {
	tests := []struct {
		text   string
		pool   string
		number float64
		fails  bool
	}{
		{"a", "a", 7, false}, {"a=3", "a", 3, false}, {"a=b=0.5", "a=b", 0.5, false}, {"org/m:7b=10%", "org/m:7b", 10, false},
		{"a=b", "", 0, true}, {"=1", "", 0, true}, {"a=", "", 0, true}, {"a=NaN", "", 0, true}, {"a=Inf", "", 0, true},
	}
	for _, tt := range tests {
		pool, n, err := parsePart(tt.text, 7)
		if (err != nil) != tt.fails || err == nil && (pool != tt.pool || n != tt.number) {
			t.Errorf("parsePart(%q) = %q, %g, %v; want %q, %g", tt.text, pool, n, err, tt.pool, tt.number)
		}
	}
}
