package chaos

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Process is a part of Pulley that runs, is killed, and runs again.
type Process struct {
	Name string
	bin  string
	args []string
	env  []string
	log  string // file to which each life appends

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has ended
}

func newProcess(name, bin, dir string, env []string, args ...string) *Process {
	return &Process{Name: name, bin: bin, args: args, env: env, log: filepath.Join(dir, name+".log")}
}

// spawner starts all processes on one thread that lives as long as this process does: the kernel kills a child whose
// parent's thread ends.
var spawner = sync.OnceValue(func() chan<- func() {
	calls := make(chan func())
	go func() { // ends with the process
		runtime.LockOSThread()
		for call := range calls {
			call()
		}
	}()
	return calls
})

// Start starts it.
func (p *Process) Start() error {
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(p.bin, p.args...)
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "PULLEY_") || strings.HasPrefix(s, "NATS_") }), p.env...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // no part outlives a run that is interrupted
	started := make(chan error)
	spawner() <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	exited := make(chan struct{})
	p.mu.Lock()
	p.cmd, p.exited = cmd, exited
	p.mu.Unlock()
	go func() { // ends with the process
		cmd.Wait()
		close(exited)
	}()
	return nil
}

func (p *Process) current() (*exec.Cmd, chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd, p.exited
}

// Kill kills it, and returns what shows that.
func (p *Process) Kill() (effect string, err error) {
	cmd, exited := p.current()
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		return "", fmt.Errorf("kill %s: %w", p.Name, err)
	}
	<-exited
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGKILL {
		return "", fmt.Errorf("kill %s: it ended by itself: %v", p.Name, cmd.ProcessState)
	}
	return fmt.Sprintf("pid %d: %v", cmd.Process.Pid, cmd.ProcessState), nil
}

// Terminate sends SIGTERM, and waits until it has ended by itself, with 0.
func (p *Process) Terminate(within time.Duration) (effect string, err error) {
	cmd, exited := p.current()
	begun := time.Now()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return "", fmt.Errorf("terminate %s: %w", p.Name, err)
	}
	select {
	case <-exited:
	case <-time.After(within):
		return "", fmt.Errorf("terminate %s: it still runs after %v", p.Name, within)
	}
	if !cmd.ProcessState.Success() {
		return "", fmt.Errorf("terminate %s: %v", p.Name, cmd.ProcessState)
	}
	return fmt.Sprintf("pid %d: exit status 0 after %.1f s", cmd.Process.Pid, time.Since(begun).Seconds()), nil
}

// Freeze stops it with SIGSTOP, and checks that it stands still.
func (p *Process) Freeze() error {
	cmd, _ := p.current()
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return fmt.Errorf("freeze %s: %w", p.Name, err)
	}
	for range 100 {
		if p.state() == 'T' {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return fmt.Errorf("freeze %s: its state is %c", p.Name, p.state())
}

// Thaw lets it go on, and checks that it stood still until now.
func (p *Process) Thaw() (effect string, err error) {
	cmd, _ := p.current()
	if s := p.state(); s != 'T' {
		err = fmt.Errorf("freeze %s: its state was %c at the end", p.Name, s)
	}
	if failed := cmd.Process.Signal(syscall.SIGCONT); failed != nil {
		err = errors.Join(err, fmt.Errorf("thaw %s: %w", p.Name, failed))
	}
	return fmt.Sprintf("pid %d: state T from start to end", cmd.Process.Pid), err
}

// state is the state of its process: R, S, T and so on; '?' if there is none.
func (p *Process) state() byte {
	cmd, _ := p.current()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
	if i := bytes.LastIndex(b, []byte(") ")); err == nil && i >= 0 && len(b) > i+2 {
		return b[i+2]
	}
	return '?'
}

// logged is how much it has logged.
func (p *Process) logged() int64 {
	info, err := os.Stat(p.log)
	if err != nil {
		return 0
	}
	return info.Size()
}

// says says whether it has logged a text after what it had logged then.
func (p *Process) says(from int64, text string) bool {
	b, err := os.ReadFile(p.log)
	return err == nil && int64(len(b)) > from && bytes.Contains(b[from:], []byte(text))
}

// Running says whether it runs.
func (p *Process) Running() bool {
	cmd, exited := p.current()
	if cmd == nil {
		return false
	}
	select {
	case <-exited:
		return false
	default:
		return true
	}
}

// Stop ends it at once.
func (p *Process) Stop() {
	if cmd, exited := p.current(); cmd != nil {
		cmd.Process.Kill()
		<-exited
	}
}
