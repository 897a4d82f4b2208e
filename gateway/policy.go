package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

// rules are a policy in force, prepared for lookups. They never change: a new policy makes new rules.
type rules struct {
	policystore.Version
	router   *policy.Router
	tiers    map[string]policy.Tier
	sessions []string // headers that name a session, in canonical form
}

func newRules(v policystore.Version) *rules {
	r := &rules{Version: v, router: policy.NewRouter(v.Policy), tiers: make(map[string]policy.Tier, len(v.Policy.Tiers))}
	for _, t := range v.Policy.Tiers {
		r.tiers[t.Name] = t
	}
	names := v.Policy.SessionHeaders
	if names == nil {
		names = policy.DefaultSessionHeaders
	}
	for _, n := range names {
		r.sessions = append(r.sessions, http.CanonicalHeaderKey(n))
	}
	return r
}

// policyFollower puts each new policy, and each new set of keys, in force.
type policyFollower struct {
	bus      *bus
	keys     *keyring
	streams  *streams
	requests *requests

	trouble atomic.Pointer[string] // why the policy may be out of date; empty if it is not
	since   atomic.Int64           // when the revision was put in force, in Unix nanoseconds; 0: none was
}

// run follows the policy until ctx is done.
func (p *policyFollower) run(ctx context.Context) {
	err := policystore.Follower{Policy: p.apply, Keys: p.keys.set, Trouble: p.onTrouble}.Run(ctx, p.bus.nc)
	if err != nil {
		p.bus.log.Error("cannot follow the policy", "err", err)
	}
}

// apply puts a policy in force. Requests whose tier is gone move to the default tier.
func (p *policyFollower) apply(v policystore.Version) {
	before := p.bus.rules.Swap(newRules(v))
	if before.Revision != v.Revision || p.since.Load() == 0 {
		p.since.Store(time.Now().UnixNano())
	}
	if before.Revision == v.Revision {
		return
	}
	p.bus.log.Info("policy in force", "revision", v.Revision, "by", v.By, "why", v.Why)
	if time.Since(v.At) < time.Minute { // else it was there before the gateway
		p.bus.events.add(subjects.Event{At: v.At, Kind: subjects.EventPolicy, From: v.By, Text: fmt.Sprintf("%s, revision %d", v.Why, v.Revision)})
	}
	p.streams.policyChanged()
	tiers := p.bus.rules.Load().tiers
	for _, r := range p.requests.all() {
		if _, ok := tiers[r.target.Load().tier.Name]; !ok {
			r.onTierGone()
		}
	}
}

// onTrouble notes why the policy may be out of date; nil: it is not.
func (p *policyFollower) onTrouble(err error) {
	text := ""
	switch {
	case errors.Is(err, policystore.ErrNoBucket): // the gateway creates it soon
	case err != nil:
		text = fmt.Sprintf("out of date, revision %d stays in force: %v", p.bus.rules.Load().Revision, err)
		p.bus.log.Warn("cannot read the policy; keeping the last valid revision", "err", err)
		p.bus.event(subjects.Event{Kind: subjects.EventPolicy, Text: "policy " + text})
	case p.trouble.Load() != nil && *p.trouble.Load() != "":
		p.bus.log.Info("policy read again")
	}
	p.trouble.Store(&text)
}

// inForceSince is when the revision was put in force; now, if none has been read yet.
func (p *policyFollower) inForceSince() time.Time {
	if since := p.since.Load(); since != 0 {
		return time.Unix(0, since)
	}
	return time.Now()
}

// outOfDate is why the policy may be out of date; empty if it is not.
func (p *policyFollower) outOfDate() string {
	if trouble := p.trouble.Load(); trouble != nil {
		return *trouble
	}
	return ""
}

// state describes the policy in force, for /readyz.
func (p *policyFollower) state() string {
	if trouble := p.outOfDate(); trouble != "" {
		return trouble
	}
	return fmt.Sprintf("revision %d", p.bus.rules.Load().Revision)
}
