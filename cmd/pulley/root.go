package main

import (
	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/doctor"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/ops"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/top"
)

// commands makes the subcommands of pulley that are not an operator's verbs.
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
}

// newRootCommand is the whole command line.
func newRootCommand() *cobra.Command {
	list := ops.Commands()
	for _, newCommand := range commands {
		list = append(list, newCommand())
	}
	return cli.NewRoot(rootHelp, buildVersion(), list...)
}

const rootHelp = `Pulley distributes LLM inference requests over GPU workers that pull what they
have room for from NATS JetStream.

Configuration
  Every flag --some-flag is also the environment variable PULLEY_SOME_FLAG and
  the key some-flag in the YAML file given by --config, unless it says what one of
  the verbs of gpu, tier, route, pool, worker, queue, request, dead, key or policy
  is to do. The flag wins over the environment, the environment over the file. In
  the file a key at the top level holds for each command with that flag; under the
  name of a command it holds for that command alone, and wins:

    nats: nats://broker-1:4222
    log-level: debug
    gateway:
      listen: 0.0.0.0:8080
      nats-token-file: ${CREDENTIALS_DIRECTORY}/nats-token

  ${NAME} in the file is the environment variable NAME ($${ is a plain ${).
  A flag that may be repeated takes a list in the file, and values separated by
  newlines or semicolons in the environment. An empty variable counts as unset.

Exit codes
  0    done
  1    failed
  2    wrong usage or configuration
  3    the thing named does not exist
  4    refused: the thing named is in no state for it, or it is not allowed
  130  interrupted`
