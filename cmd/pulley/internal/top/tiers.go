package top

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
)

// tiersPane lists the tiers.
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
		for i := range s.Tiers {
			t := &s.Tiers[i]
			if t.Name != key {
				continue
			}
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
		}
		return nil
	},
}
