//go:build linux && cgo

package probe

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/pulley-lb/pulley/gpu"
)

// gpuReader reads one GPU with its instances. It belongs to one goroutine.
type gpuReader struct {
	lib   *library
	host  host
	index int
	load  string

	board     *part // nil until the GPU has answered for the first time
	instances []*part
	round     int // how often the GPU was read
}

// part is a GPU or an instance of one, with its last snapshot.
type part struct {
	*asker
	gpu.Snapshot
}

// read returns the present snapshots of the GPU and its instances. urgent includes what changes slowly.
func (g *gpuReader) read(urgent bool) ([]gpu.Snapshot, error) {
	if g.board == nil || g.board.trouble || g.board.lost != "" || g.round%60 == 0 {
		g.identify()
	}
	if g.round%30 == 0 {
		g.readProcesses()
	}
	g.readOften()
	if urgent || g.round%10 == 0 {
		g.readSeldom()
	}
	g.round++
	if gone := g.board.gone; gone != 0 {
		return nil, failureToInit(gone, g.host)
	}
	return g.snapshots(), nil
}

// snapshots returns those of the GPU and its instances, which share the board's values.
func (g *gpuReader) snapshots() []gpu.Snapshot {
	now := time.Now()
	b := &g.board.Snapshot
	b.At, b.Load, b.Lost = now, g.load, g.board.lost
	if b.Lost != "" {
		*b = gpu.Snapshot{Device: b.Device, At: now, Load: g.load, Lost: b.Lost}
	}
	list := []gpu.Snapshot{*b}
	for _, p := range g.instances {
		s := *b
		s.Device, s.Memory, s.Processes, s.Utilization = p.Device, p.Memory, p.Processes, nil
		if b.Lost != "" {
			s.Memory, s.Processes = nil, nil
		}
		list = append(list, s)
	}
	return list
}

// identify asks for the GPU's identity. A lost GPU keeps the one it had.
func (g *gpuReader) identify() {
	fresh := newAsker(g.lib, nil)
	dev := value(fresh, func() (nvml.Device, nvml.Return) { return g.lib.DeviceGetHandleByIndex(g.index) },
		"nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetHandleByIndex")
	if g.board == nil {
		g.board = &part{asker: fresh, Snapshot: gpu.Snapshot{Device: gpu.Device{Index: g.index}}}
	}
	b := g.board
	b.lost, b.gone, b.trouble = fresh.lost, fresh.gone, fresh.trouble || dev == nil
	if dev == nil {
		return
	}
	b.dev = *dev
	uuid := value(b.asker, b.dev.GetUUID, "nvmlDeviceGetUUID")
	if uuid == nil {
		return
	}
	if *uuid != b.UUID { // another GPU has this index now
		refused := b.refused
		if b.UUID != "" {
			refused = make(map[string]refusal)
		}
		g.board = &part{asker: &asker{lib: g.lib, dev: b.dev, refused: refused}, Snapshot: gpu.Snapshot{Device: gpu.Device{Index: g.index, UUID: *uuid}}}
		b = g.board
	}
	if name := value(b.asker, b.dev.GetName, "nvmlDeviceGetName"); name != nil {
		b.Name = *name
	}
	if pci := value(b.asker, b.dev.GetPciInfo, "nvmlDeviceGetPciInfo_v3", "nvmlDeviceGetPciInfo_v2", "nvmlDeviceGetPciInfo"); pci != nil {
		id, _, _ := bytes.Cut(pci.BusId[:], []byte{0})
		b.BusID = string(id)
	}
	if arch := value(b.asker, b.dev.GetArchitecture, "nvmlDeviceGetArchitecture"); arch != nil {
		b.Architecture = architectures[*arch]
	}
	b.ask(func() nvml.Return {
		major, minor, ret := b.dev.GetCudaComputeCapability()
		if ret == nvml.SUCCESS {
			b.Compute = fmt.Sprintf("%d.%d", major, minor)
		}
		return ret
	}, "nvmlDeviceGetCudaComputeCapability")
	width := value(b.asker, b.dev.GetMemoryBusWidth, "nvmlDeviceGetMemoryBusWidth")
	clock := value(b.asker, func() (uint32, nvml.Return) { return b.dev.GetMaxClockInfo(nvml.CLOCK_MEM) }, "nvmlDeviceGetMaxClockInfo")
	if width != nil && clock != nil {
		b.Bandwidth = bandwidth(*width, *clock)
	}
	b.Split = false
	b.ask(func() nvml.Return {
		mode, _, ret := b.dev.GetMigMode()
		b.Split = ret == nvml.SUCCESS && mode == nvml.DEVICE_MIG_ENABLE
		return ret
	}, "nvmlDeviceGetMigMode")
	if memory := g.memory(b, !b.Split); memory != nil && !memory.Host {
		b.MemoryTotal = &memory.Total
	}
	g.identifyInstances()
}

var architectures = map[nvml.DeviceArchitecture]string{
	nvml.DEVICE_ARCH_KEPLER: "kepler", nvml.DEVICE_ARCH_MAXWELL: "maxwell", nvml.DEVICE_ARCH_PASCAL: "pascal",
	nvml.DEVICE_ARCH_VOLTA: "volta", nvml.DEVICE_ARCH_TURING: "turing", nvml.DEVICE_ARCH_AMPERE: "ampere",
	nvml.DEVICE_ARCH_ADA: "ada", nvml.DEVICE_ARCH_HOPPER: "hopper", nvml.DEVICE_ARCH_BLACKWELL: "blackwell",
}

// identifyInstances lists the instances again: the handles of recreated instances are invalid.
func (g *gpuReader) identifyInstances() {
	g.instances = nil
	b := g.board
	if !b.Split {
		return
	}
	most := value(b.asker, b.dev.GetMaxMigDeviceCount, "nvmlDeviceGetMaxMigDeviceCount")
	if most == nil {
		return
	}
	for i := range *most {
		dev := value(b.asker, func() (nvml.Device, nvml.Return) { return b.dev.GetMigDeviceHandleByIndex(i) }, "nvmlDeviceGetMigDeviceHandleByIndex")
		if dev == nil {
			continue
		}
		p := &part{asker: newAsker(g.lib, *dev)}
		uuid := value(p.asker, p.dev.GetUUID, "nvmlDeviceGetUUID")
		gi := value(p.asker, p.dev.GetGpuInstanceId, "nvmlDeviceGetGpuInstanceId")
		ci := value(p.asker, p.dev.GetComputeInstanceId, "nvmlDeviceGetComputeInstanceId")
		if uuid == nil || gi == nil || ci == nil {
			continue
		}
		p.Device = b.Device
		p.UUID, p.Split, p.MemoryTotal, p.Bandwidth = *uuid, false, nil, nil
		p.Instance = &gpu.Instance{Parent: b.UUID, Number: i, GPUInstance: *gi, ComputeInstance: *ci}
		if memory := g.memory(p, false); memory != nil {
			p.MemoryTotal = &memory.Total
		}
		if at := value(p.asker, p.dev.GetAttributes, "nvmlDeviceGetAttributes_v2", "nvmlDeviceGetAttributes"); at != nil {
			p.Instance.Profile = profile(at.GpuInstanceSliceCount, at.MemorySizeMB)
		}
		p.Bandwidth = instanceBandwidth(b.Bandwidth, b.MemoryTotal, p.MemoryTotal)
		g.instances = append(g.instances, p)
	}
}

// memory is the memory of a part. If the part has none of its own and hosted is true, it is the machine's.
func (g *gpuReader) memory(p *part, hosted bool) *gpu.Memory {
	v2 := value(p.asker, p.dev.GetMemoryInfo_v2, "nvmlDeviceGetMemoryInfo_v2")
	if v2 != nil && v2.Total > 0 {
		return &gpu.Memory{Total: v2.Total, Used: v2.Used, Free: v2.Free, Reserved: &v2.Reserved}
	}
	var v1 nvml.Memory
	ret := p.ask(func() (ret nvml.Return) {
		v1, ret = p.dev.GetMemoryInfo()
		return ret
	}, "nvmlDeviceGetMemoryInfo")
	if ret == 0 && v1.Total > 0 {
		return &gpu.Memory{Total: v1.Total, Used: v1.Used, Free: v1.Free}
	}
	if hosted && (ret == 0 || ret == retNotSupported) {
		return g.host.memory()
	}
	return nil
}

// readOften reads what changes from second to second.
func (g *gpuReader) readOften() {
	b := g.board
	if b.dev == nil {
		return
	}
	b.Memory = g.memory(b, !b.Split)
	b.Utilization = nil
	if u := value(b.asker, b.dev.GetUtilizationRates, "nvmlDeviceGetUtilizationRates"); u != nil {
		b.Utilization = &gpu.Utilization{GPU: int(u.Gpu), Memory: int(u.Memory)}
	}
	if t := value(b.asker, func() (nvml.Temperature, nvml.Return) { return b.dev.GetTemperatureV().V1() }, "nvmlDeviceGetTemperatureV"); t != nil {
		b.Temperature = as[int](&t.Temperature)
	} else {
		b.Temperature = as[int](value(b.asker, func() (uint32, nvml.Return) { return b.dev.GetTemperature(nvml.TEMPERATURE_GPU) }, "nvmlDeviceGetTemperature"))
	}
	b.Margin = nil
	if m := value(b.asker, b.dev.GetMarginTemperature, "nvmlDeviceGetMarginTemperature"); m != nil {
		b.Margin = as[int](&m.MarginTemperature)
	}
	b.Power = watts(value(b.asker, b.dev.GetPowerUsage, "nvmlDeviceGetPowerUsage"))
	b.PowerLimit = watts(value(b.asker, b.dev.GetEnforcedPowerLimit, "nvmlDeviceGetEnforcedPowerLimit"))
	b.SMClock = as[int](valueOf(b.asker, "sm", func() (uint32, nvml.Return) { return b.dev.GetClockInfo(nvml.CLOCK_SM) }, "nvmlDeviceGetClockInfo"))
	b.MemoryClock = as[int](valueOf(b.asker, "memory", func() (uint32, nvml.Return) { return b.dev.GetClockInfo(nvml.CLOCK_MEM) }, "nvmlDeviceGetClockInfo"))
	reasons := value(b.asker, b.dev.GetCurrentClocksEventReasons, "nvmlDeviceGetCurrentClocksEventReasons")
	if reasons == nil { // the function's name before R535
		reasons = value(b.asker, b.dev.GetCurrentClocksThrottleReasons, "nvmlDeviceGetCurrentClocksThrottleReasons")
	}
	b.Throttle = (*gpu.Throttle)(reasons)
	for _, p := range g.instances {
		p.Memory = g.memory(p, false)
		if p.lost != "" && b.lost == "" || p.trouble { // it may have been recreated
			b.trouble = true
		}
	}
}

func watts(milliwatts *uint32) *float64 {
	if milliwatts == nil {
		return nil
	}
	return new(float64(*milliwatts) / 1000)
}

// readSeldom reads what hardly changes, unless something breaks.
func (g *gpuReader) readSeldom() {
	b := g.board
	if b.dev == nil {
		return
	}
	errorsOf := func(what string, kind nvml.MemoryErrorType) *uint64 {
		return valueOf(b.asker, what, func() (uint64, nvml.Return) { return b.dev.GetTotalEccErrors(kind, nvml.VOLATILE_ECC) }, "nvmlDeviceGetTotalEccErrors")
	}
	b.ECC = nil
	if e := (gpu.ECC{Corrected: errorsOf("corrected", nvml.MEMORY_ERROR_TYPE_CORRECTED), Uncorrected: errorsOf("uncorrected", nvml.MEMORY_ERROR_TYPE_UNCORRECTED)}); e != (gpu.ECC{}) {
		b.ECC = &e
	}
	b.Rows = value(b.asker, func() (r gpu.Rows, ret nvml.Return) {
		r.Correctable, r.Uncorrectable, r.Pending, r.Failed, ret = b.dev.GetRemappedRows()
		return r, ret
	}, "nvmlDeviceGetRemappedRows")
	b.Recovery = (*gpu.Recovery)(b.field(nvml.FI_DEV_GET_GPU_RECOVERY_ACTION))
	b.MemoryTemperature = b.field(nvml.FI_DEV_MEMORY_TEMP)
}

// field asks for a value that has a number instead of a function.
func (p *part) field(id uint32) *int {
	values := []nvml.FieldValue{{FieldId: id}}
	ret := p.ask(func() nvml.Return { return p.dev.GetFieldValues(values) }, "nvmlDeviceGetFieldValues")
	if ret != 0 || values[0].NvmlReturn != 0 {
		return nil
	}
	raw := values[0].Value[:]
	switch nvml.ValueType(values[0].ValueType) {
	case nvml.VALUE_TYPE_DOUBLE:
		return new(int(math.Float64frombits(binary.NativeEndian.Uint64(raw))))
	case nvml.VALUE_TYPE_UNSIGNED_INT, nvml.VALUE_TYPE_SIGNED_INT:
		return new(int(int32(binary.NativeEndian.Uint32(raw))))
	}
	return new(int(int64(binary.NativeEndian.Uint64(raw))))
}

// readProcesses takes milliseconds, during which the driver does nothing else.
func (g *gpuReader) readProcesses() {
	if g.board.dev == nil {
		return
	}
	parts := append([]*part{g.board}, g.instances...)
	for _, p := range parts {
		list := value(p.asker, p.dev.GetComputeRunningProcesses,
			"nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2", "nvmlDeviceGetComputeRunningProcesses")
		p.Processes = nil
		if list == nil {
			continue
		}
		p.Processes = []gpu.Process{}
		for _, info := range *list {
			one := gpu.Process{PID: int(info.Pid)}
			if info.UsedGpuMemory != math.MaxUint64 { // "not available"
				one.Memory = &info.UsedGpuMemory
			}
			p.Processes = append(p.Processes, one)
		}
	}
}
