package scenarios

import (
	"fmt"
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/testenv/traffic"
)

// flatAtLoad makes about n requests of a family, each of which comes at its time whatever became of
// those before it.
func flatAtLoad(f traffic.Family, seed uint64, load float64, n int, engines []sim.Config) []traced {
	turns := trafficAtLoad(f, seed, load, n, engines)
	trace := make([]traced, len(turns))
	for i, t := range turns {
		trace[i] = t.traced
	}
	return atLoad(load, trace, engines)
}

// unlikeCoarse are the engines of unlike for prompts in which one token stands for several.
func unlikeCoarse() []sim.Config {
	engines := unlike()
	for i := range engines {
		engines[i].PrefillRate /= coarse
		engines[i].TokensPerEvent = 128
	}
	return engines
}

// tiered is one family's traffic at priority and 30 % of what the engines can do: alone, and beside
// an endless batch backlog.
type tiered struct{ alone, beside, ungated, untold beside }

func (r tiered) String() string {
	return fmt.Sprintf(besideHead+"\nalone          %v\nbeside batch   %v\nwithout gate   %v\nnothing told   %v", r.alone, r.beside, r.ungated, r.untold)
}

const p99 = 2 // in figures

// TestTierTable prints the table of priority beside batch in docs/balance.md; see TestBalanceTable
// for what chooses families and seeds.
func TestTierTable(t *testing.T) {
	asked := newAsked(t)
	var table strings.Builder
	table.WriteString("| traffic | TTFT p99 alone | beside batch | of alone | nothing told, of told | batch, of ungated |\n|---|---|---|---|---|---|\n")
	for f := range asked.families() {
		var runs []tiered
		for seed := range asked.seeds() {
			engines := unlikeCoarse()
			trace := flatAtLoad(f, seed, 0.3, asked.number("REQUESTS", 800), engines)
			r := tiered{
				alone:   besideBatch(t, engines, trace, 0, 10, false),
				beside:  besideBatch(t, engines, trace, 200, 10, false),
				ungated: besideBatch(t, engines, trace, 200, 10, true),
				untold:  besideBatchWith(t, engines, trace, 200, 10, untold),
			}
			t.Logf("%s, seed %d: %d requests in %.0f s\n%v", f.Name, seed, len(trace), trace[len(trace)-1].at, r)
			runs = append(runs, r)
		}
		fmt.Fprintf(&table, "| %s %s|\n", f.Name, medians(runs,
			func(r tiered) float64 { return r.alone.priority.ttft[p99] },
			func(r tiered) float64 { return r.beside.priority.ttft[p99] },
			func(r tiered) float64 { return r.beside.priority.ttft[p99] / r.alone.priority.ttft[p99] },
			func(r tiered) float64 { return r.untold.priority.ttft[p99] / r.beside.priority.ttft[p99] },
			func(r tiered) float64 { return r.beside.batch / r.ungated.batch },
		))
	}
	t.Logf("\n%s", &table)
}
