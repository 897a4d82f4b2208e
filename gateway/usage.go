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

const (
	// usageAlive is how often a gateway that has nothing to report sends an empty report.
	usageAlive = time.Second

	// usageSilent is after how much silence a gateway counts as dead.
	usageSilent = 3 * time.Second

	// usageAll is how often a gateway reports every key.
	usageAll = 5 * time.Second

	// usageKept is how long a silent gateway is remembered, in case it comes back.
	usageKept = time.Minute

	// keysInReport is how many keys fit well into one message.
	keysInReport = 2000
)

// peerUsage is what another gateway reported last.
type peerUsage struct {
	at   time.Time
	live bool
	keys map[string]subjects.KeyUsage

	answered uint64 // the number of this gateway's last question that it has answered
}

// otherUsage is what another gateway has used of a key. It is counted after the keyring's lock is released.
type otherUsage struct {
	key  *activeKey
	used policy.Used
}

// run exchanges reports with the other gateways until ctx is done: what is used here, and what is used there.
func (k *keyring) run(ctx context.Context) {
	reports := make(chan *nats.Msg, 1024)
	sub, err := k.bus.nc.ChanSubscribe(subjects.UsageReports, reports)
	if err != nil {
		k.bus.log.Error("cannot receive the key usage of other gateways", "err", err)
		return
	}
	defer sub.Unsubscribe()
	tick := time.NewTicker(subjects.UsageEvery)
	defer tick.Stop()
	k.report(true, true)
	now := time.Now()
	disconnected, reported, reportedAll := now, now, now
	synced := k.synced // nil once it is closed
	for {
		select {
		case <-ctx.Done():
			k.report(true, true)
			return
		case m := <-reports:
			k.onReport(m.Data, time.Now())
		case <-k.ask:
			k.askOthers()
		case <-tick.C:
			last := now
			now = time.Now()
			connected := k.bus.nc.IsConnected()
			if !connected {
				disconnected = now
			}
			if synced != nil && now.Sub(disconnected) > policy.ReportDelay {
				k.syncedAt = now
				close(synced)
				synced = nil
			}
			// While this gateway was stopped or disconnected, silence proves nothing.
			k.expire(now, connected && now.Sub(last) < usageSilent/2)
			all := now.Sub(reportedAll) >= usageAll
			if k.report(all, now.Sub(reported) >= usageAlive) {
				reported = now
			}
			if all {
				reportedAll = now
			}
		}
	}
}

// report publishes the usage of the keys that changed, or of all. If there is none it publishes an empty report if it
// must, as a sign of life, else nothing.
func (k *keyring) report(all, must bool) (published bool) {
	for part := range slices.Chunk(k.takeChanged(all), keysInReport) {
		message := subjects.UsageReport{Gateway: k.bus.id, Keys: make(map[string]subjects.KeyUsage)}
		for _, key := range part {
			if own := key.usage.own(); own != (policy.Used{}) {
				message.Keys[key.ID] = reported(own)
			}
		}
		if len(message.Keys) > 0 {
			k.bus.publish(subjects.UsageReports, message)
			published = true
		}
	}
	if must && !published {
		k.bus.publish(subjects.UsageReports, subjects.UsageReport{Gateway: k.bus.id})
		published = true
	}
	return published
}

// reported is what a report says of the use of a key.
func reported(own policy.Used) subjects.KeyUsage {
	return subjects.KeyUsage{
		Requests: uint64(own.Requests), Tokens: uint64(own.Tokens), Running: own.Running, Claims: own.Claims.Requests, ClaimTokens: own.Claims.Tokens,
	}
}

// askOthers asks the other gateways about the keys of new claims, which the question tells them.
func (k *keyring) askOthers() {
	k.changedMu.Lock()
	asking, number := k.asking, k.question
	k.asking, k.question = nil, number+1
	k.changedMu.Unlock()
	message := subjects.UsageReport{Gateway: k.bus.id, Ask: number, Keys: make(map[string]subjects.KeyUsage)}
	for _, key := range asking {
		message.Keys[key.ID] = reported(key.usage.own())
	}
	k.bus.publish(subjects.UsageReports, message)
}

// answer answers the question of another gateway.
func (k *keyring) answer(question *subjects.UsageReport) {
	message := subjects.UsageReport{Gateway: k.bus.id, Answers: map[string]uint64{question.Gateway: question.Ask}, Keys: make(map[string]subjects.KeyUsage)}
	keys := k.keys.Load()
	for id := range question.Keys {
		message.Keys[id] = subjects.KeyUsage{}
		if keys != nil && (*keys)[id] != nil {
			message.Keys[id] = reported((*keys)[id].usage.own())
		}
	}
	k.bus.publish(subjects.UsageReports, message)
}

// takeChanged returns the keys to report: those that changed since the last call, or all.
func (k *keyring) takeChanged(all bool) []*activeKey {
	k.changedMu.Lock()
	list := k.changed
	k.changed = nil
	k.changedMu.Unlock()
	for _, key := range list {
		key.usage.changed.Store(false) // before the usage is read: a later change is in the next report
	}
	if keys := k.keys.Load(); all && keys != nil {
		return slices.Collect(maps.Values(*keys))
	}
	return list
}

// onReport takes in another gateway's report. A gateway that is new here gets a full report at once: it may have just
// started.
func (k *keyring) onReport(body []byte, now time.Time) {
	var report subjects.UsageReport
	if err := subjects.Unmarshal(body, &report); err != nil || report.Gateway == k.bus.id {
		return
	}
	used, isNew := k.record(&report, now)
	for _, u := range used {
		u.key.usage.addOther(&u.key.Key, u.used, now)
	}
	if question := report.Answers[k.bus.id]; question > 0 {
		k.heard(report.Gateway, question)
		for _, u := range used {
			u.key.usage.wake()
		}
	}
	if isNew {
		k.report(true, true)
	}
	if report.Ask > 0 {
		k.answer(&report)
	}
}

// record remembers a report and returns what was used since the gateway's last one, and whether the gateway was unknown or
// silent before.
func (k *keyring) record(report *subjects.UsageReport, now time.Time) (list []otherUsage, isNew bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.others[report.Gateway]
	unknown := p == nil
	if unknown {
		p = &peerUsage{keys: make(map[string]subjects.KeyUsage)}
		k.others[report.Gateway] = p
	}
	isNew = !p.live
	p.at, p.live = now, true
	k.countLocked()
	keys := k.keys.Load()
	for id, u := range report.Keys {
		before, known := p.keys[id]
		p.keys[id] = u
		if keys == nil || (*keys)[id] == nil {
			continue // set catches up
		}
		key := (*keys)[id]
		used := k.running(report.Gateway, u, before)
		switch {
		case unknown: // it ran before this gateway did: when it used what is unknown
		case known && u.Requests >= before.Requests:
			used.Requests, used.Tokens = int64(u.Requests-before.Requests), int64(u.Tokens-before.Tokens)
		default: // the key is new there, perhaps for the second time
			used.Requests, used.Tokens = firstUsed(&key.Key, u)
		}
		list = append(list, otherUsage{key, used})
	}
	return list, isNew
}

// running is what has changed in a gateway's counts. Gateways come in the order of their ids.
func (k *keyring) running(gateway string, now, before subjects.KeyUsage) policy.Used {
	used := policy.Used{
		Running: now.Running - before.Running, Claims: policy.Claims{Requests: now.Claims - before.Claims, Tokens: now.ClaimTokens - before.ClaimTokens},
	}
	if gateway < k.bus.id {
		used.First = used.Claims
	}
	return used
}

// firstUsed is what a gateway used of a key that is new to it: no more than the limits, else the key is not new.
func firstUsed(key *policy.Key, u subjects.KeyUsage) (requests, tokens int64) {
	return int64(min(u.Requests, uint64(key.RPM))), int64(min(u.Tokens, uint64(key.TPM)))
}

// expire counts silent gateways as dead, and their requests as ended. awake says that this gateway itself was running and
// connected.
func (k *keyring) expire(now time.Time, awake bool) {
	for _, u := range k.expired(now, awake) {
		u.key.usage.addOther(&u.key.Key, u.used, now)
	}
}

func (k *keyring) expired(now time.Time, awake bool) (list []otherUsage) {
	k.mu.Lock()
	defer k.mu.Unlock()
	keys := k.keys.Load()
	for id, p := range k.others {
		if !awake && p.live {
			p.at = now
		}
		switch silent := now.Sub(p.at); {
		case silent > usageKept:
			delete(k.others, id)
		case silent > usageSilent && p.live:
			p.live = false
			for key, u := range p.keys {
				ended := u
				ended.Running, ended.Claims, ended.ClaimTokens = 0, 0, 0
				if u == ended {
					continue
				}
				if keys != nil && (*keys)[key] != nil {
					list = append(list, otherUsage{(*keys)[key], k.running(id, ended, u)})
				}
				p.keys[key] = ended
			}
		}
	}
	k.countLocked()
	return list
}

func (k *keyring) countLocked() {
	n := 0
	for _, p := range k.others {
		if p.live {
			n++
		}
	}
	k.peers.Store(int64(n))
}
