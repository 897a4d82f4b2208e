package top

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
)

// workersPane lists the workers.
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
			if r, ok := w.Rung(); ok && w.Live() {
				rung = numberCell(r)
			}
			failed := valueCell(strconv.FormatUint(w.Failed, 10), float64(w.Failed))
			if w.FailedPerSecond > 0 {
				failed.style = term.Red
			}
			rows = append(rows, paneRow{w.Worker, []paneCell{
				textCell(w.Name), state, textCell(w.Engine), valueCell(g.bar(w.InFlight, w.Slots), float64(w.InFlight)),
				textCell(cmp.Or(fleet.Bound(&w.Heartbeat), "-")), gpuCell(w), rung, rateCell(w.DonePerSecond), rateCell(w.TokensPerSecond), failed, textCell(strings.Join(poolNames(w), " ")),
			}})
		}
		return rows
	},
	details: func(s *fleet.Snapshot, key string) []term.Field {
		for i := range s.Workers {
			if w := &s.Workers[i]; w.Worker == key {
				return workerFields(w, s)
			}
		}
		return nil
	},
}

// poolNames returns the names of the pools that a worker serves.
func poolNames(w *fleet.WorkerStatus) []string {
	var names []string
	for i := range w.Pools {
		names = append(names, w.Pools[i].Pool)
	}
	return names
}

// gpuCell summarises the GPUs of a worker: the worst status if it is not ok, the highest
// temperature and utilisation, and the memory of all. Failed GPUs sort first, then hot
// ones.
func gpuCell(w *fleet.WorkerStatus) paneCell {
	if w.NVML == nil || len(w.NVML.GPUs) == 0 || w.Lost > 0 {
		return paneCell{text: "-", by: -1}
	}
	var parts []string
	cell := paneCell{}
	var hottest, busiest *int
	var used, total uint64
	worst := "ok"
	for i := range w.NVML.GPUs {
		g := &w.NVML.GPUs[i]
		if status, _, _ := fleet.GPUStatus(*g); gpuRank(status) > gpuRank(worst) {
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
		parts, cell.style = append(parts, worst), fleet.GPUStatusStyle(worst)
	}
	if hottest != nil {
		parts = append(parts, term.WithUnit(hottest, "C"))
		cell.by = float64(*hottest)
	}
	if worst != "fenced" && worst != "unknown" {
		parts = append(parts, strings.Fields(term.WithUnit(busiest, "%"))...)
		if total > 0 {
			parts = append(parts, fmt.Sprintf("%d/%dG", used>>30, total>>30))
		}
	}
	cell.by += 1000 * float64(gpuRank(worst))
	cell.text = strings.Join(parts, " ")
	return cell
}

// gpuRank orders the statuses of a GPU from good to bad.
func gpuRank(status string) int {
	return slices.Index([]string{"ok", "stale", "unknown", "strained", "throttled", "fenced"}, status)
}

// workerFields describes a worker.
func workerFields(w *fleet.WorkerStatus, s *fleet.Snapshot) []term.Field {
	list := []term.Field{
		term.KV("worker", w.Name), term.KV("id", w.Worker),
		term.KV("state", w.StateText(), fleet.StateStyle(w.StateText())), term.KV("reason", w.Reason),
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
		for i := range w.NVML.GPUs {
			g := &w.NVML.GPUs[i]
			list = append(list, fleet.GPUField("GPU "+g.Label(), g))
		}
	}
	if w.TokensPerSecond > 0 {
		list = append(list, term.KV("tokens", perSecond(w.TokensPerSecond)+"/s, from the measured inter-token time"))
	}
	for i := range w.Pools {
		p := &w.Pools[i]
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
