package gateway

import (
	"slices"
	"time"

	"github.com/pulley-lb/pulley/policy"
)

const (
	// claimWait is how long a request may wait as a claim: until the other gateways have answered, and until one ends whose client
	// has read the last of its answer already.
	claimWait = 2 * policy.ReportDelay

	// claimAnswered is how long it waits if another gateway has not answered yet: a busy machine may stop one for a moment.
	claimAnswered = time.Second

	// maxClaims bounds the claims of one key at one gateway, and with that the questions about it.
	maxClaims = 16
)

// claim waits a moment for room for a request that is refused by what is known here, but might not be by what the other
// gateways know, or in a moment: see [policy.KeyLimits]. It says whether the request is admitted.
func (k *keyring) claim(key *activeKey, tokens int) bool {
	u, wake := key.usage, make(chan struct{}, 1)
	if !u.claim(tokens, wake) {
		return false
	}
	defer k.markChanged(key)
	question := k.askAbout(key)
	timer := time.NewTimer(claimWait)
	defer timer.Stop()
	for late := false; ; {
		answered := k.answered(question)
		if answered && u.decide(&key.Key, tokens, wake) {
			return true
		}
		if late && answered {
			break
		}
		select {
		case <-wake:
			continue
		case <-timer.C:
		}
		if late || k.answered(question) {
			break
		}
		late = true
		timer.Reset(claimAnswered - claimWait)
	}
	u.drop(tokens, wake)
	return false
}

// askAbout has the other gateways asked about a key, and returns the number of the question.
func (k *keyring) askAbout(key *activeKey) uint64 {
	k.changedMu.Lock()
	if !slices.Contains(k.asking, key) {
		k.asking = append(k.asking, key)
	}
	question := k.question
	k.changedMu.Unlock()
	select {
	case k.ask <- struct{}{}:
	default: // run is about to ask
	}
	return question
}

// heard notes that another gateway has answered a question, once what it said is counted.
func (k *keyring) heard(gateway string, question uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if p := k.others[gateway]; p != nil {
		p.answered = max(p.answered, question)
	}
}

// answered says whether all other gateways that live have answered a question.
func (k *keyring) answered(question uint64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range k.others {
		if p.live && p.answered < question {
			return false
		}
	}
	return true
}

// claim notes a claim, unless there are too many.
func (u *keyUsage) claim(tokens int, wake chan struct{}) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.claims) >= maxClaims {
		return false
	}
	u.limits.Claim(tokens)
	u.claims = append(u.claims, wake)
	return true
}

// decide admits the request of a claim if there is room for it.
func (u *keyUsage) decide(key *policy.Key, tokens int, wake chan struct{}) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.limits.Decide(key, tokens, time.Now()) {
		return false
	}
	u.forgetLocked(wake)
	return true
}

func (u *keyUsage) drop(tokens int, wake chan struct{}) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.limits.Drop(tokens)
	u.forgetLocked(wake)
}

func (u *keyUsage) forgetLocked(wake chan struct{}) {
	u.claims = slices.DeleteFunc(u.claims, func(c chan struct{}) bool { return c == wake })
}

func (u *keyUsage) wake() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.wakeLocked()
}

// wakeLocked has the claims decided again.
func (u *keyUsage) wakeLocked() {
	for _, c := range u.claims {
		select {
		case c <- struct{}{}:
		default: // it is awake
		}
	}
}
