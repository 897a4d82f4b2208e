package top

import (
	"fmt"
	"maps"
	"slices"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/subjects"
)

// poolsPane lists the pools.
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
	},
	rows: func(s *fleet.Snapshot, g glyphs) []paneRow {
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
				textCell(p.Pool), stateCell(state), valueCell(fmt.Sprintf("%d of %d", p.Live, p.Workers), float64(p.Live)),
				valueCell(g.bar(p.Busy, p.Slots), float64(p.Busy)),
				numberCell(p.Waiting), numberCell(p.InFlight), oldestCell(p.Load), rateCell(p.TakenPerSecond),
			}})
		}
		return rows
	},
	details: func(s *fleet.Snapshot, key string) []term.Field {
		for i := range s.Pools {
			p := &s.Pools[i]
			if p.Pool != key {
				continue
			}
			list := []term.Field{term.KV("pool", p.Pool)}
			if s.Policy != nil {
				list = append(list, term.KV("balance", string(s.Policy.Policy.BalanceOf(key))),
					term.KV("affinity", string(s.Policy.Policy.AffinityOf(key))))
			}
			if p.Paused {
				list = append(list, term.KV("paused", "yes: requests wait", term.Yellow))
			}
			list = append(list, term.KV("slots", fmt.Sprintf("%d of %d busy", p.Busy, p.Slots)))
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
		}
		return nil
	},
}
