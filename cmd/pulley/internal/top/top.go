// Package top is pulley top: a live view of pools, tiers, workers and requests in
// a terminal, or the same printed once.
package top

import (
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"charm.land/bubbletea/v2"
	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
)

// NewCommand is pulley top: a live view of everything.
func NewCommand() *cobra.Command {
	var once bool
	var output string
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch pools, tiers, workers and requests live",
		Long: `Watch what goes on: pools, tiers, workers and the requests under way, the slowest
first, with what is wrong and the last events. It fits a terminal of 80 by 24, and
works over ssh. It only listens and asks: it changes nothing.

` + help,
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
	c := cli.AddConnectFlags(fs)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if !slices.Contains([]string{"table", "json", "yaml"}, output) {
			return cli.Usagef("--output %q: want table, json or yaml", output)
		}
		out := cmd.OutOrStdout()
		t := term.Of(out)
		once = once || output != "table"
		if !once && (t.Width == 0 || cmp.Or(os.Getenv("TERM"), "dumb") == "dumb") {
			return cli.Usagef("there is no terminal to show it on: say --once, or -o json")
		}
		// What happens to the connection is on the screen.
		nc, err := c.Connect(cli.WithLogger(cmd.Context(), nil), "pulley top")
		if err != nil {
			return err
		}
		defer nc.Close()
		if !once {
			return run(cmd.Context(), nc, cmd.InOrStdin(), out, t)
		}
		s, err := fleet.ReadSnapshot(cmd.Context(), nc)
		if err != nil {
			return err
		}
		b, err := cli.View{Value: s, Print: func(p *term.Page) { printSnapshot(p, &s, glyphsFor(os.Getenv)) }}.Render(output, t)
		if err != nil {
			return err
		}
		_, err = out.Write(b)
		return err
	}
	return cmd
}

// run shows the screen until somebody leaves it, or ctx ends.
func run(ctx context.Context, nc *nats.Conn, in io.Reader, out io.Writer, t term.Terminal) error {
	w, err := fleet.NewWatcher(nc)
	if err != nil {
		return err
	}
	t.Color = true // Bubble Tea leaves out what the terminal, or NO_COLOR, does not want; the selection stays
	program := tea.NewProgram(model{newScreen(t, glyphsFor(os.Getenv))}, tea.WithContext(ctx), tea.WithInput(in), tea.WithOutput(out),
		tea.WithoutSignalHandler(), tea.WithEnvironment(environ(os.Environ(), os.Getenv("TERM"))))
	watching, stop := context.WithCancel(ctx)
	var watchErr error
	var loop sync.WaitGroup
	loop.Go(func() {
		watchErr = w.Run(watching, func(s fleet.Snapshot) { program.Send(s) })
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

// environ is what Bubble Tea is told of the environment. To a terminal
// across ssh it puts no questions; the Linux console, which would show them,
// gets that treatment too.
func environ(environ []string, term string) []string {
	if term == "linux" {
		return append(environ, "SSH_TTY=/dev/console")
	}
	return environ
}

// model is a topScreen for Bubble Tea.
type model struct{ *screen }

func (m model) Init() tea.Cmd { return nil }

func (m model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.Width, m.Height = msg.Width, msg.Height
	case fleet.Snapshot:
		m.latest = msg
	case tea.KeyPressMsg:
		if msg.String() == "ctrl+z" {
			return m, tea.Suspend
		}
		if m.press(msg.String(), msg.Text) {
			return m, tea.Quit
		}
	}
	return m, nil
}

func (m model) View() tea.View {
	v := tea.NewView("")
	if m.Width > 0 {
		v.SetContent(strings.Join(m.lines(), "\n"))
	}
	v.AltScreen = true
	return v
}
