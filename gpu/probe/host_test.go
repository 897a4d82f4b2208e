package probe

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/gpu"
)

// hostWith is a machine with these files: NAME or NAME=content.
func hostWith(t *testing.T, files ...string) host {
	t.Helper()
	h := host{t.TempDir()}
	for _, f := range files {
		name, content, _ := strings.Cut(f, "=")
		if err := os.MkdirAll(filepath.Dir(h.path(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(h.path(name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func TestFailureToInit(t *testing.T) {
	const driver = "/proc/driver/nvidia/version=NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Thu Aug 7\nGCC version:"
	tests := map[string]struct {
		ret   int
		files []string
		kind  gpu.Kind
		text  string // of error and remedy
	}{
		"a machine without":                       {retNoLibrary, nil, gpu.NoGPU, "otherwise ignore this"},
		"a GPU without a driver":                  {retNoLibrary, []string{"/sys/bus/pci/devices/0000:3b:00.0/vendor=0x10de\n"}, gpu.NoLibrary, "install the user space part of the driver"},
		"another maker's GPU":                     {retNoLibrary, []string{"/sys/bus/pci/devices/0000:3b:00.0/vendor=0x1002\n"}, gpu.NoGPU, ""},
		"a container on a machine without":        {retNoLibrary, []string{"/.dockerenv"}, gpu.NoGPU, "start the container with the NVIDIA runtime"},
		"a container without the library":         {retNoLibrary, []string{"/.dockerenv", "/sys/module/nvidia/version=580.65.06"}, gpu.NoLibrary, "NVIDIA_DRIVER_CAPABILITIES=utility"},
		"a pod without the library":               {retNoLibrary, []string{"/proc/1/cgroup=0::/kubepods/burstable/pod1", "/sys/bus/pci/devices/0000:3b:00.0/vendor=0x10de"}, gpu.NoLibrary, "runtimeClassName"},
		"an upgraded library":                     {retMismatch, []string{driver}, gpu.Mismatch, "the driver that is loaded is 580.65.06"},
		"a driver that is not loaded":             {retNotLoaded, nil, gpu.NoDriver, "modprobe nvidia"},
		"a container without devices":             {retNotLoaded, []string{"/run/.containerenv", driver}, gpu.NoAccess, "recreate the container"},
		"a container that lost its devices":       {retUnknown, []string{"/.dockerenv", driver, "/dev/nvidiactl"}, gpu.NoAccess, "systemd reloads"},
		"a container that may not, told by ioctl": {retOS, []string{"/.dockerenv"}, gpu.NoAccess, "cgroups"},
		"a user who may not":                      {retNoPermission, []string{driver, "/dev/nvidiactl"}, gpu.NoPermission, "/dev/nvidiactl"},
		"an unknown error":                        {retUnknown, []string{driver, "/dev/nvidiactl"}, gpu.Other, "nvidia-smi"},
		"an error without a name":                 {77, nil, gpu.Other, "NVML error 77"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := failureToInit(tt.ret, hostWith(t, tt.files...))
			if text := f.Error() + "; " + f.Remedy(); f.Kind != tt.kind || !strings.Contains(text, tt.text) {
				t.Errorf("%s: %s; want %s: …%s…", f.Kind, text, tt.kind, tt.text)
			}
		})
	}
}

func TestHostMemory(t *testing.T) {
	h := hostWith(t, "/proc/meminfo=MemTotal:       125829120 kB\nMemFree:         1000 kB\nMemAvailable:   104857600 kB\n")
	if m := h.memory(); m == nil || *m != (gpu.Memory{Total: 120 << 30, Used: 20 << 30, Free: 100 << 30, Host: true}) {
		t.Errorf("memory %+v", m)
	}
	if m := hostWith(t).memory(); m != nil {
		t.Errorf("memory of nothing: %+v", m)
	}
}

func TestLibrariesElsewhere(t *testing.T) {
	h := hostWith(t, "/run/nvidia/driver/usr/lib64/libnvidia-ml.so.1")
	if got := h.libraries(); len(got) != 1 || got[0] != h.path("/run/nvidia/driver/usr/lib64/libnvidia-ml.so.1") {
		t.Errorf("libraries %q", got)
	}
}

func TestEachLoadOfTheDriverHasItsName(t *testing.T) {
	h := hostWith(t)
	if load := h.load(); load != "" {
		t.Errorf("load %q without a driver", load)
	}
	h = hostWith(t, "/proc/sys/kernel/random/boot_id=b1", "/sys/module/nvidia/version=580.65.06")
	first := h.load()
	if again := h.load(); first == "" || again != first {
		t.Skipf("load %q, then %q: only Linux can tell", first, again)
	}
	if err := os.WriteFile(h.path("/sys/module/nvidia/version"), []byte("590.10"), 0o644); err != nil {
		t.Fatal(err)
	}
	if h.load() == first {
		t.Error("another version is the same load")
	}
}
