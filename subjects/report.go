package subjects

import "time"

// HeaderReport is the header of the empty message at the end of an answer to AskWorkers; its value is a Report as JSON. Older
// gateways do not send it.
const HeaderReport = "Pulley-Report"

// Report is what a gateway says of itself, and of workers that it has lost.
type Report struct {
	Gateway string                `json:"gw"`
	Trouble string                `json:"trouble,omitempty"`        // as in its Reference
	Silent  map[string]int64      `json:"silent_brokers,omitempty"` // as in its Reference
	Pools   map[string]PoolReport `json:"pools,omitempty"`          // only those with a value
	Lost    []LostWorker          `json:"lost,omitempty"`           // within the last 10 minutes, the latest 16; the oldest first
}

// PoolReport is a part of a PoolReference.
type PoolReport struct {
	Held      map[string]int `json:"held,omitempty"`
	Unclaimed int            `json:"unclaimed,omitempty"`
}

// LostWorker is a worker that stopped sending heartbeats without leaving.
type LostWorker struct {
	Worker   string    `json:"worker"`
	Name     string    `json:"name"`
	Host     string    `json:"host,omitempty"`
	Started  time.Time `json:"started"`
	SilentMS int64     `json:"silent_ms"` // since its last heartbeat
}
