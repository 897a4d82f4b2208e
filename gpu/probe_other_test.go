//go:build !(linux && cgo)

package gpu

import (
	"bytes"
	"context"
	"testing"
	"time"
)

// TestProbeWithoutNVML is what is left to test of NVML in a build without it: the
// tests with a fake library need Linux and cgo.
func TestProbeWithoutNVML(t *testing.T) {
	var out bytes.Buffer
	err := Probe(context.Background(), nil, &out, ProbeConfig{})
	if f := Diagnose(err); f == nil || f.Kind != Unsupported {
		t.Errorf("Probe: %v", err)
	}
	r, err := parseReading(out.Bytes(), time.Now())
	if err != nil || r.Failure == nil || r.Failure.Kind != Unsupported {
		t.Errorf("it says %s: %v", &out, err)
	}
	if s, err := NewSampler(Config{}); err != nil || s.start != nil {
		t.Errorf("a sampler would start a child: %v", err)
	}
}
