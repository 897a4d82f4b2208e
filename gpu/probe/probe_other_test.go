//go:build !(linux && cgo)

package probe

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/pulley-lb/pulley/gpu"
)

// TestProbeWithoutNVML is what can be tested in a build without NVML: the tests with a fake library
// need Linux and cgo.
func TestProbeWithoutNVML(t *testing.T) {
	var out bytes.Buffer
	err := Run(t.Context(), nil, &out, Config{})
	if f := gpu.Diagnose(err); f == nil || f.Kind != gpu.Unsupported {
		t.Errorf("Run: %v", err)
	}
	var r gpu.Reading
	if err := json.Unmarshal(out.Bytes(), &r); err != nil || r.Failure == nil || r.Failure.Kind != gpu.Unsupported {
		t.Errorf("it says %s: %v", &out, err)
	}
}
