package scenarios

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/worker"
)

// twiceService is a service whose call runs a request two times.
type twiceService struct{ do chan gateway.Do }

func (s twiceService) Serves(r *http.Request) bool { return r.URL.Path == "/v1/twice" }

func (s twiceService) Serve(w http.ResponseWriter, r *http.Request, who gateway.Caller) error {
	do := <-s.do
	s.do <- do
	for range 2 {
		again := httptest.NewRequestWithContext(r.Context(), "POST", "/v1/chat/completions", strings.NewReader(chat("m", false, 2)))
		again.Header.Set("Content-Type", "application/json")
		rec := httptest.NewRecorder()
		do(rec, again, who, "batch")
		fmt.Fprintf(w, "%d %s;", rec.Code, rec.Header().Get("X-Pulley-Worker"))
	}
	return nil
}

func (s twiceService) Run(ctx context.Context, do gateway.Do) {
	s.do <- do
	<-ctx.Done()
}

// The requests of a service are those of its caller: in the tier that it says, within the limits of the key.
func TestService(t *testing.T) {
	run(t, func(t *testing.T, env *Env) {
		s := twiceService{make(chan gateway.Do, 1)}
		g := env.Gateway(gateway.Config{Services: []gateway.Service{s}, Explain: gateway.ExplainAlways})
		env.Worker(env.Engine(slow("a")), worker.Config{Name: "a", Slots: 4})
		g.Serves(t, "m")
		if r := do(t, g, "POST", "/v1/twice", ""); r.body != "200 a;200 a;" {
			t.Errorf("%d %q", r.status, r.body)
		}
		key := env.AddKey("acme")
		once := env.AddKey("acme", func(k *policy.Key) { k.RPM = 1 })
		other := env.AddKey("acme", func(k *policy.Key) { k.Models = []string{"n"} })
		time.Sleep(2 * time.Second)
		for key, want := range map[string]string{"": "401", key: "200 a;200 a;", once: "200 a;429 ;", other: "403 ;403 ;"} {
			if r := do(t, g, "POST", "/v1/twice", "", "X-Api-Key", key); !strings.HasPrefix(r.body, want) && fmt.Sprint(r.status) != want {
				t.Errorf("%q: %d %q", want, r.status, r.body)
			}
		}
	})
}
