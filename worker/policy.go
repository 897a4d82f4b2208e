package worker

import (
	"cmp"
	"context"
	"errors"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

func (w *Worker) policyLoop(ctx context.Context) {
	failing := false
	f := policystore.Follower{
		Policy: w.onPolicy,
		Trouble: func(err error) {
			switch {
			case err == nil:
				if failing {
					w.log.Info("policy is up to date again")
				}
				failing = false
			case errors.Is(err, policystore.ErrNoBucket):
				w.log.Debug("policy not read", "err", err)
			case !failing:
				failing = true
				w.log.Warn("cannot read the policy; keeping the last valid revision", "err", err)
			}
		},
	}
	if err := f.Run(ctx, w.nc); err != nil {
		w.log.Error("cannot follow the policy", "err", err)
	}
}

func (w *Worker) onPolicy(v policystore.Version) {
	me := v.Policy.Workers[w.cfg.Name]
	changed := w.presence.follow(me.Cordoned, cmp.Or(me.Weight, w.cfg.Weight))
	w.bidder.follow(v.Policy)
	w.bid()
	switch {
	case !changed:
		return
	case me.Cordoned:
		w.log.Info("worker cordoned", "policy", v.Revision)
	default:
		w.log.Info("worker uncordoned", "policy", v.Revision)
	}
	w.presence.beat()
}

// onDrainOrder makes Run drain and return.
func (w *Worker) onDrainOrder(m *nats.Msg) {
	w.order.give(ErrDrained)
	if !subjects.MayAnswer(m.Reply) {
		return
	}
	m.Respond(subjects.MustMarshal(subjects.Outcome{From: w.id, Count: w.capacity.load().inFlight}))
}
