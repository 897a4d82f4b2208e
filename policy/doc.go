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
//     trades their throughput for the inter-token time of those before. On a
//     worker of few slots, while those before have requests there, it is as many
//     as it takes that 99 in 100 of them find a slot, at most five times the
//     percentage.
//   - Prefill gate: a tier with a more important one active above it does not bid
//     on a worker where a prompt waits to be read ([MayBid]). It guards the time
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
// A measurement that is older than [FadeAfter] makes the worker's first request
// cheap, and no other: so a worker that was slow is tried again.
//
// Spill lets the workers of another pool bid too, some rungs dearer.
//
// # Headroom
//
// A worker may have as many requests in flight as its [Signals] give credit for
// ([Signals.Capacity]): the least of the slots, the engine's own, what its queue and
// its KV cache leave, and the adaptive limit. What an engine or a GPU does not
// tell does not bind, what is old binds less. The [AdaptiveLimit] grows while requests do
// not slow each other down by more than the [Profile] allows, and shrinks when
// they do, or when the engine is overloaded; with configured slots, and no profile
// named, only when it is overloaded. A strained GPU ([StrainWatch]) leaves half or
// three quarters of the room and makes the worker dearer; a fence leaves nothing.
//
// # Affinity
//
// A follow-up goes to the lane of the worker that has the conversation's
// beginning cached. That worker bids on it at its price, the others [HomePenalty]
// rungs dearer: so the conversation stays until its worker is 2.2 times as dear
// as another, full, or gone. A first turn is taken by price. With stick_for the
// others do not bid before that time is over, for engines that keep a session's
// state.
//
// # Swaps
//
// Some engines answer for more models than they hold at once, and load what is
// asked for in the place of another. The worker beside one bids for what is
// loaded, and lets another model in when that has nothing to do, or when a
// request has waited too long for it; then that model stays for a while ([Swap]).
// A bid for a model that has to be loaded is dearer by the load ([ColdRung]), so
// that a worker which has it is first.
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
// asks now and then has a small credit and goes ahead, at once to the broker. So
// a tenant that floods waits behind itself. The gateways do this as one: each
// tells the others what it served to whom, and the next turn goes to the tenant
// that was served the least through all of them, wherever it waits.
//
// What runs is not stopped for anybody. So whoever comes while others use every
// slot waits for one to become free: with slots many and requests short that is
// not long, but where a flood's requests are long, it is.
//
// # Limits
//
// A [Key] has limits of requests and tokens per minute and of requests at once
// ([KeyLimits]). They hold over all gateways: n of them together admit at most n-1
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
