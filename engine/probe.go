package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	probeTimeout = 2 * time.Second
	localTimeout = time.Second
	maxProbeBody = 4 << 20
)

// Kinds of engine that Probe tells apart.
const (
	KindOllama   = "ollama"
	KindLlamaCpp = "llama.cpp"
	KindVLLM     = "vllm"
	KindSGLang   = "sglang"
	KindLMStudio = "lmstudio"
	KindSim      = "sim"
	KindOpenAI   = "openai" // anything else that lists models
)

// Info is what an engine says of itself.
type Info struct {
	URL    string // without a slash or /v1 at its end
	Kind   string
	Models []string
	Slots  int // requests that it runs at once; 0 where it does not say
}

// Probe asks the engine at baseURL, which may end in /v1, what it is and what it serves. It takes at most two seconds. An
// engine that lists its models is known; only the time to tell its kind may run out, and then its kind is KindOpenAI.
func Probe(ctx context.Context, client *http.Client, baseURL string) (Info, error) {
	return ProbeWithKey(ctx, client, baseURL, "")
}

// ProbeWithKey is Probe for an engine that wants an API key as a bearer token.
func ProbeWithKey(ctx context.Context, client *http.Client, baseURL, key string) (Info, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	p := prober{client: client, key: key, url: strings.TrimSuffix(strings.TrimRight(baseURL, "/"), "/v1")}
	var list struct {
		Data []struct {
			ID      string `json:"id"`
			OwnedBy string `json:"owned_by"`
		} `json:"data"`
	}
	if err := p.get(ctx, "/v1/models", &list); err != nil {
		return Info{}, fmt.Errorf("probe engine: %w", err)
	}
	if list.Data == nil {
		return Info{}, fmt.Errorf("probe engine: %s/v1/models is no list of models", p.url)
	}
	info := Info{URL: p.url}
	owner := ""
	for _, m := range list.Data {
		info.Models = append(info.Models, m.ID)
		owner = m.OwnedBy
	}
	info.Kind, info.Slots = p.tell(ctx, owner)
	return info, nil
}

// prober asks one engine.
type prober struct {
	client *http.Client
	url    string
	key    string
}

// tell knows an engine by something that only its kind answers. It looks at the content: LM Studio answers 200 to
// everything.
func (p prober) tell(ctx context.Context, owner string) (kind string, slots int) {
	if owner == simOwner {
		n, _ := p.field(ctx, "/sim/stats", "slots")
		return KindSim, number(n)
	}
	if _, ok := p.field(ctx, "/api/version", "version"); ok {
		return KindOllama, 0
	}
	if n, ok := p.field(ctx, "/props", "total_slots"); ok {
		return KindLlamaCpp, number(n)
	}
	if _, ok := p.field(ctx, "/api/v0/models", "data"); ok {
		return KindLMStudio, 0
	}
	for _, path := range []string{"/get_server_info", "/server_info"} { // older and newer
		if n, ok := p.field(ctx, path, "max_running_requests"); ok {
			return KindSGLang, number(n)
		}
	}
	if _, ok := p.field(ctx, "/get_model_info", "model_path"); ok {
		return KindSGLang, 0
	}
	if owner == "vllm" {
		return KindVLLM, 0
	}
	if _, ok := p.field(ctx, "/version", "version"); ok {
		return KindVLLM, 0
	}
	return KindOpenAI, 0
}

// field is one field of the JSON object at path, if there are both.
func (p prober) field(ctx context.Context, path, name string) (value json.RawMessage, ok bool) {
	var fields map[string]json.RawMessage
	if p.get(ctx, path, &fields) != nil {
		return nil, false
	}
	value, ok = fields[name]
	return value, ok
}

// number is 0 where the value is no whole number.
func number(value json.RawMessage) int {
	n, err := strconv.Atoi(string(value))
	if err != nil {
		return 0
	}
	return max(n, 0)
}

func (p prober) get(ctx context.Context, path string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+path, nil)
	if err != nil {
		return err
	}
	if p.key != "" {
		req.Header.Set("Authorization", "Bearer "+p.key)
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxProbeBody))
	if err != nil {
		return fmt.Errorf("get %s: %w", req.URL, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s: %s", req.URL, resp.Status)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("get %s: %w", req.URL, err)
	}
	return nil
}

// localAddrs are where engines listen unless told otherwise: Ollama, vLLM, llama.cpp, SGLang, LM Studio.
var localAddrs = []string{
	"127.0.0.1:11434", "127.0.0.1:8000", "127.0.0.1:8080", "127.0.0.1:30000", "127.0.0.1:1234",
}

// Local probes the usual ports of engines on this machine, all at once and for at most a second. What does not answer, or
// is no engine, or serves no model, is simply absent. Addresses for which skip, which may be nil, is true are left out.
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
	errs := make([]error, len(addrs))
	var wg sync.WaitGroup
	for i, addr := range addrs {
		errs[i] = errSkipped
		if skip == nil || !skip(addr) {
			wg.Go(func() { found[i], errs[i] = Probe(ctx, client, "http://"+addr) })
		}
	}
	wg.Wait()
	var infos []Info
	for i, info := range found {
		if errs[i] == nil && len(info.Models) > 0 {
			infos = append(infos, info)
		}
	}
	return infos
}

var errSkipped = errors.New("skipped")
