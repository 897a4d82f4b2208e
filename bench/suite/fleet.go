package suite

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// model is the model that the simulated engines serve.
const model = "sim"

// readyTime bounds how long the parts may take, all together, until a request is answered.
const readyTime = 30 * time.Second

// fleet is the processes of a measurement.
type fleet struct {
	cfg   Config
	dir   string
	procs []*process
}

// withFleet calls use with a fleet, then ends its processes in the reverse order of their start and removes its files.
func withFleet(cfg Config, use func(*fleet) error) error {
	dir, err := os.MkdirTemp("", "pulley-bench-")
	if err != nil {
		return fmt.Errorf("folder for the broker's store: %w", err)
	}
	f := &fleet{cfg: cfg, dir: dir}
	err = use(f)
	for len(f.procs) > 0 {
		last := len(f.procs) - 1
		if stopped := f.procs[last].stop(); stopped != nil {
			cfg.Progress(fmt.Sprintf("%s ended with: %v", f.procs[last].name, stopped))
		}
		f.procs = f.procs[:last]
	}
	if removed := os.RemoveAll(dir); err == nil && removed != nil {
		err = fmt.Errorf("remove the broker's store: %w", removed)
	}
	return err
}

func (f *fleet) start(name string, args ...string) (*process, error) {
	p, err := start(f.cfg.Output, name, f.cfg.Binary, args...)
	if err != nil {
		return nil, err
	}
	f.procs = append(f.procs, p)
	return p, nil
}

// listening starts a part and returns the URL that it prints.
func (f *fleet) listening(ctx context.Context, name string, find func(string) string, args ...string) (*process, string, error) {
	p, err := f.start(name, args...)
	if err != nil {
		return nil, "", err
	}
	address, err := p.address(ctx, find)
	if err != nil {
		return nil, "", err
	}
	f.cfg.Progress(fmt.Sprintf("%s at %s, pid %d", name, address, p.cmd.Process.Pid))
	return p, "http://" + address, nil
}

// engine starts a simulated engine whose answers take no time.
func (f *fleet) engine(ctx context.Context, name string) (url string, err error) {
	_, url, err = f.listening(ctx, name, anyAddress,
		"sim", "--listen", "127.0.0.1:0", "--model", model, "--slots", "4096", "--prefill-rate", "0", "--itl", "0,0")
	return url, err
}

func (f *fleet) yardstick(ctx context.Context, engines ...string) (*process, string, error) {
	args := []string{"bench", "yardstick", "--listen", "127.0.0.1:0"}
	for _, engine := range engines {
		args = append(args, "--engine", engine)
	}
	return f.listening(ctx, "yardstick", anyAddress, args...)
}

// up starts all of Pulley in one process.
func (f *fleet) up(ctx context.Context, engines ...string) (*process, string, error) {
	args := []string{"up", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--nats-listen", "127.0.0.1:0",
		"--store-dir", filepath.Join(f.dir, "up")}
	for _, engine := range engines {
		args = append(args, "--engine", engineFlag(engine))
	}
	return f.listening(ctx, "pulley", gatewayAddress, args...)
}

// apart starts each of Pulley's parts as a separate process and returns the gateway's.
func (f *fleet) apart(ctx context.Context, engine string) (*process, string, error) {
	_, broker, err := f.listening(ctx, "broker", anyAddress,
		"broker", "--listen", "127.0.0.1:0", "--store-dir", filepath.Join(f.dir, "broker"))
	if err != nil {
		return nil, "", err
	}
	nats := "nats" + strings.TrimPrefix(broker, "http")
	gateway, url, err := f.listening(ctx, "gateway", gatewayAddress,
		"gateway", "--nats", nats, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
	if err != nil {
		return nil, "", err
	}
	_, err = f.start("worker", "worker", "--nats", nats, "--engine", engineFlag(engine))
	return gateway, url, err
}

// engineFlag gives a worker more slots than any scenario has requests in flight.
func engineFlag(url string) string { return url + ",model=" + model + ",slots=4096" }

// ready waits until the URL answers a request.
func ready(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	last := "nothing"
	for {
		answer, ok := ask(ctx, url)
		if ok {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s answered no request within %s, but %s", url, readyTime, last)
		}
		last = answer
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

func ask(ctx context.Context, url string) (answer string, ok bool) {
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
