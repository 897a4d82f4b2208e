package gpu

import (
	"fmt"
	"slices"
)

// Choose finds those that an operator names among devices: by UUID, or the
// beginning of one that begins no other; by NVML's index, which is all instances
// of a GPU that is split; or by index:number, one of them. What is wrong with the
// names is told in words. No names at all choose all. Split GPUs themselves are
// never chosen, unless they are lost: work runs on their instances.
func Choose(gpus []Snapshot, names []string) (chosen []Snapshot, wrong []string) {
	gpus = slices.DeleteFunc(slices.Clone(gpus), func(s Snapshot) bool { return s.Split && s.Instance == nil && s.Lost == "" })
	if len(names) == 0 {
		return gpus, nil
	}
	devices := make([]Device, len(gpus))
	for i, s := range gpus {
		devices[i] = s.Device
	}
	var found []Device
	for _, name := range names {
		these := runtimeNamed(devices, name)
		if len(these) == 0 {
			wrong = append(wrong, fmt.Sprintf("no GPU, or more than one, is %q", name))
		}
		found = appendNew(found, these)
	}
	for i, s := range gpus {
		if slices.ContainsFunc(found, func(d Device) bool { return d.UUID == s.UUID && d.Label() == devices[i].Label() }) {
			chosen = append(chosen, s)
		}
	}
	return chosen, wrong
}
