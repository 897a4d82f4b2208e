package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"

	natsserver "github.com/nats-io/nats-server/v2/server"
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
	newNATSConfigCommand,
	top.NewCommand,
	doctor.NewCommand,
	newBenchCommand,
	newSimCommand,
	newChatCommand,
	newBatchCommand,
	newFileCommand,
	newGPUProbeCommand,
	newConfigCommand,
	newManCommand,
	newVersionCommand,
	newConceptsTopic,
}

// groups are the headings of the commands in the root help.
var groups = []struct {
	title    string
	commands []string
}{
	{"Run Pulley:", []string{"up", "gateway", "worker", "broker", "nats-config", "config"}},
	{"Operate:", []string{"model", "tier", "route", "pool", "queue", "request", "dead", "response", "batch", "file", "key", "policy"}},
	{"Observe:", []string{"top", "events", "usage", "doctor", "gpu"}},
	{"Measure and test:", []string{"chat", "bench", "sim"}},
}

// suggestFor are words of other command lines for commands of this one.
var suggestFor = map[string][]string{
	"chat":   {"ask", "prompt", "complete"},
	"up":     {"run", "serve", "start", "server", "launch", "quickstart", "demo"},
	"doctor": {"status", "check", "health", "diagnose", "problems"},
	"top":    {"stats", "monitor", "watch", "dashboard", "ui"},
	"events": {"logs", "log", "tail"},
	"bench":  {"benchmark", "load", "loadtest", "measure"},
	"sim":    {"simulate", "mock", "fake"},

	"worker ls":  {"ps"},
	"model ls":   {"list", "ls"},
	"model info": {"show"},
}

func newRootCommand() *cobra.Command {
	list := ops.Commands()
	for _, newCommand := range commands {
		list = append(list, newCommand())
	}
	root := cli.NewRoot(rootHelp, buildVersion(), list...)
	for name, words := range suggestFor {
		if cmd, _, err := root.Find(strings.Fields(name)); err == nil {
			cmd.SuggestFor = words
		}
	}
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

// newConceptsTopic is the help topic that explains Pulley's terms. docs/concepts.md has the same terms at length.
func newConceptsTopic() *cobra.Command {
	return &cobra.Command{
		Use:   "concepts",
		Short: "The terms that Pulley uses",
		Long: `The terms that Pulley uses, in short. docs/concepts.md explains each with an example.

Requests
  request     one HTTP inference call; its id is in the header x-request-id
  model       the name that a client puts into "model"
  tier        service class of a request: share, reserve, limits, deadlines
  attempt     one try to run a request on a worker; counted by claims
  ticket      place of a request in the gateway's own queue
  claim       a worker's statement that it starts an attempt; a gateway grants one at
              a time
  frame       a piece of an answer on its way from the worker to the gateway

Workers
  engine      model server: vLLM, SGLang, llama.cpp, Ollama, …
  worker      the agent beside one engine; it pulls requests for it
  slot        capacity for one request in flight
  capacity    how many requests a worker may have now; its bound is what limits it
  headroom    free part of a worker's scarcest resource
  fence       stops a worker by itself: its engine or a GPU has failed
  cordon      an operator stops giving a worker new requests, until it is uncordoned
  drain       a worker accepts no new requests, finishes the running ones, and exits

Queues
  pool        a set of interchangeable workers, with a queue for each tier
  route       which pools serve a model: split, mirror, fallback, shift
  lane        part of a pool's queue: the shared lane, for every worker, or the home
              lane of one worker
  bid         a worker's open pull request on a lane
  price       the latency that a worker expects for the next request
  rung        the price as a priority from 0 (lowest) to 9; the lowest bid wins
  share       how freed slots are divided between tiers with a backlog
  reserve     slots that later tiers leave free for a tier and those before it
  prefill gate
              a lower tier does not bid while a prompt waits to be read
  affinity    follow-up requests go to the worker that has their prefix cached
  spill       workers of another pool also bid on a pool's queue, at a penalty`,
	}
}

// version is set by the linker; see the Makefile.
var version string

// buildVersion returns the version of this binary, or "(devel)".
func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "pulley %s (%s %s/%s, nats-server %s)\n",
				buildVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH, natsserver.VERSION)
			return err
		},
	}
}
