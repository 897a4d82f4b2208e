package engine

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	probeTimeout = 2 * time.Second
	localTimeout = time.Second
)

// simHeader is in every answer of package sim's engines, by which Probe recognises them.
const simHeader = "X-Sim-Name"

// Info is what an engine reports about itself.
type Info struct {
	URL       string // without a trailing slash or /v1
	Dialect   Dialect
	Simulated bool // one of package sim's engines, which speaks another engine's dialect
	Models    []string
	Slots     int // requests that it runs at once; 0 if it does not report it
}

// Name is what people call such an engine: "sim" for a simulated one, otherwise its dialect.
func (i Info) Name() string {
	if i.Simulated {
		return "sim"
	}
	return string(i.Dialect)
}

// Probe asks the engine at baseURL, which may end in /v1, what it is and what it serves. It takes at most two seconds.
// An engine that lists its models in that time is found; if there is no time left to identify its dialect, that is
// DialectOpenAI. key, if not empty, is sent as a bearer token; client may be one with a Client, which sends credentials.
func Probe(ctx context.Context, client *http.Client, baseURL string, key Secret) (Info, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	a, err := newAsker(client, baseURL, key)
	if err != nil {
		return Info{}, fmt.Errorf("probe engine: %w", err)
	}
	p := &prober{asker: a}
	if err := p.list(ctx); err != nil {
		return Info{}, fmt.Errorf("probe engine: %w", err)
	}
	info := Info{URL: p.base, Models: p.models}
	info.Dialect, _ = p.identify(ctx)
	if p.simulated {
		info.Simulated = true
		var stats struct {
			Slots int `json:"slots"`
		}
		_ = p.get(ctx, "/sim/stats", &stats)
		info.Slots = stats.Slots
		return info, nil
	}
	s, err := NewScraper(ScraperConfig{URL: p.base, Dialect: info.Dialect, Client: a.client})
	if err != nil {
		return info, nil // the URL has answered, so it is valid
	}
	s.timeout = probeTimeout
	if slots := s.scrape(ctx).Slots; slots != nil {
		info.Slots = *slots
	}
	return info, nil
}

// localAddrs are the default addresses of Ollama, vLLM, llama.cpp, SGLang and LM Studio.
var localAddrs = []string{
	"127.0.0.1:11434", "127.0.0.1:8000", "127.0.0.1:8080", "127.0.0.1:30000", "127.0.0.1:1234",
}

// Local probes the usual ports of engines on this machine, all at once and for at most a second. Addresses that do not
// answer, are no engine or serve no model are left out, and so are those for which skip returns true; skip may be nil.
func Local(ctx context.Context, skip func(addr string) bool) []Info {
	return probeAll(ctx, localAddrs, skip)
}

func probeAll(ctx context.Context, addrs []string, skip func(addr string) bool) []Info {
	ctx, cancel := context.WithTimeout(ctx, localTimeout)
	defer cancel()
	transport := &http.Transport{DialContext: new(net.Dialer).DialContext} // no proxy
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	found := make([]Info, len(addrs))
	var wg sync.WaitGroup
	for i, addr := range addrs {
		if skip == nil || !skip(addr) {
			wg.Go(func() { found[i], _ = Probe(ctx, client, "http://"+addr, "") })
		}
	}
	wg.Wait()
	return slices.DeleteFunc(found, func(i Info) bool { return len(i.Models) == 0 })
}
