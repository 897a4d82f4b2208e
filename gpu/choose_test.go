package gpu_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/gpu"
)

func TestChoose(t *testing.T) {
	device := func(index int, uuid string) gpu.Snapshot {
		return gpu.Snapshot{Device: gpu.Device{Index: index, UUID: uuid}}
	}
	part := func(index, number int, uuid, parent string) gpu.Snapshot {
		s := device(index, uuid)
		s.Instance = &gpu.Instance{Parent: parent, Number: number}
		return s
	}
	split := device(1, "GPU-bbbb1111")
	split.Split = true
	gpus := []gpu.Snapshot{
		device(0, "GPU-aaaa1111"), split,
		part(1, 0, "MIG-cccc1111", "GPU-bbbb1111"), part(1, 1, "MIG-dddd1111", "GPU-bbbb1111"),
		device(2, "GPU-aaaa2222"), device(11, "GPU-eeee1111"),
	}
	for names, want := range map[string]struct{ chosen, wrong string }{
		"":                          {"0 1:0 1:1 2 11", ""},
		"0":                         {"0", ""},
		"2 0":                       {"0 2", ""},
		"1":                         {"1:0 1:1", ""}, // split
		"1:1":                       {"1:1", ""},
		"GPU-bbbb":                  {"1:0 1:1", ""},
		"MIG-cccc":                  {"1:0", ""},
		"GPU-aaaa2":                 {"2", ""},
		"GPU-aaaa":                  {"", `"GPU-aaaa" matches no GPU, or more than one`},
		"9":                         {"", `"9" matches no GPU, or more than one`},
		"0 GPU-ffff":                {"0", `"GPU-ffff" matches no GPU, or more than one`},
		"GPU-aaaa1111 GPU-aaaa1111": {"0", ""},
	} {
		chosen, wrong := gpu.Choose(gpus, strings.Fields(names))
		var labels []string
		for _, s := range chosen {
			labels = append(labels, s.Label())
		}
		if strings.Join(labels, " ") != want.chosen || strings.Join(wrong, "; ") != want.wrong {
			t.Errorf("%q: %v, %v; want %s, %s", names, labels, wrong, want.chosen, want.wrong)
		}
	}
	lost := split
	lost.Lost = "is lost"
	if chosen, _ := gpu.Choose([]gpu.Snapshot{lost}, []string{"1"}); !slices.ContainsFunc(chosen, func(s gpu.Snapshot) bool { return s.Lost != "" }) {
		t.Error("a split GPU that is lost is not chosen")
	}
}
