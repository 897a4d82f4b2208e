package gpu

import (
	"strings"
	"testing"
)

// machine has two H100s and between them an A100 that is split in two.
func machine() []Device {
	instance := func(n, gi int) *Instance { return &Instance{Parent: "GPU-a1", Number: n, GPUInstance: gi} }
	return []Device{
		{Index: 0, UUID: "GPU-f00", Name: "H100"},
		{Index: 1, UUID: "GPU-a1", Name: "A100", Split: true},
		{Index: 1, UUID: "MIG-aa", Name: "A100", Instance: instance(0, 1)},
		{Index: 1, UUID: "MIG-ab", Name: "A100", Instance: instance(1, 7)},
		{Index: 2, UUID: "GPU-f02", Name: "H100"},
	}
}

func TestVisible(t *testing.T) {
	tests := map[string]struct {
		env  string // NAME=value, separated by spaces
		want string // labels
		note string // part of a note; "": no notes
	}{
		"nothing said":                        {"", "0 1:0 1:1 2", ""},
		"all":                                 {"NVIDIA_VISIBLE_DEVICES=all", "0 1:0 1:1 2", ""},
		"void, which CDI sets":                {"NVIDIA_VISIBLE_DEVICES=void", "0 1:0 1:1 2", ""},
		"a folder of the device plugin":       {"NVIDIA_VISIBLE_DEVICES=/var/run/nvidia-container-devices", "0 1:0 1:1 2", ""},
		"none":                                {"NVIDIA_VISIBLE_DEVICES=none", "", ""},
		"the runtime's indices":               {"NVIDIA_VISIBLE_DEVICES=2,0", "2 0", ""},
		"an index of a split GPU":             {"NVIDIA_VISIBLE_DEVICES=1", "1:0 1:1", ""},
		"an instance by number":               {"NVIDIA_VISIBLE_DEVICES=1:1", "1:1", ""},
		"a UUID, and one not there":           {"NVIDIA_VISIBLE_DEVICES=GPU-zz,GPU-f02", "2", `no GPU matches "GPU-zz"`},
		"as many indices as GPUs are applied": {"NVIDIA_VISIBLE_DEVICES=4,5,6,7", "0 1:0 1:1 2", ""},

		"CUDA's indices":                   {"CUDA_VISIBLE_DEVICES=2,0 CUDA_DEVICE_ORDER=PCI_BUS_ID", "2 0", ""},
		"CUDA's indices of unlike GPUs":    {"CUDA_VISIBLE_DEVICES=0", "0", "CUDA_DEVICE_ORDER=PCI_BUS_ID"},
		"CUDA counts what is left":         {"NVIDIA_VISIBLE_DEVICES=GPU-f00,GPU-f02 CUDA_VISIBLE_DEVICES=1", "2", ""},
		"a UUID":                           {"CUDA_VISIBLE_DEVICES=GPU-f02", "2", ""},
		"the beginning of a UUID":          {"CUDA_VISIBLE_DEVICES=GPU-a", "1:0 1:1", ""},
		"the beginning of two UUIDs":       {"CUDA_VISIBLE_DEVICES=GPU-f", "", `no GPU matches "GPU-f"`},
		"an instance":                      {"CUDA_VISIBLE_DEVICES=MIG-ab", "1:1", ""},
		"the beginning of two instances":   {"CUDA_VISIBLE_DEVICES=MIG-a", "", "no GPU"},
		"an instance in the old form":      {"CUDA_VISIBLE_DEVICES=MIG-GPU-a1/7/0", "1:1", ""},
		"no such instance in the old form": {"CUDA_VISIBLE_DEVICES=MIG-GPU-a1/2/0", "", "no GPU"},
		"all before the first invalid one": {"CUDA_VISIBLE_DEVICES=GPU-f00,7,GPU-f02 CUDA_DEVICE_ORDER=PCI_BUS_ID", "0", "all after it are ignored"},
		"set and empty":                    {"CUDA_VISIBLE_DEVICES=", "", ""},
		"-1":                               {"CUDA_VISIBLE_DEVICES=-1", "", ""},
		"twice the same":                   {"CUDA_VISIBLE_DEVICES=GPU-f00,GPU-f00", "0", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			visible, notes := Visible(machine(), environment(tt.env))
			if got := labels(visible); got != tt.want {
				t.Errorf("visible: %q, want %q", got, tt.want)
			}
			if all := strings.Join(notes, "\n"); !strings.Contains(all, tt.note) || tt.note == "" && all != "" {
				t.Errorf("notes: %q, want %q", all, tt.note)
			}
		})
	}
}

func environment(text string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for e := range strings.FieldsSeq(text) {
			if k, v, _ := strings.Cut(e, "="); k == name {
				return v, true
			}
		}
		return "", false
	}
}

func labels(devices []Device) string {
	var list []string
	for _, d := range devices {
		list = append(list, d.Label())
	}
	return strings.Join(list, " ")
}

// TestVisibleLostGPU finds a GPU that cannot report its UUID any more.
func TestVisibleLostGPU(t *testing.T) {
	devices := []Device{{Index: 0, UUID: "GPU-f00"}, {Index: 1}}
	for env, want := range map[string]string{
		"": "0 1", "CUDA_VISIBLE_DEVICES=1": "1", "CUDA_VISIBLE_DEVICES=GPU-b2": "1", "CUDA_VISIBLE_DEVICES=GPU-f00": "0", "NVIDIA_VISIBLE_DEVICES=GPU-b2,GPU-f00": "1 0",
	} {
		visible, _ := Visible(devices, environment(env))
		if got := labels(visible); got != want {
			t.Errorf("%s: %q, want %q", env, got, want)
		}
	}
}

func FuzzVisible(f *testing.F) {
	f.Add("0,1:1", "GPU-f,-1")
	f.Fuzz(func(t *testing.T, nvidia, cuda string) {
		visible, _ := Visible(machine(), func(name string) (string, bool) {
			return map[string]string{"NVIDIA_VISIBLE_DEVICES": nvidia, "CUDA_VISIBLE_DEVICES": cuda}[name], true
		})
		if len(visible) > 4 {
			t.Errorf("%d devices of 4", len(visible))
		}
	})
}
