package scenarios

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/subjects"
)

// While the broker's disk is full, requests of tiers in memory go on, and those of tiers on disk get an error that says so, soon. The
// gateway stays ready, and says at /readyz and to doctor what is wrong, until the disk has room.
func TestFullDisk(t *testing.T) {
	runBoth(t, func(t *testing.T, env *Env) {
		g, es, _ := pair(t, env, slow("a"))
		nc, _ := env.Connect("operator")
		var trouble atomic.Value // what the gateway last told doctor
		if _, err := nc.Subscribe(subjects.AllGateways, func(m *nats.Msg) {
			var ref subjects.Reference
			if err := subjects.Unmarshal(m.Data, &ref); err == nil {
				trouble.Store(ref.Trouble)
			}
		}); err != nil {
			t.Fatal(err)
		}
		batch := func() reply { return ask(t, g, chat("m", false, 5, `"service_tier":"batch"`), "") }
		others := func() {
			t.Helper()
			for _, tier := range []string{"priority", "default"} {
				if r := ask(t, g, chat("m", false, 5, `"service_tier":"`+tier+`"`), ""); r.status != 200 || r.took > 2*time.Second {
					t.Errorf("tier %s: %d after %v: %s", tier, r.status, r.took, r.body)
				}
			}
		}
		if r := batch(); r.status != 200 {
			t.Fatalf("before: %d %s", r.status, r.body)
		}
		free := env.FillDisk(subjects.ReqStream("batch"))
		var refused []reply
		for range 8 {
			if r := batch(); r.status != 200 {
				refused = append(refused, r)
			}
			others()
		}
		if len(refused) < 5 {
			t.Fatalf("%d of 8 requests were refused: the disk is not full", len(refused))
		}
		for i, r := range refused {
			within := 5 * time.Second
			if i == 0 { // it may have been a short outage
				within = 17 * time.Second
			}
			if r.status != 503 || !strings.Contains(r.body, "does not store requests now") || !strings.Contains(r.body, "batch") || r.header.Get("Retry-After") == "" || r.took > within {
				t.Errorf("refused with %d after %v, Retry-After %q: %s", r.status, r.took, r.header.Get("Retry-After"), r.body)
			}
		}
		for _, want := range []string{`"ready":true`, "PULLEY_REQ_BATCH", "disk may be full"} {
			if r := get(t, g, "http://admin/readyz"); r.status != 200 || !strings.Contains(r.body, want) {
				t.Errorf("readyz: %d %s, without %q", r.status, r.body, want)
			}
		}
		if told, _ := trouble.Load().(string); !strings.Contains(told, "disk may be full") {
			t.Errorf("doctor is told %q", told)
		}

		ran := es[0].Stats().Received
		free()
		env.StopBroker()
		env.StartBroker()
		time.Sleep(3 * time.Second)
		if n := es[0].Stats().Received - ran; n != 0 {
			t.Errorf("the engine was asked %d times for requests that were refused", n)
		}
		if r := batch(); r.status != 200 || r.took > 3*time.Second {
			t.Errorf("afterwards: %d after %v: %s", r.status, r.took, r.body)
		}
		others()
		if r := get(t, g, "http://admin/readyz"); strings.Contains(r.body, "trouble") {
			t.Errorf("readyz afterwards: %s", r.body)
		}
		if told := trouble.Load(); told != "" {
			t.Errorf("afterwards doctor is told %q", told)
		}
		emptyQueues(t, env)
	})
}
