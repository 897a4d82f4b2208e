// Package doctor is pulley doctor: it examines the broker and the fleet, and prints a verdict for each check, with a
// remedy.
package doctor

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
)

// NewCommand is pulley doctor.
func NewCommand() *cobra.Command {
	var library, admin string
	var local bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find what is wrong, and say what to do",
		Long: `Examine a running Pulley through its broker: the connection, JetStream, streams
and buckets, the policy, gateways, workers with their engines and GPUs, pools,
tiers, keys, batches, background responses and dead letters. Each check is ok, or reports warnings and problems
with a remedy. Workers that were lost within the last 10 minutes are named too. Doctor
changes nothing, and takes less than a second where all is well. With --local it also
reads the GPUs of this machine; no worker needs to run here. If NATS shows no
gateway, doctor asks the one at --admin why: with wrong credentials it can say
nothing there. A worker has no such port: its log says what is denied.

The exit code is 1 if there is a problem. Warnings and notices leave it 0.`,
		Example: `  pulley doctor
  pulley doctor --nats nats://broker-1:4222
  pulley doctor --local
  pulley doctor -o json | jq '.found[] | select(.verdict == "problem")'`,
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	output := cli.AddOutput(cmd, cli.Table, cli.JSON, cli.YAML)
	fs.BoolVar(&local, "local", false, "also read the GPUs of this machine")
	fs.SetAnnotation("local", cli.CommandLineOnly, []string{})
	fs.StringVar(&admin, "admin", "127.0.0.1:8081", "`host:port` of the admin port of a gateway, which is asked if NATS shows no gateway; \"\" asks none")
	fleet.AddLibraryFlag(fs, &library)
	c := cli.AddConnectFlags(fs)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		e, err := examine(cmd.Context(), c)
		if err != nil {
			return err
		}
		e.readUnheard(cmd.Context(), admin)
		if local {
			if err := e.readLocalGPUs(cmd.Context(), library); err != nil {
				return err
			}
		}
		found := e.findings()
		if err := cli.Show(cmd, findingsView(found), *output); err != nil {
			return err
		}
		if n := problems(found); n > 0 {
			return errors.New(term.Count(n, "problem"))
		}
		return nil
	}
	return cmd
}

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
	for _, f := range found {
		if f.Verdict == fleet.Problem {
			n++
		}
	}
	return n
}
