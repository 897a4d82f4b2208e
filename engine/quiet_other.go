//go:build !unix

package engine

const canAsk = false

func (*conn) quiet() bool { return false }
