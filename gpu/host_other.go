//go:build !linux

package gpu

func (h host) load() string { return "" }
