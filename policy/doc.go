// Package policy holds Pulley's decisions: what a worker bids, which tier a freed slot goes to, which pool a request
// goes to, which tenant is served next, whether a request may wait, and whether a failed request is tried again.
// Everything here is a function of values, the time included. There is no clock, logger, network or goroutine; the
// callers act on the results. A [Policy] is the part of the values that an operator decides. It takes effect as a whole
// or not at all.
//
// The rules follow.
//
// # Tiers
//
// A [Tier] is a service class. A policy lists its tiers in order of priority.
//
//   - Share: while several tiers have a backlog, freed slots go to them in proportion to their
//     shares ([Wheel]). An idle tier's share goes to the others. No tier starves: neither reserve nor gate keeps a
//     tier off all workers for longer than a minute in which requests of it wait.
//   - Reserve: this percentage of each worker's slots stays free for the tier and those above it. The tiers below do
//     not bid on those slots ([Ceiling]). A reserve trades the throughput of the tiers below for the inter-token time
//     of the tiers above. On a worker with few slots, while the tiers above have requests there, the reserve grows
//     until 99 in 100 of their requests find a free slot, up to five times the percentage.
//   - Prefill gate: a tier with an active tier above it does not bid on a worker where a prompt waits for its prefill
//     ([MayBid]). The gate guards the time to the first token and costs next to nothing.
//
// A client's API key says which tiers it may ask for. It asks with service_tier or a header.
//
// # Balance
//
// The rung of a bid, 0 to 9, says how expensive a worker is. The queue serves the lowest rung
// first. A pool's balancing method says where the rung comes from:
//
//	price         the latency that the worker expects ([PriceRung]): for unlike workers, and when in doubt
//	least-loaded  the part of its slots that is in use ([LeastLoadedRung]): when slot counts are all that matters
//	weighted      requests in flight over weight ([WeightedRung]): when weights are all that matters
//	round-robin   always 0, the longest-waiting bid first: for like workers and like requests
//
// A measurement older than [FadeAfter] makes a worker's first request cheap, and only the first: so
// a worker that was slow is tried again.
//
// Spill lets the workers of another pool bid as well, at a penalty of some rungs.
//
// # Capacity
//
// A worker may have as many requests in flight as its [Signals] allow ([Signals.Capacity]): the minimum of the
// configured slots, the engine's own slots, what its queue and its KV cache leave, and the adaptive limit. A signal
// that is missing does not bind; an old one binds less. The [AdaptiveLimit] grows while requests do not slow each other
// down by more than the [Profile] allows. It shrinks when they do, or when the engine is overloaded; with configured
// slots and no named profile it shrinks only on overload. A strained GPU ([StrainWatch]) leaves half or three quarters
// of the capacity and makes the worker more expensive. A fence leaves none.
//
// # Affinity
//
// A follow-up goes to the home lane of the worker that has the start of the conversation cached. That worker bids on it
// at its price; the others bid [HomePenalty] rungs higher. So a conversation stays with its worker until that worker is
// 2.2 times as expensive as another, full, or gone. It is not full because prompts wait in its engine: follow-ups may
// wait there too ([MayWaitAtHome]). A first request is taken by price. With stick_for, for engines that
// keep a session's state, the other workers do not bid at all until that time has passed.
//
// # Swaps
//
// Some engines serve more models than they hold in memory at once, and load a requested model in place of another. The
// worker beside such an engine bids for the models that are loaded. It lets another model in when the loaded one is
// idle, or when a request has waited too long for the other; that model then stays for a minimum time ([Swap]). A bid
// for a model that must be loaded first is higher by the load time ([ColdRung]), so that a worker which has the model
// loaded comes first.
//
// # Routes
//
// The [Route] of a model is the one with its name, otherwise the pattern with the longest text before its * ([Router]).
// A model without a route goes to the pool of its name. Requests split over a route's pools by weight ([Pick]): those
// of a session, or of a tenant, always go to the same side, chosen by a hash ([PointOf]); the others are spread evenly
// ([Spread]). A fallback takes over when a pool has no live worker, or when its wait exceeds fallback_after. A mirror
// receives copies of a percentage of the requests, at the lowest tier; its answers are discarded.
//
// # Shifts
//
// A [Shift] moves a route's weight to one of its pools in steps ([Route.Step]). A step lasts at least Every, and until
// each side has MinSample answers. A condition such as error_rate>1% or p95_ttft>1.5x that holds on that sample
// restores the weights from before the shift at once. A session on the canary stays there while the canary grows. After
// a step with all weight on the canary the shift is done.
//
// # Fairness
//
// Within a tier, tenants are served in turn. The broker holds only as many requests of a queue as workers are about to
// take ([Window]); the rest wait in the gateways, and the tenant that was served the fewest tokens is next ([Fair]). A
// tenant with only occasional requests has a small burst allowance: its requests go ahead of the others, at once to the
// broker. So a flooding tenant waits behind itself. The gateways act together: each reports what it served to which
// tenant, and the next release goes to the tenant that was served least across all gateways, whichever gateway holds
// its request.
//
// Running requests are never stopped for fairness. A tenant that arrives while others use every slot waits for one to
// become free: briefly where slots are many and requests short, longer where a flood's requests are long.
//
// # Limits
//
// A [Key] limits requests per minute, tokens per minute and concurrent requests ([KeyLimits]). The limits hold across
// all gateways: n of them together admit at most n-1 requests too many. Tokens are counted as the engine reports them,
// so requests in flight may exceed the limit. The excess is deducted from what follows.
//
// # Bodies
//
// The body of a request must come at a minimal rate, and within a time that grows with what has come ([BodyPace]). A client
// whose keys are wrong too often is told when it may try again ([Allowance]).
//
// # Admission and retries
//
// A request is refused, with a time to come back, when its queue is full or drains too slowly for its deadline
// ([Queue.Admit]). A request whose attempt failed before the first byte is tried on another worker, up to the tier's
// Retries, unless two workers have crashed on it ([History.After]).
package policy
