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
	go func() { // lives as long as the process
		<-signals
		cancel(cli.ErrInterrupted)
		<-signals
		os.Exit(cli.ExitInterrupted)
	}()
	os.Exit(cli.Execute(ctx, newRootCommand(), os.Args[1:], os.Stdout, os.Stderr))
}
