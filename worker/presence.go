package worker

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/plain"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	memberEvery = 3 * time.Second
	leaseEvery  = subjects.AckWait / 3

	// noGatewayFor is how long the broker may know no gateway of an id before that is gone: one that has lost its node of
	// the broker is back sooner, and publishes a Reference then.
	noGatewayFor = 700 * time.Millisecond

	// gatewayForgotten is how long a gateway is remembered without a sign of life, if nothing runs for it.
	gatewayForgotten = time.Minute
)

// busyStays is how long after its last request an engine that answers late is busy and not down: until it is asked again.
const busyStays = 6 * time.Second

// notAsked is why the engine counts as down until its models are known.
const notAsked = "not asked yet"

// presence is the worker's place in the fleet: its state, which follows from the
// health of the engine and the operator's orders, and the gateways that it knows.
type presence struct {
	due     chan struct{} // signals that a heartbeat is due now; capacity 1
	members chan struct{} // signals that the entry in the membership bucket is due now; capacity 1

	mu        sync.Mutex
	state     subjects.State // never cordoned or fenced: report adds these
	reason    string
	cordoned  bool
	weight    float64                          // set by the policy or the configuration; 0: not set
	unlisted  string                           // why the engine's last listing of its models was not usable; empty: it was
	trouble   engine.Trouble                   // the kind of obstacle that unlisted is
	unhealthy string                           // why the engine is not healthy by its own report; empty: it is
	refusals  int                              // of the engine since its last whole answer
	failing   failing                          // see failing.go
	noList    bool                             // unlisted only means that the engine did not answer in time
	noReport  bool                             // the same of unhealthy
	works     bool                             // the engine has requests, or had some lately
	worked    time.Time                        // when it last had some
	pausedTo  time.Time                        // until when the worker is paused, in that state
	connected time.Time                        // to the broker
	again     time.Time                        // when that was not the first time; else zero
	gateways  map[string]time.Time             // last sign of life, by id
	missing   map[string]time.Time             // since when the broker knows no gateway of an id
	reach     map[string]reach                 // whether gateways that are heard can be reached, by id
	lonely    bool                             // it was said that no gateway is heard
	listed    map[string]*subjects.ListedModel // what the engine's list says of its models, by name; the values are never changed
	adapters  map[string][]string              // names of the adapters in that list, by their parent; the values are never changed
	unserved  []string                         // models of the engine beside the one that a configured pool serves
	dialect   engine.Dialect                   // as last detected
	excess    int                              // how many models the engine had when they were last too many; 0: they never were
	served    uint64                           // counts the changes of the pools that the worker serves
	announced uint64                           // served, as of the last heartbeat
}

func newPresence(weight float64) *presence {
	return &presence{
		due: make(chan struct{}, 1), members: make(chan struct{}, 1),
		state: subjects.Down, reason: notAsked, unlisted: notAsked,
		weight: weight, gateways: make(map[string]time.Time), missing: make(map[string]time.Time),
	}
}

func (p *presence) beat() { signal(p.due) }

// open reports whether the worker's state lets it accept new requests, and returns
// the weight that was set for it. It ends a pause whose time is over.
func (p *presence) open(now time.Time) (open bool, weight float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == subjects.Paused && !now.Before(p.pausedTo) {
		p.setLocked(subjects.Ready, "")
	}
	return p.state == subjects.Ready && !p.cordoned, p.weight
}

// report returns the worker's state as it is published. fence is the reason of capacity's fence, if that is up.
func (p *presence) report(fence string) (state subjects.State, reason string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch takes := p.state == subjects.Ready || p.state == subjects.Paused || p.state == subjects.Busy; {
	case takes && p.cordoned:
		return subjects.Cordoned, "cordoned by an operator"
	case takes && fence != "":
		return subjects.Fenced, fence
	}
	return p.state, p.reason
}

// set changes the state. A draining worker can only leave.
func (p *presence) set(s subjects.State, reason string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.setLocked(s, reason)
}

func (p *presence) setLocked(s subjects.State, reason string) {
	if p.state == subjects.Left || p.state == subjects.Draining && s != subjects.Left {
		return
	}
	p.state, p.reason = s, reason
}

// healthChange is a change of the engine's health. The zero value is no change.
type healthChange struct {
	reason string // why the engine is down, if it has gone down or the reason is new
	down   bool   // it has gone down
	up     bool   // it was down and is healthy now
	busy   string // why it has become busy
	eased  bool   // it was busy and is not any more
}

// onDialect reports whether the dialect of the engine is another than before.
func (p *presence) onDialect(d engine.Dialect) (changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	changed = d != p.dialect
	p.dialect = d
	return changed
}

// onUnserved stores which of the engine's models a pool does not serve. It reports whether there are others than before.
func (p *presence) onUnserved(models []string) (news bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	news = len(models) > 0 && !slices.Equal(models, p.unserved)
	p.unserved = models
	return news
}

// onExcess stores how many models the engine has, which are too many. It reports whether that is new.
func (p *presence) onExcess(models int) (news bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	news = models != p.excess
	p.excess = models
	return news
}

// onServe notes that the worker is about to serve other pools. Until a heartbeat has said so, it does not bid: gateways
// refuse claims of a worker that, by its heartbeats, does not serve the pool.
func (p *presence) onServe() {
	p.mu.Lock()
	p.served++
	p.mu.Unlock()
	p.beat()
}

// serves returns what a heartbeat that is made now may announce.
func (p *presence) serves() (served uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.served
}

// onAnnounced notes that a heartbeat was published. It reports whether that lets the worker bid again.
func (p *presence) onAnnounced(served uint64) (bids bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	bids = p.announced != served && p.served == served
	p.announced = served
	return bids
}

// mayBid reports whether heartbeats have announced the pools that the worker serves.
func (p *presence) mayBid() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.announced == p.served
}

// onTrouble stores the kind of obstacle of the engine's last listing.
func (p *presence) onTrouble(t engine.Trouble) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trouble = t
}

// downClass returns what keeps the worker from its engine, if that is why it is down and someone has to remove it.
func (p *presence) downClass() subjects.DownClass {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state != subjects.Down || p.unlisted == "" {
		return ""
	}
	return subjects.DownClass(p.trouble)
}

// onFacts stores what the engine's list says of its models. The first time of creation stays, since some engines
// give the time of the question.
func (p *presence) onFacts(l engine.Listing) {
	listed, adapters := make(map[string]*subjects.ListedModel, len(l.Models)), l.Adapters()
	for parent, names := range adapters {
		slices.Sort(names)
		adapters[parent] = names[:min(len(names), subjects.MaxAdapters)]
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, name := range l.Models[:min(len(l.Models), len(l.Facts))] {
		f := l.Facts[i]
		m := subjects.ListedModel{
			Created: f.Created, OwnedBy: f.OwnedBy, MaxModelLen: f.MaxModelLen, ContextLength: f.ContextLength,
			MaxContextLength: f.MaxContextLength, ContextWindow: f.ContextWindow, MetaContext: f.MetaContext, MetaTrained: f.MetaTrained,
		}
		if len(f.Parent) <= subjects.MaxName {
			m.Parent = f.Parent
		}
		if was := p.listed[name]; was != nil && was.Created > 0 {
			m.Created = min(m.Created, was.Created)
		}
		listed[name] = &m
	}
	p.listed, p.adapters = listed, adapters
}

// facts returns what the engine's list says of its models, and the names of adapters by their parent. It must not be changed.
func (p *presence) facts() (listed map[string]*subjects.ListedModel, adapters map[string][]string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.listed, p.adapters
}

// onListing stores why the engine's listing of its models is not usable; nil if it is. late says that it did not answer in
// time.
func (p *presence) onListing(err error, late bool) healthChange {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unlisted, p.noList = "", late
	if err != nil {
		p.unlisted = plain.Error(err)
	}
	return p.judgeLocked()
}

// onStatus stores why the engine is not healthy by its own report; empty if it is. late says that it did not answer in time.
func (p *presence) onStatus(unhealthy string, late bool) healthChange {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unhealthy, p.noReport = unhealthy, late
	return p.judgeLocked()
}

// onWork stores whether the engine has requests.
func (p *presence) onWork(works bool, now time.Time) healthChange {
	p.mu.Lock()
	defer p.mu.Unlock()
	if works {
		p.worked = now
	}
	works = now.Sub(p.worked) < busyStays
	if p.works == works {
		return healthChange{}
	}
	p.works = works
	return p.judgeLocked()
}

// judgeLocked decides whether the engine is down: it is if it does not list its models, or reports that it is not healthy.
// One that only answers late while it has requests is busy: it may be reading a long prompt. It keeps its requests.
func (p *presence) judgeLocked() (c healthChange) {
	why, was := cmp.Or(p.unlisted, p.unhealthy), p.state
	late := (p.unlisted == "" || p.noList) && (p.unhealthy == "" || p.noReport)
	switch {
	case was == subjects.Draining, was == subjects.Left:
	case why != "" && late && p.works && was != subjects.Down:
		if was != subjects.Busy {
			c.busy = why
			p.setLocked(subjects.Busy, why)
		}
	case why != "":
		if was != subjects.Down || p.reason != why {
			c.reason = why
		}
		c.down = was != subjects.Down
		p.setLocked(subjects.Down, why)
	case was == subjects.Down:
		c.up = true
		p.refusals, p.failing = 0, nil
		p.setLocked(subjects.Ready, "")
	case was == subjects.Busy:
		c.eased = true
		p.setLocked(subjects.Ready, "")
	}
	return c
}

// late reports whether the engine has not answered a question about itself in time, though it has requests.
func (p *presence) late() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state == subjects.Busy
}

// onRefusal pauses the worker after the engine refused a request, for as long as the engine asked (0: it did not).
func (p *presence) onRefusal(asked time.Duration, reason string, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refusals++
	if p.state == subjects.Ready || p.state == subjects.Paused {
		p.pausedTo = now.Add(policy.Pause(p.refusals, asked))
		p.setLocked(subjects.Paused, reason)
	}
}

// onSuccess records a whole answer. A pause ends with the next plan: the engine has a slot again.
func (p *presence) onSuccess(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refusals = 0
	if p.state == subjects.Paused {
		p.pausedTo = now
	}
}

func (p *presence) down() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state == subjects.Down
}

// follow sets what the policy says about this worker. It reports whether that cordons or uncordons it.
func (p *presence) follow(cordoned bool, weight float64) (changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	changed = p.cordoned != cordoned
	p.cordoned, p.weight = cordoned, weight
	return changed
}

// onReconnect records a new connection to the broker. The silence of gateways counts from then on.
func (p *presence) onReconnect(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.connected.IsZero() {
		p.again = now
	}
	p.connected, p.lonely = now, false
	clear(p.reach)
}

// onDeaf records that this worker hears nobody. The silence of gateways counts from then on.
func (p *presence) onDeaf(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.connected = now
	clear(p.missing)
}

func (p *presence) onGateway(id string, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gateways[id] = now
	delete(p.missing, id)
}

const (
	// reachAfter is how many References in a row of a gateway that the broker says is not there show that this worker cannot
	// reach it.
	reachAfter = 3

	// lonelyAfter is how long a worker that is connected hears no gateway until it says so.
	lonelyAfter = 10 * time.Second
)

// reach is whether a gateway that is heard can be reached. If it cannot, the broker hides it from this user.
type reach struct {
	asked  bool // the broker was asked since the last Reference
	failed int  // how often in a row the answer was that there is no such gateway
	known  bool // it can be reached, or it was said that it cannot
}

// tryToReach reports whether to ask the broker now, when a Reference of a gateway has come, and whether it is now clear that
// the gateway cannot be reached.
func (p *presence) tryToReach(id string) (ask, unreachable bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reach == nil {
		p.reach = make(map[string]reach)
	}
	r := p.reach[id]
	_, missing := p.missing[id]
	switch {
	case r.known:
		return false, false
	case r.asked && !missing:
		r.known = true
	case r.asked:
		r.failed++
		unreachable = r.failed == reachAfter
		r.known = unreachable
	}
	r.asked = !r.known
	p.reach[id] = r
	return r.asked, unreachable
}

// hearsNobody reports, once for each connection, that no gateway is heard.
func (p *presence) hearsNobody(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lonely || now.Sub(p.connected) < lonelyAfter {
		return false
	}
	for _, at := range p.gateways {
		if now.Sub(at) < lonelyAfter {
			return false
		}
	}
	p.lonely = true
	return true
}

// onNoGateway records that the broker knows no gateway of that id. It may be about to connect again, as the broker may
// have restarted.
func (p *presence) onNoGateway(id string, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.missing[id]; !known {
		p.missing[id] = now
	}
}

// onRequestOf records the gateway of a request. If it was not known, its silence counts from now on.
func (p *presence) onRequestOf(gateway string, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.gateways[gateway]; !known {
		p.gateways[gateway] = now
	}
}

// quiet reports whether a sign of life of a gateway is overdue: it may be gone.
func (p *presence) quiet(gateway string, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return now.Sub(p.gateways[gateway]) > subjects.ReferenceEvery+subjects.ReferenceEvery/2
}

// gone returns the gateways that are gone: the broker does not know them, or they are silent. When this worker has lost
// its connection to the broker, they may have too, and are given time to come back, unless they have been heard since.
func (p *presence) gone(now time.Time) (gateways []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id := range p.gateways {
		if p.goneLocked(id, now) {
			gateways = append(gateways, id)
		}
	}
	return gateways
}

// isGone reports whether a gateway is gone.
func (p *presence) isGone(gateway string, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.goneLocked(gateway, now)
}

func (p *presence) goneLocked(gateway string, now time.Time) bool {
	at, known := p.gateways[gateway]
	since, missing := p.missing[gateway]
	switch {
	case !known:
		return false
	case missing && now.Sub(since) >= noGatewayFor && (now.Sub(p.again) >= subjects.GatewayGone || at.After(p.again)):
		return true
	}
	return now.Sub(at) >= subjects.GatewayGone && now.Sub(p.connected) >= subjects.GatewayGone
}

// forgetGateways forgets gateways that have been silent for long, except those in use.
func (p *presence) forgetGateways(inUse map[string]*subjects.Alive, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.gateways, func(id string, at time.Time) bool {
		return inUse[id] == nil && now.Sub(at) > gatewayForgotten
	})
	maps.DeleteFunc(p.missing, func(id string, _ time.Time) bool { return p.gateways[id].IsZero() })
	maps.DeleteFunc(p.reach, func(id string, _ reach) bool { return p.gateways[id].IsZero() })
}

// onListing handles the engine's list of its models. It reports whether the worker can serve with it.
func (w *Worker) onListing(l engine.Listing) (good bool) {
	had := ""
	if serving := w.bidder.serving(); w.cfg.Pool != "" && len(serving) == 1 {
		had = serving[0].model
	}
	models, err := modelsOf(w.cfg, l, had)
	w.presence.onTrouble(l.Trouble)
	if err == nil {
		w.presence.onFacts(l)
		w.serve(models)
		if w.cfg.Pool != "" && len(w.cfg.Models) == 0 {
			others := slices.DeleteFunc(l.Bases(models[0]), func(m string) bool { return m == models[0] })
			if w.presence.onUnserved(others) {
				w.log.Warn("the engine has other models too; its pool keeps the one that it had", "pool", w.cfg.Pool, "model", models[0], "others", others)
			}
		}
	}
	now := time.Now()
	changed := w.onHealth(w.presence.onListing(err, l.Late), now)
	running := w.attempts.summary(0, now)
	running.hangs = w.vitals.hangs()
	fence := w.capacity.onListing(err == nil, l.Asked, running, now)
	if fence.tell(w.log) {
		w.presence.beat()
	}
	w.bid()
	if changed {
		w.presence.beat()
		signal(w.presence.members)
	}
	return err == nil
}

// modelsOf returns the models that the worker serves. Configured models are served if the engine answers at all, whatever
// it lists. A configured pool serves the engine's one model, not counting adapters and further names of it; if the engine
// has more, the one that it had before (empty: none).
func modelsOf(cfg Config, l engine.Listing, had string) ([]string, error) {
	if l.Trouble == engine.TroubleCredentials && l.Status != http.StatusForbidden { // which may be of this page alone
		return nil, fmt.Errorf("%w: %s", l.Err, cfg.Credentials.Refused())
	}
	if len(cfg.Models) > 0 {
		if l.Status == 0 || l.Status >= 500 {
			return nil, l.Err
		}
		return cfg.Models, nil
	}
	switch {
	case l.Trouble == engine.TroubleCredentials:
		return nil, fmt.Errorf("%w: %s; if that holds for this list alone, specify the models with model=NAME", l.Err, cfg.Credentials.Refused())
	case l.Err != nil && l.Status >= 400 && l.Status < 500:
		return nil, fmt.Errorf("%w; if the engine has no such list, specify the models with model=NAME", l.Err)
	case l.Err != nil:
		return nil, l.Err
	}
	listed := l.Models
	if cfg.Pool != "" {
		listed = l.Bases(had)
	}
	var models []string
	for _, m := range listed {
		if m != "" && len(m) <= subjects.MaxName {
			models = append(models, m)
		}
	}
	switch {
	case len(models) == 0:
		return nil, errors.New("GET /v1/models: no models")
	case cfg.Pool != "" && slices.Contains(models, had):
		return []string{had}, nil
	case cfg.Pool != "" && len(models) > 1:
		return nil, fmt.Errorf("GET /v1/models: %d models, but pool %q takes one: specify it with model=NAME", len(models), cfg.Pool)
	}
	slices.Sort(models)
	return slices.Compact(models), nil
}

// keepsName reports whether the model that a request names is an adapter of the engine's model that serves it, by what its
// gateway or the engine's list says: then the engine is asked for the adapter.
func keepsName(req *subjects.Request, model string, listed map[string]*subjects.ListedModel) bool {
	if req.Model == model {
		return false
	}
	is := listed[req.Model]
	return req.AdapterOf == model || is != nil && is.Parent == model
}

func (w *Worker) serve(models []string) {
	pools := make([]servedPool, 0, len(models))
	names := make([]string, 0, len(models))
	for _, m := range models {
		s := servedPool{pool: cmp.Or(w.cfg.Pool, m), model: m}
		pools, names = append(pools, s), append(names, s.pool)
	}
	if n := len(pools); n > subjects.MaxPools {
		pools, names = pools[:subjects.MaxPools], names[:subjects.MaxPools]
		if w.presence.onExcess(n) {
			w.log.Warn("the engine has too many models: the first ones are served, in alphabetical order", "models", n, "served", subjects.MaxPools)
		}
	}
	if slices.Equal(pools, w.bidder.serving()) {
		return
	}
	w.presence.onServe()
	w.capacity.serve(pools, time.Now())
	w.bidder.serve(pools, w.estimates.serve(names))
	w.presence.onServe() // a heartbeat that was made meanwhile may have the pools of before
}

func (w *Worker) onStatus(st engine.Status) {
	now := time.Now()
	unhealthy := ""
	if !st.Healthy {
		unhealthy = st.Reason
	}
	changed := w.onHealth(w.presence.onStatus(unhealthy, !st.Late.IsZero()), now)
	changed = w.presence.onDialect(st.Dialect) || changed
	w.estimates.onCache(st.PrefixQueries, st.PrefixHits, now)
	w.estimates.onPrefilled(st.Prefilled, st.PrefillTime, now)
	w.estimates.onGenerated(st.Generated, now)
	w.capacity.onStatus(st, w.estimates.workload(now), now)
	w.bid()
	if changed {
		w.presence.beat()
	}
}

// onHealth logs a change of the engine's health and passes it on to capacity. It
// reports whether the state of the worker has changed.
func (w *Worker) onHealth(c healthChange, now time.Time) (changed bool) {
	if c.reason != "" {
		w.log.Warn("engine health check failed", "reason", c.reason)
	}
	if c.down {
		w.capacity.onDown(now)
	}
	if c.up {
		w.log.Info("engine is healthy", "models", len(w.bidder.serving()))
		w.capacity.onUp(now)
	}
	if c.busy != "" {
		w.log.Warn("engine is busy; it keeps its requests and takes no new ones", "reason", c.busy)
	}
	if c.eased {
		w.log.Info("engine is no longer busy")
	}
	return c.down || c.up || c.busy != "" || c.eased
}

// onReference handles a gateway's reference, which is also its sign of life.
func (w *Worker) onReference(m *nats.Msg) {
	var ref subjects.Reference
	if subjects.Unmarshal(m.Data, &ref) != nil {
		return
	}
	now := time.Now()
	ask, unreachable := w.presence.tryToReach(ref.Gateway)
	if unreachable {
		w.log.Warn("a gateway is heard, but the broker lets nothing through to it; the NATS credentials may be those of another role, or of another worker's id", "gateway", ref.Gateway)
	}
	w.presence.onGateway(ref.Gateway, now)
	if ask {
		w.links.ask(ref.Gateway)
	}
	w.bidder.onReference(&ref, now)
	w.bid()
}

// publishHeartbeat is called by one goroutine at a time, so that an older heartbeat cannot overtake a newer one.
func (w *Worker) publishHeartbeat(now time.Time) {
	served := w.presence.serves()
	h := w.heartbeat(now)
	w.cfg.meters.onHeartbeat(&h, now)
	body, err := subjects.Marshal(h)
	if err != nil {
		w.log.Error("heartbeat not sent", "err", err)
		return
	}
	idle := h.InFlight == 0
	w.links.conn.Calm(idle)
	if idle {
		defer w.links.conn.Look()
	}
	if w.nc.Publish(subjects.Heartbeats(w.id), body) == nil && w.presence.onAnnounced(served) {
		w.bid()
	}
}

func (w *Worker) heartbeat(now time.Time) subjects.Heartbeat {
	ld := w.load(now)
	h := subjects.Heartbeat{
		Worker: w.id, Name: w.cfg.Name, URL: w.cfg.Engine, Host: w.who.host, Version: w.cfg.Version, Started: w.started,
		Slots: ld.slots, InFlight: ld.inFlight, Prefills: ld.prefills.n, Calls: maxCheap, KeepsHomes: true, Weight: ld.assumed,
		Done: w.attempts.done.Load(), Failed: w.attempts.failed.Load(),
	}
	h.DownClass = w.presence.downClass()
	fence, dialect, contexts := w.capacity.report(&h)
	if h.EngineStatus != nil {
		h.EngineStatus.TokenMS = ms(w.estimates.countedToken())
	}
	h.Engine = engineName(w.cfg, dialect)
	if h.State, h.Reason = w.presence.report(fence); h.State != subjects.Fenced {
		h.FenceClass = ""
	}
	measured, failing := w.estimates.measurements(now), w.presence.failures()
	facts, adapters := w.presence.facts()
	loads := w.capacity.loadTimes()
	paused, doubts := h.State == subjects.Ready, w.vitals.latest.Load()
	for _, s := range w.bidder.statuses(ld) {
		m, model := measured[s.Pool], ld.models[s.Pool]
		s.Failing = failing[s.Pool]
		doubts.mark(&s)
		paused = paused && ld.shut[s.Pool]
		s.Curve, s.Mean = m.curve, m.mean
		s.Cold, s.WillLoad, s.Spare, s.Loading = model.cold, model.next, model.spare, model.loading
		s.Evicts = model.cold && model.evicts
		s.LoadMS = loads[s.Pool].Milliseconds()
		s.Listed, s.Adapters = facts[cmp.Or(s.Model, s.Pool)], adapters[cmp.Or(s.Model, s.Pool)]
		length := lengthOf(dialect, s.Listed, contexts.of(cmp.Or(s.Model, s.Pool)))
		s.Length = cmp.Or(length, policy.AnyLength)
		if l := s.Listed; l != nil && cmp.Or(l.MaxModelLen, l.ContextLength, l.ContextWindow) == 0 && length > 0 { // clients look there
			listed := *s.Listed
			listed.MaxModelLen, s.Listed = length, &listed
		}
		s.AnyCase = dialect == engine.DialectOllama && s.Model == ""
		h.Pools = append(h.Pools, s)
	}
	w.bidder.onLengths(h.Pools)
	w.bidder.compare(&h, now)
	if h.State == subjects.Ready {
		h.Reason = cmp.Or(h.Failing(), h.Doubt())
	}
	if paused && len(h.Pools) > 0 {
		h.State = subjects.Paused
	}
	return h
}

// lengthOf returns the most tokens of a prompt with its answer that an engine accepts, by what its list says of the model and
// what it says of itself (context); 0 if that is unknown. Ollama cuts prompts, and LM Studio lists what a model could have.
func lengthOf(d engine.Dialect, listed *subjects.ListedModel, context int64) int64 {
	switch {
	case d == engine.DialectOllama:
		return 0
	case listed == nil, d == engine.DialectLMStudio:
		return context
	}
	return cmp.Or(listed.MaxModelLen, context, listed.ContextLength, listed.ContextWindow)
}

func engineName(cfg Config, d engine.Dialect) string {
	if name := cfg.EngineName; name != "" && name != string(engine.DialectOpenAI) {
		return name
	}
	return cmp.Or(string(d), string(engine.DialectOpenAI))
}

// maxListed bounds the attempts in one Alive: a list of 11 000 would exceed the max_payload of a broker.
const maxListed = 1000

// publishAlive sends every gateway the list of its attempts that run here, renews the leases of their deliveries, and
// stops attempts whose engine is silent. It runs every subjects.AliveEvery.
func (w *Worker) publishAlive(now time.Time) {
	ill, explained := w.capacity.illSince(w.presence.down()), w.capacity.explainsWaits(int(w.attempts.parallel.Load()), now)
	excused, lists := w.vitals.excused(), make(map[string]*subjects.Alive)
	for _, a := range w.attempts.all() {
		gateway := a.req.Gateway
		switch {
		case !a.claimed.Load():
			continue
		case a.silent(ill, w.cfg.StallTimeout, now):
			a.stop(errStalled)
		case !a.cheap && now.Sub(a.renewed) >= leaseEvery:
			a.renewed = now
			w.nc.Publish(a.msg.Reply, subjects.InProgress)
		}
		l := lists[gateway]
		if l == nil {
			l = &subjects.Alive{Worker: w.id}
			lists[gateway] = l
		}
		l.Attempts = append(l.Attempts, subjects.AliveAttempt{ID: a.req.ID, Attempt: a.mark, Sent: a.sent.Load(), Taken: a.taken.Load(), Late: !explained && a.late(excused, now)})
	}
	for gateway, l := range lists {
		for attempts := range slices.Chunk(l.Attempts, maxListed) {
			w.links.sendAlive(gateway, subjects.MustMarshal(subjects.Alive{Worker: l.Worker, Attempts: attempts}))
		}
	}
	w.attempts.forget(now)
	w.presence.forgetGateways(lists, now)
}
