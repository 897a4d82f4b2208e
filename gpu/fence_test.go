package gpu

import (
	"testing"
	"time"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func xids(codes ...int) []XID {
	var list []XID
	for i, c := range codes {
		list = append(list, XID{Seq: uint64(i + 1), At: noon, Code: c})
	}
	return list
}

func errorsOf(uncorrected uint64) *ECC { return &ECC{Uncorrected: &uncorrected} }

func TestSick(t *testing.T) {
	tests := map[string]struct {
		prev, now Snapshot
		reason    string
		class     FenceClass
		fatal     bool
	}{
		"a GPU without values is not sick": {},
		"lost":                             {now: Snapshot{Lost: "is lost"}, reason: "GPU is lost", class: FenceLost, fatal: true},
		"a reset is required":              {now: Snapshot{Lost: "requires a reset"}, reason: "GPU requires a reset", class: FenceResetRequired, fatal: true},
		"still lost":                       {prev: Snapshot{Lost: "is lost"}, now: Snapshot{Lost: "is lost"}, reason: "GPU is lost", class: FenceLost, fatal: true},
		"remapping failed":                 {now: Snapshot{Rows: &Rows{Failed: true}}, reason: "row remapping failed", class: FenceRowRemap, fatal: true},
		"a remap that is pending":          {now: Snapshot{Rows: &Rows{Uncorrectable: 1, Pending: true}}},
		"no recovery action":               {now: Snapshot{Recovery: new(RecoveryNone)}},
		"a recovery action":                {now: Snapshot{Recovery: new(RecoveryReset)}, reason: "the driver requests recovery: reset the GPU", class: FenceRecovery, fatal: true},
		"an unknown recovery action":       {now: Snapshot{Recovery: new(Recovery(7))}, reason: "the driver requests recovery: action 7", class: FenceRecovery, fatal: true},
		"XID 79":                           {now: Snapshot{XIDs: xids(79)}, reason: "XID 79 (fallen off the bus)", class: FenceXID, fatal: true},
		"XID 79 that was seen":             {prev: Snapshot{XIDs: xids(79)}, now: Snapshot{XIDs: xids(79)}},
		"a program's fault":                {now: Snapshot{XIDs: xids(31)}, reason: "XID 31 (memory page fault)", class: FenceXID},
		"a program's fault, then worse":    {prev: Snapshot{XIDs: xids(31)}, now: Snapshot{XIDs: xids(31, 95, 45)}, reason: "XID 95 (uncontained ECC error)", class: FenceXID, fatal: true},
		"all that programs do":             {now: Snapshot{XIDs: xids(13, 31, 43, 45, 109)}, reason: "XID 109 (context switch timeout)", class: FenceXID},
		"what means nothing":               {now: Snapshot{XIDs: xids(63, 68, 92, 154)}},
		"an unknown XID":                   {now: Snapshot{XIDs: xids(999)}, reason: "XID 999", class: FenceXID, fatal: true},
		"old ECC errors":                   {prev: Snapshot{ECC: errorsOf(2)}, now: Snapshot{ECC: errorsOf(2)}},
		"ECC errors of unknown age":        {now: Snapshot{ECC: errorsOf(2)}},
		"new ECC errors":                   {prev: Snapshot{ECC: errorsOf(2)}, now: Snapshot{ECC: errorsOf(3)}, reason: "uncorrectable ECC errors: 1 more", class: FenceECC, fatal: true},
		"a count that restarted":           {prev: Snapshot{ECC: errorsOf(2), Load: "a"}, now: Snapshot{ECC: errorsOf(3), Load: "b"}},
		"hot, and at its power limit":      {now: Snapshot{Throttle: new(ThrottleHardwareHeat | ThrottlePowerCap)}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if reason, isFatal := Sick(tt.prev, tt.now); reason != tt.reason || isFatal != tt.fatal {
				t.Errorf("Sick = %q, %v; want %q, %v", reason, isFatal, tt.reason, tt.fatal)
			}
			if got := faultOf(tt.prev, tt.now).class; got != tt.class {
				t.Errorf("class %q, want %q", got, tt.class)
			}
		})
	}
}

// at is a snapshot so many seconds after noon.
func at(seconds int, s Snapshot) Snapshot {
	s.At, s.State = noon.Add(time.Duration(seconds)*time.Second), Fresh
	if s.Load == "" {
		s.Load = "first load"
	}
	return s
}

func TestFenceComesDown(t *testing.T) {
	type step struct {
		snapshot Snapshot
		engine   int // when the engine was started, in seconds after noon
		fenced   bool
	}
	well := Snapshot{XIDs: xids(79)}
	tests := map[string][]step{
		"after an XID, with a restarted engine, when a minute has passed": {
			{at(0, well), -100, true}, {at(30, well), 10, true}, {at(59, well), 10, true}, {at(60, well), 10, false},
		},
		"not while the engine has not been restarted": {{at(0, well), -100, true}, {at(3600, well), -100, true}},
		"not on a stale snapshot":                     {{at(0, well), -1, true}, {Snapshot{At: noon.Add(time.Hour), State: Stale, XIDs: xids(79)}, 10, true}},
		"a minute after the last of several": {
			{at(0, Snapshot{XIDs: xids(94)}), -1, true},
			{at(50, Snapshot{XIDs: append(xids(94), XID{Seq: 2, At: noon.Add(50 * time.Second), Code: 94})}), 10, true},
			{at(109, Snapshot{XIDs: append(xids(94), XID{Seq: 2, At: noon.Add(50 * time.Second), Code: 94})}), 55, true},
			{at(110, Snapshot{XIDs: append(xids(94), XID{Seq: 2, At: noon.Add(50 * time.Second), Code: 94})}), 55, false},
		},
		"after ECC errors as after an XID": {
			{at(0, Snapshot{ECC: errorsOf(0)}), -1, false}, {at(1, Snapshot{ECC: errorsOf(1)}), -1, true},
			{at(62, Snapshot{ECC: errorsOf(1)}), 5, false},
		},
		"after a loss with a new driver only": {
			{at(0, Snapshot{Lost: "is lost"}), -1, true}, {at(100, Snapshot{}), 50, true}, {at(101, Snapshot{Load: "second load"}), 50, false},
		},
		"not with a new driver that sees the same": {
			{at(0, Snapshot{Rows: &Rows{Failed: true}}), -1, true}, {at(9, Snapshot{Load: "second load", Rows: &Rows{Failed: true}}), 5, true},
			{at(10, Snapshot{Load: "second load"}), 5, true},
		},
		"after an XID that a loss follows as after a loss": {
			{at(0, well), -1, true}, {at(1, Snapshot{XIDs: xids(79), Lost: "is lost"}), -1, true}, {at(100, well), 50, true},
			{at(101, Snapshot{XIDs: xids(79), Load: "second load"}), 50, false},
		},
	}
	for name, steps := range tests {
		t.Run(name, func(t *testing.T) {
			var f Fence
			for i, s := range steps {
				v := f.Judge(s.snapshot, noon.Add(time.Duration(s.engine)*time.Second))
				if v.Fenced != s.fenced || v.Fenced != (v.Reason != "") {
					t.Fatalf("step %d: %+v, want fenced %v", i, v, s.fenced)
				}
			}
		})
	}
}

func TestOperatorLiftsAFence(t *testing.T) {
	var f Fence
	f.Judge(at(0, Snapshot{Lost: "is lost"}), time.Time{})
	f.Lift()
	if v := f.Judge(at(1, Snapshot{}), time.Time{}); v.Fenced {
		t.Errorf("%+v, want it down", v)
	}
	if v := f.Judge(at(2, Snapshot{Lost: "is lost"}), time.Time{}); !v.Fenced || !v.Since.Equal(noon.Add(2*time.Second)) {
		t.Errorf("%+v, want it up again", v)
	}
}
