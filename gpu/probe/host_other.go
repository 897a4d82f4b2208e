//go:build !linux

package probe

func (h host) load() string { return "" }
