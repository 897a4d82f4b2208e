package gpu

import "time"

// ProbeConfig says how to read the GPUs.
type ProbeConfig struct {
	// Library is the path of libnvidia-ml.so.1. Default: see [Config].
	Library string
	// All reads the devices too that the environment hides. Default false.
	All bool
	// Interval is how often to read. What changes slowly, or costs much, is read
	// each 10, 30 and 60 intervals. Default 1 s.
	Interval time.Duration
}
