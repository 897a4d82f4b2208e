//go:build !linux

package parts

import "os/exec"

func spawn(cmd *exec.Cmd) error { return cmd.Start() }

func killGroup(int) {}
