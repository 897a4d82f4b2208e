// Package top is pulley top: a live view of pools, tiers, workers and requests in a terminal, or the same printed once.
package top

import (
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"

	tea "charm.land/bubbletea/v2"
	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
)

// NewCommand is pulley top.
func NewCommand() *cobra.Command {
	var once bool
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch pools, tiers, workers and requests live",
		Long: `Watch pools, tiers, workers and requests in progress, the slowest first, together
with problems and the latest events. Top fits a terminal of 80 by 24, works over
ssh, and changes nothing.

With -o json or yaml it prints one snapshot, like --once.

` + help,
		Example: `  pulley top
  pulley top --nats nats://broker-1:4222
  pulley top --once
  pulley top -o json | jq '.pools[] | select(.waiting > 100)'`,
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.BoolVar(&once, "once", false, "print one snapshot as text, and exit")
	output := cli.AddOutput(cmd, cli.Table, cli.JSON, cli.YAML)
	c := cli.AddConnectFlags(fs)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		out := cmd.OutOrStdout()
		t := term.Of(out)
		once = once || *output != cli.Table
		if !once && (t.Width == 0 || cmp.Or(os.Getenv("TERM"), "dumb") == "dumb") {
			return cli.Usagef("standard output is not a terminal: use --once or -o json")
		}
		// The screen shows the state of the connection; a log would spoil it.
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
		return cli.Show(cmd, cli.View{Value: s, Print: func(p *term.Page) { printSnapshot(p, &s, glyphsFor(os.Getenv)) }}, *output)
	}
	return cmd
}

// run shows the screen until the user quits, or ctx ends.
func run(ctx context.Context, nc *nats.Conn, in io.Reader, out io.Writer, t term.Terminal) error {
	w, err := fleet.NewWatcher(nc)
	if err != nil {
		return err
	}
	t.Color = true // Bubble Tea drops colours that the terminal lacks, or that NO_COLOR forbids, but keeps the selection visible
	env := os.Environ()
	if os.Getenv("TERM") == "linux" {
		// Bubble Tea sends no queries to a terminal that is reached over ssh. The Linux console would display them.
		env = append(env, "SSH_TTY=/dev/console")
	}
	program := tea.NewProgram(model{newScreen(t, glyphsFor(os.Getenv))}, tea.WithContext(ctx), tea.WithInput(in), tea.WithOutput(out),
		tea.WithoutSignalHandler(), tea.WithEnvironment(env))
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

// model is a screen as Bubble Tea needs it.
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
