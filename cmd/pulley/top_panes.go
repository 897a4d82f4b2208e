package main

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pulley-lb/pulley/subjects"
)

const barWidth = 8

// panes are what top can show, by the keys 1 to 4.
var panes = []pane{poolsPane, tiersPane, workersPane, requestsPane}

var poolsPane = pane{
	name:  "pools",
	empty: "no pools: they appear with the first worker",
	columns: []paneColumn{
		{name: "POOL", least: 10},
		{name: "STATE"},
		{name: "WORKERS", numbers: true, drop: 2},
		{name: "SLOTS", numbers: true, drop: 1},
		{name: "WAITING", right: true},
		{name: "RUNNING", right: true, drop: 4},
		{name: "OLDEST", right: true, drop: 3},
		{name: "TAKEN/S", right: true, drop: 5},
	},
	rows: func(s *snapshot, g glyphs) []paneRow {
		var rows []paneRow
		for i := range s.Pools {
			p := &s.Pools[i]
			state := "ready"
			switch {
			case p.Paused:
				state = "paused"
			case p.Live == 0:
				state = "no worker"
			}
			rows = append(rows, paneRow{p.Pool, []paneCell{
				textCell(p.Pool), stateCell(state), shown(fmt.Sprintf("%d of %d", p.Live, p.Workers), float64(p.Live)),
				shown(g.bar(p.Busy, p.Slots, barWidth), float64(p.Busy)),
				numberCell(p.Waiting), numberCell(p.Running), oldestCell(p.load), rateCell(p.TakenPerSecond),
			}})
		}
		return rows
	},
	detail: func(s *snapshot, key string) []field {
		for i := range s.Pools {
			p := &s.Pools[i]
			if p.Pool != key {
				continue
			}
			list := []field{{name: "pool", value: p.Pool}}
			if s.Policy != nil {
				list = append(list, field{name: "balance", value: string(s.Policy.Policy.BalanceOf(key))},
					field{name: "affinity", value: string(s.Policy.Policy.AffinityOf(key))})
			}
			if p.Paused {
				list = append(list, field{name: "paused", value: "yes: its requests wait", style: yellow})
			}
			list = append(list, field{name: "slots", value: fmt.Sprintf("%d of %d busy", p.Busy, p.Slots)})
			for tier, l := range sortedPairs(p.Tiers) {
				list = append(list, field{name: named("tier", tier), value: l.String()})
			}
			for j := range s.Queues {
				if q := &s.Queues[j]; q.Pool == key && q.Lane != subjects.Shared {
					list = append(list, field{name: named("lane", s.workerName(q.Lane)) + ", " + q.Tier, value: fmt.Sprintf("%d waiting, %d delivered, %s", q.Waiting, q.Delivered, count(q.Bids, "bid"))})
				}
			}
			for j := range s.Workers {
				if w := &s.Workers[j]; w.Serves(key) {
					list = append(list, field{name: named("worker", w.Name), value: fmt.Sprintf("%s, %d of %s", w.state(), w.InFlight, count(w.Slots, "slot")), style: paintState(w.state())})
				}
			}
			return list
		}
		return nil
	},
}

var tiersPane = pane{
	name:  "tiers",
	empty: "no tiers: the policy is not known yet",
	columns: []paneColumn{
		{name: "ORDER", right: true, drop: 6},
		{name: "TIER", least: 8},
		{name: "SHARE", right: true, drop: 3},
		{name: "RESERVE", right: true, drop: 4},
		{name: "WAITING", right: true},
		{name: "RUNNING", right: true, drop: 1},
		{name: "OLDEST", right: true, drop: 2},
		{name: "TAKEN/S", right: true, drop: 5},
		{name: "MAX QUEUE", right: true, drop: 7},
	},
	rows: func(s *snapshot, _ glyphs) []paneRow {
		var rows []paneRow
		for i := range s.Tiers {
			t := &s.Tiers[i]
			name := textCell(t.Name)
			if t.Unknown {
				name.text += " (not in the policy)"
				name.style = red
			}
			rows = append(rows, paneRow{t.Name, []paneCell{
				shown(strconv.Itoa(i+1), float64(-i)), // the first first
				name, numberCell(t.Share), shown(fmt.Sprintf("%d%%", t.Reserve), float64(t.Reserve)),
				numberCell(t.Waiting), numberCell(t.Running), oldestCell(t.load), rateCell(t.TakenPerSecond), numberCell(t.MaxQueue),
			}})
		}
		return rows
	},
	detail: func(s *snapshot, key string) []field {
		for i := range s.Tiers {
			t := &s.Tiers[i]
			if t.Name != key {
				continue
			}
			list := []field{
				{name: "tier", value: t.Name},
				{name: "share", value: strconv.Itoa(t.Share)},
				{name: "reserve", value: fmt.Sprintf("%d%% of each worker's slots", t.Reserve)},
				{name: "storage", value: string(t.Storage)},
				{name: "max queue", value: fmt.Sprintf("%d for each pool", t.MaxQueue)},
				{name: "deadline", value: t.Deadline.String()},
				{name: "retries", value: strconv.Itoa(t.Retries)},
			}
			if t.MaxWait > 0 {
				list = append(list, field{name: "max wait", value: t.MaxWait.String()})
			}
			for pool, l := range sortedPairs(t.Pools) {
				list = append(list, field{name: named("pool", pool), value: l.String()})
			}
			return list
		}
		return nil
	},
}

var workersPane = pane{
	name:  "workers",
	empty: "no workers: start one with 'pulley worker --engine URL'",
	columns: []paneColumn{
		{name: "WORKER", least: 10},
		{name: "STATE"},
		{name: "ENGINE", least: 6, drop: 7},
		{name: "SLOTS", numbers: true},
		{name: "BOUND", drop: 3, ifAny: true},
		{name: "GPU", least: 16, numbers: true, drop: 4, ifAny: true},
		{name: "RUNG", right: true, drop: 5},
		{name: "DONE/S", right: true, drop: 1},
		{name: "TOK/S", right: true, drop: 2},
		{name: "FAILED", right: true, drop: 6},
		{name: "POOLS", least: 8, drop: 8},
	},
	rows: func(s *snapshot, g glyphs) []paneRow {
		var rows []paneRow
		for i := range s.Workers {
			w := &s.Workers[i]
			state := stateCell(w.state())
			if w.Lost > 0 {
				state.style = red
			}
			rung := paneCell{text: "-", by: -1}
			if r, ok := w.rung(); ok && w.live() {
				rung = numberCell(r)
			}
			failed := shown(strconv.FormatUint(w.Failed, 10), float64(w.Failed))
			if w.FailedPerSecond > 0 {
				failed.style = red
			}
			rows = append(rows, paneRow{w.Worker, []paneCell{
				textCell(w.Name), state, textCell(w.Engine), shown(g.bar(w.InFlight, w.Slots, barWidth), float64(w.InFlight)),
				textCell(cmp.Or(boundOf(&w.Heartbeat), "-")), w.gpuCell(), rung, rateCell(w.DonePerSecond), rateCell(w.TokensPerSecond), failed, textCell(strings.Join(w.pools(), " ")),
			}})
		}
		return rows
	},
	detail: func(s *snapshot, key string) []field {
		for i := range s.Workers {
			if w := &s.Workers[i]; w.Worker == key {
				return w.fields(s)
			}
		}
		return nil
	},
}

// pools are the names of those that the worker serves.
func (w *workerSeen) pools() []string {
	var names []string
	for i := range w.Pools {
		names = append(names, w.Pools[i].Pool)
	}
	return names
}

// gpuCell is the worst of the worker's GPUs: what is wrong with it, else how hot,
// busy and full it is. It is sorted by heat, what is ill first.
func (w *workerSeen) gpuCell() paneCell {
	if w.NVML == nil || len(w.NVML.GPUs) == 0 || w.Lost > 0 {
		return paneCell{text: "-", by: -1}
	}
	var words []string
	cell := paneCell{}
	var hottest, busiest *int
	var used, total uint64
	worst := "ok"
	for i := range w.NVML.GPUs {
		g := &w.NVML.GPUs[i]
		if status, _, _ := gpuStatus(*g); gpuRank(status) > gpuRank(worst) {
			worst = status
		}
		if t := g.Temperature; t != nil && (hottest == nil || *t > *hottest) {
			hottest = t
		}
		if u := g.Utilization; u != nil && (busiest == nil || u.GPU > *busiest) {
			busiest = &u.GPU
		}
		if g.Memory != nil {
			used, total = used+g.Memory.Used, total+g.Memory.Total
		}
	}
	if worst != "ok" {
		words, cell.style = append(words, worst), paintGPUStatus(worst)
	}
	if hottest != nil {
		words = append(words, unit(hottest, "C"))
		cell.by = float64(*hottest)
	}
	if worst != "fenced" && worst != "unknown" {
		words = append(words, strings.Fields(unit(busiest, "%"))...)
		if total > 0 {
			words = append(words, fmt.Sprintf("%d/%dG", used>>30, total>>30))
		}
	}
	cell.by += 1000 * float64(gpuRank(worst))
	cell.text = strings.Join(words, " ")
	return cell
}

// gpuRank is how bad a state is.
func gpuRank(status string) int {
	return slices.Index([]string{"ok", "stale", "unknown", "strained", "throttled", "fenced"}, status)
}

func (w *workerSeen) fields(s *snapshot) []field {
	list := []field{
		{name: "worker", value: w.Name}, {name: "id", value: w.Worker},
		{name: "state", value: w.state(), style: paintState(w.state())}, {name: "reason", value: w.Reason},
		{name: "engine", value: w.Engine + " at " + w.URL},
		{name: "host", value: w.Host}, {name: "version", value: w.Version},
		{name: "up for", value: age(s.At.Sub(w.Started))},
		{name: "slots", value: fmt.Sprintf("%d of %d busy, %d before their first token", w.InFlight, w.Slots, w.Prefills)},
		{name: "weight", value: strconv.FormatFloat(w.Weight, 'g', 4, 64)},
		{name: "attempts", value: fmt.Sprintf("%d done (%s/s), %d failed", w.Done, perSecond(w.DonePerSecond), w.Failed)},
	}
	if w.Lost > 0 {
		list = append(list, field{name: "silent", value: age(w.Lost), style: red})
	}
	if r := w.Capacity; r != nil && w.Lost == 0 {
		list = append(list, field{name: "room", value: fmt.Sprintf("%d of %d: %s", w.InFlight, r.Total, boundInWords(r))},
			field{name: "bounds", value: termsInWords(r)}, field{name: "profile", value: r.Profile}, field{name: "token time", value: pacesInWords(r)})
	}
	if w.NVML != nil {
		if f := w.NVML.Failure; f != nil {
			list = append(list, field{name: "NVML", value: f.Error(), style: yellow})
		}
		for i := range w.NVML.GPUs {
			g := &w.NVML.GPUs[i]
			list = append(list, field{name: "GPU " + g.Label(), value: gpuInWords(g), style: paintGPUStatus(gpuWord(g))})
		}
	}
	if w.TokensPerSecond > 0 {
		list = append(list, field{name: "tokens", value: perSecond(w.TokensPerSecond) + "/s, by its measured pace"})
	}
	for i := range w.Pools {
		p := &w.Pools[i]
		text := fmt.Sprintf("rung %d", p.Rung)
		if price, ok := p.Curve.Price(p.Mean, w.InFlight+1, float64(w.Prefills)); ok {
			text += fmt.Sprintf(", price %s", age(time.Duration(price*float64(time.Second))))
		}
		if p.Mean.Samples > 0 {
			text += fmt.Sprintf(", requests of %.0f tokens in, %.0f out", p.Mean.Input, p.Mean.Output)
		}
		if p.Model != "" && p.Model != p.Pool {
			text += ", engine's name " + p.Model
		}
		list = append(list, field{name: named("pool", p.Pool), value: text})
	}
	return list
}

var requestsPane = pane{
	name:  "requests",
	empty: "no requests",
	order: 6,
	columns: []paneColumn{
		{name: "ID", least: 12},
		{name: "POOL", least: 8},
		{name: "TIER", least: 5, drop: 3},
		{name: "STATE"},
		{name: "WORKER", least: 8, drop: 1},
		{name: "TRY", right: true, drop: 4},
		{name: "AGE", right: true},
		{name: "BYTES", right: true, drop: 2},
	},
	rows: func(s *snapshot, g glyphs) []paneRow {
		names := make(map[string]string, len(s.Workers))
		for i := range s.Workers {
			names[s.Workers[i].Worker] = s.Workers[i].Name
		}
		var rows []paneRow
		for i := range s.Requests {
			r := &s.Requests[i]
			rows = append(rows, paneRow{r.ID, []paneCell{
				{text: shortID(r.ID, g)}, textCell(r.Pool), textCell(r.Tier), stateCell(r.State),
				textCell(cmp.Or(names[r.Worker], r.Worker, "-")), numberCell(r.Attempt),
				shown(age(ms(r.AgeMS)), float64(r.AgeMS)), shown(byteCount(r.BytesOut), float64(r.BytesOut)),
			}})
		}
		return rows
	},
	detail: func(s *snapshot, key string) []field {
		for i := range s.Requests {
			r := &s.Requests[i]
			if r.ID != key {
				continue
			}
			stream := ""
			if r.Stream {
				stream = ", a stream"
			}
			return []field{
				{name: "request", value: r.ID}, {name: "state", value: r.State, style: paintState(r.State)},
				{name: "model", value: r.Model}, {name: "pool", value: r.Pool}, {name: "tier", value: r.Tier}, {name: "tenant", value: r.Tenant},
				{name: "path", value: r.Path + stream}, {name: "gateway", value: r.Gateway}, {name: "worker", value: s.workerName(r.Worker)},
				{name: "attempt", value: strconv.Itoa(r.Attempt)},
				{name: "arrived", value: clock(r.Arrived)}, {name: "age", value: age(ms(r.AgeMS))},
				{name: "in queue", value: age(ms(r.QueueMS))}, {name: "bytes out", value: byteCount(r.BytesOut)},
			}
		}
		return nil
	},
}

// named is a field's name with that of a thing.
func named(kind, name string) string { return kind + " " + shorten(printable(name), 24) }

// shortID is the end of a request's id, which is random; the beginning is the
// time.
func shortID(id string, g glyphs) string {
	if i := strings.LastIndexByte(id, '-'); i >= 0 {
		return g.more + id[i+1:]
	}
	return printable(id)
}

func oldestCell(l load) paneCell {
	if l.OldestMS == 0 {
		return paneCell{text: "-"}
	}
	return shown(age(ms(l.OldestMS)), float64(l.OldestMS))
}

func (l load) String() string {
	text := fmt.Sprintf("%d waiting, %d running", l.Waiting, l.Running)
	if l.OldestMS > 0 {
		text += fmt.Sprintf(", the oldest for %s", age(ms(l.OldestMS)))
	}
	return text
}
