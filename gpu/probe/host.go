package probe

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/pulley-lb/pulley/gpu"
)

// host is what the machine reports about itself and its driver. root is "/" except in tests.
type host struct{ root string }

func (h host) path(name string) string { return filepath.Join(h.root, name) }

func (h host) has(name string) bool {
	_, err := os.Stat(h.path(name))
	return err == nil
}

func (h host) read(name string) string {
	b, _ := os.ReadFile(h.path(name)) // an unreadable file counts as empty
	return strings.TrimSpace(string(b))
}

// container reports whether this process runs in a container.
func (h host) container() bool {
	return h.has("/.dockerenv") || h.has("/run/.containerenv") || h.has("/var/run/secrets/kubernetes.io") ||
		strings.Contains(h.read("/proc/1/cgroup"), "kubepods")
}

// deviceNodes reports whether the driver's device nodes are there.
func (h host) deviceNodes() bool { return h.has("/dev/nvidiactl") || h.has("/dev/dxg") }

var moduleVersion = regexp.MustCompile(`Kernel Module.*?\s(\d+\.\d[\d.]*)`)

// kernelDriver is the version of the loaded driver, or "".
func (h host) kernelDriver() string {
	if v := h.read("/sys/module/nvidia/version"); v != "" {
		return v
	}
	if m := moduleVersion.FindStringSubmatch(h.read("/proc/driver/nvidia/version")); m != nil {
		return m[1]
	}
	return ""
}

// hardware reports whether there is an NVIDIA device on the PCI bus.
func (h host) hardware() bool {
	vendors, _ := filepath.Glob(h.path("/sys/bus/pci/devices/*/vendor"))
	for _, v := range vendors {
		if b, _ := os.ReadFile(v); string(bytes.TrimSpace(b)) == "0x10de" {
			return true
		}
	}
	return false
}

// memory is the machine's memory. Free is what could be allocated without swapping.
func (h host) memory() *gpu.Memory {
	var total, available uint64
	lines := bufio.NewScanner(strings.NewReader(h.read("/proc/meminfo")))
	for lines.Scan() {
		name, rest, _ := strings.Cut(lines.Text(), ":")
		kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 54)
		if err != nil {
			continue
		}
		switch name {
		case "MemTotal":
			total = kib << 10
		case "MemAvailable":
			available = kib << 10
		}
	}
	if total == 0 || available > total {
		return nil
	}
	return &gpu.Memory{Total: total, Used: total - available, Free: available, Host: true}
}

// libraries are paths of NVML's library that the loader does not search: where driver containers and WSL have it.
func (h host) libraries() []string {
	var found []string
	for _, root := range []string{"", "/run/nvidia/driver", "/driver-root"} {
		for _, dir := range []string{"/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/lib64", "/usr/lib/wsl/lib"} {
			if name := root + dir + "/libnvidia-ml.so.1"; h.has(name) {
				found = append(found, h.path(name))
			}
		}
	}
	return found
}
