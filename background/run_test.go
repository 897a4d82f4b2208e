package background_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/background"
	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// A request at which the gateway panics does not end the process. The response runs again, and fails in the end.
func TestPanic(t *testing.T) {
	testenv.Run(t, func(t *testing.T, env *testenv.Env) {
		nc, _ := env.Connect("gateway")
		s, err := background.New(background.Config{}, nc)
		if err != nil {
			t.Fatal(err)
		}
		var runs atomic.Int64
		running := testenv.Start(func(ctx context.Context) error {
			s.Run(ctx, func(http.ResponseWriter, *http.Request, gateway.Caller, string) {
				runs.Add(1)
				panic("bug")
			})
			return nil
		})
		defer running.Stop()
		body := `{"model":"m","input":"x"}`
		r, w := httptest.NewRequest("POST", "/v1/responses", strings.NewReader(body)), httptest.NewRecorder()
		r.Header.Set("Prefer", "respond-async")
		if err := s.Take(w, r, gateway.Caller{}, []byte(body)); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, "the response fails", time.Minute, func() bool {
			got := httptest.NewRecorder()
			s.Serve(got, httptest.NewRequest("GET", w.Header().Get("Location"), nil), gateway.Caller{})
			return strings.Contains(got.Body.String(), `"status":"failed"`)
		})
		if n := runs.Load(); n < 2 || n > 20 {
			t.Errorf("it ran %d times", n)
		}
	})
}
