package worker

import (
	"cmp"
	"context"
	"errors"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

// policyLoop follows what the operator decides.
func (w *Worker) policyLoop(ctx context.Context) {
	troubled := false
	f := policystore.Follower{
		Policy: w.follow,
		Trouble: func(err error) {
			switch {
			case err == nil:
				if troubled {
					w.log.Info("policy is up to date again")
				}
				troubled = false
			case errors.Is(err, policystore.ErrNoBucket):
				w.log.Debug("policy", "err", err)
			case !troubled:
				troubled = true
				w.log.Warn("policy may be out of date; what was good stays in force", "err", err)
			}
		},
	}
	if err := f.Run(ctx, w.nc); err != nil {
		w.log.Error("policy is not followed", "err", err)
	}
}

// follow puts a policy in force.
func (w *Worker) follow(v policystore.Version) {
	me := v.Policy.Workers[w.cfg.Name]
	w.mu.Lock()
	w.policy = v.Policy
	w.weight = cmp.Or(me.Weight, w.cfg.Weight)
	changed := me.Cordoned != w.cordoned
	w.cordoned = me.Cordoned
	w.arrangeLocked()
	w.bidLocked()
	w.mu.Unlock()
	if !changed {
		return
	}
	if me.Cordoned {
		w.log.Info("worker cordoned", "policy", v.Revision)
	} else {
		w.log.Info("worker uncordoned", "policy", v.Revision)
	}
	w.beat()
}

// leaveAsOrdered makes Run drain and return.
func (w *Worker) leaveAsOrdered(m *nats.Msg) {
	w.mu.Lock()
	left := w.inFlight
	w.mu.Unlock()
	w.order.Do(func() { close(w.ordered) })
	m.Respond(subjects.MustMarshal(subjects.Outcome{From: w.id, Count: left}))
}
