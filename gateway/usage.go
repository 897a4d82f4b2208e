package gateway

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// run tells the other gateways what is used here, and hears them.
func (k *keyring) run(ctx context.Context) {
	k.g.metrics.registry.MustRegister(k.refused, k.limited)
	news := make(chan *nats.Msg, 1024)
	sub, err := k.g.nc.ChanSubscribe(subjects.UsageReports, news)
	if err != nil {
		k.g.log.Error("usage of other gateways is not heard", "err", err)
		return
	}
	defer sub.Unsubscribe()
	tick := time.NewTicker(subjects.UsageEvery)
	defer tick.Stop()
	k.tell(true, true)
	now := time.Now()
	cut, told, toldAll := now, now, now
	hearing := k.hearing // nil once it is closed
	for {
		select {
		case <-ctx.Done():
			k.tell(true, true)
			return
		case m := <-news:
			k.hear(m.Data, time.Now())
		case <-tick.C:
			last := now
			now = time.Now()
			connected := k.g.nc.IsConnected()
			if !connected {
				cut = now
			}
			if hearing != nil && now.Sub(cut) > policy.HeardWithin {
				k.started = now
				close(hearing)
				hearing = nil
			}
			// While this gateway was stopped or cut off, the silence is its own.
			k.forget(now, connected && now.Sub(last) < usageSilent/2)
			all := now.Sub(toldAll) >= usageAll
			if k.tell(all, now.Sub(told) >= usageAlive) {
				told = now
			}
			if all {
				toldAll = now
			}
		}
	}
}

// tell tells what has changed, or all. If there is nothing, it says no more
// than that this gateway lives, or, unless it must, nothing.
func (k *keyring) tell(all, must bool) (told bool) {
	k.changedMu.Lock()
	list := k.changed
	k.changed = nil
	k.changedMu.Unlock()
	for _, h := range list {
		h.usage.changed.Store(false) // before it is read: what comes now is told the next time
	}
	if keys := k.keys.Load(); all && keys != nil {
		list = slices.Collect(maps.Values(*keys))
	}
	for part := range slices.Chunk(list, usageInMessage) {
		message := subjects.UsageReport{Gateway: k.g.id, Keys: make(map[string]subjects.KeyUsage)}
		for _, h := range part {
			if own := h.usage.own(); own != (policy.Used{}) {
				message.Keys[h.ID] = subjects.KeyUsage{Requests: uint64(own.Requests), Tokens: uint64(own.Tokens), Running: own.Running}
			}
		}
		if len(message.Keys) > 0 {
			k.g.publishJSON(subjects.UsageReports, message)
			told = true
		}
	}
	if must && !told {
		k.g.publishJSON(subjects.UsageReports, subjects.UsageReport{Gateway: k.g.id})
		told = true
	}
	return told
}

func (u *keyUsage) own() policy.Used {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.limits.Own()
}

// hear takes what another gateway tells. One that is new here is told
// everything at once: it may have just started.
func (k *keyring) hear(body []byte, now time.Time) {
	var told subjects.UsageReport
	if err := subjects.Unmarshal(body, &told); err != nil || told.Gateway == k.g.id {
		return
	}
	k.mu.Lock()
	p := k.heard[told.Gateway]
	unknown := p == nil
	if unknown {
		p = &peerUsage{keys: make(map[string]subjects.KeyUsage)}
		k.heard[told.Gateway] = p
	}
	greet := !p.live
	p.at, p.live = now, true
	k.countLocked()
	keys := k.keys.Load()
	for id, u := range told.Keys {
		before, known := p.keys[id]
		p.keys[id] = u
		if keys == nil || (*keys)[id] == nil {
			continue // set catches up
		}
		held := (*keys)[id]
		used := policy.Used{Running: u.Running - before.Running}
		switch {
		case unknown: // it was there before: what it used when, nobody knows
		case known && u.Requests >= before.Requests:
			used.Requests, used.Tokens = int64(u.Requests-before.Requests), int64(u.Tokens-before.Tokens)
		default: // the key is new there, maybe once more
			used.Requests, used.Tokens = firstUsed(&held.Key, u)
		}
		held.usage.heard(&held.Key, used, now)
	}
	k.mu.Unlock()
	if greet {
		k.tell(true, true)
	}
}

// firstUsed is what a gateway used of a key that is new to it. That cannot be
// more than the limits, or the key is not so new.
func firstUsed(key *policy.Key, u subjects.KeyUsage) (requests, tokens int64) {
	return int64(min(u.Requests, uint64(key.RPM))), int64(min(u.Tokens, uint64(key.TPM)))
}

func (u *keyUsage) heard(key *policy.Key, used policy.Used, now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.limits.Heard(key, used, now)
}

// forget takes gateways that fell silent for dead: what they ran, runs no more.
func (k *keyring) forget(now time.Time, awake bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	keys := k.keys.Load()
	for id, p := range k.heard {
		if !awake && p.live {
			p.at = now
		}
		switch silent := now.Sub(p.at); {
		case silent > usageKept:
			delete(k.heard, id)
		case silent > usageSilent && p.live:
			p.live = false
			for key, u := range p.keys {
				if u.Running == 0 {
					continue
				}
				if keys != nil && (*keys)[key] != nil {
					held := (*keys)[key]
					held.usage.heard(&held.Key, policy.Used{Running: -u.Running}, now)
				}
				u.Running = 0
				p.keys[key] = u
			}
		}
	}
	k.countLocked()
}

// countLocked counts the other gateways that live.
func (k *keyring) countLocked() {
	n := 0
	for _, p := range k.heard {
		if p.live {
			n++
		}
	}
	k.peers.Store(int64(n))
}
