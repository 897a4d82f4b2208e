//go:build race

package api

// wholeBody is less than the largest body: the race detector is slow.
const wholeBody = 4 << 20
