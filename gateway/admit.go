package gateway

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	// defaultOutput is how many output tokens a request counts for its tenant in the queue if it does not limit them: about
	// the mean of production traffic.
	defaultOutput = 256

	// maxOutput bounds that count, so that one request does not take its tenant's whole share for long.
	maxOutput = 4096
)

// admission decides whether a request may join a queue, and which. It builds every request.
type admission struct {
	cfg     *Config
	bus     *bus
	keys    *keyring
	router  *router
	lengths *lengths
	fleet   *fleet
	queues  *queues
	metrics *metrics
	cheap   func(path, pool string) bool // whether a call is served without a queue now: see cheapCalls
}

// arrival is a call whose caller is known and whose body is read.
type arrival struct {
	id     subjects.ID
	http   *http.Request
	header http.Header // the answer's header, in which the state of the key's limits is reported
	caller *caller
	body   []byte
	at     time.Time

	proxied bool    // a trusted proxy sent it
	record  *record // of the call; nil: there is none

	model, tier, pool string // what admit has found out of what the call asks for; empty if it was refused before
}

// admit lets a call into a queue, or returns why not.
func (a *admission) admit(in *arrival) (*request, error) {
	call, err := api.Scan(in.http, in.body)
	if errors.Is(err, api.ErrNoModel) {
		in.body, err = a.withDefaultModel(&call, in)
	}
	if err != nil {
		return nil, err
	}
	rules, header := a.bus.rules.Load(), in.http.Header
	tier, err := tierFor(rules.Policy.Tiers, in.caller, &call, header)
	if err != nil {
		return nil, err
	}
	in.record.asks(call.Model, tier.Name)
	in.tier = tier.Name
	model := a.router.find(rules, call.Model)
	if key := in.caller.key; key != nil && !allowsModel(key, call.Model, model.names) {
		return nil, &api.Error{Status: http.StatusForbidden, Code: "model_not_allowed", Param: "model",
			Message: fmt.Sprintf("the key does not allow the model %s", api.Quote(call.Model))}
	}
	if api.Cheap(in.http.URL.Path) { // whatever the client has left in a body that it copied
		call.Stream = false
	}
	patience, err := patienceOf(header, call.Stream, time.Duration(tier.Deadline), a.cfg.MaxDeadline)
	if err != nil {
		return nil, err
	}
	if model.route == nil && !model.known {
		return nil, a.router.unknown(call.Model)
	}
	to := a.router.route(rules, model, &call, in.caller.tenant, header, in.at)
	in.record.routed(to.pool)
	in.model, in.pool = call.Model, to.pool
	needs := a.lengths.of(to.pool, in.body, call.MaxTokens)
	if lane := a.lengths.lane(to.pool, needs); lane != "" && to.pin == "" {
		to.lane, to.home = lane, ""
	}
	edits := api.Edits{Tier: servedTier(call.Tier, tier.Name)}
	if to.route == nil && to.pool != call.Model || to.route != nil && to.route.RestoreModel {
		edits.Model = call.Model
	}
	body, deadline := call.WithEngineTier(in.body), in.at.Add(patience.silence)
	wire := &subjects.Request{
		ID: in.id, Gateway: a.bus.id, Tenant: in.caller.tenant, Tier: tier.Name, Model: call.Model, ModelAt: call.ModelAt, AdapterOf: to.adapterOf, Pool: to.pool,
		Deadline: deadline.UnixMilli(), Method: in.http.Method, Path: api.RequestURI(in.http.URL),
		Header: forEngine(header, in.header["X-Request-Id"], in.proxied), Stream: call.Stream, InputTokens: max(len(body)/4, 1),
		MaxOutput: call.MaxTokens, BodySize: int64(len(body)),
	}
	in.record.inject(wire.Header)
	if err := a.fit(wire, body); err != nil {
		return nil, err
	}
	cheap, tokens := a.cheap(in.http.URL.Path, to.pool), wire.InputTokens
	if cheap { // no model reads it
		to.affinity, to.home, to.pin, to.lane, tokens = 0, "", "", subjects.Shared, 0
	}
	if err := a.keys.begin(in.caller, tokens, in.header, in.at); err != nil {
		return nil, err
	}
	s := &spec{
		wire: wire, api: api.Of(in.http.URL.Path), caller: in.caller, routeName: to.routeName, route: to.route, affinity: to.affinity, home: to.home, pin: to.pin, edits: edits, needs: needs,
		cost:    wire.InputTokens + min(cmp.Or(call.MaxTokens, defaultOutput), maxOutput),
		arrived: in.at, deadline: deadline, patience: patience, explain: a.cfg.Explain.wanted(header, in.caller), cheap: cheap, record: in.record,
		admitted: target{queue: a.queues.get(to.pool, tier.Name), tier: tier, lane: to.lane},
	}
	if cheap {
		return newRequest(s, body), nil
	}
	r, err := a.enter(s, body)
	if err != nil {
		a.keys.end(in.caller, wire.InputTokens, 0, in.at)
		return nil, err
	}
	return r, nil
}

// DefaultOnly as the default model means the only one that the fleet serves.
const DefaultOnly = "only"

// withDefaultModel returns the body of a call without a model, with the default in it.
func (a *admission) withDefaultModel(call *api.Call, in *arrival) ([]byte, error) {
	model := a.cfg.DefaultModel
	switch model {
	case "":
		return nil, api.BadRequest("model", "you must provide a model: the gateway has no default for it (--default-model)")
	case DefaultOnly:
		names := a.mayAskFor(in.caller, a.router.models())
		if len(names) != 1 { // those of routes aside
			if pools := a.mayAskFor(in.caller, a.fleet.models()); len(pools) == 1 {
				names = pools
			}
		}
		switch {
		case len(names) == 0:
			return nil, api.Unavailable("no_worker", 10*time.Second, "the call names no model, and no worker serves one now (--default-model only)")
		case len(names) > 1:
			return nil, api.BadRequest("model", "you must provide a model: the gateway chooses it only where there is one (--default-model only), and there are %s", listed(names))
		}
		model = names[0]
	}
	body, err := call.WithModel(in.http.Header, in.body, model)
	if err != nil {
		return nil, api.BadRequest("model", "you must provide a model: the gateway cannot write its default into this body")
	}
	return body, nil
}

// mayAskFor returns those of the models that a caller's key allows.
func (a *admission) mayAskFor(who *caller, models []string) []string {
	if who.key == nil {
		return models
	}
	rules := a.bus.rules.Load()
	return slices.DeleteFunc(models, func(m string) bool { return !allowsModel(who.key, m, a.router.find(rules, m).names) })
}

// listed is a list of models for a message.
func listed(models []string) string {
	if len(models) > 20 {
		return fmt.Sprintf("%s and %d more", strings.Join(models[:20], ", "), len(models)-20)
	}
	return strings.Join(models, ", ")
}

// enter lets a request into the queue of its spec, or returns why not.
func (a *admission) enter(s *spec, body []byte) (*request, error) {
	at, timeout := &s.admitted, s.deadline.Sub(s.arrived)
	left := timeout
	if at.tier.MaxWait > 0 {
		left = min(left, policy.SoonestWait(time.Duration(at.tier.MaxWait)))
	}
	pool, _ := a.fleet.pool(at.queue.pool)
	join, view, verdict := at.queue.admit(candidate{
		tier: at.tier, tenant: s.caller.tenant, share: a.keys.queueShare(s.caller, at.tier.MaxQueue), left: left, slots: pool.slots, free: pool.free,
	}, s.arrived)
	switch verdict {
	case policy.Full:
		return nil, a.full(at, view, left, fmt.Sprintf("%d requests are waiting", view.Waiting), "no more requests may wait")
	case policy.ShareFull:
		const why = "the tenant has as many waiting requests as its key allows"
		return nil, a.full(at, view, left, why, why)
	case policy.TooLate:
		a.metrics.refusals.WithLabelValues(at.queue.pool, at.tier.Name, "too_late").Inc()
		what := fmt.Sprintf("the request's deadline of %v", timeout)
		if left < timeout {
			what = fmt.Sprintf("what a wait of at most %v allows (tier %s)", at.tier.MaxWait, at.tier.Name)
		}
		return nil, &api.Error{Status: http.StatusTooManyRequests, Code: "deadline_unreachable", RetryAfter: at.queue.refuse(view, left, time.Now()),
			Message: fmt.Sprintf("the expected wait in the queue of %s (tier %s) is %v, longer than %s", api.Quote(at.queue.pool), at.tier.Name, view.Wait().Round(100*time.Millisecond), what)}
	}
	at.join, at.since = join, time.Now()
	return newRequest(s, body), nil
}

// full returns the error of a request that finds its queue full. why is for its client, event for operators: without a figure that
// other gateways see differently.
func (a *admission) full(at *target, view policy.Queue, limit time.Duration, why, event string) *api.Error {
	pool, tier := at.queue.pool, at.tier.Name
	a.metrics.refusals.WithLabelValues(pool, tier, "full").Inc()
	now := time.Now()
	if at.queue.fullEventDue(now) {
		a.bus.event(subjects.Event{Kind: subjects.EventFull, Pool: pool, Tier: tier, Text: fmt.Sprintf("the queue of %s (tier %s) is full: %s", pool, tier, event)})
	}
	return &api.Error{Status: http.StatusTooManyRequests, Code: "queue_full", RetryAfter: at.queue.refuse(view, limit, now),
		Message: fmt.Sprintf("the queue of %s (tier %s) is full: %s", api.Quote(pool), tier, why)}
}

// allowsModel says whether a key allows a model, under the client's name for it or another one.
func allowsModel(key *activeKey, name string, others []string) bool {
	return key.AllowsModel(name) || slices.ContainsFunc(others, key.AllowsModel)
}

// fit decides whether the body travels in the message.
func (a *admission) fit(wire *subjects.Request, body []byte) error {
	size, limit := int64(len(body)), a.bus.nc.MaxPayload()
	const overhead = 1 << 10 // what the protocol adds
	meta := int64(overhead + 6*(len(wire.Path)+len(wire.Model)+len(wire.Pool)))
	for k, vs := range wire.Header {
		for _, v := range vs {
			meta += int64(6*(len(k)+len(v)) + 8) // a byte may become six, such as \u0001
		}
	}
	if meta+size > limit { // the estimate is too coarse
		m, err := wire.Msg(subjects.Shared, nil, time.Second)
		if err != nil {
			return err
		}
		if meta = int64(m.Size()) + overhead; meta > limit {
			return api.Errorf(http.StatusRequestHeaderFieldsTooLarge, "headers_too_large", "the request's headers are larger than the broker takes")
		}
	}
	wire.ByReference = size > a.cfg.InlineBody || size > limit/2 || meta+size > limit
	return nil
}

// tierFor returns the tier that serves a call: what it asks for, if its key allows that. Only a call with a key may ask by
// header.
func tierFor(tiers []policy.Tier, who *caller, call *api.Call, h http.Header) (policy.Tier, error) {
	asked := call.Tier
	switch {
	case who.tier == TierOfKey:
		asked = ""
	case who.tier != "":
		return forcedTier(who.tier, tiers)
	case asked == "" && who.key != nil:
		asked = h.Get("X-Service-Tier")
	}
	if who.key != nil && (asked == "" || asked == "auto" || asked == "default") {
		asked = who.key.DefaultTier()
	}
	tier, ok := policy.TierFor(asked, tiers)
	if !ok {
		var names []string
		for _, t := range tiers {
			names = append(names, t.Name)
		}
		return tier, api.BadRequest("service_tier", "unknown service tier %s: the tiers are %s", api.Quote(asked), strings.Join(names, ", "))
	}
	if who.key != nil && !who.key.AllowsTier(tier.Name, tiers) {
		return tier, &api.Error{Status: http.StatusForbidden, Code: "tier_not_allowed", Param: "service_tier",
			Message: fmt.Sprintf("the key does not allow the service tier %s", api.Quote(asked))}
	}
	return tier, nil
}

// servedTier is the name of the tier in the body of the answer: the client's own name for it. It is empty if the client
// named none.
func servedTier(asked, tier string) string {
	switch {
	case asked == "":
		return ""
	case asked == "fast": // as OpenAI answers
		return "priority"
	case asked != "auto" && asked != "default":
		return asked
	case tier == policy.DefaultTier:
		return "default"
	}
	return tier
}
