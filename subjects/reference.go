package subjects

import "github.com/pulley-lb/pulley/policy"

// Reference is published by a gateway every ReferenceEvery and whenever a pool appears. It is also
// the gateway's sign of life for the workers.
type Reference struct {
	Gateway string                   `json:"gw"`
	Pools   map[string]PoolReference `json:"pools"`
}

// PoolReference gives workers, which do not exchange messages, a common price reference.
type PoolReference struct {
	Price   float64     `json:"price"` // in seconds: the lowest no-load price; 0 if unknown
	Mean    policy.Mean `json:"mean"`
	Workers int         `json:"workers"` // number of live workers
	// Slots and Weight are sums over the live workers.
	Slots  int     `json:"slots"`
	Weight float64 `json:"weight"`
	// Held is how many requests wait in this gateway to be published, by tier.
	Held map[string]int `json:"held,omitempty"`
	// HomeLanes are the ids of the workers that have a home lane.
	HomeLanes []string `json:"homes,omitempty"`
	// Loaded and WaitsMS are set if a worker would have to load the pool's model. Loaded is how many live workers have
	// it loaded or will load it; WaitsMS is how long the oldest request of this gateway has waited, by tier.
	Loaded  int              `json:"loaded,omitempty"`
	WaitsMS map[string]int64 `json:"waits_ms,omitempty"`
}
