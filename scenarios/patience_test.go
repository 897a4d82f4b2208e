package scenarios

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
)

// paced is an engine that waits as long as the header says, and then streams as many tokens as it says, with a pause
// after each. With "X-Hang" it falls silent instead of ending.
func paced(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	var first, pause time.Duration
	var tokens int
	fmt.Sscan(r.Header.Get("X-Tokens"), &tokens)
	first, _ = time.ParseDuration(r.Header.Get("X-First"))
	pause, _ = time.ParseDuration(r.Header.Get("X-Pause"))
	time.Sleep(first)
	w.Header().Set("Content-Type", "text/event-stream")
	for i := range tokens {
		fmt.Fprintf(w, "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"%d \"},\"finish_reason\":null}]}\n\n", i)
		http.NewResponseController(w).Flush()
		select {
		case <-r.Context().Done():
			return
		case <-time.After(pause):
		}
	}
	if r.Header.Get("X-Hang") != "" {
		<-r.Context().Done()
		return
	}
	io.WriteString(w, "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n")
}

// A read timeout and the tier's deadline bound the wait for the first byte and each silence after it, and not a stream
// that makes progress.
func TestPatience(t *testing.T) {
	for about, c := range map[string]struct {
		header        []string
		first, pause  string
		tokens        int
		hang          bool
		code          string // of the error; empty: the stream is whole
		after, within time.Duration
	}{
		"a read timeout": {
			[]string{"X-Stainless-Read-Timeout", "2"}, "1s", "1s", 30, false, "", 31 * time.Second, 32 * time.Second},
		"another SDK's": {
			[]string{"X-Stainless-Timeout", "2"}, "1s", "1s", 30, false, "", 31 * time.Second, 32 * time.Second},
		"the tier's deadline, 40 minutes of reasoning": {
			nil, "0s", "30s", 80, false, "", 40 * time.Minute, 41 * time.Minute},
		"silence after some tokens": {
			[]string{"X-Stainless-Read-Timeout", "5"}, "0s", "1s", 4, true, "deadline_exceeded", 9 * time.Second, 9200 * time.Millisecond},
		"silence between tokens": {
			[]string{"X-Stainless-Timeout", "5"}, "0s", "7s", 4, false, "deadline_exceeded", 6 * time.Second, 6200 * time.Millisecond},
		"silence before the first": {
			[]string{"X-Stainless-Read-Timeout", "5"}, "7s", "1s", 4, false, "deadline_exceeded", 6 * time.Second, 6200 * time.Millisecond},
		"a total": {
			[]string{"X-Request-Timeout", "10"}, "1s", "1s", 30, false, "deadline_exceeded", 10 * time.Second, 10200 * time.Millisecond},
		"a total and a read timeout": {
			[]string{"X-Request-Timeout", "10", "X-Stainless-Read-Timeout", "2"}, "1s", "1s", 30, false, "deadline_exceeded", 10 * time.Second, 10200 * time.Millisecond},
	} {
		runBoth(t, func(t *testing.T, env *Env) {
			g := with(t, env, gateway.Config{KeepAlive: time.Hour}, paced)
			header := append([]string{"X-First", c.first, "X-Pause", c.pause, "X-Tokens", fmt.Sprint(c.tokens)}, c.header...)
			if c.hang {
				header = append(header, "X-Hang", "1")
			}
			r := do(t, g, "POST", "/v1/chat/completions", chat("m", true, 100), header...)
			if r.took < c.after || r.took > c.within {
				t.Errorf("%s: took %v, want %v to %v", about, r.took, c.after, c.within)
			}
			whole := strings.HasSuffix(r.body, "data: [DONE]\n\n")
			if whole != (c.code == "") || !strings.Contains(r.body, c.code) {
				t.Errorf("%s: got %d %.500q, want error %q", about, r.status, r.body, c.code)
			}
			time.Sleep(time.Second)
			emptyQueues(t, env)
		})
	}
}

// A tier with a short deadline bounds the wait in its queue, and not the answers of those that were served.
func TestTierDeadlineIsForWaiting(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		cfg := slow("a")
		cfg.Slots = 1
		g, es, _ := pair(t, env, cfg)
		env.SetPolicy(func(p *policy.Policy) {
			for i := range p.Tiers {
				p.Tiers[i].Deadline = policy.Duration(5 * time.Second)
			}
		})
		time.Sleep(time.Second)
		first := make(chan reply, 1)
		go func() { first <- ask(t, g, chat("m", true, 200), "") }()
		time.Sleep(100 * time.Millisecond)
		r := ask(t, g, chat("m", true, 1), "")
		wantError(t, r, 504, "deadline_exceeded")
		if r.took < 5*time.Second || r.took > 5200*time.Millisecond {
			t.Errorf("waited %v, want 5 s", r.took)
		}
		if r := <-first; r.status != 200 || words(content(t, r.body)) != 200 {
			t.Errorf("got %d %.200q, want 200 tokens", r.status, r.body)
		}
		idle(t, es[0], 100*time.Millisecond)
	})
}
