package sim_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/testenv"
)

// A rig is an Engine behind a real HTTP server in memory, with a client. It works in a synctest
// bubble.
type rig struct {
	t      testing.TB
	sim    *sim.Engine
	client *http.Client
	begun  time.Time
}

func newSim(t testing.TB, cfg sim.Config) *sim.Engine {
	t.Helper()
	if cfg.Models == nil {
		cfg.Models = []string{"m"}
	}
	eng, err := sim.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return eng
}

func newRig(t testing.TB, cfg sim.Config) *rig {
	t.Helper()
	eng := newSim(t, cfg)
	ln := testenv.NewListener()
	srv := &http.Server{Handler: eng}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(ln) })
	transport := &http.Transport{DialContext: ln.DialContext, DisableCompression: true}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		_ = srv.Close()
		wg.Wait()
	})
	return &rig{t: t, sim: eng, client: &http.Client{Transport: transport}, begun: time.Now()}
}

// post sends a request; orders is its x-sim header.
func (r *rig) post(ctx context.Context, path, orders, body string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://sim"+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	if orders != "" {
		req.Header.Set("x-sim", orders)
	}
	return r.client.Do(req)
}

// answer posts and reads the whole answer.
func (r *rig) answer(path, orders, body string) (status int, header http.Header, answer string, err error) {
	resp, err := r.post(r.t.Context(), path, orders, body)
	if err != nil {
		return 0, nil, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, string(b), err
}

// since is the virtual time since the rig was started.
func (r *rig) since() time.Duration { return time.Since(r.begun) }

type event struct {
	name string
	data string
	at   time.Duration
}

// stream posts and reads events until the stream ends in any way.
func (r *rig) stream(path, orders, body string) ([]event, error) {
	r.t.Helper()
	resp, err := r.post(r.t.Context(), path, orders, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("Content-Type"); !strings.HasPrefix(got, "text/event-stream") {
		b, _ := io.ReadAll(resp.Body)
		return nil, errors.New("content type " + got + ": " + string(b))
	}
	var events []event
	var e event
	lines := bufio.NewReader(resp.Body)
	for {
		line, err := lines.ReadString('\n')
		switch line = strings.TrimSuffix(line, "\n"); {
		case errors.Is(err, io.EOF):
			return events, nil
		case err != nil:
			return events, err
		case line == "":
			e.at = r.since()
			events = append(events, e)
			e = event{}
		case strings.HasPrefix(line, "event: "):
			e.name = line[len("event: "):]
		case strings.HasPrefix(line, "data: "):
			e.data = line[len("data: "):]
		}
	}
}

// parse decodes strictly: unknown fields of the API's schema would show in want.
func parse(t testing.TB, data string) map[string]any {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal([]byte(data), &v); err != nil {
		t.Fatalf("%v in %s", err, data)
	}
	return v
}

// at returns a part of a JSON value, by field names and indices.
func at(t testing.TB, v any, path ...any) any {
	t.Helper()
	for _, p := range path {
		switch p := p.(type) {
		case string:
			o, _ := v.(map[string]any)
			x, ok := o[p]
			if !ok {
				t.Fatalf("no %q of %v in %v", p, path, v)
			}
			v = x
		case int:
			a, _ := v.([]any)
			if p >= len(a) {
				t.Fatalf("no %d of %v in %v", p, path, v)
			}
			v = a[p]
		}
	}
	return v
}

func words(n int) string { return strings.TrimSpace(strings.Repeat("word ", n)) }

func chatBody(words string, rest string) string {
	var b bytes.Buffer
	b.WriteString(`{"model":"m","messages":[{"role":"user","content":"` + words + `"}]` + rest + `}`)
	return b.String()
}
