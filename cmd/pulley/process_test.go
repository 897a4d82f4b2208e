package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
)

// TestBePulley is not a test: tests of the whole process start the test binary again, to
// run pulley with the arguments in BE_PULLEY.
func TestBePulley(t *testing.T) {
	args, ok := os.LookupEnv("BE_PULLEY")
	if !ok {
		t.Skip("started by other tests only")
	}
	fleet.ProbeCommand = []string{"sh", "-c", `BE_PULLEY="gpu-probe $*" exec "$0" -test.run='^TestBePulley$'`, os.Args[0]}
	os.Args = append([]string{"pulley"}, strings.Fields(args)...)
	main()
}

// pulleyProcess returns a process that runs pulley with args.
func pulleyProcess(t *testing.T, args string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestBePulley$")
	cmd.Env = append(os.Environ(), "BE_PULLEY="+args)
	return cmd
}

// upProcess starts pulley up, and waits for its banner. stop ends it and returns what it logged.
func upProcess(t *testing.T, env []string, args string) (cmd *exec.Cmd, url string, stop func() string) {
	t.Helper()
	cmd = pulleyProcess(t, "up --listen 127.0.0.1:0 --admin= --nats-listen 127.0.0.1:0 --store-dir "+filepath.Join(t.TempDir(), "store")+" "+args)
	cmd.Env = append(cmd.Env, env...)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr := new(bytes.Buffer)
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	banner := regexp.MustCompile(`gateway +(http://\S+)`)
	for seen := make([]byte, 0, 1<<14); url == ""; {
		n, err := stdout.Read(seen[len(seen):cap(seen)])
		if err != nil {
			t.Fatalf("%v: %s", err, stderr)
		}
		seen = seen[:len(seen)+n]
		if m := banner.FindSubmatch(seen); m != nil {
			url = string(m[1])
		}
	}
	return cmd, url, func() string {
		t.Helper()
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("after SIGTERM: %v; %s", err, stderr)
		}
		return stderr.String()
	}
}

func TestBrokerProcessStopsOnSignal(t *testing.T) {
	store := filepath.Join(t.TempDir(), "store")
	cmd := pulleyProcess(t, "broker --listen 127.0.0.1:0 --store-dir "+store)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 1000)
	n, err := stdout.Read(line)
	if err != nil {
		t.Fatalf("%v; stderr: %s", err, &stderr)
	}
	start := regexp.MustCompile(`^pulley broker ready: nats://127\.0\.0\.1:[1-9]\d*, store ` + regexp.QuoteMeta(store) + `\n$`)
	if !start.Match(line[:n]) {
		t.Errorf("first line %q, want %s", line[:n], start)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v, want exit code 0; stderr: %s", err, &stderr)
	}
	if !strings.Contains(stderr.String(), `msg="broker stopped"`) {
		t.Errorf("stderr %q, want the broker's stop", &stderr)
	}
}

func TestSecondSignalExitsAtOnce(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestBeStubborn$")
	cmd.Env = append(os.Environ(), "BE_STUBBORN=1")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	for _, want := range []string{"running", "interrupted"} {
		n, err := stdout.Read(buf)
		if err != nil || string(buf[:n]) != want {
			t.Fatalf("read %q, %v; want %q", buf[:n], err, want)
		}
		cmd.Process.Signal(os.Interrupt)
	}
	err = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != cli.ExitInterrupted {
		t.Errorf("after the second signal: %v, want exit code %d", err, cli.ExitInterrupted)
	}
}

// TestBeStubborn is not a test: see TestSecondSignalExitsAtOnce.
func TestBeStubborn(t *testing.T) {
	if os.Getenv("BE_STUBBORN") == "" {
		t.Skip("started by another test only")
	}
	commands = append(commands, func() *cobra.Command {
		return &cobra.Command{Use: "stubborn", RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Print("running")
			<-cmd.Context().Done()
			fmt.Print(context.Cause(cmd.Context()))
			time.Sleep(time.Minute)
			return nil
		}}
	})
	os.Args = []string{"pulley", "stubborn"}
	main()
}
