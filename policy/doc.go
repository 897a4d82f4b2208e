// Package policy is Pulley's arithmetic: what a worker bids, which tier a freed
// slot goes to, which pool a request goes to, whose turn it is, whether it may
// wait, whether a failed one is tried again. Everything is a function of values,
// the time included; there is no clock, no logger, no network and no goroutine
// here. Callers act. A [Policy] is the part of the values that an operator
// decides; it is in force as a whole or not at all.
//
// These are the rules.
//
// # Tiers
//
// A [Tier] is a service class; the first of a policy's is the most important.
//
//   - Share: while tiers have a backlog, freed slots go to them in proportion to
//     their shares ([Wheel]). What an idle tier does not use goes to the others.
//     No tier starves.
//   - Reserve: so many percent of each worker's slots stay free for the tier and
//     those before it; the tiers after it do not bid on them ([Ceiling]). It
//     trades their throughput for the inter-token time of those before.
//   - Prefill gate: a tier with a more important one active above it does not bid
//     on a worker where a prompt waits to be read ([Opens]). It guards the time
//     to the first token and costs next to nothing.
//
// The key says which tiers a client may ask for; service_tier, or a header, asks.
//
// # Balance
//
// A bid's rung, 0 to 9, is how dear a worker is; the queue serves the lowest
// first. The pool's method says where the rung comes from:
//
//	price         the latency that the worker expects ([PriceRung]): unlike workers, or you do not know
//	least-loaded  the part of its slots that is taken ([LeastLoadedRung]): the slots say all
//	weighted      requests in flight over weight ([WeightedRung]): the weights say all
//	round-robin   always 0, who has waited longest: like workers and like requests
//
// Spill lets the workers of another pool bid too, some rungs dearer.
//
// # Affinity
//
// A follow-up goes to the lane of the worker that has the conversation's
// beginning cached. That worker bids on it at its price, the others [AwayPenalty]
// rungs dearer: so the conversation stays until its worker is 2.2 times as dear
// as another, full, or gone. A first turn is taken by price. With stick_for the
// others do not bid before that time is over, for engines that keep a session's
// state.
//
// # Routes
//
// A model's [Route] is the one of its name, else that of the pattern with the
// longest text before its * ([Router]). Without one a model goes to the pool of
// its name. Requests split over a route's pools by weight ([Pick]): those of a
// session, or a tenant, always on the same side, by a hash ([PointOf]); the
// others evenly ([Spread]). A fallback takes over when the pool has no live
// worker, or a longer wait than fallback_after. A mirror gets a copy of a part
// of the requests, at the lowest tier; its answer is thrown away.
//
// # Shifts
//
// A [Shift] moves a route's weight to one of its pools in steps ([Route.Step]).
// A step takes Every, and at least MinSample answers on each side. A condition
// such as error_rate>1% or p95_ttft>1.5x that holds on that sample takes the
// weights back to those before the shift, at once. Who is on the canary stays
// there while it grows. When all weight has been on it for a step, the shift is
// done.
//
// # Fairness
//
// Inside a tier tenants take turns. The broker has only as many requests of a
// queue as workers are about to take ([Window]); the rest waits in the gateway,
// and the tenant that has been served the fewest tokens is next ([Fair]). Who
// asks now and then has a small credit and goes ahead. So a tenant that floods
// waits behind itself.
//
// # Limits
//
// A [Key] has limits of requests and tokens per minute and of requests at once
// ([Limits]). They hold over all gateways: n of them together admit at most n-1
// requests too many. Tokens are those that the engine reports, so that what is
// in flight may go beyond the limit. What was too much is taken off what comes
// next.
//
// # Admission and retries
//
// A request is refused when its queue is full, or drains too slowly for its
// deadline ([Queue.Admit]), and is told when to come again. A request whose
// attempt failed before the first byte is tried on another worker, as often as
// the tier's Retries, and not after two workers have died of it ([History.After]).
package policy
