package ops

import (
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// checkTiers refuses changes that would lose requests: removing a tier that has
// requests, unless --force was given, and moving the queue of such a tier between memory
// and file.
func checkTiers(s *cli.Session, before, after *policy.Policy) error {
	for _, t := range before.Tiers {
		if _, stays := after.Tier(t.Name); stays || s.Force {
			continue
		}
		n, err := tierMessages(s, t.Name)
		if err != nil {
			return err
		}
		if n > 0 {
			return cli.Refusedf("tier %s has %s: wait until it is empty, or use --force to move the waiting ones to tier %s", t.Name, term.Count(n, "request"), policy.DefaultTier)
		}
	}
	for _, t := range after.Tiers {
		info, err := misplacedStream(s, t)
		if err != nil {
			return err
		}
		if info != nil && info.State.Msgs > 0 {
			return cli.Refusedf("tier %s has %s, and moving its queue to %s would lose them: wait until it is empty", t.Name, term.Count(info.State.Msgs, "request"), t.Storage)
		}
	}
	return nil
}

// tierMessages counts the requests in the stream of a tier, waiting and running.
func tierMessages(s *cli.Session, tier string) (uint64, error) {
	stream, err := s.JS.Stream(s.Context(), subjects.ReqStream(tier))
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("stream of tier %s: %w", tier, err)
	}
	return stream.CachedInfo().State.Msgs, nil
}

// misplacedStream returns the stream of a tier if its storage is not the one that the
// tier should have; otherwise nil.
func misplacedStream(s *cli.Session, t policy.Tier) (*jetstream.StreamInfo, error) {
	stream, err := s.JS.Stream(s.Context(), subjects.ReqStream(t.Name))
	if errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, jetstream.ErrInvalidStreamName) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("stream of tier %s: %w", t.Name, err)
	}
	info := stream.CachedInfo()
	if (info.Config.Storage == jetstream.FileStorage) == (t.Storage == policy.File) {
		return nil, nil
	}
	return info, nil
}

// deleteMisplacedStreams deletes the empty streams whose storage must change. Gateways
// create them again.
func deleteMisplacedStreams(s *cli.Session, p *policy.Policy) error {
	for _, t := range p.Tiers {
		info, err := misplacedStream(s, t)
		if err != nil {
			return err
		}
		if info == nil {
			continue
		}
		if info.State.Msgs > 0 {
			return fmt.Errorf("tier %s has received %s just now: its queue stays in %v; run the command again", t.Name, term.Count(info.State.Msgs, "request"), info.Config.Storage)
		}
		if err := s.JS.DeleteStream(s.Context(), info.Config.Name); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
			return fmt.Errorf("move the queue of tier %s: %w", t.Name, err)
		}
	}
	return nil
}
