package gateway

import (
	"fmt"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/subjects"
)

func TestReports(t *testing.T) {
	began := time.Now()
	r := &reports{id: "gw1"}
	if got := r.report(began); got.Gateway != "gw1" || got.Trouble != "" || got.Lost != nil {
		t.Errorf("before anything was told: %+v", got)
	}
	r.tell(subjects.Reference{Gateway: "gw1", Trouble: "no leader", Pools: map[string]subjects.PoolReference{
		"a": {Held: map[string]int{"batch": 3}}, "b": {Unclaimed: 2, Price: 7}, "c": {Price: 1}}})
	r.onLost(subjects.Heartbeat{Worker: "w1.1", Name: "w1", Host: "h"}, 2*time.Second, began)
	r.onLost(subjects.Heartbeat{Worker: "w2.1", Name: "w2"}, 2*time.Second, began.Add(time.Minute))
	got := r.report(began.Add(2 * time.Minute))
	if got.Trouble != "no leader" || len(got.Pools) != 2 || got.Pools["a"].Held["batch"] != 3 || got.Pools["b"].Unclaimed != 2 {
		t.Errorf("report %+v", got)
	}
	if len(got.Lost) != 2 || got.Lost[0].Name != "w1" || got.Lost[0].Host != "h" || got.Lost[0].SilentMS != 122_000 || got.Lost[1].SilentMS != 62_000 {
		t.Errorf("lost %+v", got.Lost)
	}
	r.onJoined("w2.1")
	if got := r.report(began.Add(3 * time.Minute)); len(got.Lost) != 1 || got.Lost[0].Name != "w1" {
		t.Errorf("lost %+v; w2 is back", got.Lost)
	}
	if got := r.report(began.Add(lostReported)); len(got.Lost) != 0 {
		t.Errorf("lost %+v after %v", got.Lost, lostReported)
	}
	for i := range 3 * lostMost {
		r.onLost(subjects.Heartbeat{Worker: fmt.Sprint(i)}, time.Second, began)
	}
	if got := r.report(began).Lost; len(got) != lostMost || got[lostMost-1].Worker != fmt.Sprint(3*lostMost-1) {
		t.Errorf("%d lost, the last one %s", len(got), got[len(got)-1].Worker)
	}
}
