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
	// Lengths are those of the LongLanes: the lengths of contexts of workers, in tokens, without the least of them.
	Lengths []int64 `json:"lengths,omitempty"`
	// Loaded and WaitsMS are set if a worker would have to load the pool's model. Loaded is how many live workers have
	// it loaded or will load it; WaitsMS is how long the oldest request of this gateway has waited, by tier.
	Loaded  int              `json:"loaded,omitempty"`
	WaitsMS map[string]int64 `json:"waits_ms,omitempty"`
	// Shortage is set as well if a worker would have to load the pool's model, but not by an older gateway.
	Shortage *Shortage `json:"short,omitempty"`
}

// Shortage says how far requests exceed what the workers do that have a pool's model loaded, and who could load it.
type Shortage struct {
	Waiting int   `json:"waiting,omitempty"` // requests of this gateway that wait
	Free    int   `json:"free,omitempty"`    // slots without a request, of workers that have the model loaded or are loading it
	ForMS   int64 `json:"for_ms,omitempty"`  // for how long more requests of this gateway than these have waited, without a break
	// Loaders are workers that could load the model without pushing out anything that is in use: first those that need not
	// push out any model, the fastest first; at most MaxLoaders, and none if Waiting is 0.
	Loaders []Loader `json:"loaders,omitempty"`
}

// MaxLoaders bounds Shortage.Loaders.
const MaxLoaders = 32

// Loader is a worker that could load a model, and how many requests it would run.
type Loader struct {
	Worker string `json:"w"` // id
	Slots  int    `json:"n"`
}
