package gpu

import (
	"fmt"
	"slices"
)

// Choose selects the devices that an operator names: by UUID or an unambiguous prefix of one; by
// NVML's index, which selects all instances of a split GPU; or by index:number, a single instance.
// wrong describes names that match nothing. Without names all devices are selected. A split GPU
// itself is never selected unless it is lost: work runs on its instances.
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
			wrong = append(wrong, fmt.Sprintf("%q matches no GPU, or more than one", name))
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
