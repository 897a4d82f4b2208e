//go:build unix

package gpu

import (
	"os/exec"
	"syscall"
)

// detach keeps the terminal's Ctrl-C from a child: it is its parent's to end it.
func detach(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }
