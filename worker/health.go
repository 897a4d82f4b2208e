package worker

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/engine"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	memberEvery = 3 * time.Second
	leaseEvery  = subjects.AckWait / 3
)

// healthLoop publishes heartbeats, and keeps the worker's entry in the membership
// bucket.
func (w *Worker) healthLoop(ctx context.Context) {
	beat := time.NewTicker(subjects.HeartbeatEvery)
	defer beat.Stop()
	member := time.NewTicker(memberEvery)
	defer member.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.changed:
			w.beat()
			w.join(ctx)
		case <-beat.C:
			w.beat()
		case <-member.C:
			w.join(ctx)
		}
	}
}

// onListing takes the engine's answer to the question for its models, and reports
// whether the engine can be used by it. An engine whose models were configured can
// if it answers at all.
func (w *Worker) onListing(l engine.Listing) (good bool) {
	models, err := w.modelsOf(l)
	if err == nil {
		w.serve(w.poolsOf(models))
	}
	if w.engineIs(err, l.Asked) {
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
	return err == nil
}

func (w *Worker) modelsOf(l engine.Listing) ([]string, error) {
	if len(w.cfg.Models) > 0 {
		if l.Status == 0 || l.Status >= 500 {
			return nil, l.Err
		}
		return w.cfg.Models, nil
	}
	if l.Err != nil {
		if l.Status != 0 && l.Status != http.StatusOK {
			return nil, fmt.Errorf("%w; name the models (model=NAME) if the engine has no such list", l.Err)
		}
		return nil, l.Err
	}
	var models []string
	for _, m := range l.Models {
		if m != "" && len(m) <= subjects.MaxName {
			models = append(models, m)
		}
	}
	if len(models) == 0 {
		return nil, fmt.Errorf("GET /v1/models: no models")
	}
	slices.Sort(models)
	models = slices.Compact(models)
	if w.cfg.Pool != "" && len(models) > 1 {
		return nil, fmt.Errorf("GET /v1/models: %d models, and pool %q takes one: name it (model=NAME)", len(models), w.cfg.Pool)
	}
	return models, nil
}

// poolsOf says which pools the engine's models make the worker a part of.
func (w *Worker) poolsOf(models []string) []served {
	if w.cfg.Pool != "" {
		return []served{{pool: w.cfg.Pool, model: models[0]}}
	}
	pools := make([]served, 0, len(models))
	for _, m := range models {
		pools = append(pools, served{pool: m, model: m})
	}
	return pools
}

// engineIs notes what came of asking the engine, and says whether it changed
// anything.
func (w *Worker) engineIs(err error, asked time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	w.engineErr = err
	if err == nil && !asked.Before(w.room.suspected) {
		w.room.suspect = ""
	}
	changed := w.judgeEngineLocked(now)
	changed = w.fenceLocked(now) || changed
	w.bidLocked()
	return changed
}

// judgeEngineLocked says whether the engine's health changed. It is well if it
// tells its models and says nothing else.
func (w *Worker) judgeEngineLocked(now time.Time) (changed bool) {
	was, why := w.state, w.room.unwell
	if w.engineErr != nil {
		why = w.engineErr.Error()
	}
	switch {
	case why != "" && was != subjects.Draining && was != subjects.Left:
		if was != subjects.Down || w.reason != why {
			w.log.Warn("engine is not well", "reason", why)
		}
		w.setStateLocked(subjects.Down, why)
	case why == "" && was == subjects.Down:
		w.log.Info("engine answers", "models", len(w.servedLocked()))
		w.badInRow = 0
		w.engineStartedLocked(now)
		w.setStateLocked(subjects.Ready, "")
	}
	return was != w.state
}

// heartbeat is the worker's state in words.
func (w *Worker) heartbeat() subjects.Heartbeat {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	state, reason := w.toldLocked()
	wait := w.prefillsLocked(now)
	h := subjects.Heartbeat{
		Worker: w.id, Name: w.cfg.Name, Engine: w.engineNameLocked(), URL: w.cfg.Engine, Host: w.host,
		Version: w.cfg.Version, Started: w.started, State: state, Reason: reason,
		Slots: w.room.slots, InFlight: w.inFlight, Prefills: wait.n,
		Weight: w.weightLocked(), Done: w.done, Failed: w.failed,
		Capacity: w.tellRoomLocked(), EngineStatus: w.tellEngineLocked(), NVML: w.tellGPUsLocked(),
	}
	if state == subjects.Fenced {
		h.FenceClass = w.room.fenceClass
	}
	for _, p := range w.servedLocked() {
		s := subjects.PoolStatus{
			Pool: p.name, Curve: p.curve(now), Mean: p.mean, Rung: w.rungOf(p, w.inFlight+1, wait, 0, now),
		}
		s.Cold, s.Loads = p.swap.cold(), w.swaps.state.To == p.name
		if p.model != p.name {
			s.Model = p.model
		}
		h.Pools = append(h.Pools, s)
	}
	return h
}

// engineNameLocked is what people call the engine.
func (w *Worker) engineNameLocked() string {
	if name := w.cfg.EngineName; name != "" && name != string(engine.DialectOpenAI) {
		return name
	}
	return cmp.Or(string(w.room.tells.Dialect), string(engine.DialectOpenAI))
}

// toldLocked is the worker's state as others should see it.
func (w *Worker) toldLocked() (subjects.State, string) {
	if w.cordoned && (w.state == subjects.Ready || w.state == subjects.Paused) {
		return subjects.Cordoned, "an operator cordoned it"
	}
	if w.room.fence != "" && (w.state == subjects.Ready || w.state == subjects.Paused) {
		return subjects.Fenced, w.room.fence
	}
	return w.state, w.reason
}

func (w *Worker) beat() {
	body, err := subjects.Marshal(w.heartbeat())
	if err != nil {
		w.log.Error("heartbeat", "err", err)
		return
	}
	w.nc.Publish(subjects.Heartbeats(w.id), body)
}

// join tells the membership bucket, for those who come later.
func (w *Worker) join(ctx context.Context) {
	body, err := subjects.Marshal(w.heartbeat())
	if err != nil {
		return
	}
	w.inBucket(ctx, func(ctx context.Context, kv jetstream.KeyValue) error {
		_, err := kv.Put(ctx, w.id, body)
		return err
	})
}

func (w *Worker) leave() {
	w.inBucket(context.Background(), func(ctx context.Context, kv jetstream.KeyValue) error {
		return kv.Purge(ctx, w.id)
	})
}

// inBucket works on the membership bucket. It is absent until a gateway was
// there; the heartbeats do without it.
func (w *Worker) inBucket(ctx context.Context, do func(context.Context, jetstream.KeyValue) error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	js, err := jetstream.New(w.nc)
	if err != nil {
		return
	}
	kv, err := js.KeyValue(ctx, subjects.WorkersBucket)
	if err == nil {
		err = do(ctx, kv)
	}
	if err != nil {
		w.log.Debug("membership", "err", err)
	}
}

// hearGateway takes a gateway's references, which are its sign of life too.
func (w *Worker) hearGateway(m *nats.Msg) {
	var ref subjects.Reference
	if subjects.Unmarshal(m.Data, &ref) != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	w.gateways[ref.Gateway] = now
	changed := false
	for name, p := range w.pools {
		if r, ok := ref.Pools[name]; ok {
			changed = p.hear(ref.Gateway, r, now) || changed
		}
	}
	if changed {
		w.arrangeLocked()
	}
	for _, l := range w.byQueue {
		if _, ok := ref.Pools[l.pool.name]; !ok || l.retired {
			continue
		}
		l.notTill = time.Time{} // its queues exist now
		if l.home == "" {
			l.held = l.pool.held(w.tiers[l.tier].Name)
		}
	}
	w.bidLocked()
}

// aliveLoop tells every gateway which of its requests run here, renews the
// queue's leases, and stops what has no gateway or no progress any more.
func (w *Worker) aliveLoop(ctx context.Context) {
	tick := time.NewTicker(subjects.AliveEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for gateway, alive := range w.alive() {
			w.nc.PublishRequest(subjects.GatewayAlive(gateway), subjects.WorkerGone(w.id, gateway), subjects.MustMarshal(alive))
		}
	}
}

func (w *Worker) alive() map[string]*subjects.Alive {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	heard := func(gateway string) bool {
		return now.Sub(w.gateways[gateway]) < subjects.GatewayGone || now.Sub(w.connected) < subjects.GatewayGone
	}
	by := make(map[string]*subjects.Alive)
	for _, a := range w.running {
		switch {
		case !a.claimed:
			continue
		case !heard(a.req.Gateway) && w.nc.IsConnected():
			a.stop(ErrGatewayGone)
			continue
		case w.silentLocked(a, now):
			a.stop(ErrStalled)
		case now.Sub(a.renewed) >= leaseEvery:
			a.renewed = now
			w.nc.Publish(a.msg.Reply, subjects.InProgress)
		}
		g := by[a.req.Gateway]
		if g == nil {
			g = &subjects.Alive{Worker: w.id}
			by[a.req.Gateway] = g
		}
		g.Attempts = append(g.Attempts, subjects.AliveAttempt{ID: a.req.ID, Attempt: a.mark, Sent: a.sent})
	}
	for id, at := range w.failedHere {
		if now.Sub(at) > time.Minute {
			delete(w.failedHere, id)
		}
	}
	for id, until := range w.keptFor {
		if now.After(until) {
			delete(w.keptFor, id)
		}
	}
	for gateway, at := range w.gateways {
		if by[gateway] == nil && now.Sub(at) > time.Minute {
			delete(w.gateways, gateway)
		}
	}
	return by
}
