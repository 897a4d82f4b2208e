// Package process starts the parts of Pulley, and engines, as processes of a test.
package process

import (
	"bufio"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patient is how long Eventually waits. How long anything takes is not judged.
const patient = 40 * time.Second

// Pulley is the binary to test, by PULLEY_BIN. Without one the test is skipped: make e2e builds it.
func Pulley(t *testing.T) (bin string) {
	t.Helper()
	if bin = os.Getenv("PULLEY_BIN"); bin == "" {
		t.Skip("PULLEY_BIN names no binary: this is run by make e2e")
	}
	return bin
}

// Start starts a process, logs its warnings and errors, and ends it with the test: with SIGTERM, and after 5 s with SIGKILL.
// A test that ends it earlier waits for it.
func Start(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = Environ()
	output, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var read sync.WaitGroup
	read.Go(func() {
		for lines := bufio.NewScanner(output); lines.Scan(); {
			if line := lines.Text(); strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR") {
				t.Logf("%s: %s", args[0], line)
			}
		}
	})
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			cmd.Process.Signal(syscall.SIGCONT)
			cmd.Process.Signal(syscall.SIGTERM)
			timer := time.AfterFunc(5*time.Second, func() { cmd.Process.Kill() })
			defer timer.Stop()
		}
		read.Wait()
		if cmd.ProcessState == nil {
			cmd.Wait()
		}
	})
	return cmd
}

// Environ is the environment without what would change what the binary does.
func Environ() (list []string) {
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		if !strings.HasPrefix(name, "PULLEY_") && !strings.HasPrefix(name, "NATS_") && name != "NO_COLOR" {
			list = append(list, v)
		}
	}
	return list
}

// Addresses are n on loopback, host:port, that are free now.
func Addresses(t *testing.T, n int) (free []string) {
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

// OK reports whether a GET is answered with status 200.
func OK(url string) bool {
	resp, err := http.Get(url)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// Serves reports whether a gateway at host:port has a worker for a model.
func Serves(gateway, model string) bool { return OK("http://" + gateway + "/v1/models/" + model) }

// Eventually waits until something holds, and fails the test if it does not within 40 s.
func Eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patient); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %v in vain: %s", patient, what)
		}
	}
}
