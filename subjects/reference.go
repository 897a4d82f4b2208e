package subjects

import "github.com/pulley-lb/pulley/policy"

// Reference is published by a gateway every ReferenceEvery and whenever a pool appears. It is also
// the gateway's sign of life for the workers.
type Reference struct {
	Gateway string                   `json:"gw"`
	Pools   map[string]PoolReference `json:"pools"`
	Keys    bool                     `json:"keys,omitzero"` // the gateway reads API keys in KeysBucket; an older one does not
	// Trouble is why the gateway cannot put requests on the queue; empty if it can. Workers ignore it.
	Trouble string `json:"trouble,omitempty"`
	// SilentBrokers are the members of the brokers' cluster that the others do not hear, and for how many milliseconds. Workers
	// ignore it.
	SilentBrokers map[string]int64 `json:"silent_brokers,omitempty"`
}

// PoolReference gives workers, which do not exchange messages, a common price reference.
type PoolReference struct {
	Price   float64     `json:"price"` // in seconds, see policy.Reference; 0 if unknown
	Mean    policy.Mean `json:"mean"`
	Workers int         `json:"workers"` // number of live workers
	// Slots and Weight are sums over the live workers.
	Slots  int     `json:"slots"`
	Weight float64 `json:"weight"`
	// Usual is what is usual among the live workers whose requests of the pool do not fail. Its zero values are not known, or
	// the gateway is an older one.
	Usual policy.Peer `json:"usual,omitzero"`
	// Held is how many requests wait in this gateway to be published, by tier.
	Held map[string]int `json:"held,omitempty"`
	// Standing is how many requests of this gateway are in the broker that have waited for a worker for a second or longer, by
	// tier and lane. A worker that bids for nothing of a tier learns from no delivery that requests of it wait. An older gateway
	// does not say it.
	Standing map[string]map[string]int `json:"standing,omitempty"`
	// Starving are those of these lanes, by tier, on which a request has stood for a minute while none of this gateway was taken.
	Starving map[string][]string `json:"starving,omitempty"`
	// Unclaimed is how many deliveries of this gateway's requests no worker has claimed in time within the last minute.
	Unclaimed int `json:"unclaimed,omitempty"`
	// HomeLanes are the stable ids of the workers that have a home lane.
	HomeLanes []string `json:"homes,omitempty"`
	// HomesID stands for HomeLanes where they are many. A Reference with it and without HomeLanes says that they are those of an
	// earlier one of the same gateway: see Heartbeat.KeepsHomes.
	HomesID uint64 `json:"homes_id,omitzero,string"`
	// Ration says which workers of a large pool park bids on its shared lanes; nil: all of them. An older gateway has none, and
	// an older worker parks anyway.
	Ration *policy.Ration `json:"ration,omitempty"`
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
