package gpu

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// child is a running probe. Nothing here waits for the kernel to end it.
type child struct {
	pid   int
	lines <-chan []byte // closed at the end of its output
	done  chan struct{} // closed when it has ended
	err   error         // how it ended; set before done is closed

	stdin, stdout io.Closer
	kill          func() error
	complaint     func() string // the last line that it wrote to standard error
}

// longestLine bounds a reading: enough for hundreds of devices.
const longestLine = 4 << 20

// startChild starts the probe that a configuration names.
func startChild(cfg Config) (*child, error) {
	argv := cfg.Command
	if len(argv) == 0 {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find the GPU probe: %w", err)
		}
		argv = []string{self, "gpu-probe"}
	}
	args := append(argv[1:len(argv):len(argv)], "--interval="+cfg.Interval.String())
	if cfg.Library != "" {
		args = append(args, "--nvml-library="+cfg.Library)
	}
	if cfg.All {
		args = append(args, "--all")
	}
	cmd := exec.Command(argv[0], args...)
	detach(cmd)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	// Not cmd.StdoutPipe: Wait would close it before all lines are read.
	stdout, theirs, err := os.Pipe()
	if err != nil {
		stdin.Close()
		return nil, err
	}
	var complaints tail
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = theirs, &complaints, time.Second
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		stdin.Close()
		stdout.Close()
		return nil, fmt.Errorf("start the GPU probe: %w", err)
	}
	c := &child{pid: cmd.Process.Pid, done: make(chan struct{}), stdin: stdin, stdout: stdout, kill: cmd.Process.Kill, complaint: complaints.String}
	lines := make(chan []byte)
	c.lines = lines
	go func() { // ends with the child, or when end closes stdout and discards the rest
		defer close(lines)
		scan := bufio.NewScanner(stdout)
		scan.Buffer(nil, longestLine)
		for scan.Scan() {
			lines <- bytes.Clone(scan.Bytes())
		}
	}()
	go func() { // ends with the child; it is abandoned if the child does not end
		c.err = cmd.Wait()
		close(c.done)
	}()
	return c, nil
}

// patience is how long a child may take to end by itself, and again after it was killed.
const patience = time.Second

// end ends a child by closing its input, or by force if that does not help. It returns false if the child still runs.
func (c *child) end(byForce bool) bool {
	c.stdin.Close()
	if !byForce && c.ended() {
		c.drop()
		return true
	}
	c.kill()
	ended := c.ended()
	c.drop()
	return ended
}

// drop unblocks the reader of a child's lines.
func (c *child) drop() {
	c.stdout.Close()
	for range c.lines {
	}
}

// ended waits up to patience for the child to end.
func (c *child) ended() bool {
	t := time.NewTimer(patience)
	defer t.Stop()
	lines := c.lines
	for {
		select {
		case <-c.done:
			return true
		case <-t.C:
			return false
		case _, ok := <-lines: // it may be blocked on writing one
			if !ok {
				lines = nil
			}
		}
	}
}

// missingFunction is the exit status that the dynamic loader gives a process which calls a function
// that no library has.
const missingFunction = 127

// death describes how a child ended by itself.
func (c *child) death() *Failure {
	how := "it ended"
	select {
	case <-c.done:
		if exit, ok := errors.AsType[*exec.ExitError](c.err); ok && exit.ExitCode() == missingFunction {
			how = "it called a function that the driver does not have"
		} else if c.err != nil {
			how = c.err.Error()
		}
	default: // it has only closed its output
	}
	if complaint := c.complaint(); complaint != "" {
		how += ": " + complaint
	}
	return &Failure{Kind: Crashed, Detail: how}
}

// tail keeps the last line of what is written to it.
type tail struct {
	mu   sync.Mutex
	last []byte
}

const longestTail = 2048

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = append(t.last, b...)
	if n := len(t.last) - longestTail; n > 0 {
		t.last = bytes.Clone(t.last[n:])
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := strings.Split(strings.TrimSpace(string(t.last)), "\n")
	return lines[len(lines)-1]
}
