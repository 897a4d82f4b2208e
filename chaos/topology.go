package chaos

import "time"

// Model is what the engines serve.
const Model = "sim"

// fileTier is the tier whose queue is on disk.
const fileTier = "batch"

const (
	pace  = 20 * time.Millisecond // between two tokens of an engine
	slots = 12                    // of an engine
)

// Topology is the size of a fleet.
type Topology struct {
	Brokers  int // 1 or 3. Default 1.
	Gateways int // Default 2.
	Workers  int // each with an engine. Default 4.

	// Store is a directory for the store of each broker. Default: in the directory of the run.
	Store string
	// Disks gives each broker a file system of its own, on a loop device, which can be struck. That needs root.
	Disks bool
	// Sync is when brokers sync to disk, as their flag has it. Default always.
	Sync string
}

func (t Topology) withDefaults() Topology {
	for _, d := range []struct {
		n *int
		v int
	}{{&t.Brokers, 1}, {&t.Gateways, 2}, {&t.Workers, 4}} {
		if *d.n == 0 {
			*d.n = d.v
		}
	}
	if t.Sync == "" {
		t.Sync = "always"
	}
	return t
}
