package subjects

import (
	"context"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// The streams and subjects of background responses. All that belongs to one response has its tenant and its id in the subject.
const (
	BackgroundJobs   = "PULLEY_BACKGROUND_JOBS" // what is to run; each message until it has run
	BackgroundStates = "PULLEY_BACKGROUND"      // one message for each response
	BackgroundData   = "PULLEY_BACKGROUND_DATA" // bodies, events, and answers that are large

	// BackgroundGateways is the consumer of BackgroundJobs from which all gateways pull.
	BackgroundGateways = "gateways"

	// BackgroundStops is the subject on which all gateways are told that a response was cancelled or deleted, by its id.
	BackgroundStops = "pulley.background.stop"

	AllBackground = "pulley.background.>"

	backgroundJobs   = "pulley.background.job."
	backgroundStates = "pulley.background.state."
	backgroundData   = "pulley.background.data."
)

// BackgroundJob is the subject of the jobs of a tenant.
func BackgroundJob(tenant string) string { return backgroundJobs + Token(tenant) }

// BackgroundState is the subject of the state of a response; the id may be "*".
func BackgroundState(tenant, id string) string { return backgroundStates + Token(tenant) + "." + id }

// AllBackgroundStates is the subject of the states of all responses of all tenants.
const AllBackgroundStates = backgroundStates + ">"

// BackgroundPart is the subject of a part of the data of a response: "body", "events" or "object.<version>"; ">" is all.
func BackgroundPart(tenant, id, part string) string {
	return backgroundData + Token(tenant) + "." + id + "." + part
}

const (
	// BackgroundLease is how long the gateway that runs a response may be silent before another one runs it.
	BackgroundLease = 10 * time.Second

	leastBackground = 1 << 20 // bytes of BackgroundData
)

// BackgroundLimits bound what is stored of background responses.
type BackgroundLimits struct {
	Bytes    int64         // of BackgroundData; less if the broker has no room for as much
	Pending  int64         // jobs of a tenant that wait or run
	Lifetime time.Duration // of a job
	Replicas int
}

// EnsureBackground creates the streams of background responses where they are missing. What exists is left as it is.
func EnsureBackground(ctx context.Context, js jetstream.JetStream, limits BackgroundLimits) error {
	for _, cfg := range []jetstream.StreamConfig{
		{
			Name: BackgroundStates, Description: "Pulley: background responses", Subjects: []string{AllBackgroundStates},
			MaxMsgsPerSubject: 1, Discard: jetstream.DiscardOld, AllowMsgTTL: true,
		},
		{
			Name: BackgroundJobs, Description: "Pulley: background responses that wait or run", Subjects: []string{backgroundJobs + ">"},
			Retention: jetstream.WorkQueuePolicy, MaxMsgsPerSubject: limits.Pending, DiscardNewPerSubject: true, Discard: jetstream.DiscardNew,
			MaxAge: limits.Lifetime, Duplicates: duplicateWindow,
		},
	} {
		cfg.Storage, cfg.Replicas = jetstream.FileStorage, limits.Replicas
		if err := ensureStream(ctx, js, cfg); err != nil {
			return err
		}
	}
	for bytes := limits.Bytes; ; bytes /= 2 {
		err := ensureStream(ctx, js, jetstream.StreamConfig{
			Name: BackgroundData, Description: "Pulley: bodies, events and answers of background responses", Subjects: []string{backgroundData + ">"},
			Storage: jetstream.FileStorage, Replicas: limits.Replicas, MaxBytes: bytes, Discard: jetstream.DiscardNew, AllowMsgTTL: true,
		})
		if err == nil || bytes <= leastBackground || !lacksStore(err) {
			return err
		}
	}
}

// BackgroundConsumer creates the consumer from which gateways pull jobs, if it is missing.
func BackgroundConsumer(ctx context.Context, js jetstream.JetStream) (jetstream.Consumer, error) {
	return js.CreateOrUpdateConsumer(ctx, BackgroundJobs, jetstream.ConsumerConfig{
		Durable: BackgroundGateways, AckPolicy: jetstream.AckExplicitPolicy, AckWait: BackgroundLease, MaxDeliver: -1,
		MaxAckPending: maxAckPending, MaxWaiting: maxWaiting,
	})
}
