package parts

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Usage returns what the process has used until now; zero once it has ended.
func (p *Process) Usage() Usage {
	return Usage{CPU: cpuTime(p.PID()), Switches: switches(p.PID())}
}

// cpuTime reads the CPU-time clock of a process: see clock_getcpuclockid(3). Unlike /proc/PID/stat it has nanoseconds.
func cpuTime(pid int) time.Duration {
	const cpuClockOfProcess = 2 // CPUCLOCK_SCHED
	var t unix.Timespec
	if unix.ClockGettime(int32(^pid<<3|cpuClockOfProcess), &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

func switches(pid int) (sum int64) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, file := range files {
		status, _ := os.ReadFile(file) // the thread may have ended
		for line := range strings.Lines(string(status)) {
			if _, value, ok := strings.Cut(line, "voluntary_ctxt_switches:"); ok { // also nonvoluntary_…
				n, _ := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
				sum += n
			}
		}
	}
	return sum
}

// ResidentBytes is the process's RSS.
func (p *Process) ResidentBytes() (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		return 0, fmt.Errorf("memory of %s: %w", p.Name, err)
	}
	for line := range strings.Lines(string(status)) {
		value, ok := strings.CutPrefix(line, "VmRSS:")
		if !ok {
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("memory of %s: %w", p.Name, err)
		}
		return kib << 10, nil
	}
	return 0, fmt.Errorf("memory of %s: no VmRSS in its status", p.Name)
}
