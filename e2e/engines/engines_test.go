// Package engines runs real engines (llama.cpp through node, see e2e/realengine) behind broker, gateway and workers, which
// are processes of their own, and has them be unlike, cold, killed, frozen and replaced while requests stream. It is one of
// the suites of e2e/run.
package engines

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/e2e/process"
)

const (
	tokens  = 30 // of each answer
	stall   = "10s"
	patient = 40 * time.Second
)

// Three engines of one model: a fast one, a slow one, and one that has not loaded it. Whatever happens to them, no request is
// lost, and only a stream that an engine broke ends early, and says so.
func TestRealEngines(t *testing.T) {
	pulley := process.Pulley(t)
	if os.Getenv("REALENGINE_MODEL") == "" {
		t.Skip("REALENGINE_MODEL names no model: this is run by make e2e")
	}
	free := process.Addresses(t, 5)
	broker, gateway := free[0], free[1]
	process.Start(t, pulley, "broker", "--listen", broker, "--store-dir", t.TempDir())
	process.Start(t, pulley, "gateway", "--nats", "nats://"+broker, "--listen", gateway, "--admin", "127.0.0.1:0")
	fast := &realEngine{addr: free[2], args: []string{"--slots", "4", "--itl", "15"}}
	slow := &realEngine{addr: free[3], args: []string{"--slots", "4", "--itl", "60"}}
	cold := &realEngine{addr: free[4], args: []string{"--slots", "2", "--itl", "15", "--cold", "--load-time", "1500"}}
	for name, e := range map[string]*realEngine{"fast": fast, "slow": slow, "cold": cold} {
		e.start(t, "tiny")
		slots := e.args[1]
		process.Start(t, pulley, "worker", "--nats", "nats://"+broker, "--stall-timeout", stall, "--engine", fmt.Sprintf("http://%s,name=%s,slots=%s", e.addr, name, slots))
	}
	process.Eventually(t, "all engines are known", func() bool { return process.Serves(gateway, "tiny") })

	l := &load{url: "http://" + gateway + "/v1/chat/completions", model: "tiny"}
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	defer clients.Wait()
	defer slow.signal(t, syscall.SIGCONT)
	defer stop()
	add := func(n int) {
		for range n {
			clients.Go(func() { l.run(ctx) })
		}
	}

	// A load that the fast engine can nearly carry alone.
	add(4)
	l.await(t, 20)
	ofFast, ofSlow := shares(t, l, fast, slow)
	t.Logf("measured: below capacity, %d requests to the fast engine, %d to the slow one", ofFast, ofSlow)
	if ofFast < 2*ofSlow {
		t.Errorf("of one that is four times as fast: %d requests, %d to the slow one", ofFast, ofSlow)
	}

	// More than the warm engines can carry: the cold one loads, and takes its part.
	add(10)
	begun := time.Now()
	process.Eventually(t, "the cold engine has loaded", func() bool { return cold.stats(t).Loads == 1 })
	t.Logf("measured: the cold engine had loaded %v after the load grew", time.Since(begun).Round(100*time.Millisecond))
	process.Eventually(t, "the cold engine takes its part", func() bool { return cold.stats(t).Finished >= 10 })
	ofFast, ofSlow = shares(t, l, fast, slow)
	t.Logf("measured: above capacity, %d requests to the fast engine, %d to the slow one", ofFast, ofSlow)
	if ofSlow == 0 || ofFast < 3*ofSlow/2 {
		t.Errorf("above capacity, of one that is four times as fast: %d requests, %d to the slow one", ofFast, ofSlow)
	}
	if n := l.broken.Load() + l.lost.Load() + l.lies.Load(); n != 0 {
		t.Errorf("%d streams broke while nothing had happened: %s", n, l.troubles())
	}

	// The fast one is killed, and comes back.
	atMost := int64(fast.stats(t).Running)
	fast.kill(t)
	l.await(t, 30)
	killed := l.broken.Load()
	t.Logf("measured: killed with %d requests: %d streams broke", atMost, killed)
	if killed > 5 { // its slots, and one that may have followed
		t.Errorf("%d streams broke of an engine with 4 slots: %s", killed, l.troubles())
	}
	fast.start(t, "tiny")
	process.Eventually(t, "the engine that was killed serves again", func() bool { return fast.stats(t).Finished >= 10 })

	// The slow one is frozen: what it has ends, one way or the other, and everything else goes on.
	before, frozenAt := l.broken.Load(), time.Now()
	running := l.inFlight()
	slow.signal(t, syscall.SIGSTOP)
	waited := l.awaitAll(t, running)
	t.Logf("measured: frozen, all requests of that time had ended %v later, %d of them broken; %d others were answered meanwhile",
		waited.Round(100*time.Millisecond), l.broken.Load()-before, l.wholeSince(frozenAt))
	if n := l.wholeSince(frozenAt); n < 20 {
		t.Errorf("while one engine was frozen only %d requests were answered", n)
	}
	if n := l.broken.Load() - before; n > 5 {
		t.Errorf("%d streams broke of a frozen engine with 4 slots: %s", n, l.troubles())
	}
	slow.signal(t, syscall.SIGCONT)
	started := slow.stats(t).Started
	process.Eventually(t, "the engine that was frozen serves again", func() bool { return slow.stats(t).Started >= started+5 })

	// The slow one is replaced by another model.
	before = l.broken.Load()
	slow.kill(t)
	slow.start(t, "tiny2")
	process.Eventually(t, "the other model is served", func() bool { return process.Serves(gateway, "tiny2") })
	other := &load{url: l.url, model: "tiny2"}
	other.once(ctx)
	if other.whole.Load() != 1 {
		t.Errorf("the other model: %s", other.troubles())
	}
	l.await(t, 30)
	if n := l.broken.Load() - before; n > 5 {
		t.Errorf("%d streams broke of a replaced engine with 4 slots: %s", n, l.troubles())
	}
	stop()
	clients.Wait()
	t.Logf("measured: %d whole, %d broken", l.whole.Load(), l.broken.Load())
	if lost, lies := l.lost.Load(), l.lies.Load(); lost+lies != 0 {
		t.Errorf("%d requests were lost, %d streams ended as if they were whole: %s", lost, lies, l.troubles())
	}
}

// shares is how many of the next 40 requests, about, two engines finish.
func shares(t *testing.T, l *load, a, b *realEngine) (ofA, ofB int) {
	t.Helper()
	a0, b0 := a.stats(t), b.stats(t)
	l.await(t, 40)
	return a.stats(t).Finished - a0.Finished, b.stats(t).Finished - b0.Finished
}

// A load is a number of clients that ask for streams, one after the other, and check how each ends.
type load struct {
	url, model string

	whole  atomic.Int64
	broken atomic.Int64 // ended with an error, after its first token
	lost   atomic.Int64 // got an error instead of an answer
	lies   atomic.Int64 // ended early, as if it were whole

	mu      sync.Mutex // guards all fields below
	last    int        // number of the last request
	running map[int]bool
	ends    []time.Time // of whole streams
	said    []string    // the first troubles
}

// run asks until ctx ends, and then finishes the request that it has.
func (l *load) run(ctx context.Context) {
	for ctx.Err() == nil {
		l.once(context.WithoutCancel(ctx))
	}
}

func (l *load) once(ctx context.Context) {
	l.mu.Lock()
	l.last++
	n := l.last
	if l.running == nil {
		l.running = make(map[int]bool)
	}
	l.running[n] = true
	l.mu.Unlock()
	l.ask(ctx, n)
	l.mu.Lock()
	delete(l.running, n)
	l.mu.Unlock()
}

func (l *load) ask(ctx context.Context, n int) {
	body := fmt.Sprintf(`{"model":%q,"stream":true,"max_tokens":%d,"temperature":0,"stream_options":{"include_usage":true},
		"messages":[{"role":"user","content":"Tell me story number %d."}]}`, l.model, tokens, n)
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.url, strings.NewReader(body))
	if err != nil {
		panic(err) // the test has made it
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		l.trouble(&l.lost, err.Error())
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		l.trouble(&l.lost, resp.Status)
		return
	}
	pieces, used, done, failed := 0, -1, false, ""
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		if data == "[DONE]" {
			done = true
			continue
		}
		var chunk struct {
			Choices []struct {
				Delta struct{ Content string }
			}
			Usage *struct {
				Completion int `json:"completion_tokens"`
			}
			Error json.RawMessage
		}
		switch err := json.Unmarshal([]byte(data), &chunk); {
		case err != nil:
			failed = "not JSON: " + data
		case chunk.Error != nil:
			failed = string(chunk.Error)
		case chunk.Usage != nil:
			used = chunk.Usage.Completion
		case len(chunk.Choices) > 0 && chunk.Choices[0].Delta.Content != "":
			pieces++
		}
	}
	switch {
	case done && failed == "" && used > 0 && pieces <= used: // a token may be a part of a character
		l.whole.Add(1)
		l.mu.Lock()
		l.ends = append(l.ends, time.Now())
		l.mu.Unlock()
	case done:
		l.trouble(&l.lies, fmt.Sprintf("[DONE] after %d pieces, %d tokens, %s", pieces, used, failed))
	case failed != "":
		l.trouble(&l.broken, failed)
	case lines.Err() != nil:
		l.trouble(&l.broken, lines.Err().Error())
	default:
		l.trouble(&l.lies, fmt.Sprintf("an end without a word after %d pieces", pieces))
	}
}

func (l *load) trouble(count *atomic.Int64, what string) {
	count.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.said) < 20 {
		l.said = append(l.said, what)
	}
}

func (l *load) troubles() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.said, "; ")
}

// inFlight are the requests that have not ended.
func (l *load) inFlight() (running []int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for n := range l.running {
		running = append(running, n)
	}
	return running
}

// await returns after n more whole streams.
func (l *load) await(t *testing.T, n int64) {
	t.Helper()
	until := l.whole.Load() + n
	process.Eventually(t, fmt.Sprintf("%d more whole streams", n), func() bool { return l.whole.Load() >= until })
}

// awaitAll returns when these requests have ended, and how long that took.
func (l *load) awaitAll(t *testing.T, these []int) time.Duration {
	t.Helper()
	begun := time.Now()
	process.Eventually(t, "the requests in flight end", func() bool {
		now := l.inFlight()
		return !slices.ContainsFunc(these, func(n int) bool { return slices.Contains(now, n) })
	})
	return time.Since(begun)
}

func (l *load) wholeSince(at time.Time) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, end := range l.ends {
		if end.After(at) {
			n++
		}
	}
	return n
}

// A realEngine is a process of e2e/realengine at an address that stays the same.
type realEngine struct {
	addr string
	args []string
	cmd  *exec.Cmd
}

type engineStats struct {
	Running  int
	Started  int
	Finished int
	Loads    int
}

func (e *realEngine) start(t *testing.T, model string) {
	t.Helper()
	e.cmd = process.Start(t, "node", append([]string{"../realengine/server.mjs", "--model", os.Getenv("REALENGINE_MODEL"), "--name", model, "--listen", e.addr}, e.args...)...)
	process.Eventually(t, "the engine listens", func() bool {
		resp, err := http.Get("http://" + e.addr + "/health")
		if err == nil {
			resp.Body.Close()
		}
		return err == nil
	})
}

func (e *realEngine) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := e.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

func (e *realEngine) kill(t *testing.T) {
	t.Helper()
	e.signal(t, syscall.SIGKILL)
	e.cmd.Wait()
}

func (e *realEngine) stats(t *testing.T) (s engineStats) {
	t.Helper()
	resp, err := http.Get("http://" + e.addr + "/stats")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		t.Fatal(err)
	}
	return s
}
