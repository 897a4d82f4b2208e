package page

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// How many of each a viewer gets.
const (
	waitingShown = 20
	runningShown = 60
	endedShown   = 40
	failedShown  = 40
	eventsShown  = 50
	deadShown    = 20
)

// maker makes the sections of the state. One goroutine uses it.
type maker struct {
	hour    func() []gateway.Period
	version string
	acts    bool

	rates   fleet.Rates
	hourAt  time.Time // when the hour was last read
	last    hourState
	periods map[time.Time][hourColumns]int64 // of the hour, those that are over
}

// Times are in milliseconds, moments in milliseconds since 1970, so that a section changes only with what it says.

type headState struct {
	At       int64                `json:"at"`
	Version  string               `json:"version"`
	Gateway  string               `json:"gateway"`
	Gateways int                  `json:"gateways"`
	Server   string               `json:"server,omitempty"` // empty: the broker is away
	NotReady string               `json:"not_ready,omitempty"`
	Settled  bool                 `json:"settled"` // all parts have had time to report
	Acts     bool                 `json:"acts"`
	Policy   fleet.PolicyRevision `json:"policy"`
	Totals   fleet.Totals         `json:"totals"`
}

type loadState struct {
	Tier     string `json:"tier,omitempty"`
	Waiting  int    `json:"waiting"`
	InFlight int    `json:"in_flight"`
	Oldest   int64  `json:"oldest,omitempty"` // when the oldest of those that wait came
	MaxQueue int    `json:"max_queue,omitempty"`
}

type poolState struct {
	Pool    string      `json:"pool"`
	Paused  bool        `json:"paused,omitempty"`
	Live    int         `json:"live"`
	Workers int         `json:"workers"`
	Slots   int         `json:"slots"`
	Busy    int         `json:"busy"`
	Load    loadState   `json:"load"`
	Tiers   []loadState `json:"tiers"`

	// Of the last five minutes.
	Answered int                `json:"answered"`
	Failed   int                `json:"failed"`
	Refused  int                `json:"refused"`
	TTFT     *fleet.Percentiles `json:"ttft,omitempty"`
	E2E      *fleet.Percentiles `json:"e2e,omitempty"`
}

type workerState struct {
	ID       string        `json:"id"`
	Name     string        `json:"name"`
	State    string        `json:"state"`
	Reason   string        `json:"reason,omitempty"`
	Engine   string        `json:"engine"`
	Host     string        `json:"host"`
	Slots    int           `json:"slots"`
	InFlight int           `json:"in_flight"`
	Prefills int           `json:"prefills,omitempty"`
	Bound    string        `json:"bound,omitempty"`
	Why      string        `json:"why,omitempty"` // it is bound so
	Rung     *int          `json:"rung,omitempty"`
	Price    int64         `json:"price,omitempty"` // of the next request
	Weight   float64       `json:"weight"`
	Pools    []string      `json:"pools"`
	Loading  string        `json:"loading,omitempty"`
	Done     float64       `json:"done_per_second"`
	Tokens   float64       `json:"tokens_per_second"`
	Failed   uint64        `json:"failed"`
	Failing  float64       `json:"failed_per_second"`
	KV       *float64      `json:"kv,omitempty"`
	GPU      *fleet.GPUSum `json:"gpu,omitempty"`
	Since    int64         `json:"since,omitempty"`  // when it started
	Silent   int64         `json:"silent,omitempty"` // since when it is lost
	Cordoned bool          `json:"cordoned,omitempty"`
	Set      float64       `json:"set_weight,omitempty"` // by the operator
}

type requestState struct {
	ID      string `json:"id"`
	Model   string `json:"model"`
	Pool    string `json:"pool"`
	Tier    string `json:"tier"`
	Tenant  string `json:"tenant,omitempty"`
	State   string `json:"state"`
	Worker  string `json:"worker,omitempty"`
	Attempt int    `json:"attempt"`
	Arrived int64  `json:"arrived"`
	Queue   int64  `json:"queue"`
	Bytes   int64  `json:"bytes_out"`
}

type requestsState struct {
	Waiting   []requestState `json:"waiting"` // the longest first
	Running   []requestState `json:"running"` // the newest first
	Queued    int            `json:"queued"`
	Started   int            `json:"running_all"`
	Answering int            `json:"answering"`
}

type endedState struct {
	ID       string          `json:"id"`
	When     int64           `json:"when"`
	Outcome  gateway.Outcome `json:"outcome"`
	Status   int             `json:"status,omitempty"`
	Code     string          `json:"code,omitempty"`
	Reason   string          `json:"reason,omitempty"`
	Model    string          `json:"model,omitempty"`
	Pool     string          `json:"pool,omitempty"`
	Tier     string          `json:"tier,omitempty"`
	Tenant   string          `json:"tenant,omitempty"`
	Worker   string          `json:"worker,omitempty"`
	Attempts int             `json:"attempts,omitempty"`
	TTFT     int64           `json:"ttft,omitempty"`
	Took     int64           `json:"took"`
	Tokens   int64           `json:"output_tokens,omitempty"`
}

type sideState struct {
	Answers int                `json:"answers"`
	Errors  int                `json:"errors"`
	TTFT    *fleet.Percentiles `json:"ttft,omitempty"`
	E2E     *fleet.Percentiles `json:"e2e,omitempty"`
}

type shiftState struct {
	Model     string             `json:"model"`
	To        string             `json:"to"`
	Others    []string           `json:"others"`
	Share     float64            `json:"share"`
	By        float64            `json:"by"`
	Every     int64              `json:"every"`
	Since     int64              `json:"since"`
	State     string             `json:"state"` // running, done or aborted
	Reason    string             `json:"reason,omitempty"`
	Abort     []policy.Condition `json:"abort"`
	MinSample int                `json:"min_sample"`
	Canary    sideState          `json:"canary"`
	Stable    sideState          `json:"stable"`
}

type deadState struct {
	Total uint64      `json:"total"`
	List  []deadEntry `json:"list"` // the newest first
}

type deadEntry struct {
	Seq    uint64 `json:"seq"`
	When   int64  `json:"when"`
	Reason string `json:"reason"`
	ID     string `json:"id"`
	Pool   string `json:"pool"`
	Tier   string `json:"tier"`
	Model  string `json:"model"`
}

// hourColumns are the numbers of a period: start, answered, failed, refused, cancelled, tokens out, and p50 and p95 of TTFT and of
// E2E, which are 0 without an answer.
const hourColumns = 10

type hourState struct {
	Length    int64                `json:"length"` // of a period
	Periods   [][hourColumns]int64 `json:"periods"`
	Answered  int                  `json:"answered"`
	Failed    int                  `json:"failed"`
	Refused   int                  `json:"refused"`
	Cancelled int                  `json:"cancelled"`
	TTFT      *fleet.Percentiles   `json:"ttft,omitempty"`
	E2E       *fleet.Percentiles   `json:"e2e,omitempty"`
}

// sections returns the whole state, always in the same order.
func (m *maker) sections(v *gateway.View, f *far) []section {
	s := m.snapshot(v, f)
	var list []section
	add := func(name string, value any) {
		b, err := json.Marshal(value)
		if err != nil { // a number that JSON does not have
			b = []byte("null")
		}
		list = append(list, section{name: name, data: b})
	}
	add("head", headState{
		At: v.At.UnixMilli(), Version: m.version, Gateway: v.Gateway, Gateways: len(s.Gateways), Server: s.Server, NotReady: v.NotReady, Settled: s.Settled(), Acts: m.acts,
		Policy: s.Revision, Totals: s.Totals,
	})
	add("findings", s.Findings)
	add("pools", poolsOf(s))
	add("workers", workersOf(s, v))
	add("requests", requestsOf(s))
	add("shifts", shiftsOf(v))
	add("ended", endedOf(v.Ended, endedShown))
	add("failures", endedOf(v.Failures, failedShown))
	add("dead", deadOf(f))
	events := make([]subjects.Event, 0, eventsShown)
	for _, e := range slices.Backward(v.Events[max(0, len(v.Events)-eventsShown):]) {
		events = append(events, e)
	}
	add("events", events)
	if m.hourAt.IsZero() || v.At.Sub(m.hourAt) >= hourEvery {
		m.hourAt, m.last = v.At, m.hourOf(m.hour())
	}
	add("hour", m.last)
	return list
}

// snapshot completes what the gateway knows to a snapshot, as pulley top has it.
func (m *maker) snapshot(v *gateway.View, f *far) *fleet.Snapshot {
	s := &fleet.Snapshot{
		At: v.At, Server: v.Server, Since: v.Since, Gateways: append([]string{v.Gateway}, v.Peers...), Policy: &v.Policy, Events: v.Events,
		Requests: slices.Clone(v.Requests), Unclaimed: v.Unclaimed, Unread: maps.Clone(f.unread), Trouble: make(map[string]string),
	}
	for broker, ms := range v.SilentBrokers {
		if s.SilentBrokers == nil {
			s.SilentBrokers = make(map[string]time.Duration)
		}
		s.SilentBrokers[broker] = fleet.Millis(ms)
	}
	if v.PolicyTrouble != "" {
		if s.Unread == nil {
			s.Unread = make(map[string]string)
		}
		s.Unread["policy"] = "policy " + v.PolicyTrouble
	}
	if v.NotReady != "" && v.NotReady != "draining" {
		s.Trouble[v.Gateway] = v.NotReady
	}
	if s.Results = f.results; s.Results == nil {
		for pool, r := range v.Recent {
			s.Results = append(s.Results, subjects.PoolResults{Pool: pool, Answered: r.Answered, Failed: r.Failed, Refused: r.Refused, Cancelled: r.Cancelled, Times: r.Times})
		}
	}
	for _, r := range f.requests {
		if r.Gateway != v.Gateway {
			s.Requests = append(s.Requests, r)
		}
	}
	for _, h := range v.Workers {
		s.Workers = append(s.Workers, m.rates.Status(h, 0, v.At))
	}
	for _, l := range v.Lost {
		s.Workers = append(s.Workers, m.rates.Status(l.Heartbeat, l.Silent, v.At))
	}
	m.rates.Forget(v.At.Add(-time.Minute))
	s.Complete()
	return s
}

func poolsOf(s *fleet.Snapshot) []poolState {
	list := make([]poolState, 0, len(s.Pools))
	for _, p := range s.Pools {
		state := poolState{Pool: p.Pool, Paused: p.Paused, Live: p.Live, Workers: p.Workers, Slots: p.Slots, Busy: p.Busy, Load: loadOf(s, "", p.Load), Tiers: []loadState{}}
		for _, t := range s.Tiers {
			l := loadOf(s, t.Name, p.Tiers[t.Name])
			l.MaxQueue = t.MaxQueue
			state.Tiers = append(state.Tiers, l)
		}
		state.Answered, state.Failed, state.Refused, state.TTFT, state.E2E = p.Answered, p.Failed, p.Refused, p.TTFT, p.E2E
		list = append(list, state)
	}
	return list
}

func loadOf(s *fleet.Snapshot, tier string, l fleet.Load) loadState {
	state := loadState{Tier: tier, Waiting: l.Waiting, InFlight: l.InFlight}
	for i := range s.Requests { // the oldest first
		if r := &s.Requests[i]; l.OldestMS > 0 && r.AgeMS == l.OldestMS && r.State == "queued" {
			state.Oldest = r.Arrived.UnixMilli()
			break
		}
	}
	return state
}

func workersOf(s *fleet.Snapshot, v *gateway.View) []workerState {
	list := make([]workerState, 0, len(s.Workers))
	for i := range s.Workers {
		w := &s.Workers[i]
		set := v.Policy.Policy.Workers[w.Name]
		state := workerState{
			ID: w.Worker, Name: w.Name, State: w.StateText(), Reason: reasonOf(w), Engine: w.Engine, Host: w.Host, Slots: w.Slots, InFlight: w.InFlight, Prefills: w.Prefills,
			Bound: fleet.Bound(&w.Heartbeat), Weight: w.Weight, Pools: fleet.NamesOf(w.Pools, func(p subjects.PoolStatus) string { return p.Pool }),
			Done: round(w.DonePerSecond), Tokens: round(w.TokensPerSecond), Failed: w.Failed, Failing: round(w.FailedPerSecond), GPU: w.GPUSum(), Since: w.Started.UnixMilli(),
			Cordoned: set.Cordoned, Set: set.Weight,
		}
		if w.Lost > 0 {
			state.Silent = v.At.Add(-w.Lost).Truncate(100 * time.Millisecond).UnixMilli()
		}
		if c := w.Capacity; c != nil {
			state.Slots, state.Why = c.Total, fleet.BoundText(c)
		}
		if e := w.EngineStatus; e != nil {
			state.KV = e.KVUsage
		}
		if low, _, ok := fleet.Rungs(&w.Heartbeat); ok && w.Live() {
			state.Rung = &low
			p := &w.Pools[0]
			if price, ok := p.Curve.Price(p.Mean, w.InFlight+1, float64(w.Prefills)); ok {
				state.Price = int64(price * 1000)
			}
		}
		for _, p := range w.Pools {
			if !p.Loading.IsZero() {
				state.Loading = p.Pool
			}
		}
		list = append(list, state)
	}
	return list
}

// round keeps three digits of a rate.
func round(rate float64) float64 {
	for _, scale := range []float64{1000, 100, 10} {
		if rate*scale < 1000 {
			return float64(int(rate*scale+0.5)) / scale
		}
	}
	return float64(int(rate + 0.5))
}

// reasonOf says why a worker accepts fewer requests than it could, or how it differs from others.
func reasonOf(w *fleet.WorkerStatus) string {
	if w.Lost > 0 {
		return "no heartbeat"
	}
	why := ""
	if w.Capacity != nil {
		why = w.Capacity.Why
	}
	return cmp.Or(w.Reason, w.Failing(), w.Doubt(), why, w.Notes())
}

func requestsOf(s *fleet.Snapshot) requestsState {
	names := make(map[string]string, len(s.Workers))
	for i := range s.Workers {
		names[s.Workers[i].Worker] = s.Workers[i].Name
	}
	state := requestsState{Waiting: []requestState{}, Running: []requestState{}}
	of := func(r *subjects.RequestInfo) requestState {
		return requestState{
			ID: r.ID, Model: r.Model, Pool: r.Pool, Tier: r.Tier, Tenant: r.Tenant, State: r.State, Worker: cmp.Or(names[r.Worker], r.Worker), Attempt: r.Attempt,
			Arrived: r.Arrived.UnixMilli(), Queue: r.QueueMS, Bytes: r.BytesOut,
		}
	}
	for i := range s.Requests { // the oldest first
		switch r := &s.Requests[i]; r.State {
		case "queued":
			if state.Queued++; len(state.Waiting) < waitingShown {
				one := of(r)
				one.Queue = 0 // it grows
				state.Waiting = append(state.Waiting, one)
			}
		case "answering":
			state.Answering++
		default:
			state.Started++
		}
	}
	for i := range slices.Backward(s.Requests) {
		if r := &s.Requests[i]; r.State != "queued" && len(state.Running) < runningShown {
			state.Running = append(state.Running, of(r))
		}
	}
	return state
}

func shiftsOf(v *gateway.View) []shiftState {
	list := []shiftState{}
	for _, r := range v.Shifts {
		s := r.Route.Shift
		state := shiftState{
			Model: r.Model, To: s.To, Others: []string{}, Share: r.Route.ShiftShare(), By: s.By, Every: time.Duration(s.Every).Milliseconds(), Since: s.Since.UnixMilli(),
			State: cmp.Or(string(s.State), "running"), Reason: s.Reason, Abort: s.Abort, MinSample: cmp.Or(s.MinSample, policy.DefaultMinSample),
			Canary: sideOf(r.Canary), Stable: sideOf(r.Stable),
		}
		if s.State != policy.ShiftRunning && v.At.Sub(s.Since) > time.Hour {
			continue
		}
		for _, t := range r.Route.To {
			if t.Pool != s.To {
				state.Others = append(state.Others, t.Pool)
			}
		}
		list = append(list, state)
	}
	slices.SortStableFunc(list, func(a, b shiftState) int { // those that run first
		return cmp.Or(strings.Compare(b.State, a.State), strings.Compare(a.Model, b.Model))
	})
	return list
}

func sideOf(s policy.Side) sideState {
	state := sideState{Answers: s.Answers(), Errors: s.Errors()}
	state.TTFT, state.E2E = fleet.PercentilesOf(s)
	return state
}

func endedOf(list []gateway.Ended, most int) []endedState {
	out := make([]endedState, 0, most)
	for _, e := range slices.Backward(list[max(0, len(list)-most):]) {
		out = append(out, endedState{
			ID: e.ID, When: e.At.UnixMilli(), Outcome: e.Outcome, Status: e.Status, Code: e.Code, Reason: e.Reason, Model: e.Model, Pool: e.Pool, Tier: e.Tier, Tenant: e.Tenant,
			Worker: e.Worker, Attempts: e.Attempts, TTFT: e.TTFT.Milliseconds(), Took: e.Total.Milliseconds(), Tokens: e.OutputTokens,
		})
	}
	return out
}

func deadOf(f *far) deadState {
	state := deadState{Total: f.deadAll, List: []deadEntry{}}
	for _, d := range slices.Backward(f.dead) {
		state.List = append(state.List, deadEntry{d.Sequence, d.At.UnixMilli(), d.Reason, d.ID, d.Pool, d.Tier, d.Model})
	}
	return state
}

// hourOf makes the numbers of the last hour. Those of periods that are over are made once.
func (m *maker) hourOf(periods []gateway.Period) hourState {
	state := hourState{Length: gateway.PeriodLength.Milliseconds(), Periods: make([][hourColumns]int64, 0, len(periods))}
	var all policy.Side
	over := make(map[time.Time][hourColumns]int64, len(periods))
	for i := range periods {
		p := &periods[i]
		row, made := m.periods[p.Start]
		if !made {
			row = [hourColumns]int64{p.Start.UnixMilli(), int64(p.Answered), int64(p.Failed), int64(p.Refused), int64(p.Cancelled), p.OutputTokens}
			if ttft, e2e := fleet.PercentilesOf(p.Times); ttft != nil {
				row[6], row[7], row[8], row[9] = ttft.P50, ttft.P95, e2e.P50, e2e.P95
			}
		}
		if i < len(periods)-1 { // the last one may go on
			over[p.Start] = row
		}
		state.Periods = append(state.Periods, row)
		state.Answered += p.Answered
		state.Failed += p.Failed
		state.Refused += p.Refused
		state.Cancelled += p.Cancelled
		all.Merge(p.Times)
	}
	m.periods = over
	state.TTFT, state.E2E = fleet.PercentilesOf(all)
	return state
}
