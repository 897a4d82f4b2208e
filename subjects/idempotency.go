package subjects

import (
	"context"

	"github.com/nats-io/nats.go/jetstream"
)

// IdempotencyStream has the answers of requests that were sent with an Idempotency-Key.
const IdempotencyStream = "PULLEY_IDEMPOTENCY"

// AllIdempotency has all subjects of idempotency.
const AllIdempotency = "pulley.idempotency.>"

const idempotencyKeys = "pulley.idempotency.key."

// IdempotencyKey is the subject of a tenant's key, by its hash.
func IdempotencyKey(tenant, hash string) string { return idempotencyKeys + Token(tenant) + "." + hash }

// IdempotencyOwner is where a gateway answers whether it still runs the request of a key.
func IdempotencyOwner(gateway string) string { return "pulley.idempotency.owner." + gateway }

// IdempotencyUse is the subject by which the broker counts what a tenant has stored.
func IdempotencyUse(tenant string) string { return idempotencyUse + Token(tenant) }

// IdempotencyUses is the stream of these: a message for each IdempotencyUnit that a tenant has stored, or begun.
const (
	IdempotencyUses = "PULLEY_IDEMPOTENCY_USE"
	IdempotencyUnit = 4 << 10 // bytes

	idempotencyUse   = "pulley.idempotency.use."
	leastIdempotency = 1 << 20 // bytes of IdempotencyStream
)

// IdempotencyLimits bound what is stored.
type IdempotencyLimits struct {
	Bytes    int64 // of all tenants; less if the broker has no room for as much
	Tenant   int64 // bytes of one tenant
	Replicas int
}

// EnsureIdempotency creates the streams where they are missing. What exists is left as it is.
func EnsureIdempotency(ctx context.Context, js jetstream.JetStream, limits IdempotencyLimits) error {
	if err := ensureStream(ctx, js, jetstream.StreamConfig{
		Name: IdempotencyUses, Description: "Pulley: how much each tenant has stored by Idempotency-Key", Subjects: []string{idempotencyUse + "*"},
		Storage: jetstream.FileStorage, Replicas: limits.Replicas, MaxMsgsPerSubject: max(limits.Tenant/IdempotencyUnit, 1), DiscardNewPerSubject: true,
		Discard: jetstream.DiscardNew, AllowMsgTTL: true,
	}); err != nil {
		return err
	}
	for bytes := limits.Bytes; ; bytes /= 2 {
		err := ensureStream(ctx, js, jetstream.StreamConfig{
			Name: IdempotencyStream, Description: "Pulley: answers by Idempotency-Key", Subjects: []string{idempotencyKeys + ">"},
			Storage: jetstream.FileStorage, Replicas: limits.Replicas, MaxBytes: bytes, Discard: jetstream.DiscardNew, AllowMsgTTL: true,
		})
		if err == nil || bytes <= leastIdempotency || !lacksStore(err) {
			return err
		}
	}
}
