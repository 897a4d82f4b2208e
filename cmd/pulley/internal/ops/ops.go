// Package ops is the operator's verbs: pulley tier, route, pool, worker, queue,
// request, dead, key, gpu, policy and events. There is a file for each noun.
package ops

import (
	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
)

// Commands are the nouns that an operator has verbs for, and what follows events.
func Commands() []*cobra.Command {
	return []*cobra.Command{
		newGPUCommand(), newTierCommand(), newRouteCommand(), newPoolCommand(), newQueueCommand(), newRequestCommand(),
		newDeadCommand(), newKeyCommand(), newPolicyCommand(), newEventsCommand(),
	}
}

// WorkerVerbs are the verbs for workers that run. pulley worker itself runs one.
func WorkerVerbs() (list []*cobra.Command) {
	for _, newVerb := range []func(*cli.ConnectFlags) *cobra.Command{
		newWorkerListCommand, newWorkerInfoCommand, newWorkerDrainCommand, newWorkerCordonCommand, newWorkerUncordonCommand, newWorkerWeightCommand,
	} {
		list = append(list, cli.Connected(newVerb))
	}
	return list
}
