// Command pulley distributes LLM inference requests over GPU workers. It is
// every part of the system in one binary: each part is a subcommand, and
// `pulley up` is all of them together.
package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() { // lives as long as the process
		<-signals
		cancel(errInterrupted)
		<-signals
		os.Exit(exitInterrupted)
	}()
	os.Exit(execute(ctx, newRootCommand(), os.Args[1:], os.Stdout, os.Stderr))
}

// errInterrupted is the cause of a command's context after the first SIGINT or
// SIGTERM. A second one ends the process at once.
var errInterrupted = errors.New("interrupted")
