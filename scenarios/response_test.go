package scenarios

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/api"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/testenv"
	"github.com/pulley-lb/pulley/worker"
)

// keeping is an engine that keeps the responses that it makes, and does not know those of others.
func keeping(name string) http.HandlerFunc {
	var mu sync.Mutex
	kept := make(map[string]bool)
	return func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			Previous string `json:"previous_response_id"`
			Stream   bool   `json:"stream"`
			Input    string `json:"input"`
		}
		json.NewDecoder(r.Body).Decode(&in)
		if d, err := time.ParseDuration(in.Input); err == nil {
			time.Sleep(d)
		}
		mu.Lock()
		defer mu.Unlock()
		if in.Previous != "" && !kept[in.Previous] {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(404)
			fmt.Fprintf(w, `{"error":{"message":"Response with id '%s' not found.","type":"invalid_request_error","param":"response_id","code":null}}`, in.Previous)
			return
		}
		id := fmt.Sprintf("resp_%s_%d", name, len(kept))
		kept[id] = true
		response := fmt.Sprintf(`{"id":%q,"object":"response","status":"completed","model":"m","output":[]}`, id)
		if !in.Stream {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, response)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		for _, event := range []string{"response.created", "response.completed"} {
			fmt.Fprintf(w, "event: %s\ndata: {\"type\":%q,\"response\":%s}\n\n", event, event, response)
			http.NewResponseController(w).Flush()
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// A request that continues a response goes to the engine that has it: also while that is busy, with affinity off, and from
// another gateway. If that engine is gone, another one's 404 is the answer.
func TestPreviousResponse(t *testing.T) {
	for _, affinity := range []policy.Affinity{policy.AffinityAuto, policy.AffinityOff} {
		runBoth(t, func(t *testing.T, env *Env) { testPreviousResponse(t, env, affinity) })
	}
}

func testPreviousResponse(t *testing.T, env *Env, affinity policy.Affinity) {
	gs := []*Gateway{env.Gateway(gateway.Config{}), env.Gateway(gateway.Config{})}
	names := []string{"a", "b", "c"}
	engines := make(map[string]*testenv.Engine)
	workers := make(map[string]*Worker)
	for _, name := range names {
		engines[name] = env.Handler(name, engineOf(keeping(name), "m"))
		workers[name] = env.Worker(engines[name], worker.Config{Name: name, Slots: 1})
	}
	env.SetPolicy(func(p *policy.Policy) { p.Pools = map[string]policy.Pool{"m": {Affinity: affinity}} })
	for _, g := range gs {
		g.Serves(t, "m")
	}
	respond := func(g *Gateway, previous, input string, stream bool) (id string, r reply) {
		t.Helper()
		body := fmt.Sprintf(`{"model":"m","input":%q,"stream":%t}`, input, stream)
		if previous != "" {
			body = fmt.Sprintf(`{"model":"m","previous_response_id":%q,"input":%q,"stream":%t}`, previous, input, stream)
		}
		r = do(t, g, "POST", "/v1/responses", body)
		return api.ResponseID([]byte(r.body), stream), r
	}
	made := make(map[byte]int) // answers by engine
	var last string
	for i := range 12 {
		id, _ := respond(gs[0], "", "hello", i%2 == 0)
		for turn := range 3 {
			time.Sleep(time.Second) // gateways tell each other what they have learned
			next, r := respond(gs[turn%2], id, "and now?", (i+turn)%2 == 0)
			if r.status != 200 || next == "" || next[5] != id[5] {
				t.Fatalf("%d, turn %d after %q: got %d %s", i, turn, id, r.status, r.body)
			}
			id = next
		}
		made[id[5]]++
		last = id
	}
	// Its engine is busy: the request waits for it.
	var busy sync.WaitGroup
	var ok atomic.Int32
	for range 3 {
		busy.Go(func() {
			if _, r := respond(gs[0], last, "3s", false); r.status == 200 {
				ok.Add(1)
			}
		})
	}
	busy.Wait()
	if ok.Load() != 3 {
		t.Errorf("%d of 3 requests to a busy engine were answered", ok.Load())
	}
	// Its engine is gone.
	name := string(last[5])
	workers[name].Kill(engines[name])
	time.Sleep(5 * time.Second)
	if _, r := respond(gs[0], last, "still there?", false); r.status != 404 {
		t.Errorf("its engine is gone: got %d %s, want 404", r.status, r.body)
	}
	if _, r := respond(gs[0], "resp_unknown", "who?", false); r.status != 404 {
		t.Errorf("an unknown response: got %d %s, want 404", r.status, r.body)
	}
}
