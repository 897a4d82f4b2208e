// Package doctor is pulley doctor: it examines the broker and the fleet, and
// prints a verdict for each check, with a remedy.
package doctor

import (
	"errors"
	"slices"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
)

func NewCommand() *cobra.Command {
	var output, library string
	var local bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what is wrong and what to do",
		Long: `Examine a Pulley from its broker: the connection, JetStream, streams and buckets,
the policy, gateways, workers with their engines and GPUs, pools, tiers, keys and
dead letters. Each is ok, or has warnings and problems with a remedy. It changes
nothing, and takes a few seconds. With --local it asks NVML on this machine too,
whether or not a worker runs here.

The exit code is 1 where there is a problem, 0 where there are none but warnings.`,
		Example: `  pulley doctor
  pulley doctor --server nats://broker-1:4222
  pulley doctor --local
  pulley doctor -o json | jq '.found[] | select(.verdict == "problem")'`,
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVarP(&output, "output", "o", "table", "how to print: table, json or yaml")
	cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	fs.BoolVar(&local, "local", false, "ask NVML on this machine too")
	fs.SetAnnotation("local", cli.CommandLineOnly, []string{})
	fleet.AddLibraryFlag(fs, &library)
	c := cli.AddConnectFlags(fs)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if !slices.Contains([]string{"table", "json", "yaml"}, output) {
			return cli.Usagef("--output %q: want table, json or yaml", output)
		}
		e, err := examine(cmd.Context(), c)
		if err != nil {
			return err
		}
		if local {
			if err := e.askLocally(cmd.Context(), library); err != nil {
				return err
			}
		}
		found := e.findings()
		out := cmd.OutOrStdout()
		b, err := findingsView(found).Render(output, term.Of(out))
		if err != nil {
			return err
		}
		if _, err := out.Write(b); err != nil {
			return err
		}
		if n := problems(found); n > 0 {
			return errors.New(term.Count(n, "problem"))
		}
		return nil
	}
	return cmd
}

// findingsView shows findings, each with its remedy below it.
func findingsView(found []fleet.Finding) cli.View {
	return cli.View{
		Value: struct {
			OK    bool            `json:"ok"`
			Found []fleet.Finding `json:"found"`
		}{problems(found) == 0, found},
		Print: func(p *term.Page) { fleet.PrintFindings(p, found) },
	}
}

func problems(found []fleet.Finding) (n int) {
	for _, d := range found {
		if d.Verdict == fleet.Problem {
			n++
		}
	}
	return n
}
