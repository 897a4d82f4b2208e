package bench

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"

	"github.com/pulley-lb/pulley/api"
)

// maxPrompt bounds a prompt, in words: about 10 MB.
const maxPrompt = 2_000_000

const (
	wordBytes  = 5 // four letters and a space
	alphabet   = "abcdefghijklmnopqrstuvwxyz"
	nonceBytes = 10
)

// bodies builds request bodies from parts that are encoded once. A prompt of n words is one word that no other request
// of the run has, so that engines with a prefix cache still prefill, and n-1 words of a common text.
type bodies struct {
	head, afterPrompt, maxTokens, tail []byte
	filler                             []byte
	seed                               uint64
}

func newBodies(cfg Config) (*bodies, error) {
	tail, err := extraFields(cfg)
	if err != nil {
		return nil, err
	}
	model, err := json.Marshal(cfg.Model)
	if err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	b := &bodies{
		head: slices.Concat([]byte(`{"model":`), model),
		tail: slices.Concat(tail, []byte("}")),
		seed: cfg.Seed<<16 + uint64(cfg.run),
	}
	opening, closing, maxTokens := `,"prompt":"`, `"`, `,"max_tokens":`
	switch cfg.Endpoint {
	case api.Chat, api.Messages:
		opening, closing = `,"messages":[{"role":"user","content":"`, `"}]`
	case api.Responses:
		opening, maxTokens = `,"input":"`, `,"max_output_tokens":`
	case api.Embeddings:
		opening, maxTokens = `,"input":"`, ""
	}
	b.head = append(b.head, opening...)
	b.afterPrompt = []byte(closing)
	b.maxTokens = []byte(maxTokens)
	b.filler = fillerText(max(cfg.InputTokens, cfg.Trace.longestInput()), cfg.Seed)
	return b, nil
}

// extraFields are the fields after the prompt and its length: stream options, the tier, and the user's own.
func extraFields(cfg Config) ([]byte, error) {
	fields := map[string]any{}
	if cfg.Stream {
		fields["stream"] = true
		if !cfg.NoUsage && (cfg.Endpoint == api.Chat || cfg.Endpoint == api.Completions) {
			fields["stream_options"] = map[string]bool{"include_usage": true}
		}
	}
	if cfg.Tier != "" {
		fields["service_tier"] = cfg.Tier
	}
	var extra map[string]json.RawMessage
	if len(cfg.Extra) > 0 {
		if err := json.Unmarshal(cfg.Extra, &extra); err != nil {
			return nil, fmt.Errorf("extra: must be a JSON object: %w", err)
		}
	}
	ours := append(slices.Collect(maps.Keys(fields)),
		"model", "messages", "prompt", "input", "max_tokens", "max_output_tokens", "stream")
	for key, value := range extra {
		if slices.Contains(ours, key) {
			return nil, fmt.Errorf("extra: %q is written by the generator itself", key)
		}
		fields[key] = value
	}
	if len(fields) == 0 {
		return nil, nil
	}
	object, err := json.Marshal(fields)
	if err != nil {
		return nil, fmt.Errorf("extra: %w", err)
	}
	object[0] = ','
	return object[:len(object)-1], nil
}

// build is the body of the run's nth request.
func (b *bodies) build(n, inputTokens, outputTokens int) []byte {
	filler := b.filler[:wordBytes*(inputTokens-1)]
	body := make([]byte, 0, len(b.head)+nonceBytes+len(filler)+len(b.afterPrompt)+len(b.maxTokens)+20+len(b.tail))
	body = append(body, b.head...)
	body = appendNonce(body, b.seed, n)
	body = append(body, filler...)
	body = append(body, b.afterPrompt...)
	if len(b.maxTokens) > 0 {
		body = append(body, b.maxTokens...)
		body = strconv.AppendInt(body, int64(outputTokens), 10)
	}
	return append(body, b.tail...)
}

// appendNonce appends a word of ten letters: four from the seed, and six that count (308 million requests).
func appendNonce(body []byte, seed uint64, n int) []byte {
	body = appendLetters(body, seed*0x9e3779b97f4a7c15>>32, nonceBytes-6)
	return appendLetters(body, uint64(n), 6)
}

func appendLetters(text []byte, bits uint64, n int) []byte {
	for range n {
		text = append(text, alphabet[bits%26])
		bits /= 26
	}
	return text
}

// fillerText is n words of four letters, a space before each.
func fillerText(n int, seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, 0))
	text := make([]byte, 0, wordBytes*n)
	for range n {
		text = appendLetters(append(text, ' '), rng.Uint64(), wordBytes-1)
	}
	return text
}
