package gateway

import (
	"net/http"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/subjects"
)

func TestGatewaysTellResults(t *testing.T) {
	g := runGateway(t, streamAnswer)
	for range 3 {
		if status, body, err := g.chat(t.Context(), true); status != 200 || err != nil {
			t.Fatal(status, body, err)
		}
	}
	for end := time.Now().Add(time.Minute); g.View().Recent["m"].Answered < 3 && time.Now().Before(end); { // a request ends after its answer
		time.Sleep(5 * time.Millisecond)
	}
	reply, err := g.nc.Request(subjects.AskResults, nil, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	var list []subjects.PoolResults
	if err := subjects.Unmarshal(reply.Data, &list); err != nil || len(list) != 1 || list[0].Pool != "m" || list[0].Answered != 3 || list[0].Times.Answers() != 3 {
		t.Errorf("got %s, %v", reply.Data, err)
	}
}

// A dead letter is what some client sent: nothing in it stops the gateway when it runs again.
func TestRetryOfAPathThatIsNoURL(t *testing.T) {
	g := runGateway(t, plainAnswer)
	wire := &subjects.Request{ID: subjects.NewID(), Tier: "standard", Pool: "m", Model: "m", Method: http.MethodPost, Path: "/v1/chat/completions/%zz"}
	m, err := wire.Msg(subjects.Shared, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	m.Subject = subjects.Dead("standard", "m")
	if _, err := g.nc.RequestMsg(m, time.Minute); err != nil { // it is stored
		t.Fatal(err)
	}
	reply, err := g.nc.Request(subjects.DoRetry, subjects.MustMarshal(subjects.RetryOrder{Sequence: 1}), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	var result subjects.RetryResult
	if err := subjects.Unmarshal(reply.Data, &result); err != nil || result.Status != 200 || string(result.Body) != llama {
		t.Errorf("got %+v, %v", result, err)
	}
}
