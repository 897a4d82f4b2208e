package parts

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Config says which binary to run, and who hears of it.
type Config struct {
	// Binary is the pulley to run. Default the running program.
	Binary string
	// Progress receives a line for each process that has started, or has not ended well. Default none.
	Progress func(string)
	// Output receives what the processes write, line by line. Default none.
	Output io.Writer
}

// Set is the processes of one measurement. Its methods are for one goroutine.
type Set struct {
	cfg   Config
	dir   string
	procs []*Process
	kinds []string // of procs; neighbours of one kind are ended at the same time
}

// With calls use with a set, then ends its processes in the reverse order of their start and removes its files, whatever
// use returned.
func With(cfg Config, use func(*Set) error) error {
	if cfg.Binary == "" {
		binary, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find the running program: %w", err)
		}
		cfg.Binary = binary
	}
	if cfg.Progress == nil {
		cfg.Progress = func(string) {}
	}
	cfg.Output = cmp.Or(cfg.Output, io.Discard)
	dir, err := os.MkdirTemp("", "pulley-bench-")
	if err != nil {
		return fmt.Errorf("folder for the broker's store: %w", err)
	}
	s := &Set{cfg: cfg, dir: dir}
	err = use(s)
	s.stop()
	if removed := os.RemoveAll(dir); err == nil && removed != nil {
		err = fmt.Errorf("remove the broker's store: %w", removed)
	}
	return err
}

func (s *Set) stop() {
	for len(s.procs) > 0 {
		first := len(s.procs) - 1
		for first > 0 && s.kinds[first-1] == s.kinds[first] {
			first--
		}
		var ending sync.WaitGroup
		for _, p := range s.procs[first:] {
			ending.Go(func() {
				if err := p.stop(); err != nil {
					s.cfg.Progress(fmt.Sprintf("%s ended with: %v", p.Name, err))
				}
			})
		}
		ending.Wait()
		s.procs, s.kinds = s.procs[:first], s.kinds[:first]
	}
}

// Dir is a folder for files of the processes. It is removed at the end.
func (s *Set) Dir() string { return s.dir }

// Start starts pulley with args. Processes of one kind that were started one after the other are ended together.
func (s *Set) Start(kind, name string, args ...string) (*Process, error) {
	p, err := start(s.cfg.Output, name, s.cfg.Binary, args...)
	if err != nil {
		return nil, err
	}
	s.procs, s.kinds = append(s.procs, p), append(s.kinds, kind)
	return p, nil
}

// listening starts a part and returns the URL that it prints.
func (s *Set) listening(ctx context.Context, kind, name string, find func(string) string, args ...string) (*Process, string, error) {
	p, err := s.Start(kind, name, args...)
	if err != nil {
		return nil, "", err
	}
	address, err := p.Address(ctx, find)
	if err != nil {
		return nil, "", err
	}
	s.cfg.Progress(fmt.Sprintf("%s at %s, pid %d", name, address, p.PID()))
	return p, "http://" + address, nil
}

// Engine starts a simulated engine of a model. Without further args its answers take no time.
func (s *Set) Engine(ctx context.Context, name, model string, args ...string) (url string, err error) {
	args = append([]string{"sim", "--listen", "127.0.0.1:0", "--model", model, "--slots", "4096", "--prefill-rate", "0"}, args...)
	_, url, err = s.listening(ctx, "engine", name, AnyAddress, args...)
	return url, err
}

// Yardstick starts the plain reverse proxy in front of engines.
func (s *Set) Yardstick(ctx context.Context, engines ...string) (p *Process, url string, err error) {
	args := []string{"bench", "yardstick", "--listen", "127.0.0.1:0"}
	for _, engine := range engines {
		args = append(args, "--engine", engine)
	}
	return s.listening(ctx, "yardstick", "yardstick", AnyAddress, args...)
}

// Up starts all of Pulley in one process, with a worker for each value of --engine.
func (s *Set) Up(ctx context.Context, engines ...string) (p *Process, url string, err error) {
	args := []string{"up", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--nats-listen", "127.0.0.1:0",
		"--store-dir", filepath.Join(s.dir, "up")}
	for _, engine := range engines {
		args = append(args, "--engine", engine)
	}
	return s.listening(ctx, "pulley", "pulley", GatewayAddress, args...)
}

// Broker starts a broker, with these args beside its address and its store. The URL is that for NATS clients.
func (s *Set) Broker(ctx context.Context, name string, args ...string) (p *Process, url string, err error) {
	args = append([]string{"broker", "--listen", "127.0.0.1:0", "--store-dir", filepath.Join(s.dir, name)}, args...)
	p, url, err = s.listening(ctx, "broker", name, AnyAddress, args...)
	return p, "nats" + strings.TrimPrefix(url, "http"), err
}

// Gateway is a gateway that runs as a process of its own.
type Gateway struct {
	*Process
	URL   string // of the API
	Admin string // of the metrics
}

// Gateway starts a gateway.
func (s *Set) Gateway(ctx context.Context, name, nats string, args ...string) (*Gateway, error) {
	args = append([]string{"gateway", "--nats", nats, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"}, args...)
	p, url, err := s.listening(ctx, "gateway", name, GatewayAddress, args...)
	if err != nil {
		return nil, err
	}
	admin, err := p.Address(ctx, AdminAddress)
	if err != nil {
		return nil, err
	}
	return &Gateway{p, url, "http://" + admin}, nil
}

// Worker starts a worker for one value of --engine.
func (s *Set) Worker(name, nats, engine string, args ...string) (*Process, error) {
	return s.Start("worker", name, append([]string{"worker", "--nats", nats, "--engine", engine}, args...)...)
}

var (
	loopback      = regexp.MustCompile(`(?:127\.0\.0\.1|localhost|\[::1\]):[1-9]\d*`)
	gatewayBanner = regexp.MustCompile(`(?i)^\W*gateway\b.*?https?://((?:127\.0\.0\.1|localhost|\[::1\]):[1-9]\d*)`)
	adminBanner   = regexp.MustCompile(`^\W*admin\b.*?http://((?:127\.0\.0\.1|localhost|\[::1\]):[1-9]\d*)`)
)

// AnyAddress finds a loopback address in a line, as host:port.
func AnyAddress(line string) string { return loopback.FindString(line) }

// GatewayAddress finds the address in the gateway's line of a banner: "  gateway  http://127.0.0.1:8080".
func GatewayAddress(line string) string { return firstGroup(gatewayBanner, line) }

// AdminAddress finds the address in the admin server's line of a banner: "admin    http://127.0.0.1:8081".
func AdminAddress(line string) string { return firstGroup(adminBanner, line) }

func firstGroup(re *regexp.Regexp, line string) string {
	if m := re.FindStringSubmatch(line); m != nil {
		return m[1]
	}
	return ""
}

// readyTime bounds how long the parts may take, all together, until they are ready.
const readyTime = 3 * time.Minute

// Ready waits until the URL answers a request for the model.
func Ready(ctx context.Context, url, model string) error {
	return await(ctx, url+" answered no request", func(ctx context.Context) (string, bool) { return ask(ctx, url, model) })
}

// Serves waits until the gateway knows so many live workers.
func (g *Gateway) Serves(ctx context.Context, workers int) error {
	return await(ctx, fmt.Sprintf("%s did not see %d workers", g.Name, workers), func(ctx context.Context) (string, bool) {
		n, err := g.workers(ctx)
		if err != nil {
			return err.Error(), false
		}
		return fmt.Sprintf("%d", n), n >= workers
	})
}

// await calls check ten times a second until it succeeds. what says what has not happened otherwise.
func await(ctx context.Context, what string, check func(context.Context) (instead string, ok bool)) error {
	within, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	last := "nothing"
	for {
		answer, ok := check(within)
		if ok {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if within.Err() != nil {
			return fmt.Errorf("%s within %s, but %s", what, readyTime, last)
		}
		last = answer
		select {
		case <-time.After(100 * time.Millisecond):
		case <-within.Done():
		}
	}
}

func ask(ctx context.Context, url, model string) (answer string, ok bool) {
	body := strings.NewReader(`{"model":"` + model + `","messages":[{"role":"user","content":"hello"}],"max_tokens":1}`)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/chat/completions", body)
	if err != nil {
		return err.Error(), false
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err.Error(), false
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	return resp.Status + " " + string(text), resp.StatusCode == http.StatusOK
}

func (g *Gateway) workers(ctx context.Context) (n int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.Admin+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, errors.New(resp.Status)
	}
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	return countLive(string(page)), nil
}

// countLive counts the workers that are ready in a gateway's page of metrics.
func countLive(page string) (n int) {
	for line := range strings.Lines(page) {
		if strings.HasPrefix(line, "pulley_worker_state{") && strings.Contains(line, `state="ready"`) && strings.HasSuffix(strings.TrimSpace(line), " 1") {
			n++
		}
	}
	return n
}
