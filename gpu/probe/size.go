package probe

import (
	"fmt"
	"math"
)

// bandwidth is that of a memory bus with so many bits at so many MHz, with two bits per clock and line.
func bandwidth(bits, mhz uint32) *float64 {
	if bits == 0 || mhz == 0 {
		return nil
	}
	return new(float64(bits) / 8 * float64(mhz) * 1e6 * 2)
}

// instanceBandwidth is an instance's part of its GPU's bandwidth. MIG assigns it in eighths along with the memory.
func instanceBandwidth(whole *float64, total, part *uint64) *float64 {
	if whole == nil || total == nil || part == nil || *total == 0 {
		return nil
	}
	eighths := math.Round(8 * float64(*part) / float64(*total))
	return new(*whole * min(max(eighths, 1), 8) / 8)
}

// profile is the name of a MIG instance's size. The driver reports a little less memory than the name says.
func profile(slices uint32, mib uint64) string {
	if slices == 0 || mib == 0 {
		return ""
	}
	return fmt.Sprintf("%dg.%dgb", slices, (mib+1023)/1024)
}
