package subjects

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// UsageStream has what requests have used, for 'pulley usage'. See UsageRecord.
const UsageStream = "PULLEY_USAGE"

// AllUsage matches the subject of every UsageRecord.
const AllUsage = "pulley.used.>"

// UsagePeriod is how long the period of a UsageRecord is.
const UsagePeriod = time.Minute

// UsageRecord is what requests have used that ended at a gateway within a period, or a part of it. The gateway publishes a
// record again when more has ended, with what was in it before: the stream keeps the last one of each subject. So
// a record that is stored twice counts once.
type UsageRecord struct {
	Gateway string     `json:"gw"`
	Start   time.Time  `json:"start"` // of the period, by the gateway's clock
	Rows    []UsageRow `json:"rows"`
}

// UsageRow is what the requests of a UsageKey have used.
type UsageRow struct {
	UsageKey
	Usage
}

// UsageKey is by what usage is kept apart.
type UsageKey struct {
	Tenant string `json:"tenant,omitempty"`
	Key    string `json:"key,omitempty"`   // the id of the API key
	Model  string `json:"model,omitempty"` // as the client asked for it; empty if its request was refused before that was known
	Tier   string `json:"tier,omitempty"`
	Pool   string `json:"pool,omitempty"` // that the request was in at its end
}

// Usage counts requests by how they ended for their clients, and what they used.
type Usage struct {
	Answered  int64 `json:"answered"`
	Failed    int64 `json:"failed"` // with a 5xx, or broken off
	Cancelled int64 `json:"cancelled"`
	Refused   int64 `json:"refused"` // with any other error of the gateway's own
	// Tokens as engines report them. Of the input tokens, the cached ones were in the engine's cache.
	InputTokens  int64 `json:"input_tokens"`
	CachedTokens int64 `json:"cached_tokens"`
	OutputTokens int64 `json:"output_tokens"`
	// Millis is how long workers had the requests, in milliseconds: of each request the last attempt.
	Millis int64 `json:"ms"`
}

// Add adds what others used.
func (u *Usage) Add(o Usage) {
	u.Answered += o.Answered
	u.Failed += o.Failed
	u.Cancelled += o.Cancelled
	u.Refused += o.Refused
	u.InputTokens += o.InputTokens
	u.CachedTokens += o.CachedTokens
	u.OutputTokens += o.OutputTokens
	u.Millis += o.Millis
}

// Requests is how many requests ended.
func (u *Usage) Requests() int64 { return u.Answered + u.Failed + u.Cancelled + u.Refused }

// UsageSubject is the subject of a part, from 0, of what ended at a gateway in the period that starts then.
func UsageSubject(gw string, start time.Time, part int) string {
	return "pulley.used." + gw + "." + strconv.FormatInt(start.Unix(), 10) + "." + strconv.Itoa(part)
}

const (
	// usageMaxAge is how long usage is kept.
	usageMaxAge = 35 * 24 * time.Hour

	// mostUsage and leastUsage bound the size of the stream, in bytes: a gateway with ten kinds of requests in each minute fills 60 MB in usageMaxAge.
	mostUsage  = 256 << 20
	leastUsage = 1 << 20
)

// EnsureUsageStream creates the stream of usage if it is missing: with a size of 256 MiB, halved until the broker has room for it and
// as much besides, since nothing can be created any more without a byte of store left.
func EnsureUsageStream(ctx context.Context, js jetstream.JetStream, replicas int) error {
	_, err := js.Stream(ctx, UsageStream)
	if !errors.Is(err, jetstream.ErrStreamNotFound) {
		return err
	}
	cfg := jetstream.StreamConfig{
		Name:              UsageStream,
		Description:       "Pulley: what requests have used",
		Subjects:          []string{AllUsage},
		Retention:         jetstream.LimitsPolicy,
		Storage:           jetstream.FileStorage,
		Replicas:          replicas,
		Discard:           jetstream.DiscardOld,
		MaxMsgsPerSubject: 1,
		MaxBytes:          2 * mostUsage,
		MaxAge:            usageMaxAge,
	}
	_, err = js.CreateStream(ctx, cfg)
	for lacksStore(err) && cfg.MaxBytes > 2*leastUsage {
		cfg.MaxBytes /= 2
		_, err = js.CreateStream(ctx, cfg)
	}
	if err == nil {
		cfg.MaxBytes /= 2
		_, err = js.UpdateStream(ctx, cfg)
	}
	if err != nil && !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		return fmt.Errorf("create stream %s: %w", UsageStream, err)
	}
	return nil
}

// ParseUsage parses a message of the stream of usage. What is damaged, or of another kind, is an error.
func ParseUsage(subject string, data []byte) (UsageRecord, error) {
	var r UsageRecord
	if err := Unmarshal(data, &r); err != nil {
		return r, err
	}
	if !strings.HasPrefix(subject, "pulley.used."+r.Gateway+"."+strconv.FormatInt(r.Start.Unix(), 10)+".") {
		return r, fmt.Errorf("usage of gateway %s from %v: not of subject %s", r.Gateway, r.Start, subject)
	}
	return r, nil
}
