package top

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/subjects"
)

var poolsPane = pane{
	name:  "pools",
	empty: "no pools: they appear with the first worker",
	gone:  "This pool is gone. Esc: back",
	columns: []paneColumn{
		{name: "POOL", minWidth: 10},
		{name: "STATE"},
		{name: "WORKERS", numbers: true, drop: 2},
		{name: "BUSY", numbers: true, drop: 1},
		{name: "WAITING", right: true},
		{name: "IN FLIGHT", right: true, drop: 4},
		{name: "OLDEST", right: true, drop: 3},
		{name: "TAKEN/S", right: true, drop: 5},
		{name: "TTFT P50", right: true, drop: 7},
		{name: "TTFT P95", right: true, drop: 6},
		{name: "E2E P95", right: true, drop: 6},
	},
	rows: func(s *fleet.Snapshot, g glyphs) []paneRow {
		var rows []paneRow
		for _, p := range s.Pools {
			state := "ready"
			switch {
			case p.Paused:
				state = "paused"
			case p.Live == 0:
				state = "no worker"
			}
			rows = append(rows, paneRow{p.Pool, []paneCell{
				textCell(p.Pool), stateCell(state), valueCell(fmt.Sprintf("%d of %d", p.Live, p.Workers), float64(p.Live)),
				valueCell(g.bar(p.Busy, p.Slots, barWidth), float64(p.Busy)),
				numberCell(p.Waiting), numberCell(p.InFlight), oldestCell(p.Load), rateCell(p.TakenPerSecond), timeCell(p.TTFT, p50), timeCell(p.TTFT, p95), timeCell(p.E2E, p95),
			}})
		}
		return rows
	},
	details: func(s *fleet.Snapshot, key string) []term.Field {
		i := slices.IndexFunc(s.Pools, func(p fleet.PoolStatus) bool { return p.Pool == key })
		if i < 0 {
			return nil
		}
		p := s.Pools[i]
		list := []term.Field{term.KV("pool", p.Pool)}
		if s.Policy != nil {
			list = append(list, term.KV("balance", string(s.Policy.Policy.BalanceOf(key))),
				term.KV("affinity", string(s.Policy.Policy.AffinityOf(key))))
		}
		if p.Paused {
			list = append(list, term.KV("paused", "yes: requests wait", term.Yellow))
		}
		list = append(list, term.KV("slots", fmt.Sprintf("%d of %d busy", p.Busy, p.Slots)))
		if p.TTFT != nil && p.E2E != nil {
			for _, t := range []struct {
				name string
				*fleet.Percentiles
			}{{"TTFT", p.TTFT}, {"E2E", p.E2E}} {
				list = append(list, term.KV(t.name, fmt.Sprintf("p50 %s, p95 %s, p99 %s", latency(t.P50), latency(t.P95), latency(t.P99))))
			}
		}
		if ended := p.Answered + p.Failed + p.Refused + p.Cancelled; ended > 0 {
			list = append(list, term.KV("in 5 minutes", fmt.Sprintf("%d answered, %d failed, %d refused, %d cancelled", p.Answered, p.Failed, p.Refused, p.Cancelled)))
		}
		for _, tier := range slices.Sorted(maps.Keys(p.Tiers)) {
			l := p.Tiers[tier]
			list = append(list, term.KV(named("tier", tier), l.String()))
		}
		for j := range s.Lanes {
			if l := &s.Lanes[j]; l.Pool == key && l.Lane != subjects.Shared {
				list = append(list, term.KV(named("lane", s.WorkerName(l.Lane))+", "+l.Tier, fmt.Sprintf("%d waiting, %d delivered, %s", l.Waiting, l.Delivered, term.Count(l.Bids, "bid"))))
			}
		}
		for j := range s.Workers {
			if w := &s.Workers[j]; w.Serves(key) {
				list = append(list, term.KV(named("worker", w.Name), fmt.Sprintf("%s, %d of %s", w.StateText(), w.InFlight, term.Count(w.Slots, "slot")), fleet.StateStyle(w.StateText())))
			}
		}
		return list
	},
}

var tiersPane = pane{
	name:  "tiers",
	empty: "no tiers: the policy is unknown",
	gone:  "This tier is gone. Esc: back",
	columns: []paneColumn{
		{name: "ORDER", right: true, drop: 6},
		{name: "TIER", minWidth: 8},
		{name: "SHARE", right: true, drop: 3},
		{name: "RESERVE", right: true, drop: 4},
		{name: "WAITING", right: true},
		{name: "IN FLIGHT", right: true, drop: 1},
		{name: "OLDEST", right: true, drop: 2},
		{name: "TAKEN/S", right: true, drop: 5},
		{name: "MAX QUEUE", right: true, drop: 7},
	},
	rows: func(s *fleet.Snapshot, _ glyphs) []paneRow {
		var rows []paneRow
		for i := range s.Tiers {
			t := &s.Tiers[i]
			name := textCell(t.Name)
			if t.Unknown {
				name.text += " (not in the policy)"
				name.style = term.Red
			}
			rows = append(rows, paneRow{t.Name, []paneCell{
				valueCell(strconv.Itoa(i+1), float64(-i)), // in the order of the policy
				name, numberCell(t.Share), valueCell(fmt.Sprintf("%d%%", t.Reserve), float64(t.Reserve)),
				numberCell(t.Waiting), numberCell(t.InFlight), oldestCell(t.Load), rateCell(t.TakenPerSecond), numberCell(t.MaxQueue),
			}})
		}
		return rows
	},
	details: func(s *fleet.Snapshot, key string) []term.Field {
		i := slices.IndexFunc(s.Tiers, func(t fleet.TierStatus) bool { return t.Name == key })
		if i < 0 {
			return nil
		}
		t := s.Tiers[i]
		list := []term.Field{
			term.KV("tier", t.Name),
			term.KV("share", strconv.Itoa(t.Share)),
			term.KV("reserve", fmt.Sprintf("%d%% of each worker's slots", t.Reserve)),
			term.KV("storage", string(t.Storage)),
			term.KV("max queue", fmt.Sprintf("%d per pool", t.MaxQueue)),
			term.KV("deadline", t.Deadline.String()),
			term.KV("retries", strconv.Itoa(t.Retries)),
		}
		if t.MaxWait > 0 {
			list = append(list, term.KV("max wait", t.MaxWait.String()))
		}
		for _, pool := range slices.Sorted(maps.Keys(t.Pools)) {
			l := t.Pools[pool]
			list = append(list, term.KV(named("pool", pool), l.String()))
		}
		return list
	},
}

var workersPane = pane{
	name:  "workers",
	empty: "no workers: start one with 'pulley worker --engine URL'",
	gone:  "This worker is gone. Esc: back",
	columns: []paneColumn{
		{name: "WORKER", minWidth: 10},
		{name: "STATE"},
		{name: "ENGINE", minWidth: 6, drop: 7},
		{name: "IN FLIGHT", numbers: true},
		{name: "BOUND", drop: 3, nonEmpty: true},
		{name: "GPU", minWidth: 16, numbers: true, drop: 4, nonEmpty: true},
		{name: "RUNG", right: true, drop: 5},
		{name: "DONE/S", right: true, drop: 1},
		{name: "TOK/S", right: true, drop: 2},
		{name: "FAILED", right: true, drop: 6},
		{name: "POOLS", minWidth: 8, drop: 8},
	},
	rows: func(s *fleet.Snapshot, g glyphs) []paneRow {
		var rows []paneRow
		for i := range s.Workers {
			w := &s.Workers[i]
			state := stateCell(w.StateText())
			if w.Lost > 0 {
				state.style = term.Red
			}
			rung := paneCell{text: "-", by: -1}
			if low, _, ok := fleet.Rungs(&w.Heartbeat); ok && w.Live() {
				rung = numberCell(low)
			}
			pools := fleet.NamesOf(w.Pools, func(p subjects.PoolStatus) string { return p.Pool })
			failed := valueCell(strconv.FormatUint(w.Failed, 10), float64(w.Failed))
			if w.FailedPerSecond > 0 {
				failed.style = term.Red
			}
			rows = append(rows, paneRow{w.Worker, []paneCell{
				textCell(w.Name), state, textCell(w.Engine), valueCell(g.bar(w.InFlight, w.Slots, barWidth), float64(w.InFlight)),
				textCell(cmp.Or(fleet.Bound(&w.Heartbeat), "-")), gpuCell(w), rung, rateCell(w.DonePerSecond), rateCell(w.TokensPerSecond), failed, textCell(strings.Join(pools, " ")),
			}})
		}
		return rows
	},
	details: func(s *fleet.Snapshot, key string) []term.Field {
		i := slices.IndexFunc(s.Workers, func(w fleet.WorkerStatus) bool { return w.Worker == key })
		if i < 0 {
			return nil
		}
		return workerFields(&s.Workers[i], s)
	},
}

// gpuCell summarises the GPUs of a worker: the worst status if it is not ok, the highest temperature and utilisation,
// and the memory of all. Failed GPUs sort first, then hot ones.
func gpuCell(w *fleet.WorkerStatus) paneCell {
	sum := w.GPUSum()
	if sum == nil || sum.Count == 0 {
		return paneCell{text: "-", by: -1}
	}
	var parts []string
	cell := paneCell{}
	if sum.Status != "ok" {
		parts, cell.style = append(parts, sum.Status), fleet.GPUStatusStyle(sum.Status)
	}
	if sum.Temperature != nil {
		parts = append(parts, term.WithUnit(sum.Temperature, "C"))
		cell.by = float64(*sum.Temperature)
	}
	if sum.Status != "fenced" && sum.Status != "unknown" {
		parts = append(parts, strings.Fields(term.WithUnit(sum.Use, "%"))...)
		if sum.Total > 0 {
			parts = append(parts, fmt.Sprintf("%d/%dG", sum.Used>>30, sum.Total>>30))
		}
	}
	cell.by += 1000 * float64(fleet.GPURank(sum.Status))
	cell.text = strings.Join(parts, " ")
	return cell
}

func workerFields(w *fleet.WorkerStatus, s *fleet.Snapshot) []term.Field {
	list := []term.Field{
		term.KV("worker", w.Name), term.KV("id", w.Worker),
		term.KV("state", w.StateText(), fleet.StateStyle(w.StateText())), term.KV("reason", w.Reason), term.KV("note", w.Notes()),
		term.KV("engine", w.Engine+" at "+w.URL),
		term.KV("host", w.Host), term.KV("version", w.Version),
		term.KV("uptime", term.Age(s.At.Sub(w.Started))),
		term.KV("slots", fmt.Sprintf("%d of %d in use, %d requests before their first token", w.InFlight, w.Slots, w.Prefills)),
		term.KV("weight", strconv.FormatFloat(w.Weight, 'g', 4, 64)),
		term.KV("attempts", fmt.Sprintf("%d done (%s/s), %d failed", w.Done, perSecond(w.DonePerSecond), w.Failed)),
	}
	if w.Lost > 0 {
		list = append(list, term.KV("silent for", term.Age(w.Lost), term.Red))
	}
	if c := w.Capacity; c != nil && w.Lost == 0 {
		list = append(list, term.KV("in flight", fmt.Sprintf("%d of %d: %s", w.InFlight, c.Total, fleet.BoundText(c))),
			term.KV("bounds", fleet.BoundsText(c)), term.KV("profile", c.Profile), term.KV("token time", fleet.TokenTimeText(c)))
	}
	if w.NVML != nil {
		if f := w.NVML.Failure; f != nil {
			list = append(list, term.KV("NVML", f.Error(), term.Yellow))
		}
		for _, g := range w.NVML.GPUs {
			list = append(list, fleet.GPUField("GPU "+g.Label(), &g))
		}
	}
	if w.TokensPerSecond > 0 {
		list = append(list, term.KV("tokens", perSecond(w.TokensPerSecond)+"/s, from the measured inter-token time"))
	}
	for _, p := range w.Pools {
		text := fmt.Sprintf("rung %d", p.Rung)
		if price, ok := p.Curve.Price(p.Mean, w.InFlight+1, float64(w.Prefills)); ok {
			text += fmt.Sprintf(", price %s", term.Age(time.Duration(price*float64(time.Second))))
		}
		if p.Mean.Samples > 0 {
			text += fmt.Sprintf(", mean request %.0f tokens in, %.0f out", p.Mean.Input, p.Mean.Output)
		}
		if p.Model != "" && p.Model != p.Pool {
			text += ", model of the engine: " + p.Model
		}
		list = append(list, term.KV(named("pool", p.Pool), text))
	}
	return list
}

var requestsPane = pane{
	name:   "requests",
	empty:  "no requests",
	gone:   "This request has ended. Esc: back",
	sortBy: 6,
	columns: []paneColumn{
		{name: "ID", minWidth: 12},
		{name: "POOL", minWidth: 8},
		{name: "TIER", minWidth: 5, drop: 3},
		{name: "STATE"},
		{name: "WORKER", minWidth: 8, drop: 1},
		{name: "ATTEMPT", right: true, drop: 4},
		{name: "AGE", right: true},
		{name: "BYTES OUT", right: true, drop: 2},
	},
	rows: func(s *fleet.Snapshot, g glyphs) []paneRow {
		names := make(map[string]string, len(s.Workers))
		for i := range s.Workers {
			names[s.Workers[i].Worker] = s.Workers[i].Name
		}
		var rows []paneRow
		for _, r := range s.Requests {
			rows = append(rows, paneRow{r.ID, []paneCell{
				{text: shortID(r.ID, g)}, textCell(r.Pool), textCell(r.Tier), stateCell(r.State),
				textCell(cmp.Or(names[r.Worker], r.Worker, "-")), numberCell(r.Attempt),
				valueCell(term.Age(fleet.Millis(r.AgeMS)), float64(r.AgeMS)), valueCell(term.Bytes(r.BytesOut), float64(r.BytesOut)),
			}})
		}
		return rows
	},
	details: func(s *fleet.Snapshot, key string) []term.Field {
		i := slices.IndexFunc(s.Requests, func(r subjects.RequestInfo) bool { return r.ID == key })
		if i < 0 {
			return nil
		}
		r := s.Requests[i]
		stream := ""
		if r.Stream {
			stream = ", streaming"
		}
		return []term.Field{
			term.KV("request", r.ID), term.KV("state", r.State, fleet.StateStyle(r.State)),
			term.KV("model", r.Model), term.KV("pool", r.Pool), term.KV("tier", r.Tier), term.KV("tenant", r.Tenant),
			term.KV("path", r.Path+stream), term.KV("gateway", r.Gateway), term.KV("worker", s.WorkerName(r.Worker)),
			term.KV("attempt", strconv.Itoa(r.Attempt)),
			term.KV("arrived", term.Clock(r.Arrived)), term.KV("age", term.Age(fleet.Millis(r.AgeMS))),
			term.KV("queued for", term.Age(fleet.Millis(r.QueueMS))), term.KV("bytes out", term.Bytes(r.BytesOut)),
		}
	},
}

// shortID returns the end of a request's id, which is random; its beginning is the time.
func shortID(id string, g glyphs) string {
	if i := strings.LastIndexByte(id, '-'); i >= 0 {
		return g.more + id[i+1:]
	}
	return term.Printable(id)
}
