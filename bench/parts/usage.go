package parts

import "time"

// Usage is what a process has used since its start. A system that does not report a number leaves it 0.
type Usage struct {
	CPU      time.Duration // of all threads, in user and in kernel mode
	Switches int64         // context switches of the threads that run now, voluntary and involuntary
}

// Sub is what was used since an earlier Usage.
func (u Usage) Sub(earlier Usage) Usage {
	return Usage{CPU: u.CPU - earlier.CPU, Switches: max(u.Switches-earlier.Switches, 0)}
}

// Add is the sum of both.
func (u Usage) Add(other Usage) Usage {
	return Usage{CPU: u.CPU + other.CPU, Switches: u.Switches + other.Switches}
}
