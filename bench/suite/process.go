package suite

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// startTime bounds how long a process may take to print its address.
const startTime = 30 * time.Second

// stopTime is how long a process may take to end after SIGTERM, before it is killed.
const stopTime = 15 * time.Second

// process is one of the processes that are measured.
type process struct {
	name string
	cmd  *exec.Cmd

	mu    sync.Mutex
	lines []string      // guarded by mu; the first lines that it printed
	seen  chan struct{} // guarded by mu; closed and replaced with every line
	ended bool          // guarded by mu; the output has ended

	output  *os.File
	copying sync.WaitGroup
}

// start runs the binary with args, without PULLEY_ variables in the environment. Its output goes line by line to
// output. The caller stops it.
func start(output io.Writer, name, binary string, args ...string) (*process, error) {
	p := &process{name: name, cmd: exec.Command(binary, args...), seen: make(chan struct{})}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p.output = read
	p.cmd.Stdout, p.cmd.Stderr = write, write
	p.cmd.Env = slices.DeleteFunc(os.Environ(), func(setting string) bool { return strings.HasPrefix(setting, "PULLEY_") })
	err = p.cmd.Start()
	write.Close()
	if err != nil {
		read.Close()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p.copying.Go(func() { p.copyLoop(output) })
	return p, nil
}

func (p *process) copyLoop(output io.Writer) {
	defer p.output.Close()
	lines := bufio.NewReader(p.output)
	for {
		line, err := lines.ReadString('\n')
		p.note(line, err != nil)
		if err != nil {
			return
		}
		fmt.Fprintf(output, "%s: %s", p.name, line)
	}
}

func (p *process) note(line string, ended bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.lines) < 1000 {
		p.lines = append(p.lines, strings.TrimSpace(line))
	}
	p.ended = ended
	close(p.seen)
	p.seen = make(chan struct{})
}

// address waits until the process has printed an address that find recognises.
func (p *process) address(ctx context.Context, find func(line string) string) (string, error) {
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
			return "", fmt.Errorf("%s ended without an address; it printed:\n%s", p.name, p.printed())
		}
		select {
		case <-seen:
		case <-timeout.C:
			return "", fmt.Errorf("%s printed no address within %s, but:\n%s", p.name, startTime, p.printed())
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
}

func (p *process) printed() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.lines, "\n")
}

// stop ends the process and waits for it.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.name, err)
	}
	kill := time.AfterFunc(stopTime, func() { _ = p.cmd.Process.Kill() })
	defer kill.Stop()
	err := p.cmd.Wait()
	_ = p.output.SetReadDeadline(time.Now().Add(time.Second)) // a child process may still hold the other end
	p.copying.Wait()
	return err
}

var (
	loopback      = regexp.MustCompile(`(?:127\.0\.0\.1|localhost|\[::1\]):[1-9]\d*`)
	gatewayBanner = regexp.MustCompile(`(?i)^\W*gateway\b.*?https?://((?:127\.0\.0\.1|localhost|\[::1\]):[1-9]\d*)`)
)

// anyAddress finds a loopback address in a line, as host:port.
func anyAddress(line string) string { return loopback.FindString(line) }

// gatewayAddress finds the address in the gateway's line of a banner: "  gateway  http://127.0.0.1:8080".
func gatewayAddress(line string) string {
	if m := gatewayBanner.FindStringSubmatch(line); m != nil {
		return m[1]
	}
	return ""
}

// cpuTime is how long the process has run on a CPU; 0 if the system does not report it.
func (p *process) cpuTime() time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(stat), ") ") // the command's name may have spaces
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every Linux
	return time.Duration(user+system) * tick
}

// residentBytes is the process's RSS.
func (p *process) residentBytes() (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("memory of %s: %w", p.name, err)
	}
	for line := range strings.Lines(string(status)) {
		value, ok := strings.CutPrefix(line, "VmRSS:")
		if !ok {
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("memory of %s: %w", p.name, err)
		}
		return kib << 10, nil
	}
	return 0, fmt.Errorf("memory of %s: no VmRSS in its status", p.name)
}
