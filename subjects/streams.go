package subjects

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/policy"
)

const (
	// AckWait is how long a delivery may go without a sign of life before the queue redelivers it.
	// It is the last resort: heartbeats reveal a dead worker within WorkerDeadline.
	AckWait = 30 * time.Second

	// maxWaiting bounds the parked bids of a consumer. It cannot be changed after the consumer exists.
	maxWaiting = 8192

	// maxAckPending is above the slots of any pool. The server walks all pending deliveries on a
	// timer, so it stays in the thousands.
	maxAckPending = 8192

	// maxPerSubject is the hard bound of a queue, waiting and in flight. The gateways' own bound is below it.
	maxPerSubject = 100_000

	// duplicateWindow is longer than a gateway keeps trying to publish a message. The server keeps
	// an entry for each message of that time, and its garbage collector scans them.
	duplicateWindow = 20 * time.Second

	deadMaxAge = 7 * 24 * time.Hour
	workersTTL = 10 * time.Second
	learnedTTL = 90 * 24 * time.Hour
)

// StreamFull is the broker's error code for a message that exceeds a stream's bound (the server's
// JSStreamStoreFailedF).
const StreamFull jetstream.ErrorCode = 10077

// PriorityGroup is the only group of every request consumer.
const PriorityGroup = "pulley"

// EnsureStreams creates the stream of every tier, the dead letters and the buckets where they are
// missing. What exists is left as it is.
func EnsureStreams(ctx context.Context, js jetstream.JetStream, tiers []policy.Tier, replicas int) error {
	for _, t := range tiers {
		storage := jetstream.MemoryStorage
		if t.Storage == policy.File {
			storage = jetstream.FileStorage
		}
		if err := ensureStream(ctx, js, jetstream.StreamConfig{
			Name:                 ReqStream(t.Name),
			Description:          "Pulley: requests of tier " + t.Name,
			Subjects:             []string{"pulley.req." + Token(t.Name) + ".>"},
			Retention:            jetstream.WorkQueuePolicy,
			Storage:              storage,
			Replicas:             replicas,
			Discard:              jetstream.DiscardNew,
			DiscardNewPerSubject: true,
			MaxMsgsPerSubject:    maxPerSubject,
			AllowMsgTTL:          true,
			AllowDirect:          true,
			Duplicates:           duplicateWindow,
		}); err != nil {
			return err
		}
	}
	if err := ensureStream(ctx, js, jetstream.StreamConfig{
		Name:        DeadStream,
		Description: "Pulley: requests that no worker could answer",
		Subjects:    []string{allDead},
		Retention:   jetstream.LimitsPolicy,
		Storage:     jetstream.FileStorage,
		Replicas:    replicas,
		Discard:     jetstream.DiscardOld,
		MaxMsgs:     10_000,
		MaxBytes:    1 << 30,
		MaxAge:      deadMaxAge,
	}); err != nil {
		return err
	}
	for _, b := range []jetstream.KeyValueConfig{
		{Bucket: WorkersBucket, Description: "Pulley: the latest heartbeat of each worker", TTL: workersTTL, Storage: jetstream.MemoryStorage, Replicas: replicas},
		{Bucket: PolicyBucket, Description: "Pulley: the operator's policy and keys", History: policyHistory, Storage: jetstream.FileStorage, Replicas: replicas},
		{Bucket: PoolsBucket, Description: "Pulley: pools that workers have served", Storage: jetstream.FileStorage, Replicas: replicas},
		{Bucket: LearnedBucket, Description: "Pulley: what workers have measured of their engines", TTL: learnedTTL, Storage: jetstream.FileStorage, Replicas: replicas},
	} {
		_, err := js.CreateKeyValue(ctx, b)
		if err != nil && !errors.Is(err, jetstream.ErrBucketExists) {
			return fmt.Errorf("create bucket %s: %w", b.Bucket, err)
		}
	}
	return nil
}

func ensureStream(ctx context.Context, js jetstream.JetStream, cfg jetstream.StreamConfig) error {
	_, err := js.Stream(ctx, cfg.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		_, err = js.CreateStream(ctx, cfg)
	}
	if err != nil && !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		return fmt.Errorf("create stream %s: %w", cfg.Name, err)
	}
	return nil
}

// homeIdle is how long after the last bid the consumer of a home lane is removed: its worker is gone for good.
const homeIdle = 2 * time.Minute

// EnsureConsumer creates the consumer that a lane's bids pull from, if it is missing. Gateways call
// it; workers need no permission to create anything.
func EnsureConsumer(ctx context.Context, js jetstream.JetStream, tier, pool, lane string) error {
	var idle time.Duration
	if lane != Shared {
		idle = homeIdle
	}
	_, err := js.CreateConsumer(ctx, ReqStream(tier), jetstream.ConsumerConfig{
		InactiveThreshold: idle,
		Durable:           ReqConsumer(pool, lane),
		FilterSubject:     Req(tier, pool, lane),
		AckPolicy:         jetstream.AckExplicitPolicy,
		AckWait:           AckWait,
		MaxDeliver:        -1,
		MaxAckPending:     maxAckPending,
		MaxWaiting:        maxWaiting,
		PriorityPolicy:    jetstream.PriorityPolicyPrioritized,
		PriorityGroups:    []string{PriorityGroup},
		MemoryStorage:     true,
		Metadata:          map[string]string{"pulley-pool": pool, "pulley-lane": lane},
	})
	if err != nil && !errors.Is(err, jetstream.ErrConsumerExists) {
		return fmt.Errorf("create consumer of tier %s, pool %s, lane %s: %w", tier, pool, lane, err)
	}
	return nil
}

// Bid is the body of a pull request for one message.
type Bid struct {
	Batch    int    `json:"batch"`
	Expires  int64  `json:"expires,omitzero"` // nanoseconds
	NoWait   bool   `json:"no_wait,omitzero"`
	Group    string `json:"group"`
	Priority int    `json:"priority"` // the rung, 0 to 9; the lowest is served first
}

// BidSubject is the subject of bids on a lane.
func BidSubject(tier, pool, lane string) string {
	return "$JS.API.CONSUMER.MSG.NEXT." + ReqStream(tier) + "." + ReqConsumer(pool, lane)
}

// policyHistory is how many versions of the policy are kept: the most that a bucket can keep.
const policyHistory = 64
