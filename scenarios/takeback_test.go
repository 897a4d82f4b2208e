package scenarios

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/worker"
)

// counted is an engine that counts how often it gets each question of an inputOf.
type counted struct {
	*sim.Engine
	mu  sync.Mutex
	got map[string]int
}

var question = regexp.MustCompile(`question \d+`)

func (c *counted) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	if q := question.Find(body); q != nil {
		c.mu.Lock()
		c.got[string(q)]++
		c.mu.Unlock()
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	c.Engine.ServeHTTP(w, r)
}

// times is how often the engine got a question.
func (c *counted) times(i int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.got[fmt.Sprintf("question %d", i)]
}

// once checks that each of n questions was got once.
func (c *counted) once(t testing.TB, n int) {
	t.Helper()
	for i := range n {
		if times := c.times(i); times != 1 {
			t.Errorf("question %d ran %d times", i, times)
		}
	}
}

// counting starts a worker of 4 slots with an engine that counts.
func counting(t *testing.T, env *Env, g *Gateway) *counted {
	t.Helper()
	eng, err := sim.New(slow("a"))
	if err != nil {
		t.Fatal(err)
	}
	c := &counted{Engine: eng, got: make(map[string]int)}
	env.Worker(env.Handler("a", c), worker.Config{Name: "a", Slots: 4})
	g.Serves(t, "m")
	return c
}

// takers is a service whose call runs n requests, takes back what it can after a random time, and says which it did.
type takers struct{ do chan gateway.Do }

func (s takers) Serves(r *http.Request) bool { return r.URL.Path == "/v1/takers" }

func (s takers) Run(ctx context.Context, do gateway.Do) {
	s.do <- do
	<-ctx.Done()
}

func (s takers) Serve(w http.ResponseWriter, r *http.Request, who gateway.Caller) error {
	do := <-s.do
	s.do <- do
	var wg sync.WaitGroup
	taken, status := make([]bool, 200), make([]int, 200)
	for i := range taken {
		wg.Go(func() {
			ctx, watch, cancel := gateway.Watched(r.Context())
			defer cancel()
			body := strings.Split(inputOf(i+1, 4), "\n")[i]
			_, body, _ = strings.Cut(body, `"body":`)
			again := httptest.NewRequestWithContext(ctx, "POST", "/v1/chat/completions", strings.NewReader(strings.TrimSuffix(body, "}")))
			again.Header.Set("Content-Type", "application/json")
			rec := httptest.NewRecorder()
			wg.Go(func() {
				time.Sleep(time.Duration(rand.Int64N(int64(12 * time.Second))))
				taken[i] = watch.TakeBack(ctx)
				if taken[i] && watch.TakeBack(ctx) {
					panic("taken back twice")
				}
			})
			defer func() { recover() }() // the answer of one that is taken back is broken off
			do(rec, again, who, "batch")
			status[i] = rec.Code
		})
	}
	wg.Wait()
	return json.NewEncoder(w).Encode(map[string]any{"taken": taken, "status": status})
}

// A request that is taken back never runs, and one that is not runs once and is answered.
func TestRequestsAreTakenBack(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{Services: []gateway.Service{takers{make(chan gateway.Do, 1)}}})
		e := counting(t, env, g)
		var got struct {
			Taken  []bool
			Status []int
		}
		r := do(t, g, "POST", "/v1/takers", "")
		if err := json.Unmarshal([]byte(r.body), &got); err != nil {
			t.Fatal(r.body)
		}
		counts := make(map[bool]int)
		for i, taken := range got.Taken {
			counts[taken]++
			if times := e.times(i); taken && times != 0 || !taken && (times != 1 || got.Status[i] != 200) {
				t.Errorf("%d: taken back %v, answered with %d, ran %d times", i, taken, got.Status[i], times)
			}
		}
		if counts[true] < 20 || counts[false] < 20 {
			t.Errorf("%v", counts)
		}
		emptyQueues(t, env)
	})
}
