package probe

import (
	"math"
	"testing"

	"github.com/pulley-lb/pulley/gpu"
)

// The bandwidth computed from bus width and clock matches the data sheets within 3 %.
func TestWeightByBandwidth(t *testing.T) {
	for name, c := range map[string]struct {
		bits, mhz uint32
		want      float64
	}{
		"A100 40 GB": {5120, 1215, 0.76},
		"A100 80 GB": {5120, 1593, 1.00},
		"H100 SXM":   {5120, 2619, 1.64},
		"H200":       {6144, 3201, 2.41},
		"L40S":       {384, 9001, 0.42},
		"L4":         {192, 6251, 0.15},
		"T4":         {256, 5001, 0.16},
		"RTX 4090":   {384, 10501, 0.49},
	} {
		if got, ok := (gpu.Device{Bandwidth: bandwidth(c.bits, c.mhz)}).Weight(); !ok || math.Abs(got-c.want) > 0.01 {
			t.Errorf("%s: %.3f, %v; want %.2f", name, got, ok, c.want)
		}
	}
	if got, ok := (gpu.Device{Bandwidth: bandwidth(5120, 0)}).Weight(); ok {
		t.Errorf("without a clock: %v, want none", got)
	}
}
