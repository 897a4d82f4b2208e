package fleet

import (
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// A bad engine is named with its reason, whatever is wrong with it.
func TestFindingsNameBadEngines(t *testing.T) {
	for want, h := range map[string]subjects.Heartbeat{
		"problem worker w is fenced: the engine has stalled":           {State: subjects.Fenced, Reason: "the engine has stalled", FenceClass: subjects.FenceHung},
		"problem worker w is fenced: the engine is frozen":             {State: subjects.Fenced, Reason: "the engine is frozen", FenceClass: subjects.FenceFrozen},
		"problem worker w: requests fail: m: an error with status 200": {State: subjects.Paused, Pools: []subjects.PoolStatus{{Pool: "m", Failing: "an error with status 200"}}},
		"problem worker w: requests fail: m: it hangs":                 {State: subjects.Ready, Pools: []subjects.PoolStatus{{Pool: "m", Vitality: subjects.VitalityHung, Failing: "it hangs"}, {Pool: "n"}}},
		"warning worker w gets few requests: m: nothing has come":      {State: subjects.Ready, Pools: []subjects.PoolStatus{{Pool: "m", Vitality: subjects.VitalitySuspect, Doubt: "nothing has come"}}},
		"warning worker w is busy: no answer to /health within 1s":     {State: subjects.Busy, Reason: "no answer to /health within 1s"},
		"problem worker w: engine down: connection refused":            {State: subjects.Down, Reason: "connection refused"},
		"": {State: subjects.Ready, Pools: []subjects.PoolStatus{{Pool: "m"}}},
	} {
		h.Worker, h.Name = "w", "w"
		s := &Snapshot{Workers: []WorkerStatus{{Heartbeat: h}}}
		var got []string
		for _, f := range s.FindWorkers() {
			got = append(got, string(f.Verdict)+" "+f.Text)
		}
		if strings.Join(got, "; ") != want {
			t.Errorf("%s %q: %q, want %q", h.State, h.Reason, got, want)
		}
	}
}

// A worker that differs from the others is a notice: nothing is wrong.
func TestFindingsNameUnlikeWorkers(t *testing.T) {
	slow := policy.Note{Kind: policy.NoteSlow, Text: "60ms for a token, 5.0 times the usual 12ms"}
	small := policy.Note{Kind: policy.NoteSmall, Text: "2 at once, where 16 are usual"}
	for want, h := range map[string]subjects.Heartbeat{
		"": {State: subjects.Ready, Pools: []subjects.PoolStatus{{Pool: "m"}}},
		"notice worker w: m: slow: 60ms for a token, 5.0 times the usual 12ms":                                          {State: subjects.Ready, Pools: []subjects.PoolStatus{{Pool: "m", Notes: []policy.Note{slow}}}},
		"notice worker w: m: slow: 60ms for a token, 5.0 times the usual 12ms; n: small: 2 at once, where 16 are usual": {State: subjects.Ready, Pools: []subjects.PoolStatus{{Pool: "m", Notes: []policy.Note{slow}}, {Pool: "n", Notes: []policy.Note{small}}}},
	} {
		h.Worker, h.Name = "w", "w"
		s := &Snapshot{Workers: []WorkerStatus{{Heartbeat: h}}}
		var got []string
		for _, f := range s.FindPeers() {
			got = append(got, string(f.Verdict)+" "+f.Text)
		}
		if strings.Join(got, "; ") != want {
			t.Errorf("%q, want %q", got, want)
		}
		if all := append(s.FindWorkers(), s.findAll()...); len(all) > 0 {
			t.Errorf("%v is wrong with it", all)
		}
	}
}
