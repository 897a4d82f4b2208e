//go:build !(linux && cgo)

package probe

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"github.com/pulley-lb/pulley/gpu"
)

// Run writes a line that says that this build cannot read GPUs, and returns that failure.
func Run(_ context.Context, _ io.Reader, out io.Writer, _ Config) error {
	f := &gpu.Failure{Kind: gpu.Unsupported}
	if err := json.NewEncoder(out).Encode(gpu.Reading{At: time.Now(), Failure: f}); err != nil {
		return err
	}
	return f
}
