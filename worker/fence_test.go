package worker

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/subjects"
)

// board is a machine with one GPU, at work or not.
type board struct{ utilization int }

func (b *board) Latest() (gpu.Reading, time.Duration) {
	s := gpu.Snapshot{Device: gpu.Device{UUID: "GPU-1"}, At: time.Now(), State: gpu.Fresh, Utilization: &gpu.Utilization{GPU: b.utilization}}
	return gpu.Reading{State: gpu.Fresh, GPUs: []gpu.Snapshot{s}}, 0
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
			w := connected(t)
			b := &board{test.before}
			w.cfg.NVML = b
			w.serve([]served{{"m", "m"}})
			w.mu.Lock()
			defer w.mu.Unlock()
			now := time.Now()
			w.beginLocked(nil, w.lanes[0], now)
			w.lookAtGPUsLocked(now)
			b.utilization = 0
			w.lookAtGPUsLocked(now.Add(time.Second))
			if why := w.stallLocked(now.Add(time.Second + stalledFirst)); (why != "") != test.stalled {
				t.Errorf("%q, stalled: %v", why, test.stalled)
			}
		})
	}
}

// GPUs that gpus= names and the machine lacks are told of once, in the log too.
func TestGPUsThatAreNotThere(t *testing.T) {
	w := connected(t)
	var log bytes.Buffer
	w.log = slog.New(slog.NewTextHandler(&log, nil))
	w.cfg.NVML, w.cfg.GPUs = &board{}, []string{"7"}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range 3 {
		w.lookAtGPUsLocked(time.Now().Add(time.Duration(i) * time.Second))
	}
	if f := w.room.nvml.Failure; f == nil || f.Kind != gpu.NotThere {
		t.Errorf("failure %v, want %s", f, gpu.NotThere)
	}
	if n := strings.Count(log.String(), "gpus=7"); n != 1 {
		t.Errorf("told %d times, want once:\n%s", n, &log)
	}
}

func TestWhatIsSilentForTooLong(t *testing.T) {
	now := time.Now()
	ago := func(s int) time.Time { return now.Add(-time.Duration(s) * time.Second) }
	for what, test := range map[string]struct {
		set    func(w *Worker, a *attempt)
		silent bool
	}{
		"a stream, for less than the stall timeout": {func(_ *Worker, a *attempt) { a.req.Stream, a.lastByte = true, ago(119) }, false},
		"a stream, for more":                        {func(_ *Worker, a *attempt) { a.req.Stream, a.lastByte = true, ago(121) }, true},
		"an answer that is not streamed":            {func(_ *Worker, a *attempt) { a.lastByte = ago(1000) }, false},
		"the engine has been down for long":         {func(w *Worker, a *attempt) { a.lastByte, w.downAt = ago(60), ago(11) }, true},
		"it has missed a question":                  {func(w *Worker, a *attempt) { a.lastByte, w.downAt = ago(60), ago(1) }, false},
		"down, but the client has some of it":       {func(w *Worker, a *attempt) { a.lastByte, a.firstByte, w.downAt = ago(60), ago(60), ago(11) }, false},
		"fenced for long": {func(w *Worker, a *attempt) {
			w.state, w.room.fence, w.room.fencedAt, a.lastByte = subjects.Ready, "XID 79", ago(11), ago(60)
		}, true},
		"fenced for want of word of the GPUs": {func(w *Worker, a *attempt) {
			w.state, w.room.fence, w.room.fencedAt, a.lastByte = subjects.Ready, "NVML is required", ago(11), ago(60)
			w.cfg.NVMLRequired = true
		}, false},
	} {
		t.Run(what, func(t *testing.T) {
			w := connected(t)
			a := &attempt{req: &subjects.Request{}}
			test.set(w, a)
			if got := w.silentLocked(a, now); got != test.silent {
				t.Errorf("%v, want %v", got, test.silent)
			}
		})
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
			w := connected(t)
			w.cfg.NVML, w.cfg.GPUs, w.cfg.NVMLRequired = &board{}, test.names, true
			w.room.signals.NVMLRequired = true
			w.mu.Lock()
			defer w.mu.Unlock()
			w.lookAtGPUsLocked(time.Now())
			if got := w.blindLocked(); got != test.blind {
				t.Errorf("without word of its GPUs: %v", got)
			}
		})
	}
}
