package gpu

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Visible returns the devices of a machine that an engine with this environment uses, in the order
// in which the environment names them, and notes about what is doubtful. devices are GPUs and MIG
// instances; a split GPU is replaced by its instances. lookup is os.LookupEnv.
//
// NVIDIA_VISIBLE_DEVICES is meant for the container runtime, which has given the container the devices that it names;
// NVML numbers those from 0. So numbers in it are applied only where NVML sees more devices than they name. "all",
// "void" (which CDI sets in any case), an empty value and a path select all devices; "none" selects none.
//
// CUDA_VISIBLE_DEVICES selects from the remaining devices by number, by UUID or a prefix of one, or by
// MIG-GPU-UUID/GI/CI. As in CUDA, the first invalid name and all after it are ignored, and a variable that is set and
// empty selects none. A number, or a GPU's UUID, selects all instances of a split GPU.
func Visible(devices []Device, lookup func(string) (string, bool)) (visible []Device, notes []string) {
	visible = unsplit(devices)
	if value, ok := lookup("NVIDIA_VISIBLE_DEVICES"); ok {
		visible, notes = runtimeVisible(visible, value)
	}
	value, ok := lookup("CUDA_VISIBLE_DEVICES")
	if !ok {
		return visible, notes
	}
	order, _ := lookup("CUDA_DEVICE_ORDER")
	visible, more := cudaVisible(visible, value, order)
	return visible, append(notes, more...)
}

// unsplit removes split GPUs, of which only the instances can be used.
func unsplit(devices []Device) []Device {
	return slices.DeleteFunc(slices.Clone(devices), func(d Device) bool { return d.Split && d.Instance == nil })
}

func runtimeVisible(devices []Device, value string) (visible []Device, notes []string) {
	switch {
	case value == "", value == "all", value == "void", strings.HasPrefix(value, "/"):
		return devices, nil
	case value == "none":
		return nil, nil
	}
	names := splitNames(value)
	if len(devices) <= len(names) && !slices.ContainsFunc(names, func(n string) bool { return !isNumber(n) }) {
		return devices, nil // the runtime has applied it already
	}
	for _, name := range names {
		found := runtimeNamed(devices, name)
		if len(found) == 0 {
			notes = append(notes, fmt.Sprintf("NVIDIA_VISIBLE_DEVICES: no GPU matches %q", name))
		}
		visible = appendNew(visible, found)
	}
	return visible, notes
}

// isNumber reports whether a name is a GPU's index, or index:number of an instance.
func isNumber(name string) bool {
	gpu, instance, ok := strings.Cut(name, ":")
	if !ok {
		instance = "0"
	}
	_, err1 := strconv.ParseUint(gpu, 10, 31)
	_, err2 := strconv.ParseUint(instance, 10, 31)
	return err1 == nil && err2 == nil
}

func runtimeNamed(devices []Device, name string) []Device {
	if !isNumber(name) {
		return named(devices, name)
	}
	var found []Device
	for _, d := range devices {
		if d.Label() == name || strconv.Itoa(d.Index) == name {
			found = append(found, d)
		}
	}
	return found
}

func cudaVisible(devices []Device, value, order string) (visible []Device, notes []string) {
	for _, name := range splitNames(value) {
		found := named(devices, name)
		if n, err := strconv.ParseUint(name, 10, 31); err == nil {
			found = numbered(devices, int(n))
			if len(notes) == 0 && order != "PCI_BUS_ID" && unlike(devices) {
				notes = append(notes, "CUDA_VISIBLE_DEVICES: CUDA numbers different GPUs by speed, NVML by bus address; use UUIDs, or set CUDA_DEVICE_ORDER=PCI_BUS_ID")
			}
		}
		if len(found) == 0 {
			if value != "" && value != "-1" { // both mean none
				notes = append(notes, fmt.Sprintf("CUDA_VISIBLE_DEVICES: no GPU matches %q, so it and all after it are ignored", name))
			}
			break
		}
		visible = appendNew(visible, found)
	}
	return visible, notes
}

// numbered returns the n-th of the remaining GPUs.
func numbered(devices []Device, n int) []Device {
	var indices []int
	for _, d := range devices {
		if !slices.Contains(indices, d.Index) {
			indices = append(indices, d.Index)
		}
	}
	if n >= len(indices) {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(devices), func(d Device) bool { return d.Index != indices[n] })
}

// named returns the devices with a UUID or an unambiguous prefix of one: an instance, a GPU, or all instances of a GPU.
func named(devices []Device, name string) []Device {
	if !strings.HasPrefix(name, "GPU-") && !strings.HasPrefix(name, "MIG-") {
		return nil
	}
	if parent, ids, ok := strings.Cut(strings.TrimPrefix(name, "MIG-"), "/"); ok {
		return slices.DeleteFunc(slices.Clone(devices), func(d Device) bool {
			return d.Instance == nil || d.Instance.Parent != parent ||
				ids != fmt.Sprintf("%d/%d", d.Instance.GPUInstance, d.Instance.ComputeInstance)
		})
	}
	var found, lost []Device
	whose := ""
	for _, d := range devices {
		uuid := d.UUID
		if d.Instance != nil && strings.HasPrefix(name, "GPU-") {
			uuid = d.Instance.Parent
		}
		switch {
		case uuid == "":
			lost = append(lost, d)
		case !strings.HasPrefix(uuid, name):
		case whose != "" && whose != uuid:
			return nil // the prefix is ambiguous
		default:
			whose = uuid
			found = append(found, d)
		}
	}
	if len(found) == 0 && len(lost) == 1 {
		return lost // a lost GPU cannot report its UUID: it is the missing one
	}
	return found
}

// unlike reports whether there are GPUs of different models.
func unlike(devices []Device) bool {
	return slices.ContainsFunc(devices, func(d Device) bool { return d.Name != devices[0].Name })
}

func splitNames(value string) []string {
	names := strings.Split(value, ",")
	for i := range names {
		names[i] = strings.TrimSpace(names[i])
	}
	return names
}

func appendNew(list, more []Device) []Device {
	for _, m := range more {
		if !slices.ContainsFunc(list, func(d Device) bool { return d.Index == m.Index && d.UUID == m.UUID }) {
			list = append(list, m)
		}
	}
	return list
}
