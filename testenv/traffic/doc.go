// Package traffic makes request traffic from a seed. A [Family] is a kind of traffic, with its statistics as parameters; the
// families of [Families] have those that were published of production traces:
//
//   - Azure LLM inference traces 2023 and 2024: lengths of chat prompts and answers, arrivals that are burstier than Poisson's
//   - Mooncake (FAST '25): conversations with long prompts, of which little is in a cache, and agents whose prompts grow
//   - ServeGen: gamma arrivals, lognormal lengths with a Pareto tail, few clients with most requests, conversations of a few
//     turns a minute or two apart, long answers of reasoning models
//   - BurstGPT: gamma arrivals whose rate drifts
//
// A family is for what these have in common, not for one file: each seed gives other traffic of the same statistics. The same
// seed gives the same traffic.
package traffic
