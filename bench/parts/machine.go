package parts

import (
	"fmt"
	"os"
	"runtime"
	"strings"
)

// Machine is where a benchmark ran.
type Machine struct {
	CPUs   int    `json:"cpus"`
	CPU    string `json:"cpu,omitempty"` // the model's name, if the system tells it
	System string `json:"system"`        // operating system and architecture
	Go     string `json:"go"`
}

// ThisMachine describes the machine that this program runs on.
func ThisMachine() Machine {
	m := Machine{CPUs: runtime.NumCPU(), System: runtime.GOOS + "/" + runtime.GOARCH, Go: runtime.Version()}
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			m.CPU = strings.TrimSpace(value)
			break
		}
	}
	return m
}

func (m Machine) String() string {
	cpu := m.CPU
	if cpu == "" {
		cpu = "CPUs"
	}
	return fmt.Sprintf("%d × %s, %s, %s", m.CPUs, cpu, m.System, m.Go)
}
