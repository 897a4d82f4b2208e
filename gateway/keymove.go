package gateway

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/pulley-lb/pulley/policystore"
)

// moveKeysEvery is how often it is checked whether the bucket of the policy has API keys.
const moveKeysEvery = 5 * time.Second

// keyMover moves API keys that an older version has stored in the bucket of the policy, which workers read, to their own.
// It copies them at once, and removes them from there when no older gateway is left, which would then refuse every key.
type keyMover struct {
	bus *bus

	moved uint64 // last sequence of the keys in the bucket of the policy when none was left there; owned by run

	mu    sync.Mutex
	since time.Time            // since when this gateway receives the references of others
	older map[string]time.Time // gateways that read keys in the bucket of the policy alone, and when each last published a reference
}

func newKeyMover(b *bus) *keyMover { return &keyMover{bus: b, older: make(map[string]time.Time)} }

// onReference notes whether the gateway of a reference reads keys in their own bucket.
func (k *keyMover) onReference(gateway string, own bool, now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if own {
		delete(k.older, gateway)
		return
	}
	k.older[gateway] = now
}

// alone says whether no gateway reads keys in the bucket of the policy alone.
func (k *keyMover) alone(now time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, at := range k.older {
		if now.Sub(at) > peerDeadline {
			delete(k.older, id)
		}
	}
	return len(k.older) == 0 && now.Sub(k.since) > peerDeadline
}

// run moves keys, until ctx is done.
func (k *keyMover) run(ctx context.Context) {
	k.mu.Lock()
	k.since = time.Now()
	k.mu.Unlock()
	every(ctx, moveKeysEvery, func() {
		remove := k.alone(time.Now())
		found, err := k.move(ctx, remove)
		switch {
		case ctx.Err() != nil, errors.Is(err, policystore.ErrNoBucket):
		case err != nil:
			k.bus.seldom("cannot move the API keys to their own bucket; they count where they are", "err", err)
		case found > 0 && remove:
			k.bus.log.Info("API keys moved to their own bucket", "keys", found)
		}
	})
}

func (k *keyMover) move(ctx context.Context, remove bool) (found int, err error) {
	ctx, cancel := context.WithTimeout(ctx, moveKeysEvery)
	defer cancel()
	last, err := policystore.OldKeys(ctx, k.bus.nc)
	if err != nil || last == k.moved {
		return 0, err
	}
	store, err := policystore.Open(ctx, k.bus.nc)
	if err != nil {
		return 0, err
	}
	if found, err = store.CopyKeys(ctx, remove); err == nil && found == 0 {
		k.moved = last
	}
	return found, err
}
