//go:build unix

package gpu

import (
	"os/exec"
	"syscall"
)

// detach keeps the terminal's Ctrl-C from the child, which only its parent should end.
func detach(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }
