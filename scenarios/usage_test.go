package scenarios

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/worker"
)

// usage sums what the stream of usage has, by the kind of the requests, without their time.
func usage(t testing.TB, env *Env) map[subjects.UsageKey]subjects.Usage {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	sums := make(map[subjects.UsageKey]subjects.Usage)
	stream, err := env.JetStream().Stream(ctx, subjects.UsageStream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return sums
	}
	if err != nil {
		t.Fatal(err)
	}
	info, err := stream.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq; seq++ {
		m, err := stream.GetMsg(ctx, seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue // replaced
		}
		if err != nil {
			t.Fatal(err)
		}
		r, err := subjects.ParseUsage(m.Subject, m.Data)
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range r.Rows {
			u := sums[row.UsageKey]
			u.Add(row.Usage)
			u.Millis = 0
			sums[row.UsageKey] = u
		}
	}
	return sums
}

// standard is the requests of a key of tenant acme for the model m.
func standard(key string) subjects.UsageKey {
	return subjects.UsageKey{Tenant: "acme", Key: key, Model: "m", Tier: "standard", Pool: "m"}
}

// metered is an engine that does what the header X-Do says, and says what it has used.
func metered(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	switch r.Header.Get("X-Do") {
	case "hang":
		<-r.Context().Done()
	case "fail":
		w.WriteHeader(http.StatusInternalServerError)
		io.WriteString(w, `{"error":{"message":"no"}}`)
	case "refuse":
		w.WriteHeader(http.StatusBadRequest)
		io.WriteString(w, `{"error":{"message":"no"}}`)
	case "":
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"id":"x","object":"chat.completion","choices":[{"message":{"content":"yes"}}],"usage":{"prompt_tokens":100,"completion_tokens":7,"total_tokens":107,"prompt_tokens_details":{"cached_tokens":64}}}`)
	case "anthropic":
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"id":"x","type":"message","role":"assistant","content":[{"type":"text","text":"yes"}],"stop_reason":"end_turn","usage":{"input_tokens":36,"cache_read_input_tokens":64,"output_tokens":7}}`)
	}
}

func TestUsageIsRecorded(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := with(t, env, gateway.Config{}, metered)
		k := keysOf(t, env)
		one, two := k.put(policy.Key{ID: "aaaaaaaaaa"}), k.put(policy.Key{ID: "bbbbbbbbbb", Tenant: "other", RPM: 2, Tiers: []string{"batch"}})
		env.SetPolicy(func(p *policy.Policy) {
			p.Routes = map[string]policy.Route{"gpt-*": {To: []policy.Target{{Pool: "m", Weight: 100}}}}
		})
		time.Sleep(inForce)
		for _, c := range []struct {
			model  string
			header []string
			status int
		}{
			{"m", one, 200}, {"m", one, 200}, {"gpt-4", one, 200}, {"m", append(one, "X-Do", "refuse"), 400}, {"m", append(one, "X-Do", "fail"), 500},
			{"nosuch", one, 404}, {"m", two, 200}, {"m", two, 200}, {"m", two, 429}, {"m", []string{"X-Api-Key", "wrong"}, 401},
		} {
			if r := ask(t, g, chat(c.model, false, 1), "", c.header...); r.status != c.status {
				t.Errorf("%s, %v: %d %s", c.model, c.header, r.status, r.body)
			}
		}
		if r := do(t, g, "POST", "/v1/messages", `{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}`, append(one, "X-Do", "anthropic")...); r.status != 200 {
			t.Errorf("messages: %d %s", r.status, r.body)
		}
		ctx, leave := context.WithTimeout(t.Context(), time.Second)
		defer leave()
		drain(post(ctx, g, "/v1/chat/completions", chat("m", false, 1), "", append(one, "X-Do", "hang")...))
		time.Sleep(3 * time.Second)
		routed, batch, unknown := standard("aaaaaaaaaa"), standard("bbbbbbbbbb"), subjects.UsageKey{Tenant: "acme", Key: "aaaaaaaaaa", Tier: "standard"}
		routed.Model, batch.Tenant, batch.Tier = "gpt-4", "other", "batch"
		want := map[subjects.UsageKey]subjects.Usage{
			standard("aaaaaaaaaa"): {Answered: 4, Failed: 1, Cancelled: 1, InputTokens: 300, CachedTokens: 192, OutputTokens: 21},
			routed:                 {Answered: 1, InputTokens: 100, CachedTokens: 64, OutputTokens: 7},
			batch:                  {Answered: 2, Refused: 1, InputTokens: 200, CachedTokens: 128, OutputTokens: 14},
			unknown:                {Refused: 1},
		}
		if got := usage(t, env); !maps.Equal(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	})
}

// Each request is in the records once: when gateways are started again, the broker is, acks are lost, and the connection is
// away for long. What a killed gateway loses is its last second.
func TestUsageIsExact(t *testing.T) {
	for about, c := range map[string]struct {
		trouble func(env *Env, g *Gateway)
		lost    int // requests that may be missing
	}{
		"nothing happens":        {func(*Env, *Gateway) {}, 0},
		"the gateway is stopped": {func(_ *Env, g *Gateway) { g.Stop() }, 0},
		"the gateway is killed":  {func(_ *Env, g *Gateway) { g.Link.Cut(true) }, 10},
		"the broker restarts": {func(env *Env, _ *Gateway) {
			env.StopBroker()
			time.Sleep(3 * time.Second)
			env.StartBroker()
		}, 0},
		"the connection hangs, and acks are late": {func(_ *Env, g *Gateway) {
			for range 4 {
				g.Link.Freeze()
				time.Sleep(7 * time.Second)
				g.Link.Thaw()
				time.Sleep(300 * time.Millisecond)
			}
		}, 0},
		"the connection breaks while records are on their way": {func(_ *Env, g *Gateway) {
			for range 10 {
				g.Link.Cut(false)
				time.Sleep(900 * time.Millisecond)
			}
		}, 0},
		"the connection is away for minutes": {func(_ *Env, g *Gateway) {
			g.Link.Cut(true)
			time.Sleep(5 * time.Minute)
			g.Link.Mend()
			time.Sleep(15 * time.Second)
		}, 0},
	} {
		t.Run(about, func(t *testing.T) {
			run(t, func(t *testing.T, env *Env) {
				g, other := env.Gateway(gateway.Config{}), env.Gateway(gateway.Config{})
				env.Worker(env.Handler("e", engineOf(metered, "m")), worker.Config{Name: "e", Slots: 4})
				g.Serves(t, "m")
				other.Serves(t, "m")
				key := subjects.UsageKey{Model: "m", Tier: "standard", Pool: "m"}
				var answered [2]int
				send := func(i int, g *Gateway, n int) {
					for range n {
						if r := ask(t, g, chat("m", false, 1), ""); r.status == 200 {
							answered[i]++
						}
						time.Sleep(100 * time.Millisecond)
					}
				}
				var wg sync.WaitGroup
				wg.Go(func() { send(1, other, 60) })
				send(0, g, 37)
				c.trouble(env, g)
				wg.Wait()
				if c.lost == 0 && about != "the gateway is stopped" {
					send(0, g, 5)
				}
				time.Sleep(20 * time.Second)
				got, want := usage(t, env)[key], int64(answered[0]+answered[1])
				if got.Answered > want || got.Answered < want-int64(c.lost) {
					t.Errorf("%d answers recorded, of %d and %d", got.Answered, answered[0], answered[1])
				}
				if got.OutputTokens != 7*got.Answered || got.InputTokens != 100*got.Answered || got.CachedTokens != 64*got.Answered {
					t.Errorf("tokens of %d answers: %+v", got.Answered, got)
				}
			})
		})
	}
}

// More kinds of requests than a record has rows.
func TestUsageOfManyModels(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		g := with(t, env, gateway.Config{}, metered)
		env.SetPolicy(func(p *policy.Policy) {
			p.Routes = map[string]policy.Route{"any-*": {To: []policy.Target{{Pool: "m", Weight: 100}}}}
		})
		time.Sleep(inForce)
		for range 2 {
			for i := range 130 {
				if r := ask(t, g, chat(fmt.Sprint("any-", i), false, 1), ""); r.status != 200 {
					t.Fatalf("%d %s", r.status, r.body)
				}
			}
			time.Sleep(2 * time.Second)
		}
		got := usage(t, env)
		if len(got) != 130 {
			t.Errorf("%d models", len(got))
		}
		for key, u := range got {
			if u.Answered != 2 {
				t.Errorf("%s: %+v", key.Model, u)
			}
		}
	})
}
