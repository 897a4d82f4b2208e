package top

import (
	"cmp"
	"strconv"
	"strings"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
)

// requestsPane lists the requests in progress.
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
		for i := range s.Requests {
			r := &s.Requests[i]
			rows = append(rows, paneRow{r.ID, []paneCell{
				{text: shortID(r.ID, g)}, textCell(r.Pool), textCell(r.Tier), stateCell(r.State),
				textCell(cmp.Or(names[r.Worker], r.Worker, "-")), numberCell(r.Attempt),
				valueCell(term.Age(fleet.Millis(r.AgeMS)), float64(r.AgeMS)), valueCell(term.Bytes(r.BytesOut), float64(r.BytesOut)),
			}})
		}
		return rows
	},
	details: func(s *fleet.Snapshot, key string) []term.Field {
		for i := range s.Requests {
			r := &s.Requests[i]
			if r.ID != key {
				continue
			}
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
		}
		return nil
	},
}

// shortID returns the end of a request's id, which is random; its beginning is the
// time.
func shortID(id string, g glyphs) string {
	if i := strings.LastIndexByte(id, '-'); i >= 0 {
		return g.more + id[i+1:]
	}
	return term.Printable(id)
}
