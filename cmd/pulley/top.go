package main

import (
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"sync"

	tea "charm.land/bubbletea/v2"
	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"
)

// newTopCommand is pulley top: a live view of everything.
func newTopCommand() *cobra.Command {
	var once bool
	var output string
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch pools, tiers, workers and requests live",
		Long: `Watch what goes on: pools, tiers, workers and the requests under way, the slowest
first, with what is wrong and the last events. It fits a terminal of 80 by 24, and
works over ssh. It only listens and asks: it changes nothing.

` + topHelp,
		Example: `  pulley top
  pulley top --server nats://broker-1:4222
  pulley top --once
  pulley top -o json | jq '.pools[] | select(.waiting > 100)'`,
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.BoolVar(&once, "once", false, "print how it is now, as text, and leave")
	fs.StringVarP(&output, "output", "o", "table", "how to print once: table, json or yaml; the last two say --once")
	cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	c := addConnectFlags(fs)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if !slices.Contains([]string{"table", "json", "yaml"}, output) {
			return usagef("--output %q: want table, json or yaml", output)
		}
		out := cmd.OutOrStdout()
		t := terminalOf(out)
		once = once || output != "table"
		if !once && (t.width == 0 || cmp.Or(os.Getenv("TERM"), "dumb") == "dumb") {
			return usagef("there is no terminal to show it on: say --once, or -o json")
		}
		// What happens to the connection is on the screen.
		nc, err := c.connect(context.WithValue(cmd.Context(), loggerKey{}, nil), "pulley top")
		if err != nil {
			return err
		}
		defer nc.Close()
		if !once {
			return runTop(cmd.Context(), nc, cmd.InOrStdin(), out, t)
		}
		s, err := lookOnce(cmd.Context(), nc)
		if err != nil {
			return err
		}
		b, err := view{value: s, print: func(p *page) { s.text(p, glyphsFor(os.Getenv)) }}.render(output, t)
		if err != nil {
			return err
		}
		_, err = out.Write(b)
		return err
	}
	return cmd
}

// runTop shows the screen until somebody leaves it, or ctx ends.
func runTop(ctx context.Context, nc *nats.Conn, in io.Reader, out io.Writer, t terminal) error {
	w, err := newWatcher(nc)
	if err != nil {
		return err
	}
	t.color = true // Bubble Tea leaves out what the terminal, or NO_COLOR, does not want; the selection stays
	program := tea.NewProgram(topModel{newTopScreen(t, glyphsFor(os.Getenv))}, tea.WithContext(ctx), tea.WithInput(in), tea.WithOutput(out),
		tea.WithoutSignalHandler(), tea.WithEnvironment(topEnviron(os.Environ(), os.Getenv("TERM"))))
	watching, stop := context.WithCancel(ctx)
	var watchErr error
	var loop sync.WaitGroup
	loop.Go(func() {
		watchErr = w.run(watching, func(s snapshot) { program.Send(s) })
		if watchErr != nil {
			program.Quit()
		}
	})
	_, err = program.Run()
	stop()
	loop.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(watchErr, err)
}

// topEnviron is what Bubble Tea is told of the environment. To a terminal
// across ssh it puts no questions; the Linux console, which would show them,
// gets that treatment too.
func topEnviron(environ []string, term string) []string {
	if term == "linux" {
		return append(environ, "SSH_TTY=/dev/console")
	}
	return environ
}
