package worker

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// board is a machine with one GPU, at work or not.
type board struct {
	utilization int
	lost        string // see gpu.Snapshot
}

func (b *board) Latest() (gpu.Reading, time.Duration) {
	s := gpu.Snapshot{
		Device: gpu.Device{UUID: "GPU-1"}, At: time.Now(), State: gpu.Fresh, Lost: b.lost,
		Utilization: &gpu.Utilization{GPU: b.utilization},
	}
	return gpu.Reading{State: gpu.Fresh, GPUs: []gpu.Snapshot{s}}, 0
}

// reading is the board's last sample.
func (b *board) reading() *gpu.Reading {
	r, _ := b.Latest()
	return &r
}

// A GPU that is idle beside a long request says that the engine has stalled, but
// not of an engine that was never seen to use it.
func TestStallIsOfAGPUThatWorked(t *testing.T) {
	for what, test := range map[string]struct {
		before  int // utilization
		stalled bool
	}{
		"it worked before":      {60, true},
		"it never did anything": {0, false},
	} {
		t.Run(what, func(t *testing.T) {
			b := &board{utilization: test.before}
			c := newCapacity(Config{Slots: 64, NVML: b})
			now := time.Now()
			c.begin(new(slot), "m", true, now)
			running := runningAttempts{oldest: now}
			c.look(b.reading(), workload{}, running, 0, 0, now)
			b.utilization = 0
			c.look(b.reading(), workload{}, running, 0, 0, now.Add(time.Second))
			if why := c.stallLocked(running, now.Add(time.Second+stalledFirst)); (why != "") != test.stalled {
				t.Errorf("%q, stalled: %v", why, test.stalled)
			}
		})
	}
}

// GPUs that gpus= names and the machine lacks are reported once, in the log too.
func TestGPUsThatAreNotThere(t *testing.T) {
	var log bytes.Buffer
	w := connected(t, Config{Slots: 64, NVML: &board{}, GPUs: []string{"7"}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	for i := range 3 {
		w.lookAtCapacity(time.Now().Add(time.Duration(i) * time.Second))
	}
	if f := w.capacity.gpus.nvml.Failure; f == nil || f.Kind != gpu.NotThere {
		t.Errorf("failure %v, want %s", f, gpu.NotThere)
	}
	if n := strings.Count(log.String(), "gpus=7"); n != 1 {
		t.Errorf("reported %d times, want once:\n%s", n, &log)
	}
}

// A GPU that is named twice is there all the same, and one of two that is absent
// is not made up for by another.
func TestRequiredGPUsByName(t *testing.T) {
	for what, test := range map[string]struct {
		names []string
		blind bool
	}{
		"by index and by UUID":  {[]string{"0", "GPU-1"}, false},
		"twice":                 {[]string{"0", "0"}, false},
		"one there, one absent": {[]string{"0", "7"}, true},
	} {
		t.Run(what, func(t *testing.T) {
			b := new(board)
			c := newCapacity(Config{Slots: 64, NVML: b, GPUs: test.names, NVMLRequired: true})
			c.look(b.reading(), workload{}, runningAttempts{}, 0, 0, time.Now())
			if got := c.blindLocked(); got != test.blind {
				t.Errorf("without word of its GPUs: %v", got)
			}
		})
	}
}

// Each fence has a class, which the heartbeat carries while the worker is fenced.
func TestFencesHaveAClass(t *testing.T) {
	for what, test := range map[string]struct {
		cfg   Config
		event func(w *Worker, b *board)
		class gpu.FenceClass
		why   string // in the reason
	}{
		"nothing is wrong": {Config{}, func(*Worker, *board) {}, "", ""},
		"a GPU is lost":    {Config{}, func(_ *Worker, b *board) { b.lost = "is lost" }, gpu.FenceLost, "is lost"},
		"NVML is required": {Config{NVMLRequired: true, GPUs: []string{"7"}}, func(*Worker, *board) {}, subjects.FenceNVML, "NVML is required"},
		"a suspect GPU":    {Config{}, func(w *Worker, _ *board) { w.capacity.fence.suspect = "GPU 0: XID 31" }, gpu.FenceXID, "XID 31"},
		"the engine has stalled": {Config{}, func(w *Worker, b *board) {
			ago := time.Now().Add(-time.Minute)
			w.capacity.begin(new(slot), "m", true, ago)
			w.attempts.begin(newAttempt(nil, &subjects.Request{}, task{}, ago))
			w.capacity.startedAt, b.utilization = ago, 0
			w.capacity.gpus.worked, w.capacity.gpus.idleSince = true, ago
		}, subjects.FenceStalled, "has stalled"},
	} {
		t.Run(what, func(t *testing.T) {
			b := &board{utilization: 50}
			cfg := test.cfg
			cfg.NVML = b
			w := connected(t, cfg)
			w.onListing(engine.Listing{Status: 200, Models: []string{"m"}, Asked: time.Now()})
			test.event(w, b)
			w.lookAtCapacity(time.Now())
			h := w.heartbeat(time.Now())
			if h.FenceClass != test.class || (h.State == subjects.Fenced) != (test.class != "") || !strings.Contains(h.Reason, test.why) {
				t.Errorf("the heartbeat says %s %q, class %q, want class %q", h.State, h.Reason, h.FenceClass, test.class)
			}
			if ld := w.load(time.Now()); ld.open != (test.class == "") {
				t.Errorf("takes new requests: %v", ld.open)
			}
			w.presence.follow(true, 0)
			if h := w.heartbeat(time.Now()); h.State != subjects.Cordoned || h.FenceClass != "" {
				t.Errorf("cordoned, the heartbeat says %s, class %q", h.State, h.FenceClass)
			}
		})
	}
}

// A fence goes up and comes down once, and says for how long it was up.
func TestAFenceIsReportedOnce(t *testing.T) {
	b := &board{utilization: 50}
	c := newCapacity(Config{Slots: 4, NVML: b, Profile: policy.GivenSlots})
	now := time.Now()
	look := func(after time.Duration) fenceChange {
		_, change := c.look(b.reading(), workload{}, runningAttempts{}, 0, 0, now.Add(after))
		return change
	}
	if change := look(0); change.changed {
		t.Errorf("at the start: %+v", change)
	}
	c.mu.Lock()
	c.fence.suspect, c.fence.suspected = "GPU 0: XID 31", now
	c.mu.Unlock()
	if change := look(time.Second); !change.changed || change.reason == "" || c.load().free != 0 || c.load().open {
		t.Errorf("a suspect GPU: %+v, %+v", change, c.load())
	}
	if change := look(2 * time.Second); change.changed {
		t.Errorf("it goes up twice: %+v", change)
	}
	if change := c.onListing(true, now.Add(-time.Second), runningAttempts{}, now.Add(3*time.Second)); change.changed {
		t.Errorf("an answer from before the event lifts it: %+v", change)
	}
	if change := c.onListing(false, now.Add(time.Second), runningAttempts{}, now.Add(3*time.Second)); change.changed {
		t.Errorf("a question without an answer lifts it: %+v", change)
	}
	change := c.onListing(true, now.Add(time.Second), runningAttempts{}, now.Add(3*time.Second))
	if !change.changed || change.reason != "" || change.lasted != 2*time.Second {
		t.Errorf("the engine answers: %+v", change)
	}
	if look(4 * time.Second); c.load().free != 4 || !c.load().open {
		t.Errorf("afterwards %+v", c.load())
	}
}
