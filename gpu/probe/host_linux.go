package probe

import (
	"fmt"
	"os"
	"syscall"
)

// load identifies the present load of the driver. The kernel gives the folder of a module a new
// inode each time the module is loaded.
func (h host) load() string {
	info, err := os.Stat(h.path("/sys/module/nvidia"))
	if err != nil {
		return ""
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return fmt.Sprintf("%s/%d/%s", h.read("/proc/sys/kernel/random/boot_id"), st.Ino, h.kernelDriver())
}
