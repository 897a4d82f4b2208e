package chaos

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// sampleEvery is the least time between two samples.
const sampleEvery = 2 * time.Second

// SoakRun starts a fleet, puts it under an even load for cfg.For, and counts what each part has. The binary has to be one
// with the overlay of WriteOverlay: by that its processes say how many goroutines they have. It also returns what became of the
// requests.
func SoakRun(ctx context.Context, cfg Config) (all []Series, requests []Request, err error) {
	cfg.Rate = cmp.Or(cfg.Rate, 20)
	cfg.Patience = cmp.Or(cfg.Patience, time.Minute)
	stats := filepath.Join(cfg.Dir, "stats")
	if err := os.MkdirAll(stats, 0o755); err != nil {
		return nil, nil, err
	}
	env := []string{statsVariable + "=" + stats}
	if cfg.Bug != "" {
		env = append(env, bugVariable+"="+cfg.Bug)
	}
	f, err := newFleet(ctx, cfg.Bin, cfg.Dir, cfg.Topology.withDefaults(), env, time.Now())
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	nc, err := nats.Connect(f.directURL(), nats.MaxReconnects(-1))
	if err != nil {
		return nil, nil, err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, nil, err
	}
	var parts []*Process
	parts = append(parts, f.Brokers...)
	for _, g := range f.Gateways {
		parts = append(parts, g.Process)
	}
	parts = append(parts, f.Workers...)
	clients, stopLoad := f.load(cfg)
	index := make(map[string]int)
	add := func(part string, what What, n float64) {
		key := part + " " + string(what)
		i, ok := index[key]
		if !ok {
			i = len(all)
			index[key] = i
			all = append(all, Series{Part: part, What: what})
		}
		all[i].Samples = append(all[i].Samples, Sample{f.now(), n})
	}
	every := max(sampleEvery, cfg.For/200)
	for end := time.Now().Add(cfg.For); ctx.Err() == nil && time.Now().Before(end); {
		pause(ctx, every)
		for _, p := range parts {
			if failed := p.sample(stats, add); failed != nil {
				err = errors.Join(err, failed)
			}
		}
		if failed := sampleBroker(ctx, js, add); failed != nil {
			err = errors.Join(err, failed)
		}
		if err != nil {
			break
		}
	}
	stopLoad()
	return all, clients.history(), err
}

// sample counts what a process has.
func (p *Process) sample(stats string, add func(string, What, float64)) error {
	cmd, _ := p.current()
	proc := fmt.Sprintf("/proc/%d", cmd.Process.Pid)
	open, err := os.ReadDir(proc + "/fd")
	if err != nil {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	add(p.Name, Descriptors, float64(len(open)))
	status, err := os.ReadFile(proc + "/status")
	if err != nil {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	if _, text, found := strings.Cut(string(status), "VmRSS:"); found {
		var kib float64
		if _, err := fmt.Sscan(text, &kib); err == nil {
			add(p.Name, Memory, kib*1024)
		}
	}
	said, err := os.ReadFile(filepath.Join(stats, fmt.Sprint(cmd.Process.Pid)))
	if err != nil {
		return fmt.Errorf("%s says nothing of its goroutines: %w", p.Name, err)
	}
	var goroutines, heap float64
	if _, err := fmt.Sscan(string(said), &goroutines, &heap); err != nil {
		return fmt.Errorf("%s says %q of its goroutines: %w", p.Name, said, err)
	}
	add(p.Name, Goroutines, goroutines)
	add(p.Name, Heap, heap)
	return nil
}

// sampleBroker counts what the brokers have together.
func sampleBroker(ctx context.Context, js jetstream.JetStream, add func(string, What, float64)) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	streams, consumers, keys, waiting := 0, 0, uint64(0), uint64(0)
	list := js.ListStreams(ctx)
	for info := range list.Info() {
		streams++
		consumers += info.State.Consumers
		switch {
		case strings.HasPrefix(info.Config.Name, "KV_"):
			keys += info.State.NumSubjects
		case strings.HasPrefix(info.Config.Name, "PULLEY_REQ_"):
			waiting += info.State.Msgs
		}
	}
	if err := list.Err(); err != nil {
		return fmt.Errorf("list streams: %w", err)
	}
	add("queue", Streams, float64(streams))
	add("queue", Consumers, float64(consumers))
	add("queue", Keys, float64(keys))
	add("queue", Waiting, float64(waiting))
	return nil
}
