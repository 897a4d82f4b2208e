//go:build !race

package gateway

const wholeBody = 64 << 20
