package fleet_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

func TestSnapshotAddsUp(t *testing.T) {
	s := clitest.SnapshotAtNoon()
	if got, want := s.Totals, (fleet.Totals{Live: 1, Slots: 16, InFlight: 6, Waiting: 34, DonePerSecond: 4.5, TokensPerSecond: 1234}); got != want {
		t.Errorf("totals %+v, want %+v", got, want)
	}
	var pools []string
	for _, p := range s.Pools {
		pools = append(pools, fmt.Sprintf("%s: %d of %d live, %d/%d busy, %d waiting for %dms, %d in flight, %.1f taken/s",
			p.Pool, p.Live, p.Workers, p.Busy, p.Slots, p.Waiting, p.OldestMS, p.InFlight, p.TakenPerSecond))
	}
	want := []string{
		"embed: 0 of 1 live, 0/0 busy, 0 waiting for 0ms, 0 in flight, 0.0 taken/s",
		"llama-70b: 1 of 2 live, 6/16 busy, 33 waiting for 3000ms, 2 in flight, 4.5 taken/s", // 30 held, 2 queued in batch, 1 listed
		"mistral: 0 of 1 live, 0/0 busy, 1 waiting for 0ms, 0 in flight, 0.0 taken/s",
		"qwen: 1 of 1 live, 6/16 busy, 0 waiting for 0ms, 0 in flight, 0.0 taken/s",
	}
	if !slices.Equal(pools, want) {
		t.Errorf("pools:\n%s\nwant:\n%s", strings.Join(pools, "\n"), strings.Join(want, "\n"))
	}
	var tiers []string
	for _, l := range s.Tiers {
		tiers = append(tiers, fmt.Sprintf("%s %d", l.Name, l.Waiting))
	}
	if got := strings.Join(tiers, ", "); got != "priority 0, standard 2, batch 32" {
		t.Errorf("tiers %s", got)
	}
}

// Pools have the results of all gateways, also those without a worker.
func TestSnapshotAddsUpResults(t *testing.T) {
	side := func(n int, took time.Duration) (s policy.Side) {
		for range n {
			s.Observe(true, took/10, took)
		}
		return s
	}
	s := clitest.SnapshotAtNoon()
	s.Results = []subjects.PoolResults{
		{Pool: "qwen", Answered: 90, Failed: 1, Times: side(90, time.Second)}, {Pool: "gone", Refused: 2}, {Pool: "qwen", Answered: 10, Refused: 3, Cancelled: 4, Times: side(10, 8*time.Second)},
	}
	for range 2 { // it may be completed again
		s.Complete()
	}
	pools := make(map[string]fleet.PoolStatus)
	for _, p := range s.Pools {
		pools[p.Pool] = p
	}
	near := func(got, want int64) bool { return got > want*95/100 && got < want*105/100 }
	if p := pools["qwen"]; p.Answered != 100 || p.Failed != 1 || p.Refused != 3 || p.Cancelled != 4 || !near(p.TTFT.P50, 100) || !near(p.TTFT.P95, 800) || !near(p.E2E.P50, 1000) || !near(p.E2E.P99, 8000) {
		t.Errorf("got %+v, %+v, %+v", p, p.TTFT, p.E2E)
	}
	if p := pools["gone"]; p.Refused != 2 || p.TTFT != nil || p.E2E != nil || pools["llama-70b"].TTFT != nil {
		t.Errorf("got %+v", p)
	}
}

// Without a gateway, the messages that the broker has delivered count as in flight.
func TestSnapshotWithoutGateways(t *testing.T) {
	s := clitest.SnapshotAtNoon()
	s.Gateways, s.Requests, s.Held = nil, nil, nil
	s.Complete()
	if p := s.Pools[1]; p.Pool != "llama-70b" || p.InFlight != 3 || p.Waiting != 2 {
		t.Errorf("got %+v, want 3 in flight, 2 waiting", p)
	}
}

func TestSnapshotKnowsWhoHelpsAPool(t *testing.T) {
	s := clitest.SnapshotAtNoon()
	s.Policy.Policy.Pools = map[string]policy.Pool{"mistral": {Spill: []policy.Spill{{Pool: "qwen", Penalty: 2}}}, "embed": {Paused: true}}
	s.Complete()
	if p := s.Pools[2]; p.Pool != "mistral" || p.Live != 1 || p.Workers != 2 {
		t.Errorf("got %+v, want the worker of qwen to count", p)
	}
	if !s.Pools[0].Paused {
		t.Error("embed is not paused")
	}
}

func TestSnapshotAsJSON(t *testing.T) {
	var none fleet.Snapshot
	none.Complete()
	b, err := json.Marshal(none)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), "null") {
		t.Errorf("a list is null: %s", b)
	}
	s := clitest.SnapshotAtNoon()
	if b, err = json.Marshal(s); err != nil {
		t.Fatal(err)
	}
	var back struct {
		Pools   []struct{ Pool, State string }
		Workers []struct {
			Name          string
			DonePerSecond float64 `json:"done_per_second"`
		}
		Tiers  []struct{ Name string }
		Policy struct{ Revision int }
	}
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if back.Policy.Revision != 17 || len(back.Pools) != 4 || back.Tiers[1].Name != "standard" || back.Workers[0].Name != "fast" || back.Workers[0].DonePerSecond != 4.5 {
		t.Errorf("got %+v of %s", back, b)
	}
}

// A gateway that cannot queue requests says why, and that is the first thing that is wrong.
func TestFindsGatewaysWithoutAQueue(t *testing.T) {
	s := clitest.SnapshotAtNoon()
	s.Trouble = map[string]string{"g2": "no disk", "g1": "no memory"}
	s.Complete()
	var got []string
	for _, f := range s.Findings {
		if f.Check == "gateways" {
			got = append(got, string(f.Verdict)+": "+f.Text)
		}
	}
	want := []string{"problem: gateway g1 cannot queue requests: no memory", "problem: gateway g2 cannot queue requests: no disk"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
