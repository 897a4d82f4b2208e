// Package policy is Pulley's arithmetic: what a worker's next slot costs, which
// tier a freed slot goes to, whether a request may wait, whether a failed one
// is tried again. Everything is a function of values, the time included; there
// is no clock, no logger, no network and no goroutine here. Callers act.
package policy
