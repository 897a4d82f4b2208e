// Command pulley distributes LLM inference requests over GPU workers. One binary has all parts of the system: each part
// is a subcommand, and pulley up runs all of them.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
)

func main() {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() { // runs until the process ends
		<-signals
		cancel(cli.ErrInterrupted)
		<-signals
		os.Exit(cli.ExitInterrupted)
	}()
	os.Exit(cli.Execute(ctx, newRootCommand(), os.Args[1:], os.Stdout, os.Stderr))
}
