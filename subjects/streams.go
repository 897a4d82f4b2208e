package subjects

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/policy"
)

// memberDeadline is after how long without an answer to its leader a broker is silent. It answers each second.
const memberDeadline = 2500 * time.Millisecond

// SilentMember returns for how long a leader has not heard a replica; 0 if it does, or does not know: a leader that was just
// elected may not have heard all.
func SilentMember(p *jetstream.PeerInfo) time.Duration {
	switch {
	case p.Active > memberDeadline:
		return p.Active
	case p.Offline:
		return max(p.Active, memberDeadline)
	}
	return 0
}

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

	// mostDead and leastDead bound the store that dead letters reserve: the most that the broker has room for, halved until it
	// does. Nothing else reserves any, but without a byte left nothing can be created.
	mostDead  = 1 << 30
	leastDead = 1 << 20

	workersTTL = 10 * time.Second
	learnedTTL = 90 * 24 * time.Hour
)

// StreamFull is the broker's error code for a message that exceeds a stream's bound (the server's
// JSStreamStoreFailedF).
const StreamFull jetstream.ErrorCode = 10077

// PriorityGroup is the only group of every request consumer.
const PriorityGroup = "pulley"

// EnsureStreams creates the stream of every tier, the dead letters and the buckets where they are missing. What exists is left
// as it is, but if the broker has no store left for the rest, dead letters reserve less, as long as those that are there fit.
func EnsureStreams(ctx context.Context, js jetstream.JetStream, tiers []policy.Tier, replicas int) error {
	dead := int64(mostDead)
	for {
		err := ensureStreams(ctx, js, tiers, replicas, dead)
		if !lacksStore(err) {
			return err
		}
		existing, shrunk := shrinkDead(ctx, js)
		if !shrunk && (existing || dead <= leastDead) {
			return err
		}
		dead /= 2
	}
}

// lacksStore says whether the broker refuses a stream on disk because it has no store left for it.
func lacksStore(err error) bool {
	refusal, ok := errors.AsType[*jetstream.APIError](err)
	if !ok {
		return false
	}
	const account, disk, noPeers = 10002, 10047, 10005
	return refusal.ErrorCode == account || refusal.ErrorCode == disk ||
		refusal.ErrorCode == noPeers && strings.Contains(refusal.Description, "insufficient storage")
}

// shrinkDead halves what the dead letters reserve. It says whether they exist, and whether they now reserve less.
func shrinkDead(ctx context.Context, js jetstream.JetStream) (existing, shrunk bool) {
	stream, err := js.Stream(ctx, DeadStream)
	if err != nil {
		return false, false
	}
	info := stream.CachedInfo()
	cfg := info.Config
	cfg.MaxBytes /= 2
	if cfg.MaxBytes < leastDead || info.State.Bytes > uint64(cfg.MaxBytes) {
		return true, false
	}
	_, err = js.UpdateStream(ctx, cfg)
	return true, err == nil
}

func ensureStreams(ctx context.Context, js jetstream.JetStream, tiers []policy.Tier, replicas int, dead int64) error {
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
		MaxBytes:    dead,
		MaxAge:      deadMaxAge,
	}); err != nil {
		return err
	}
	for _, b := range []jetstream.KeyValueConfig{
		{Bucket: WorkersBucket, Description: "Pulley: the latest heartbeat of each worker", TTL: workersTTL, Storage: jetstream.MemoryStorage, Replicas: replicas},
		{Bucket: PolicyBucket, Description: "Pulley: the operator's policy", History: policyHistory, Storage: jetstream.FileStorage, Replicas: replicas},
		{Bucket: KeysBucket, Description: "Pulley: API keys", Storage: jetstream.FileStorage, Replicas: replicas},
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
