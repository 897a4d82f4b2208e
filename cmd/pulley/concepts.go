package main

import "github.com/spf13/cobra"

// newConceptsTopic is the help topic that explains Pulley's terms. docs/concepts.md has
// the same terms at length.
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
