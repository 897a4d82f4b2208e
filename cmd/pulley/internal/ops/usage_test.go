package ops

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/subjects"
)

// record stores what was used, as gateways do.
func (s *site) record(gw string, start time.Time, part int, rows ...subjects.UsageRow) {
	s.t.Helper()
	if err := subjects.EnsureUsageStream(s.t.Context(), s.js, 1); err != nil {
		s.t.Fatal(err)
	}
	b, err := json.Marshal(subjects.UsageRecord{Gateway: gw, Start: start, Rows: rows})
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.js.Publish(s.t.Context(), subjects.UsageSubject(gw, start, part), b); err != nil {
		s.t.Fatal(err)
	}
}

func row(tenant, model string, u subjects.Usage) subjects.UsageRow {
	return subjects.UsageRow{UsageKey: subjects.UsageKey{Tenant: tenant, Key: "k1", Model: model, Tier: "standard", Pool: "p"}, Usage: u}
}

func TestUsage(t *testing.T) {
	s := newSite(t)
	s.story(step{"usage", 0, `no requests recorded in this time\n`}, step{"usage -o json", 0, `\[\]\n`},
		step{"usage -o csv", 0, `tenant,model,tier,requests,answered,failed,cancelled,refused,input_tokens,cached_tokens,output_tokens,seconds\n`})

	now := time.Now().UTC().Truncate(subjects.UsagePeriod)
	day := now.Add(-25 * time.Hour)
	s.record("g1", day, 0, row("old", "m", subjects.Usage{Answered: 9}))
	s.record("g1", now, 0, row("acme", "m", subjects.Usage{Answered: 1, InputTokens: 10}))
	s.record("g1", now, 0, row("acme", "m", subjects.Usage{Answered: 2, Failed: 1, InputTokens: 30, CachedTokens: 5, OutputTokens: 7, Millis: 1500}),
		row("acme", `a,"b"`, subjects.Usage{Refused: 4})) // instead of the one before it
	s.record("g1", now, 1, row("", "m", subjects.Usage{Cancelled: 1}))
	s.record("g2", now, 0, row("acme", "m", subjects.Usage{Answered: 3, Millis: 25}))
	s.story(
		step{"usage -o csv", 0, `tenant,model,.*\n,m,standard,1,0,0,1,0,0,0,0,0\.000\nacme,"a,""b""",standard,4,0,0,0,4,0,0,0,0\.000\nacme,m,standard,6,5,1,0,0,30,5,7,1\.525\n`},
		step{"usage --by tenant", 0, `TENANT +REQUESTS +ANSWERED +FAILED +CANCELLED +REFUSED +IN +CACHED +OUT +SECONDS\n- +1 +0 +0 +1 +0 +0 +0 +0 +0\.0\nacme +10 +5 +1 +0 +4 +30 +5 +7 +1\.5\n`},
		step{"usage --by gateway,pool -o csv", 0, `pool,gateway,.*\np,g1,8,2,1,1,4,30,5,7,1\.500\np,g2,3,3,0,0,0,0,0,0,0\.025\n`},
		step{"usage --by tenant --since 26h --until 24h -o csv", 0, `tenant,.*\nold,9,9,0,0,0,0,0,0,0\.000\n`},
		step{fmt.Sprintf("usage --by tenant --until %s -o csv", now.Format(time.RFC3339)), 0, `tenant,requests[^\n]*\n`},
		step{fmt.Sprintf("usage --by day --since %s -o csv", day.Format(time.RFC3339)), 0, fmt.Sprintf(`day,.*\n%s,9,.*\n%s,11,.*\n`, day.Format(time.DateOnly), now.Format(time.DateOnly))},
		step{"usage --by key -o json", 0, `\[\n  \{\n    "answered": 5,\n    "cached_tokens": 5,\n    "cancelled": 1,\n    "failed": 1,\n    "input_tokens": 30,\n    "key": "k1",\n    "output_tokens": 7,\n    "refused": 4,\n    "requests": 11,\n    "seconds": 1\.525\n  \}\n\]\n`},
		step{"usage --by tenat", 2, `.*--by "tenat": must be day, hour, tenant, key, model, tier, pool or gateway; did you mean "tenant"\?\n(?s:.*)`},
		step{"usage --since yesterday", 2, `.*--since "yesterday": must be a duration such as 24h, or a time such as 2026-11-01 or 2026-11-01T12:00:00Z\n(?s:.*)`},
		step{"usage -o wide", 2, `.*--output "wide": must be table, csv, json or yaml\n(?s:.*)`},
	)
}

// More records than are read at once.
func TestUsageOfManyRecords(t *testing.T) {
	s := newSite(t)
	start := time.Now().UTC().Truncate(subjects.UsagePeriod)
	for n := range 4500 {
		s.record("g", start.Add(-time.Duration(n/10)*subjects.UsagePeriod), n%10, row("acme", "m", subjects.Usage{Answered: 1}))
	}
	s.story(step{"usage --by tenant -o csv", 0, `tenant,.*\nacme,4500,4500,.*\n`})
}
