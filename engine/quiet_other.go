//go:build !unix

package engine

const canAsk = false

type peek struct{}

func (*conn) quiet() bool { return false }
