package ops

import (
	"testing"
	"time"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/subjects"
)

// Each noun describes its objects, one or several.
func TestDescriptions(t *testing.T) {
	s := newSite(t)
	s.serve("llama", "llama-next")
	s.answer()
	s.workers = []subjects.Heartbeat{clitest.Beat("gpu-1", subjects.Ready, 3, "llama"), clitest.Beat("gpu-2", subjects.Down, 0, "llama-next")}
	s.held = append(s.held, held("01", "llama", "batch", "queued", 5*time.Second), held("02", "llama", "batch", "running", time.Second))
	s.ok("route set chat --to llama=9 --to llama-next --mirror llama-next=5 --fallback llama --fallback-after 20s --restore-model")
	s.ok("route set gpt-* --to llama")
	s.ok("key add --tenant acme --tier batch,standard --rpm 600 --expires 720h")
	s.ok("key add --tenant other")
	ids := map[string]string{} // by tenant
	for id, k := range s.keys() {
		ids[k.Tenant] = id
	}
	s.story(
		step{"route info chat", 0, `route           chat
to              llama 90%, llama-next 10%
fallback        llama
mirror          llama-next 5%
fallback after  20s of waiting, expected or actual
sticky by       session
answers have    the model's name as the client asked for it

pools
POOL        USE        STATE      WORKERS  IN FLIGHT  WAITING
llama       90%        ready            1          1        1
llama-next  10%        no worker        0          0        0
llama-next  mirror 5%  no worker        0          0        0
llama       fallback   ready            1          1        1
`},
		step{"route info gpt-*", 0, `route  gpt-\*\nto     llama\n.*`},
		step{"route info gpt-4", 3, `pulley: no route "gpt-4"; did you mean "gpt-\*"\?\n`},
		step{"model ls", 0, `MODEL       STATE      SERVED BY                  WORKERS  SLOTS  IN FLIGHT  WAITING
chat        ready      llama 90%, llama-next 10%        1      8          1        1
llama       ready      llama                            1      8          1        1
llama-next  no worker  llama-next                       0      0          0        0
`},
		step{"model info gpt-4o", 0, `model      gpt-4o\nstate      ready\nroute      gpt-\*\nserved by  llama\n.*gpu-1.*`},
		step{"model info llama-next chat", 0, `model      llama-next\nstate      no worker\nroute      none: .*gpu-2  down.*\n\nmodel           chat\n.*`},
		step{"model info lama", 3, `pulley: no model "lama"; did you mean "llama"\?\n`},
		step{"tier info batch", 0, `tier       batch\norder      3 of 3\n.*storage    file\n.*waiting    1\nin flight  1\nkeys       ` + ids["acme"] + `\n\nqueues\n.*llama .*`},
		step{"tier info standard -o json", 0, `{.*"name": "standard".*"order": 2,.*"queues": \[.*`},
		step{"tier info batsh", 3, `pulley: no tier "batsh"; did you mean "batch"\?\n`},
		step{"key info " + ids["acme"], 0, `key             ` + ids["acme"] + `\ntenant          acme\nstate           active\ntiers           batch, standard\nmodels          all\nrequests        600 per minute\ntokens          no limit\n.*expires         .*, in (29|30)d.*tenant has now  1 waiting, 1 in flight\n`},
		step{"key info " + ids["other"] + " -o yaml", 0, `id: ` + ids["other"] + `\n.*tenant_waiting: 0\n.*`},
		step{"key info nosuch", 3, `pulley: no key "nosuch"; .*`},
		step{"route rm chat gpt-* --force", 0, `route chat removed, policy revision 3\nroute gpt-\* removed, policy revision 3\n`},
		step{"pool pause llama llama-next", 0, `pool llama paused, policy revision 4\npool llama-next paused, policy revision 4\n`},
		step{"pool resume llama nosuch", 3, `.*no pool "nosuch".*`},
		step{"model info llama", 0, `model      llama\nstate      paused\n.*`},
		step{"pool rm llama llama-next --force", 0, `pool llama reset to defaults, policy revision 5\npool llama-next reset to defaults, policy revision 5\n`},
		step{"request cancel " + s.held[0].ID + " " + s.held[1].ID + " --force", 0, `request \S+01 cancelled\nrequest \S+02 cancelled\n`},
	)
}
