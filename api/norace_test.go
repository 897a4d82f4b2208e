//go:build !race

package api

const wholeBody = 64 << 20
