package parts

import (
	"os/exec"
	"runtime"
	"sync"
	"syscall"
)

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

func spawn(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	spawner() <- func() { started <- cmd.Start() }
	return <-started
}

// killGroup kills what is left of the process group of a process that has ended. The kernel gives no new process the number
// of a group that has members.
func killGroup(pid int) { _ = syscall.Kill(-pid, syscall.SIGKILL) }
