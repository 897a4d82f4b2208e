package gateway

import (
	"context"
	"errors"
	"fmt"

	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

// rules is a policy in force, ready to be asked. It is never changed: a new
// policy makes new rules.
type rules struct {
	policystore.Version
	router *policy.Router
	tiers  map[string]policy.Tier
}

func newRules(v policystore.Version) *rules {
	r := &rules{Version: v, router: policy.NewRouter(v.Policy), tiers: make(map[string]policy.Tier, len(v.Policy.Tiers))}
	for _, t := range v.Policy.Tiers {
		r.tiers[t.Name] = t
	}
	return r
}

// tiers are those of the policy in force.
func (g *Gateway) tiers() []policy.Tier { return g.rules.Load().Policy.Tiers }

// followPolicy puts each new policy in force.
func (g *Gateway) followPolicy(ctx context.Context) {
	err := policystore.Follower{Policy: g.obey, Keys: g.keys.set, Trouble: g.policyTrouble}.Run(ctx, g.nc)
	if err != nil {
		g.log.Error("policy is not followed", "err", err)
	}
}

func (g *Gateway) obey(v policystore.Version) {
	before := g.rules.Swap(newRules(v))
	if before.Revision == v.Revision {
		return
	}
	g.log.Info("policy in force", "revision", v.Revision, "by", v.By, "why", v.Why)
	select { // streams and queues of tiers that are new
	case g.newPolicy <- struct{}{}:
	default:
	}
	for _, f := range g.all() { // those whose tier is no more
		if _, there := g.rules.Load().tiers[f.at().tier.Name]; !there {
			f.mu.Lock()
			if !f.over && f.current == nil {
				f.move = true
				f.wake()
			}
			f.mu.Unlock()
		}
	}
}

// policyTrouble notes why the policy may be out of date; nil: it is not.
func (g *Gateway) policyTrouble(err error) {
	text := ""
	switch {
	case errors.Is(err, policystore.ErrNoBucket): // we make it ourselves, soon
	case err != nil:
		text = fmt.Sprintf("out of date, revision %d stays in force: %v", g.rules.Load().Revision, err)
		g.log.Warn("policy not read", "err", err)
		g.event(subjects.Event{Kind: subjects.EventPolicy, Text: "policy " + text})
	case g.stalePolicy.Load() != nil && *g.stalePolicy.Load() != "":
		g.log.Info("policy read again")
	}
	g.stalePolicy.Store(&text)
}
