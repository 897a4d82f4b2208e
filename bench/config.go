package bench

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/pulley-lb/pulley/api"
)

// Config describes one run. Exactly one of Concurrency, Rate and Trace says what kind of load it is.
type Config struct {
	// URL is the base of the API, with or without /v1, or the full address of the endpoint. Required.
	URL string
	// Name replaces the URL in the output. Default the URL.
	Name string
	// Model is the model that the requests name. Required.
	Model string
	// Endpoint is the API to call. Default Chat.
	Endpoint api.API
	// Stream asks for server-sent events. Default false: one JSON body.
	Stream bool
	// NoUsage leaves stream_options.include_usage out, for servers that refuse it. Default false.
	NoUsage bool

	// Concurrency is the number of closed-loop workers. Default 1 when neither Rate nor Trace is set.
	Concurrency int
	// Rate is the mean of an open loop of Poisson arrivals, in requests per second.
	Rate float64
	// Trace is replayed in an open loop: each request at its time, with its lengths.
	Trace Trace
	// Speedup divides the trace's arrival times. Default 1.
	Speedup float64
	// MaxInFlight bounds an open loop; a request due beyond it is not sent and counts as an error. Default 10000.
	MaxInFlight int

	// Requests ends the run after so many measured requests. Default no bound.
	Requests int
	// Duration ends the sending of requests, not counting the warm-up; requests in flight are awaited. Default 10 s if
	// neither Requests nor Trace bounds the run.
	Duration time.Duration
	// Warmup is sent first and not measured. Requests and Duration count from its end. With a trace it takes the first
	// part.
	Warmup Warmup
	// Timeout bounds one request, from send to end. Default 10 min, which is the OpenAI SDKs'.
	Timeout time.Duration

	// InputTokens is the number of words in a prompt. Default 64. A trace has its own.
	InputTokens int
	// OutputTokens is the max_tokens of a request. Default 64. A trace has its own.
	OutputTokens int
	// ExactTokens counts every reported output length other than the requested one as an error. Default false: an
	// answer may be shorter if its finish reason says that the model ended it.
	ExactTokens bool
	// Tier is sent as service_tier. Default none.
	Tier string
	// Extra is a JSON object whose fields are added to every body. Default none.
	Extra json.RawMessage
	// Header is sent with every request. Default none but content-type.
	Header http.Header
	// APIKey is sent as a bearer token, and as x-api-key to Messages. Default none.
	APIKey string
	// Seed chooses prompts and Poisson arrivals: the same seed, the same load. Default 1.
	Seed uint64

	// SLOTTFT and SLOE2E are bounds; the share of requests within both is reported as goodput. Default none.
	SLOTTFT, SLOE2E time.Duration

	// Transport carries the requests. Default a pool of HTTP/1.1 connections as large as the load needs.
	Transport http.RoundTripper
	// Progress is called once a second from one goroutine, and once at the end. Default none.
	Progress func(Progress)

	// run distinguishes the runs of a comparison: they share their arrivals, but not their prompts.
	run int
}

// Warmup is the part of the load that is not measured. It ends when both bounds have passed.
type Warmup struct {
	Requests int
	Duration time.Duration
}

func (c Config) withDefaults() Config {
	c.Name = cmp.Or(c.Name, c.URL)
	c.Endpoint = cmp.Or(c.Endpoint, api.Chat)
	if c.Rate == 0 && len(c.Trace) == 0 {
		c.Concurrency = cmp.Or(c.Concurrency, 1)
	}
	if c.Requests == 0 && len(c.Trace) == 0 {
		c.Duration = cmp.Or(c.Duration, 10*time.Second)
	}
	c.Speedup = cmp.Or(c.Speedup, 1)
	c.MaxInFlight = cmp.Or(c.MaxInFlight, 10_000)
	c.Timeout = cmp.Or(c.Timeout, 10*time.Minute)
	c.InputTokens = cmp.Or(c.InputTokens, 64)
	c.OutputTokens = cmp.Or(c.OutputTokens, 64)
	c.Seed = cmp.Or(c.Seed, 1)
	return c
}

func (c Config) validate() error {
	if c.Model == "" {
		return errors.New("model: required")
	}
	if _, err := c.target(); err != nil {
		return err
	}
	if !slices.Contains(Endpoints, c.Endpoint) {
		return fmt.Errorf("endpoint %q: must be one of %v", c.Endpoint, Endpoints)
	}
	if c.Stream && c.Endpoint == api.Embeddings {
		return fmt.Errorf("stream: endpoint %s does not stream", c.Endpoint)
	}
	if err := c.validateLoad(); err != nil {
		return err
	}
	if c.InputTokens < 1 || c.InputTokens > maxPrompt {
		return fmt.Errorf("input-tokens %d: must be 1 to %d", c.InputTokens, maxPrompt)
	}
	if c.OutputTokens < 1 {
		return fmt.Errorf("output-tokens %d: must be at least 1", c.OutputTokens)
	}
	return nil
}

func (c Config) validateLoad() error {
	kinds := 0
	for _, set := range []bool{c.Concurrency != 0, c.Rate != 0, len(c.Trace) > 0} {
		if set {
			kinds++
		}
	}
	switch {
	case kinds > 1:
		return errors.New("concurrency, rate and trace exclude each other: set one")
	case c.Concurrency < 0 || c.Rate < 0 || c.Speedup < 0 || c.MaxInFlight < 0:
		return errors.New("concurrency, rate, speedup and max-in-flight: must be positive numbers")
	case c.Requests < 0 || c.Duration < 0 || c.Timeout < 0 || c.Warmup.Requests < 0 || c.Warmup.Duration < 0:
		return errors.New("requests, duration, timeout and warmup: must be positive")
	}
	return nil
}

// target is the address that the requests go to.
func (c Config) target() (*url.URL, error) {
	u, err := url.Parse(c.URL)
	if err != nil {
		return nil, fmt.Errorf("url %q: %w", c.URL, err)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, fmt.Errorf("url %q: must be http://host:port or https://host", c.URL)
	}
	u.Path = resolve(c.Endpoint, u.Path)
	return u, nil
}

// describeLoad describes the kind of load.
func (c Config) describeLoad() string {
	switch {
	case len(c.Trace) > 0:
		return fmt.Sprintf("open loop, trace of %d requests ×%g", len(c.Trace), c.Speedup)
	case c.Rate > 0:
		return fmt.Sprintf("open loop, Poisson %g/s", c.Rate)
	default:
		return fmt.Sprintf("closed loop, concurrency %d", c.Concurrency)
	}
}

func (c Config) closed() bool { return c.Concurrency > 0 }
