// Package restart restarts workers while requests stream, as a rolling update does. Broker, gateway, engines and workers
// are processes of their own. It is one of the suites of e2e/run.
package restart

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/bench"
)

// A worker that gets a SIGTERM finishes the requests that it has, so no stream breaks. PULLEY_DRAINS is the number of
// restarts; the default suits a run of all tests.
func TestRestartsBreakNoStream(t *testing.T) {
	if os.Getenv("PULLEY_BIN") == "" {
		t.Skip("PULLEY_BIN names no binary: this is run by make e2e")
	}
	drains := 12
	if n, err := strconv.Atoi(os.Getenv("PULLEY_DRAINS")); err == nil {
		drains = n
	}
	free := addresses(t, 4)
	broker, gateway := free[0], free[1]
	pulley(t, "broker", "--listen", broker, "--store-dir", t.TempDir())
	pulley(t, "gateway", "--nats", "nats://"+broker, "--listen", gateway, "--admin", "127.0.0.1:0")
	workers := make([]func() *exec.Cmd, 2)
	running := make([]*exec.Cmd, 2)
	for i, slots := range []int{16, 4} {
		engine := free[2+i]
		pulley(t, "sim", "--listen", engine, "--slots", strconv.Itoa(slots), "--itl", "5ms,200us")
		workers[i] = func() *exec.Cmd {
			return pulley(t, "worker", "--nats", "nats://"+broker, "--engine", fmt.Sprintf("http://%s,slots=%d,name=w%d", engine, slots, i))
		}
		running[i] = workers[i]()
	}
	eventually(t, "the model is served", func() bool { return served(gateway) })

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

// pulley starts a part and ends it with the test.
func pulley(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Getenv("PULLEY_BIN"), args...)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(setting string) bool { return strings.HasPrefix(setting, "PULLEY_") })
	output, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the process
		for lines := bufio.NewScanner(output); lines.Scan(); {
			if line := lines.Text(); strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR") {
				t.Logf("%s: %s", args[0], line)
			}
		}
	}()
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			cmd.Process.Signal(syscall.SIGTERM)
			cmd.Wait()
		}
	})
	return cmd
}

// addresses are n on loopback that are free now.
func addresses(t *testing.T, n int) (free []string) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		free = append(free, l.Addr().String())
	}
	return free
}

func served(gateway string) bool {
	resp, err := http.Get("http://" + gateway + "/v1/models/sim")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}
