// Package restart restarts workers while requests stream, as a rolling update does. Broker, gateway, engines and workers
// are processes of their own. It is one of the suites of e2e/run.
package restart

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/bench"
	"github.com/pulley-lb/pulley/e2e/process"
)

// A worker that gets a SIGTERM finishes the requests that it has, so no stream breaks. PULLEY_DRAINS is the number of
// restarts; the default suits a run of all tests.
func TestRestartsBreakNoStream(t *testing.T) {
	bin := process.Pulley(t)
	drains := 12
	if n, err := strconv.Atoi(os.Getenv("PULLEY_DRAINS")); err == nil {
		drains = n
	}
	free := process.Addresses(t, 4)
	broker, gateway := free[0], free[1]
	process.Start(t, bin, "broker", "--listen", broker, "--store-dir", t.TempDir())
	process.Start(t, bin, "gateway", "--nats", "nats://"+broker, "--listen", gateway, "--admin", "127.0.0.1:0")
	workers := make([]func() *exec.Cmd, 2)
	running := make([]*exec.Cmd, 2)
	for i, slots := range []int{16, 4} {
		engine := free[2+i]
		process.Start(t, bin, "sim", "--listen", engine, "--slots", strconv.Itoa(slots), "--itl", "5ms,200us")
		workers[i] = func() *exec.Cmd {
			return process.Start(t, bin, "worker", "--nats", "nats://"+broker, "--engine", fmt.Sprintf("http://%s,slots=%d,name=w%d", engine, slots, i))
		}
		running[i] = workers[i]()
	}
	process.Eventually(t, "the model is served", func() bool { return process.Serves(gateway, "sim") })

	ctx, stop := context.WithCancel(t.Context())
	loaded := make(chan *bench.Result, 1)
	go func() {
		result, err := bench.Run(ctx, bench.Config{
			URL: "http://" + gateway, Model: "sim", Stream: true, Concurrency: 16, OutputTokens: 20, Duration: time.Hour, Timeout: time.Minute,
		})
		if err != nil {
			t.Error(err)
		}
		loaded <- result
	}()
	drained := 0
	for turn := 0; drained < drains; turn++ {
		time.Sleep(time.Second)
		which := [][]int{{0}, {1}, {0, 1}}[turn%3] // one, the other, both at once
		for _, i := range which {
			if err := running[i].Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}
		for _, i := range which {
			if err := running[i].Wait(); err != nil {
				t.Errorf("worker %d ended with %v", i, err)
			}
			running[i] = workers[i]()
			drained++
		}
		time.Sleep(time.Second) // until they bid
	}
	stop()
	result := <-loaded
	t.Logf("%d drains, %d requests answered, %d cut off by the end of the test", drained, result.Succeeded, result.Cancelled)
	if result.Failed > 0 || result.Succeeded < int64(drains) {
		t.Errorf("%d requests failed, %d were answered: %+v", result.Failed, result.Succeeded, result.Errors)
	}
}
