package chaos_test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/chaos"
)

// calm is a history of ten seconds with 200 requests of 20 tokens, each answered by the engine of its turn.
func calm() *chaos.History {
	h := &chaos.History{Format: chaos.Format, Seed: 3, Brokers: 1, Gateways: 2, Pace: 0.02, Ended: 12}
	for i := range 4 {
		h.Engines = append(h.Engines, chaos.Slots{Engine: fmt.Sprintf("engine-%d", i), Slots: 12})
	}
	for i := range 200 {
		id, at := fmt.Sprintf("r%d", i), chaos.Seconds(i)/20
		h.Requests = append(h.Requests, chaos.Request{
			ID: id, Gateway: fmt.Sprintf("gateway-%d", i%2), Stream: true, Tokens: 20, Got: 20,
			Sent: at, First: at + 0.03, End: at + 0.42, Pause: 0.02, PauseEnd: at + 0.1, Outcome: chaos.Answered, Status: 200,
		})
		h.Runs = append(h.Runs, chaos.Execution{Request: id, Engine: fmt.Sprintf("engine-%d", i%4), Start: at + 0.01, End: at + 0.41, How: chaos.Finished})
	}
	return h
}

// crowd has so many more requests run on the other engines all the time.
func crowd(h *chaos.History, n int) {
	for i := range n {
		id := fmt.Sprintf("x%d", i)
		h.Requests = append(h.Requests, chaos.Request{ID: id, Gateway: "gateway-1", Stream: true, Tokens: 500, Got: 500, Sent: 0, First: 0.03, End: 10, Outcome: chaos.Answered, Status: 200})
		h.Runs = append(h.Runs, chaos.Execution{Request: id, Engine: "engine-1", Start: 0.01, End: 9.99, How: chaos.Finished})
	}
}

// Each rule finds what it is for, and a fault excuses what it may do and nothing else.
func TestCheck(t *testing.T) {
	// Request 100 is sent at 5 s; it is at gateway-0 and engine-0.
	const n = 100
	strike := func(h *chaos.History, kind, target string, start, healed chaos.Seconds) {
		h.Faults = append(h.Faults, chaos.Fault{Kind: kind, Target: target, Start: start, Healed: healed, Effect: "seen"})
	}
	broken := func(h *chaos.History) {
		h.Requests[n].Outcome, h.Requests[n].Got, h.Requests[n].End = chaos.Broken, 10, 5.2
		h.Runs[n].How, h.Runs[n].End = chaos.Failed, 5.2
	}
	tests := map[string]struct {
		change func(*chaos.History)
		want   []chaos.Rule
	}{
		"a calm run":                   {func(*chaos.History) {}, nil},
		"a request without an outcome": {func(h *chaos.History) { h.Requests[n].Outcome = "" }, []chaos.Rule{chaos.RuleLost}},
		"a client that gave up":        {func(h *chaos.History) { h.Requests[n].Outcome = chaos.Lost }, []chaos.Rule{chaos.RuleLost}},
		"a client that gave up, with a free worker": {func(h *chaos.History) {
			h.Requests[n].Outcome, h.Requests[n].End, h.Runs[n].Request = chaos.Lost, 9, "another"
		}, []chaos.Rule{chaos.RuleLost, chaos.RuleStalled}},
		"a wrong token":                {func(h *chaos.History) { h.Requests[n].Outcome = chaos.Wrong }, []chaos.Rule{chaos.RuleWrong}},
		"a part as if it were all":     {func(h *chaos.History) { h.Requests[n].Outcome = chaos.Truncated }, []chaos.Rule{chaos.RuleTruncated}},
		"something after the end":      {func(h *chaos.History) { h.Requests[n].Outcome = chaos.Repeated }, []chaos.Rule{chaos.RuleRepeated}},
		"a stream that breaks in calm": {broken, []chaos.Rule{chaos.RuleBroken}},
		"a stream that breaks with its worker": {func(h *chaos.History) {
			broken(h)
			strike(h, "worker-kill", "worker-0", 5.2, 6)
		}, nil},
		"a stream that breaks with another worker": {func(h *chaos.History) {
			broken(h)
			strike(h, "worker-kill", "worker-1", 5.2, 6)
		}, []chaos.Rule{chaos.RuleBroken}},
		"an answer that breaks with its worker, before its first token": {func(h *chaos.History) {
			broken(h)
			h.Requests[n].First, h.Requests[n].Got = 0, 0
			strike(h, "worker-kill", "worker-0", 5.2, 6)
		}, []chaos.Rule{chaos.RuleBroken}},
		"a stream that breaks with a broker": {func(h *chaos.History) {
			broken(h)
			strike(h, "broker-kill", "broker-0", 5.2, 6)
		}, []chaos.Rule{chaos.RuleBroken}},
		"a stream that breaks with its gateway": {func(h *chaos.History) {
			broken(h)
			strike(h, "gateway-kill", "gateway-0", 5.2, 6)
		}, nil},
		"a stream that breaks with a gateway that leaves": {func(h *chaos.History) {
			broken(h)
			strike(h, "gateway-restart", "gateway-0", 5.2, 6)
		}, []chaos.Rule{chaos.RuleBroken}},
		"a refusal in calm": {func(h *chaos.History) {
			h.Requests[n].Outcome, h.Requests[n].Status, h.Requests[n].Code = chaos.Refused, 503, "queue_unavailable"
			h.Runs[n].End, h.Runs[n].How = 5.2, chaos.Aborted
		}, []chaos.Rule{chaos.RuleRefused}},
		"a refusal after two workers died": {func(h *chaos.History) {
			h.Requests[n].Outcome, h.Requests[n].Status, h.Requests[n].Code, h.Requests[n].End = chaos.Refused, 502, "dead_lettered", 6
			h.Runs[n].End, h.Runs[n].How = 5.2, chaos.Aborted
			h.Runs = append(h.Runs, chaos.Execution{Request: "r100", Engine: "engine-2", Start: 5.5, End: 5.9, How: chaos.Aborted})
			strike(h, "worker-kill", "worker-0", 5.2, 5.4)
			strike(h, "worker-kill", "worker-2", 5.9, 6.4)
		}, nil},
		"an answer from nowhere": {func(h *chaos.History) { h.Runs[n].Request = "another" }, []chaos.Rule{chaos.RuleNoRun}},
		"a start after the end": {func(h *chaos.History) {
			h.Runs = append(h.Runs, chaos.Execution{Request: "r100", Engine: "engine-2", Start: 8, End: 8.01, How: chaos.Aborted})
		}, []chaos.Rule{chaos.RuleLateStart}},
		"a start after the end, by a worker that was frozen": {func(h *chaos.History) {
			h.Runs = append(h.Runs, chaos.Execution{Request: "r100", Engine: "engine-2", Start: 8, End: 8.01, How: chaos.Aborted})
			strike(h, "worker-freeze", "worker-2", 5, 8)
		}, nil},
		"a cancelled request that starts when the broker is back": {func(h *chaos.History) {
			h.Requests[n].Outcome, h.Requests[n].Kind, h.Requests[n].End = chaos.Cancelled, chaos.KindCancel, 5.2
			h.Runs[n].Start, h.Runs[n].End, h.Runs[n].How = 7, 7.01, chaos.Aborted
			strike(h, "broker-freeze", "broker-0", 5, 6.9)
		}, nil},
		"a refused request that starts when the broker is back": {func(h *chaos.History) {
			h.Requests[n].Outcome, h.Requests[n].End = chaos.Refused, 6.2
			h.Runs[n].Start, h.Runs[n].End, h.Runs[n].How = 7, 7.01, chaos.Aborted
			strike(h, "broker-outage", "broker-0", -15, 6.9)
		}, []chaos.Rule{chaos.RuleRefusedRun}},
		"a batch request that waits for the disk": {func(h *chaos.History) {
			h.Requests[n].Tier, h.Requests[n].End, h.Requests[n].First, h.Runs[n].Start, h.Runs[n].End = "batch", 9, 8.6, 8.6, 9
			strike(h, "disk-full", "broker-0", 5, 8)
		}, nil},
		"another request that waits for the disk": {func(h *chaos.History) {
			h.Requests[n].End, h.Requests[n].First, h.Runs[n].Start, h.Runs[n].End = 9, 8.6, 8.6, 9
			strike(h, "disk-hang", "broker-0", 5, 8)
		}, []chaos.Rule{chaos.RuleStalled}},
		"a batch request that a full disk refuses": {func(h *chaos.History) {
			h.Requests[n].Tier, h.Requests[n].Outcome, h.Requests[n].Status = "batch", chaos.Refused, 503
			h.Runs[n].End, h.Runs[n].How = 5.2, chaos.Aborted
			strike(h, "disk-full", "broker-0", -6, 7)
		}, nil},
		"another request that a full disk refuses": {func(h *chaos.History) {
			h.Requests[n].Outcome, h.Requests[n].Status = chaos.Refused, 503
			h.Runs[n].End, h.Runs[n].How = 5.2, chaos.Aborted
			strike(h, "disk-full", "broker-0", -6, 7)
		}, []chaos.Rule{chaos.RuleRefused}},
		"a request that waits while a cluster whose disk is full elects": {func(h *chaos.History) {
			h.Brokers = 3
			h.Requests[n].End, h.Requests[n].First, h.Runs[n].Start, h.Runs[n].End = 9, 8.6, 8.6, 9
			strike(h, "disk-full", "broker-0", 5, 12)
		}, nil},
		"a batch request that waits after a cluster whose disk is full has elected": {func(h *chaos.History) {
			h.Brokers = 3
			h.Requests[n].Tier, h.Requests[n].End, h.Requests[n].First, h.Runs[n].Start, h.Runs[n].End = "batch", 9, 8.6, 8.6, 9
			strike(h, "disk-full", "broker-0", 0.5, 12)
		}, []chaos.Rule{chaos.RuleStalled}},
		"a batch request that a cluster with a full disk refuses": {func(h *chaos.History) {
			h.Brokers = 3
			h.Requests[n].Tier, h.Requests[n].Outcome, h.Requests[n].Status = "batch", chaos.Refused, 503
			h.Runs[n].End, h.Runs[n].How = 5.2, chaos.Aborted
			strike(h, "disk-full", "broker-0", -6, 7)
		}, []chaos.Rule{chaos.RuleRefused}},
		"a batch request that waits for a second while next to nothing runs": {func(h *chaos.History) {
			h.Requests[n].Tier, h.Requests[n].End, h.Requests[n].First, h.Runs[n].Start, h.Runs[n].End = "batch", 7, 6.6, 6.6, 7
		}, []chaos.Rule{chaos.RuleStalled}},
		"a batch request that waits while half of the slots are taken": {func(h *chaos.History) {
			h.Requests[n].Tier, h.Requests[n].End, h.Requests[n].First, h.Runs[n].Start, h.Runs[n].End = "batch", 7, 6.6, 6.6, 7
			crowd(h, 12)
		}, nil},
		"another request that waits while half of the slots are taken": {func(h *chaos.History) {
			h.Requests[n].End, h.Requests[n].First, h.Runs[n].Start, h.Runs[n].End = 7, 6.6, 6.6, 7
			crowd(h, 12)
		}, []chaos.Rule{chaos.RuleStalled}},
		"one that waits while two engines are gone, and the others full": {func(h *chaos.History) {
			h.Requests[n].End, h.Requests[n].First, h.Runs[n].Start, h.Runs[n].End = 9.6, 9.2, 9.2, 9.6
			crowd(h, 18)
			strike(h, "poison", "engines", 5, 9)
		}, nil},
		"a cancelled request that runs on": {func(h *chaos.History) {
			h.Requests[n].Outcome, h.Requests[n].Kind, h.Requests[n].End = chaos.Cancelled, chaos.KindCancel, 5.2
			h.Runs[n].End = 8
		}, []chaos.Rule{chaos.RuleRunsOn}},
		"a cancelled request that stops": {func(h *chaos.History) {
			h.Requests[n].Outcome, h.Requests[n].Kind, h.Requests[n].End = chaos.Cancelled, chaos.KindCancel, 5.2
			h.Runs[n].End, h.Runs[n].How = 5.3, chaos.Aborted
		}, nil},
		"two engines at once": {func(h *chaos.History) {
			h.Runs = append(h.Runs, chaos.Execution{Request: "r100", Engine: "engine-2", Start: 5.1, End: 5.4, How: chaos.Finished})
		}, []chaos.Rule{chaos.RuleTwice}},
		"two engines at once, after the first hung": {func(h *chaos.History) {
			h.Runs = append(h.Runs, chaos.Execution{Request: "r100", Engine: "engine-2", Start: 5.1, End: 5.4, How: chaos.Finished})
			strike(h, "engine-hang", "engine-0", 5, 8)
		}, nil},
		"four runs": {func(h *chaos.History) {
			h.Requests[n].End = 6
			h.Runs[n].End = 5.15
			h.Runs[n].How = chaos.Failed
			for _, i := range []chaos.Seconds{0, 1, 2} {
				h.Runs = append(h.Runs, chaos.Execution{Request: "r100", Engine: "engine-2", Start: 5.2 + i*0.2, End: 5.35 + i*0.2, How: chaos.Finished})
			}
		}, []chaos.Rule{chaos.RuleTooOften}},
		"a poison that crashes three": {func(h *chaos.History) {
			r := &h.Requests[n]
			r.Kind, r.Outcome, r.Status, r.NoRetry = chaos.KindPoison, chaos.Refused, 502, true
			for range 2 {
				h.Runs = append(h.Runs, chaos.Execution{Request: "r100", Engine: "engine-2", Start: 5.2, End: 5.2, How: chaos.Failed})
			}
			h.Runs[n].How = chaos.Failed
		}, []chaos.Rule{chaos.RulePoison}},
		"a poison that may be sent again": {func(h *chaos.History) {
			r := &h.Requests[n]
			r.Kind, r.Outcome, r.Status = chaos.KindPoison, chaos.Refused, 502
		}, []chaos.Rule{chaos.RulePoison}},
		"a request that waits while workers are free": {func(h *chaos.History) {
			h.Runs[n].Start, h.Runs[n].End, h.Requests[n].First, h.Requests[n].End = 8, 8.4, 8.02, 8.41
		}, []chaos.Rule{chaos.RuleStalled}},
		"a request that waits while all are busy": {func(h *chaos.History) {
			h.Runs[n].Start, h.Runs[n].End, h.Requests[n].First, h.Requests[n].End = 8, 8.4, 8.02, 8.41
			for i := range 48 {
				h.Runs = append(h.Runs, chaos.Execution{Request: "probe", Engine: fmt.Sprintf("engine-%d", i%4), Start: 4, End: 9, How: chaos.Finished})
			}
		}, nil},
		"a request that waits for a broker": {func(h *chaos.History) {
			h.Runs[n].Start, h.Runs[n].End, h.Requests[n].First, h.Requests[n].End = 8, 8.4, 8.02, 8.41
			strike(h, "broker-outage", "brokers", 4.9, 6)
		}, nil},
		"an answer whose end is late": {func(h *chaos.History) { h.Requests[n].End = 8 }, []chaos.Rule{chaos.RuleStalled}},
		"a stream that pauses": {func(h *chaos.History) {
			h.Requests[n].Pause, h.Requests[n].PauseEnd, h.Requests[n].End, h.Runs[n].End = 2, 7.2, 7.5, 7.5
		}, []chaos.Rule{chaos.RuleStalled}},
		"no answers after a fault": {func(h *chaos.History) {
			strike(h, "worker-kill", "worker-0", 5.0, 5.5)
			for i := range h.Requests { // what was to come within 4 s comes later, a little at a time
				if r := &h.Requests[i]; r.Sent > 4.6 && r.Sent < 9 {
					r.Kind, r.Outcome = chaos.KindCancel, chaos.Cancelled
				}
			}
		}, []chaos.Rule{chaos.RuleRecovery}},
		"messages that stay":    {func(h *chaos.History) { h.Left.Waiting = 2 }, []chaos.Rule{chaos.RuleLeft}},
		"too many dead letters": {func(h *chaos.History) { h.Left.Dead = 1 }, []chaos.Rule{chaos.RuleLeft}},
		"a fault without effect": {func(h *chaos.History) {
			h.Faults = []chaos.Fault{{Kind: "engine-error", Target: "engine-1", Start: 5, Healed: 6, Err: "no effect"}}
		}, []chaos.Rule{chaos.RuleUnverified}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			h := calm()
			test.change(h)
			var got []chaos.Rule
			found := chaos.Check(h)
			for _, v := range found {
				got = append(got, v.Rule)
			}
			slices.Sort(got)
			if got = slices.Compact(got); !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q: %v", got, test.want, found)
			}
		})
	}
}

// A history that is kept says the same again.
func TestHistoryIsKept(t *testing.T) {
	h := calm()
	h.Requests[7].Outcome, h.Requests[7].Detail = chaos.Wrong, "token 3"
	file := filepath.Join(t.TempDir(), "history.json")
	if err := h.Save(file); err != nil {
		t.Fatal(err)
	}
	again, err := chaos.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	var before, after bytes.Buffer
	if err := chaos.NewReport(h).WriteText(&before); err != nil {
		t.Fatal(err)
	}
	if err := chaos.NewReport(again).WriteText(&after); err != nil {
		t.Fatal(err)
	}
	if before.String() != after.String() || !strings.Contains(after.String(), "1 violations") {
		t.Errorf("before:\n%s\nafter:\n%s", &before, &after)
	}
}

// A seed decides the plan, and every kind comes once before one comes twice.
func TestPlan(t *testing.T) {
	plan := func(seed uint64) (all []chaos.Strike) {
		next := chaos.Plan(seed, chaos.Kinds(), chaos.Topology{Brokers: 3}, 4e9)
		for range 2 * len(chaos.Kinds()) {
			all = append(all, next())
		}
		return all
	}
	one := plan(1)
	if !slices.Equal(one, plan(1)) {
		t.Error("the same seed has another plan")
	}
	if slices.Equal(one, plan(2)) {
		t.Error("another seed has the same plan")
	}
	seen := make(map[string]bool)
	for _, s := range one[:len(chaos.Kinds())] {
		seen[s.Kind] = true
	}
	if len(seen) != len(chaos.Kinds()) {
		t.Errorf("%d kinds of %d in the first turn", len(seen), len(chaos.Kinds()))
	}
}
