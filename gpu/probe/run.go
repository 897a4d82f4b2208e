//go:build linux && cgo

package probe

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/pulley-lb/pulley/gpu"
)

// Run prints a [gpu.Reading] as a line of JSON each interval, and at once when a GPU reports an error, until in ends or
// ctx does, which is not an error. If NVML does not work, or stops working, it prints a last line that says why and
// returns that failure: only a new process can use a new driver.
//
// It is meant to be all that a process does. A call that hangs in the driver leaves its goroutine
// behind when Run returns, and NVML may still crash the process.
func Run(ctx context.Context, in io.Reader, out io.Writer, cfg Config) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ends with in, or with the process
		io.Copy(io.Discard, in)
		cancel()
	}()
	p := &probe{cfg: cfg, out: bufio.NewWriter(out), host: host{"/"}, lookup: os.LookupEnv}
	p.cfg.Interval = cmp.Or(cfg.Interval, time.Second)
	started := make(chan *gpu.Failure, 1)
	go func() { started <- p.start() }() // hangs with the driver
	select {
	case <-ctx.Done():
		return nil
	case f := <-started:
		if f != nil {
			return p.fail(f)
		}
	}
	return p.run(ctx)
}

// probe collects what the goroutines of the GPUs read. Everything except lib and host is owned by run.
type probe struct {
	cfg    Config
	out    *bufio.Writer
	host   host
	lookup func(string) (string, bool)

	lib     *library
	load    string
	reading gpu.Reading // the values that do not change
	gpus    [][]gpu.Snapshot
	watches []bool
	fresh   []bool      // read since the last line
	xids    [][]gpu.XID // since the last line
}

// news is a message from a GPU's goroutines.
type news struct {
	index   int
	gpus    []gpu.Snapshot // nil: no change
	urgent  bool
	watches bool
	xid     *gpu.XID
	err     error // NVML has stopped working
}

// start loads NVML and counts the GPUs.
func (p *probe) start() *gpu.Failure {
	p.load = p.host.load()
	var f *gpu.Failure
	if p.lib, f = openLibrary(p.cfg.Library, p.host); f != nil {
		return f
	}
	count := value(newAsker(p.lib, nil), p.lib.DeviceGetCount, "nvmlDeviceGetCount_v2", "nvmlDeviceGetCount")
	if count == nil {
		return &gpu.Failure{Kind: gpu.Other, Detail: "NVML does not return the number of GPUs"}
	}
	if *count == 0 {
		return &gpu.Failure{Kind: gpu.NoGPU, Detail: "NVML reports no GPU"}
	}
	p.reading.Driver = p.lib.text("nvmlSystemGetDriverVersion", p.lib.SystemGetDriverVersion)
	p.reading.NVML = p.lib.text("nvmlSystemGetNVMLVersion", p.lib.SystemGetNVMLVersion)
	p.gpus, p.xids = make([][]gpu.Snapshot, *count), make([][]gpu.XID, *count)
	p.watches, p.fresh = make([]bool, *count), make([]bool, *count)
	return nil
}

// firstLineWithin is how long the first line waits for all GPUs to answer.
const firstLineWithin = 10 * time.Second

// run starts the goroutines of the GPUs and prints what they read. It prints a line when all GPUs
// have been read again, each interval if some do not answer, and at once after an error.
func (p *probe) run(ctx context.Context) error {
	reports := make(chan news)
	for i := range p.gpus {
		hurry := make(chan struct{}, 1)
		// They end with ctx, unless a call hangs: run must not wait for them.
		go p.readLoop(ctx, i, reports, hurry)
		go p.watchLoop(ctx, i, reports, hurry)
	}
	start := time.Now()
	tick := time.NewTicker(p.cfg.Interval)
	defer tick.Stop()
	for {
		due := false
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if load := p.host.load(); load != p.load {
				return p.fail(&gpu.Failure{Kind: gpu.Other, Detail: "the driver was reloaded"})
			}
			due = slices.Contains(p.fresh, false)
		case n := <-reports:
			if n.err != nil {
				return p.fail(gpu.Diagnose(n.err))
			}
			p.record(n)
			due = n.urgent || n.xid != nil || !slices.Contains(p.fresh, false)
		}
		if partial := slices.ContainsFunc(p.gpus, func(g []gpu.Snapshot) bool { return g == nil }); due && (!partial || time.Since(start) > firstLineWithin) {
			if err := p.print(partial); err != nil {
				return err
			}
		}
	}
}

func (p *probe) record(n news) {
	if n.gpus != nil {
		p.gpus[n.index], p.fresh[n.index] = n.gpus, true
	} else {
		p.watches[n.index] = n.watches
	}
	if n.xid != nil {
		p.xids[n.index] = append(p.xids[n.index], *n.xid)
	}
}

// print writes a line.
func (p *probe) print(partial bool) error {
	r := p.reading
	r.At, r.Partial = time.Now(), partial
	var all []gpu.Snapshot
	var devices []gpu.Device
	for i, gpus := range p.gpus {
		if gpus == nil {
			gpus = []gpu.Snapshot{{Device: gpu.Device{Index: i}, Load: p.load}}
		}
		for _, s := range gpus {
			s.WatchesXIDs = p.watches[i]
			s.XIDs = slices.DeleteFunc(slices.Clone(p.xids[i]), func(x gpu.XID) bool { return !x.Within(s.Device) })
			all = append(all, s)
			devices = append(devices, s.Device)
		}
	}
	r.GPUs = all
	if !p.cfg.All {
		var visible []gpu.Device
		visible, r.Notes = gpu.Visible(devices, p.lookup)
		r.GPUs = make([]gpu.Snapshot, 0, len(visible))
		for _, d := range visible {
			i := slices.IndexFunc(devices, func(o gpu.Device) bool { return o.Index == d.Index && o.UUID == d.UUID })
			r.GPUs = append(r.GPUs, all[i])
		}
	}
	if len(r.GPUs) == 0 {
		r.Failure = &gpu.Failure{Kind: gpu.NoneVisible, Detail: fmt.Sprintf("NVML reports %d", len(p.gpus))}
	}
	clear(p.fresh)
	clear(p.xids)
	return p.write(r)
}

func (p *probe) write(r gpu.Reading) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	p.out.Write(b)
	p.out.WriteByte('\n')
	return p.out.Flush()
}

// fail prints the last line.
func (p *probe) fail(f *gpu.Failure) error {
	if err := p.write(gpu.Reading{At: time.Now(), Failure: f}); err != nil {
		return err
	}
	return f
}

// readLoop reads a GPU each interval, and at once after a message on hurry.
func (p *probe) readLoop(ctx context.Context, index int, reports chan<- news, hurry <-chan struct{}) {
	g := &gpuReader{lib: p.lib, host: p.host, index: index, load: p.load}
	tick := time.NewTicker(p.cfg.Interval)
	defer tick.Stop()
	urgent := false
	for {
		gpus, err := g.read(urgent)
		select {
		case reports <- news{index: index, gpus: gpus, urgent: urgent, err: err}:
		case <-ctx.Done():
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			urgent = false
		case <-hurry:
			urgent = true
		}
	}
}

// waitForXID is how long one call waits for an XID. watchAgain is the pause after a failed call,
// which on a lost GPU fails at once.
const (
	waitForXID = time.Second
	watchAgain = time.Second
)

// watchLoop waits for the XIDs of a GPU. Those from before it has started are never reported.
func (p *probe) watchLoop(ctx context.Context, index int, reports chan<- news, hurry chan<- struct{}) {
	send := func(n news) {
		n.index = index
		select {
		case reports <- n:
		case <-ctx.Done():
		}
	}
	for ctx.Err() == nil {
		set, ok := p.watch(index)
		if ok {
			send(news{watches: true})
			p.await(ctx, set, func(x gpu.XID) {
				send(news{watches: true, xid: &x})
				poke(hurry)
			}, func() { poke(hurry) })
			set.Free()
			send(news{watches: false})
		}
		select {
		case <-ctx.Done():
		case <-time.After(10 * watchAgain):
		}
	}
}

func poke(hurry chan<- struct{}) {
	select {
	case hurry <- struct{}{}:
	default:
	}
}

// watch registers for the XIDs of a GPU.
func (p *probe) watch(index int) (nvml.EventSet, bool) {
	if p.lib.lacks([]string{"nvmlEventSetCreate"}) || p.lib.lacks([]string{"nvmlEventSetFree"}) ||
		p.lib.lacks([]string{"nvmlDeviceRegisterEvents"}) || p.lib.lacks([]string{"nvmlEventSetWait_v2", "nvmlEventSetWait"}) {
		return nil, false
	}
	a := newAsker(p.lib, nil)
	dev := value(a, func() (nvml.Device, nvml.Return) { return p.lib.DeviceGetHandleByIndex(index) }, "nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetHandleByIndex")
	if dev == nil {
		return nil, false
	}
	types := value(a, (*dev).GetSupportedEventTypes, "nvmlDeviceGetSupportedEventTypes")
	if types == nil || *types&nvml.EventTypeXidCriticalError == 0 {
		return nil, false
	}
	set, ret := p.lib.EventSetCreate()
	if ret != nvml.SUCCESS {
		return nil, false
	}
	if (*dev).RegisterEvents(nvml.EventTypeXidCriticalError, set) != nvml.SUCCESS {
		set.Free()
		return nil, false
	}
	return set, true
}

// await reports the XIDs of a set until the set stops working.
func (p *probe) await(ctx context.Context, set nvml.EventSet, happened func(gpu.XID), failed func()) {
	for failures := 0; failures < 3 && ctx.Err() == nil; {
		event, ret := set.Wait(uint32(waitForXID.Milliseconds()))
		switch {
		case ret == nvml.ERROR_TIMEOUT:
			failures = 0
		case ret != nvml.SUCCESS:
			failures++
			failed()
			select {
			case <-ctx.Done():
			case <-time.After(watchAgain):
			}
		case event.EventType&nvml.EventTypeXidCriticalError != 0:
			failures = 0
			happened(gpu.XID{At: time.Now(), Code: int(event.EventData), GPUInstance: partID(event.GpuInstanceId), ComputeInstance: partID(event.ComputeInstanceId)})
		}
	}
}

// partID is the id of a part of a GPU; nil for all of it.
func partID(id uint32) *int {
	if id == 0xFFFFFFFF {
		return nil
	}
	return new(int(id))
}
