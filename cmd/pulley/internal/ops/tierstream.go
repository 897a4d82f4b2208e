package ops

import (
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// checkTiers refuses what would lose requests: to remove a tier that has some,
// unless it is forced, or to move a queue that has some between memory and
// file.
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
			return cli.Refusedf("tier %s: %s in it; wait, or say --force to move those that wait to tier %s", t.Name, areIn(n), policy.DefaultTier)
		}
	}
	for _, t := range after.Tiers {
		info, err := misplacedStream(s, t)
		if err != nil {
			return err
		}
		if info != nil && info.State.Msgs > 0 {
			return cli.Refusedf("tier %s: %s in it, and its queue would be made anew in %s; wait until it is empty", t.Name, areIn(info.State.Msgs), t.Storage)
		}
	}
	return nil
}

func areIn(n uint64) string {
	if n == 1 {
		return "1 request is"
	}
	return fmt.Sprintf("%d requests are", n)
}

// tierMessages is how many requests are in a tier, waiting or running.
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

// misplacedStream is the stream of a tier if it is kept elsewhere than the tier
// wants.
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

// deleteMisplacedStreams deletes the streams that are kept elsewhere than their tier
// wants, so that gateways make them anew.
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
			return fmt.Errorf("tier %s: %s in it since a moment ago, so that its queue stays in %v; run this again", t.Name, areIn(info.State.Msgs), info.Config.Storage)
		}
		if err := s.JS.DeleteStream(s.Context(), info.Config.Name); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
			return fmt.Errorf("make the queue of tier %s anew: %w", t.Name, err)
		}
	}
	return nil
}
