// Package ops has the operator's commands: pulley tier, route, pool, model, worker, queue, request, dead, response, key, gpu,
// policy, events and usage. Each noun has its files.
package ops

import (
	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
)

// Commands returns the operator's commands, except for the verbs of pulley worker.
func Commands() []*cobra.Command {
	return []*cobra.Command{
		newGPUCommand(), newTierCommand(), newRouteCommand(), newPoolCommand(), newQueueCommand(), newRequestCommand(),
		newDeadCommand(), newResponseCommand(), newKeyCommand(), newPolicyCommand(), newEventsCommand(), newModelCommand(), newUsageCommand(),
	}
}

// WorkerVerbs returns the verbs for running workers. They are added to the command pulley worker, which itself runs
// one.
func WorkerVerbs() (list []*cobra.Command) {
	for _, newVerb := range []func(*cli.ConnectFlags) *cobra.Command{
		newWorkerListCommand, newWorkerInfoCommand, newWorkerDrainCommand, newWorkerCordonCommand, newWorkerUncordonCommand, newWorkerWeightCommand,
	} {
		list = append(list, cli.Connected(newVerb))
	}
	return list
}
