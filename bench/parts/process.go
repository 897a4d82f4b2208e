package parts

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// startTime bounds how long a process may take to print its address.
const startTime = 30 * time.Second

// stopTime is how long a process may take to end after SIGTERM, before it is killed.
const stopTime = 15 * time.Second

// Process is a process that is measured. [Set.Start] makes it.
type Process struct {
	// Name is what the process is called in reports and errors.
	Name string

	cmd *exec.Cmd

	mu    sync.Mutex
	lines []string      // guarded by mu; the first lines that it printed
	seen  chan struct{} // guarded by mu; closed and replaced with every line
	ended bool          // guarded by mu; the output has ended

	output  *os.File
	copying sync.WaitGroup
}

// start runs the binary with args, without PULLEY_ variables in the environment. Its output goes line by line to
// output. The caller stops it.
func start(output io.Writer, name, binary string, args ...string) (*Process, error) {
	p := &Process{Name: name, cmd: exec.Command(binary, args...), seen: make(chan struct{})}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p.output = read
	p.cmd.Stdout, p.cmd.Stderr = write, write
	p.cmd.Env = slices.DeleteFunc(os.Environ(), func(setting string) bool { return strings.HasPrefix(setting, "PULLEY_") })
	err = spawn(p.cmd)
	write.Close()
	if err != nil {
		read.Close()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p.copying.Go(func() { p.copyLoop(output) })
	return p, nil
}

func (p *Process) copyLoop(output io.Writer) {
	defer p.output.Close()
	lines := bufio.NewReader(p.output)
	for {
		line, err := lines.ReadString('\n')
		p.note(line, err != nil)
		if err != nil {
			return
		}
		fmt.Fprintf(output, "%s: %s", p.Name, line)
	}
}

func (p *Process) note(line string, ended bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.lines) < 1000 {
		p.lines = append(p.lines, strings.TrimSpace(line))
	}
	p.ended = ended
	close(p.seen)
	p.seen = make(chan struct{})
}

// Address waits until the process has printed an address that find recognises in a line, and returns it.
func (p *Process) Address(ctx context.Context, find func(line string) string) (string, error) {
	timeout := time.NewTimer(startTime)
	defer timeout.Stop()
	for read := 0; ; {
		p.mu.Lock()
		lines, ended, seen := p.lines[read:], p.ended, p.seen
		p.mu.Unlock()
		for _, line := range lines {
			if address := find(line); address != "" {
				return address, nil
			}
		}
		read += len(lines)
		if ended {
			return "", fmt.Errorf("%s ended without an address; it printed:\n%s", p.Name, p.printed())
		}
		select {
		case <-seen:
		case <-timeout.C:
			return "", fmt.Errorf("%s printed no address within %s, but:\n%s", p.Name, startTime, p.printed())
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
}

func (p *Process) printed() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.lines, "\n")
}

// PID is its process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// stop ends the process, waits for it, and kills what it has started and left behind.
func (p *Process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.Name, err)
	}
	kill := time.AfterFunc(stopTime, func() { _ = p.cmd.Process.Kill() })
	defer kill.Stop()
	err := p.cmd.Wait()
	killGroup(p.PID())
	_ = p.output.SetReadDeadline(time.Now().Add(time.Second)) // a child process may still hold the other end
	p.copying.Wait()
	return err
}
