package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	// startWithin bounds the start of a part.
	startWithin = 30 * time.Second

	// drainWithin bounds the end of a part after SIGTERM: the longest answer takes 3 s.
	drainWithin = 30 * time.Second
)

// Fleet is the parts of Pulley, each a process of its own, with a network of ours between any two of them:
//
//	client → gateway ⇄ broker ⇄ worker → engine
type Fleet struct {
	Brokers  []*Process
	Gateways []*Gateway
	Workers  []*Process
	Engines  []*Engine

	bin     string
	dir     string
	disks   []*disk             // one for each broker, if they are struck
	brokers []string            // addresses without a network between
	wires   map[string][]*Proxy // between a gateway or worker, by its name, and each broker
	began   time.Time
}

// Gateway is a gateway with its addresses.
type Gateway struct {
	*Process
	addr, admin string
}

// newFleet starts everything, with the binary bin. env is added to the environment of each part.
func newFleet(ctx context.Context, bin, dir string, t Topology, env []string, began time.Time) (*Fleet, error) {
	f := &Fleet{bin: bin, dir: dir, wires: make(map[string][]*Proxy), began: began}
	if err := f.start(ctx, t, env); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (f *Fleet) start(ctx context.Context, t Topology, env []string) error {
	if err := f.startBrokers(ctx, t, env); err != nil {
		return err
	}
	for i := range t.Gateways {
		name := fmt.Sprintf("gateway-%d", i)
		url, err := f.wire(name)
		if err != nil {
			return err
		}
		free, err := freeAddresses(2)
		if err != nil {
			return err
		}
		g := &Gateway{addr: free[0], admin: free[1]}
		// The port stays open for a moment, as behind any load balancer that asks /readyz.
		g.Process = newProcess(name, f.bin, f.dir, env, "gateway", "--nats", url, "--listen", g.addr, "--admin", g.admin,
			"--replicas", strconv.Itoa(t.Brokers), "--drain-delay", "300ms")
		if err := g.Start(); err != nil {
			return err
		}
		f.Gateways = append(f.Gateways, g)
	}
	for _, g := range f.Gateways {
		if err := f.await(ctx, g.Process, g.ready); err != nil {
			return err
		}
	}
	for i := range t.Workers {
		e, err := NewEngine(fmt.Sprintf("engine-%d", i), slots, pace, f.now)
		if err != nil {
			return err
		}
		f.Engines = append(f.Engines, e)
		name := fmt.Sprintf("worker-%d", i)
		url, err := f.wire(name)
		if err != nil {
			return err
		}
		w := newProcess(name, f.bin, f.dir, env, "worker", "--nats", url, "--nvml", "off", "--engine", fmt.Sprintf("%s,slots=%d,name=%s", e.URL(), slots, name))
		if err := w.Start(); err != nil {
			return err
		}
		f.Workers = append(f.Workers, w)
	}
	for _, w := range f.Workers {
		if err := f.await(ctx, w, func() bool { return f.workerReady(ctx, w.Name) }); err != nil {
			return err
		}
	}
	return nil
}

func (f *Fleet) startBrokers(ctx context.Context, t Topology, env []string) error {
	clients, err := freeAddresses(t.Brokers)
	if err != nil {
		return err
	}
	routes, err := freeAddresses(t.Brokers)
	if err != nil {
		return err
	}
	f.brokers = clients
	config := filepath.Join(f.dir, "broker.conf")
	// Parts must not learn the addresses of the other brokers: they would connect past the networks between.
	if err := os.WriteFile(config, []byte("cluster { no_advertise: true }\n"), 0o644); err != nil {
		return err
	}
	for i := range t.Brokers {
		name := fmt.Sprintf("broker-%d", i)
		store := f.dir
		if t.Store != "" {
			store = t.Store
		}
		if t.Disks {
			d, err := newDisk(filepath.Join(f.dir, fmt.Sprintf("disk-%d", i)), filepath.Join(store, name), brokerDiskSize)
			f.disks = append(f.disks, d)
			if err != nil {
				return err
			}
		}
		args := []string{"broker", "--listen", clients[i], "--store-dir", filepath.Join(store, name), "--sync", t.Sync}
		if t.Brokers > 1 {
			args = append(args, "--server-name", name, "--cluster-name", "chaos", "--cluster-listen", routes[i], "--routes", strings.Join(routes, ","), "--nats-config", config)
		}
		p := newProcess(name, f.bin, f.dir, env, args...)
		if err := p.Start(); err != nil {
			return err
		}
		f.Brokers = append(f.Brokers, p)
	}
	for i, b := range f.Brokers {
		if err := f.await(ctx, b, func() bool { return connects(clients[i]) }); err != nil {
			return err
		}
	}
	return nil
}

// wire makes the networks between a part and the brokers, and returns the URLs of the brokers as the part has them.
func (f *Fleet) wire(part string) (urls string, err error) {
	var all []string
	for _, b := range f.brokers {
		p, err := NewProxy(b)
		if err != nil {
			return "", err
		}
		f.wires[part] = append(f.wires[part], p)
		all = append(all, "nats://"+p.Addr())
	}
	return strings.Join(all, ","), nil
}

func (f *Fleet) now() Seconds { return Seconds(time.Since(f.began).Seconds()) }

// await returns when a part is ready.
func (f *Fleet) await(ctx context.Context, p *Process, ready func() bool) error {
	end := time.Now().Add(startWithin)
	for !ready() {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !p.Running():
			return fmt.Errorf("%s has ended: see %s", p.Name, p.log)
		case time.Now().After(end):
			return fmt.Errorf("%s is not ready after %v: see %s", p.Name, startWithin, p.log)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil
}

// ready says whether a load balancer would send requests to the gateway.
func (g *Gateway) ready() bool {
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + g.admin + "/readyz")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// workerReady says whether a gateway knows the worker as ready.
func (f *Fleet) workerReady(ctx context.Context, name string) bool {
	out, err := f.pulley(ctx, "worker", "ls", "-o", "json")
	if err != nil {
		return false
	}
	var workers []struct {
		Name  string `json:"name"`
		State string `json:"state"`
	}
	if json.Unmarshal(out, &workers) != nil {
		return false
	}
	for _, w := range workers {
		if w.Name == name && w.State == "ready" {
			return true
		}
	}
	return false
}

// pulley runs a command of an operator. It returns what the command printed.
func (f *Fleet) pulley(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, f.bin, append(args, "--nats", f.directURL())...)
	out, err := cmd.Output()
	if failed, ok := errors.AsType[*exec.ExitError](err); ok {
		err = fmt.Errorf("pulley %s: %w: %s", strings.Join(args, " "), err, failed.Stderr)
	}
	return out, err
}

// directURL has the brokers without the networks between.
func (f *Fleet) directURL() string { return "nats://" + strings.Join(f.brokers, ",nats://") }

// Close stops everything.
func (f *Fleet) Close() {
	for _, w := range f.Workers {
		w.Stop()
	}
	for _, g := range f.Gateways {
		g.Stop()
	}
	for _, b := range f.Brokers {
		b.Stop()
	}
	for _, wires := range f.wires {
		for _, p := range wires {
			p.Close()
		}
	}
	for _, e := range f.Engines {
		e.Close()
	}
	for _, d := range f.disks {
		d.remove()
	}
}

func connects(addr string) bool {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// freeAddresses are n on loopback that are free now.
func freeAddresses(n int) (free []string, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		free = append(free, l.Addr().String())
	}
	return free, nil
}
