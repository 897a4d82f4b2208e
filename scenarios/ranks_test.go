package scenarios

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/worker"
)

// rankEngine is a vLLM with data-parallel ranks behind one address. The ranks share nothing.
type rankEngine struct {
	ranks  []*sim.Engine
	others []int // running requests of others, of each rank, in its metrics

	mu      sync.Mutex
	running []int
	most    []int
	total   []int
	odd     []string // headers that name no rank
}

func newRankEngine(t *testing.T, n int, cfg sim.Config) *rankEngine {
	t.Helper()
	e := &rankEngine{running: make([]int, n), most: make([]int, n), total: make([]int, n), others: make([]int, n)}
	for range n {
		eng, err := sim.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		e.ranks = append(e.ranks, eng)
	}
	return e
}

func (e *rankEngine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/metrics":
		e.mu.Lock()
		defer e.mu.Unlock()
		for i := range e.ranks {
			fmt.Fprintf(w, "vllm:num_requests_running{engine=\"%d\",model_name=\"m\"} %d\nvllm:num_requests_waiting{engine=\"%d\",model_name=\"m\"} 0\nvllm:kv_cache_usage_perc{engine=\"%d\",model_name=\"m\"} 0.%d\n",
				i, e.running[i]+e.others[i], i, i, i)
		}
		return
	case r.Method != http.MethodPost:
		e.ranks[0].ServeHTTP(w, r)
		return
	}
	i, err := strconv.Atoi(r.Header.Get("X-data-parallel-rank"))
	e.mu.Lock()
	if err != nil || i < 0 || i >= len(e.ranks) || len(r.Header["X-Data-Parallel-Rank"]) != 1 {
		e.odd = append(e.odd, strings.Join(r.Header["X-Data-Parallel-Rank"], ","))
		e.mu.Unlock()
		http.Error(w, `{"error":{"message":"data_parallel_rank is out of range","code":400}}`, http.StatusBadRequest)
		return
	}
	e.running[i]++
	e.total[i]++
	e.most[i] = max(e.most[i], e.running[i])
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.running[i]--
	}()
	e.ranks[i].ServeHTTP(w, r)
}

// Each request of a worker with dp= goes to the least loaded rank, whatever its client says, and each rank has slots of its own.
func TestDataParallelRanks(t *testing.T) {
	for about, c := range map[string]struct {
		engine, dp, slots int
		others            []int // requests of others
		idle              int   // a rank that gets nothing for that; -1: none
	}{
		"four ranks":                      {4, 4, 2, nil, -1},
		"one of them is busy with others": {3, 3, 4, []int{0, 50, 0}, 1},
		"fewer than configured":           {2, 5, 3, nil, -1},
	} {
		t.Run(about, func(t *testing.T) {
			runBoth(t, func(t *testing.T, env *Env) {
				g := env.Gateway(gateway.Config{})
				beats := recordBeats(t, env)
				cfg := slow("e")
				cfg.Slots = 100
				e := newRankEngine(t, c.engine, cfg)
				copy(e.others, c.others)
				env.Worker(env.Handler("e", e), worker.Config{Name: "e", Ranks: c.dp, Slots: c.slots})
				g.Serves(t, "m")
				var all sync.WaitGroup
				for i := range 60 {
					all.Go(func() {
						time.Sleep(time.Duration(i) * 20 * time.Millisecond)
						r := ask(t, g, chat("m", i%2 == 0, 3+i%7), "", "X-Data-Parallel-Rank", "17")
						if r.status != 200 {
							t.Errorf("got %d %q", r.status, r.body)
						}
					})
				}
				time.Sleep(700 * time.Millisecond)
				inFlight := 0
				h := beats.of("e")
				for _, r := range h.Ranks {
					inFlight += r.InFlight
				}
				if len(h.Ranks) != c.engine || inFlight == 0 || inFlight != h.InFlight || h.Ranks[0].Running == nil || h.Ranks[1].KVUsage == nil || *h.Ranks[1].KVUsage != 0.1 {
					t.Errorf("%d in flight, ranks %+v", h.InFlight, h.Ranks)
				}
				all.Wait()
				if len(e.odd) > 0 {
					t.Errorf("calls of no rank: %q", e.odd)
				}
				for i, n := range e.total {
					busy := i == c.idle
					if busy && n > 0 || !busy && n < 40/c.engine || c.idle < 0 && e.most[i] > c.slots*c.dp/c.engine+1 {
						t.Errorf("rank %d ran %d requests, %d at once: all had %v, %v at once", i, n, e.most[i], e.total, e.most)
					}
				}
				time.Sleep(time.Second)
				for i, r := range beats.of("e").Ranks {
					if r.InFlight != 0 {
						t.Errorf("rank %d has %d in flight at the end", i, r.InFlight)
					}
				}
			})
		})
	}
}

// Without dp= the engine chooses, whatever the client says.
func TestEngineChoosesItsRank(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := env.Gateway(gateway.Config{})
		e := newRankEngine(t, 2, slow("e"))
		beats := recordBeats(t, env)
		env.Worker(env.Handler("e", e), worker.Config{Name: "e"})
		g.Serves(t, "m")
		for range 4 {
			ask(t, g, chat("m", false, 1), "", "X-Data-Parallel-Rank", "1")
		}
		if e.total[1] != 0 || !slices.Equal(e.odd, []string{"", "", "", ""}) {
			t.Errorf("ranks %v, told %q", e.total, e.odd)
		}
		if h := beats.of("e"); h.Ranks != nil {
			t.Errorf("ranks %+v", h.Ranks)
		}
	})
}
