package subjects

// Gateways that hold requests back deal the turns to go to the broker's queue
// together: whoever hears of a delivery that leaves the queue short gives the
// turn to the gateway whose next tenant was served the least.

// Release tells a gateway to publish one request that it holds back.
type Release struct {
	Pool    string `json:"pool"`
	Tier    string `json:"tier"`
	Pending int    `json:"pending"`        // requests in the broker's queue
	Hops    int    `json:"hops,omitempty"` // gateways that had nothing to publish
}

// HeldReport is what a gateway tells the others, a few times a second, of queues where
// somebody holds requests back.
type HeldReport struct {
	Gateway string      `json:"gw"`
	Queues  []HeldQueue `json:"queues"`
}

// HeldQueue is one of them, its shared lane.
type HeldQueue struct {
	Pool string `json:"pool"`
	Tier string `json:"tier"`
	Held int    `json:"held"` // requests that wait in the gateway
	Out  int    `json:"out"`  // of its requests that wait in the broker
	// Level is how far service has come, in tokens of each tenant; Next, what was
	// served to the tenant that is next here, Step, by how much that grows with each
	// turn, and WaitsMS, for how long its request waits: see policy.Fair.
	Level   uint64  `json:"level"`
	Next    uint64  `json:"next"`
	Step    uint64  `json:"step"`
	WaitsMS float64 `json:"waits_ms"`
	// Served are the tokens that tenants were served through this gateway since it
	// last told.
	Served map[string]uint64 `json:"served,omitempty"`
}
