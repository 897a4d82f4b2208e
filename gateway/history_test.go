package gateway

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

var histEpoch = time.Date(2026, 3, 1, 12, 0, 3, 0, time.UTC)

func (h *history) seen(at time.Duration, pool string, o Outcome, took time.Duration) {
	h.observe(Ended{ID: fmt.Sprint(at), At: histEpoch.Add(at), Pool: pool, Outcome: o, TTFT: took / 2, Total: took, InputTokens: 3, OutputTokens: 5})
}

func TestHistoryKeepsAnHour(t *testing.T) {
	h := newHistory()
	for i := range 3 * 3600 { // three hours, one request a second
		h.seen(time.Duration(i)*time.Second, "m", Answered, time.Second)
	}
	now := histEpoch.Add(3*time.Hour - time.Second)
	periods, total := h.periods(now), 0
	for i, p := range periods {
		total += p.Ended()
		if i > 0 && p.Start.Sub(periods[i-1].Start) != PeriodLength {
			t.Fatalf("period %d begins %v after the one before", i, p.Start.Sub(periods[i-1].Start))
		}
	}
	if len(periods) != 360 || total < 3590 || total > 3600 || periods[359].Start.After(now) {
		t.Errorf("%d periods with %d requests, the last of %v", len(periods), total, periods[len(periods)-1].Start)
	}
	if n := h.recent(now)["m"]; n.Answered < 290 || n.Answered > 300 || n.OutputTokens != int64(5*n.Answered) {
		t.Errorf("the last five minutes have %d answers, %d tokens", n.Answered, n.OutputTokens)
	}
	if got := h.periods(now.Add(30 * time.Minute)); len(got) != 180 {
		t.Errorf("half an hour later %d periods", len(got))
	}
	for _, later := range []time.Duration{time.Hour, 48 * time.Hour} {
		if got := h.periods(now.Add(later)); len(got) != 0 {
			t.Errorf("%v later: %d periods", later, len(got))
		}
	}
	h.seen(5*time.Hour, "m", Failed, time.Second) // where an old period was
	if got := h.periods(histEpoch.Add(5 * time.Hour)); len(got) != 1 || got[0].Ended() != 1 || got[0].Failed != 1 {
		t.Errorf("got %v", got)
	}
}

func TestHistoryCountsOutcomes(t *testing.T) {
	h := newHistory()
	for i, o := range []Outcome{Answered, Failed, Refused, Cancelled, Refused} {
		h.seen(time.Duration(i), "m", o, time.Duration(i+1)*time.Second)
	}
	h.seen(0, "n", Answered, 3*time.Second)
	now := histEpoch.Add(time.Second)
	p := h.periods(now)[0]
	if p.Answered != 2 || p.Failed != 1 || p.Refused != 2 || p.Cancelled != 1 || p.Ended() != 6 || p.InputTokens != 18 {
		t.Errorf("got %+v", p)
	}
	if got, _ := p.Times.Quantile(policy.E2E, 1); p.Times.Answers() != 2 || got < 2900*time.Millisecond || got > 3100*time.Millisecond {
		t.Errorf("the longest of the %d answers took %v", p.Times.Answers(), got)
	}
	if ended, failures := h.last(); len(ended) != 6 || len(failures) != 3 {
		t.Errorf("%d have ended, %d failed", len(ended), len(failures))
	}
}

func TestHistoryIsBounded(t *testing.T) {
	h := newHistory()
	for i := range 3 * historyPools {
		h.seen(time.Duration(i), fmt.Sprint("pool ", i), Refused, time.Second)
	}
	if len(h.pools) != historyPools {
		t.Errorf("%d pools", len(h.pools))
	}
	if ended, failures := h.last(); len(ended) != endedKept || len(failures) != endedKept || ended[endedKept-1].ID != fmt.Sprint(time.Duration(3*historyPools-1)) {
		t.Errorf("%d have ended, %d failed", len(ended), len(failures))
	}
	h.observe(Ended{ID: "long", At: histEpoch, Outcome: Failed, Reason: strings.Repeat("é", reasonKept)})
	if _, failures := h.last(); failures[endedKept-1].Reason != strings.Repeat("é", reasonKept/2)+"…" {
		t.Errorf("a reason of %d bytes", len(failures[endedKept-1].Reason))
	}
	h.seen(time.Hour, "new", Answered, time.Second) // the others are idle
	if h.recent(histEpoch.Add(time.Hour))["new"].Answered != 1 || len(h.pools) != 1 {
		t.Errorf("%d pools, the new one is not among them", len(h.pools))
	}
}

func TestViewOfAGateway(t *testing.T) {
	g := runGateway(t, plainAnswer)
	for range 3 {
		if status, body, err := g.chat(context.Background(), false); status != 200 || err != nil {
			t.Fatal(status, body, err)
		}
	}
	r, _ := http.NewRequest(http.MethodPost, "http://gateway"+chatPath, strings.NewReader(`{"model":"none","messages":[]}`))
	resp, err := g.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	var v View
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) { // a request ends after its answer
		if v = g.View(); len(v.Ended) == 4 || time.Now().After(end) {
			break
		}
	}
	if len(v.Ended) != 4 || len(v.Failures) != 1 || v.Failures[0].Outcome != Refused || v.Failures[0].Status != 404 || v.Failures[0].Reason == "" {
		t.Fatalf("ended %+v, failures %+v", v.Ended, v.Failures)
	}
	if e := v.Ended[0]; e.Outcome != Answered || e.Pool != "m" || e.Model != "m" || e.Worker == "" || e.Attempts != 1 || e.TTFT <= 0 || e.Total < e.TTFT {
		t.Errorf("got %+v", e)
	}
	hour := g.Hour()
	n := 0
	for i := range hour {
		n += hour[i].Ended()
	}
	if n != 4 || v.Recent["m"].Answered != 3 {
		t.Errorf("%d in the hour, %d answered by m", n, v.Recent["m"].Answered)
	}
	if v.Server == "" || v.Gateway != g.ID() || v.NotReady != "" || len(v.Workers) != 1 || len(v.Requests) != 0 {
		t.Errorf("got %+v", v)
	}
	var kinds strings.Builder
	for _, e := range v.Events {
		kinds.WriteString(string(e.Kind) + " ")
	}
	if !strings.Contains(kinds.String(), string(subjects.EventWorkerJoined)) {
		t.Errorf("events: %s", kinds.String())
	}
}

func BenchmarkHistory(b *testing.B) {
	h, e := newHistory(), Ended{At: time.Now(), Pool: "m", Outcome: Answered, TTFT: time.Second, Total: 2 * time.Second}
	for b.Loop() {
		h.observe(e)
	}
}
