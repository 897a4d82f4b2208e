package main

import (
	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/doctor"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/ops"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/top"
)

// commands are the constructors of the commands that are not in package ops.
var commands = []func() *cobra.Command{
	newUpCommand,
	newGatewayCommand,
	newWorkerCommand,
	newBrokerCommand,
	top.NewCommand,
	doctor.NewCommand,
	newBenchCommand,
	newSimCommand,
	newGPUProbeCommand,
	newVersionCommand,
	newConceptsTopic,
}

// groups are the headings of the commands in the root help.
var groups = []struct {
	title    string
	commands []string
}{
	{"Run Pulley:", []string{"up", "gateway", "worker", "broker"}},
	{"Operate:", []string{"tier", "route", "pool", "queue", "request", "dead", "key", "policy"}},
	{"Observe:", []string{"top", "events", "doctor", "gpu"}},
	{"Measure and test:", []string{"bench", "sim"}},
}

// newRootCommand makes the whole command line.
func newRootCommand() *cobra.Command {
	list := ops.Commands()
	for _, newCommand := range commands {
		list = append(list, newCommand())
	}
	root := cli.NewRoot(rootHelp, buildVersion(), list...)
	for _, g := range groups {
		root.AddGroup(&cobra.Group{ID: g.title, Title: g.title})
		for _, name := range g.commands {
			if cmd, _, err := root.Find([]string{name}); err == nil {
				cmd.GroupID = g.title
			}
		}
	}
	return root
}

const rootHelp = `Pulley distributes LLM inference requests over GPU workers. Workers pull requests
from NATS JetStream while they have capacity for them.

Configuration
  Every flag --some-flag is also the environment variable PULLEY_SOME_FLAG and the
  key some-flag in the YAML file that --config names. A flag takes precedence over
  the environment, and the environment over the file. Flags that change a single
  object (for example tier set --share) have no variable or config key.

  Top-level keys apply to every command that has the flag. Keys under a command name
  apply to that command only and take precedence:

    nats: nats://broker-1:4222
    log-level: debug
    gateway:
      listen: 0.0.0.0:8080
      nats-token-file: ${CREDENTIALS_DIRECTORY}/nats-token

  ${NAME} in the file is replaced by the environment variable NAME; write $${ for a
  literal ${. A repeatable flag takes a list in the file, and values separated by
  newlines or semicolons in the environment. An empty variable counts as unset.

Exit codes
  0    success
  1    failure
  2    error in the command line or in the configuration
  3    the object does not exist
  4    refused: not possible in the present state of the object, or not allowed
  130  interrupted

Terms such as pool, tier, bid and fence are explained by 'pulley help concepts' and in
docs/concepts.md.`
