package doctor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

func (e *examination) findStreams() []fleet.Finding {
	if e.streamsErr != nil {
		return []fleet.Finding{{Verdict: fleet.Problem, Text: fmt.Sprintf("streams cannot be read: %v", e.streamsErr), Remedy: "see permissions and jetstream above"}}
	}
	var found, missing []fleet.Finding
	ours := make(map[string]bool)
	var names []string
	for _, want := range e.expected.all() {
		ours[want.Name] = true
		info := e.streams[want.Name]
		if info == nil {
			names = append(names, want.Name)
			continue
		}
		if unlike := differences(info.Config, want); len(unlike) > 0 {
			found = append(found, fleet.Finding{Verdict: fleet.Problem, Text: fmt.Sprintf("stream %s: %s", want.Name, strings.Join(unlike, "; ")),
				Remedy: "gateways leave what exists as it is: set it right with 'nats stream edit', or remove the stream while nothing waits in it, and a gateway makes it anew"})
		}
		found = append(found, sickReplicas(info)...)
	}
	if len(names) > 0 {
		missing = append(missing, fleet.Finding{Verdict: fleet.Problem, Text: strings.Join(names, ", ") + ": not there",
			Remedy: "start a gateway: it makes them within seconds, or logs why it cannot"})
	}
	for _, name := range slices.Sorted(maps.Keys(e.streams)) {
		if strings.HasPrefix(name, fleet.ReqStreamPrefix) || ours[name] {
			continue // streams of tiers that are not in the policy are seen to under tiers
		}
		found = append(found, fleet.Finding{Verdict: fleet.Problem, Text: fmt.Sprintf("stream %s takes subjects of Pulley's: %s", name, strings.Join(e.streams[name].Config.Subjects, ", ")),
			Remedy: "take pulley.> out of its subjects: it keeps ours from being made, and answers in the gateways' place"})
	}
	return append(missing, found...)
}

// differences are what a stream should not have been set to, in words.
func differences(got, want jetstream.StreamConfig) []string {
	var list []string
	differ := func(what string, got, want any) {
		if got != want {
			list = append(list, fmt.Sprintf("%s is %v, not %v", what, got, want))
		}
	}
	differ("subjects", strings.Join(got.Subjects, " "), strings.Join(want.Subjects, " "))
	differ("retention", got.Retention, want.Retention)
	differ("storage", got.Storage, want.Storage)
	differ("discard", got.Discard, want.Discard)
	differ("discard new per subject", got.DiscardNewPerSubject, want.DiscardNewPerSubject)
	differ("max messages per subject", max(got.MaxMsgsPerSubject, 0), want.MaxMsgsPerSubject) // below 0 is no limit, too
	differ("max age", got.MaxAge, want.MaxAge)
	differ("sealed", got.Sealed, want.Sealed)
	if want.AllowMsgTTL {
		differ("message TTL allowed", got.AllowMsgTTL, true)
	}
	if want.AllowDirect {
		differ("direct get allowed", got.AllowDirect, true)
	}
	return list
}

func sickReplicas(info *jetstream.StreamInfo) []fleet.Finding {
	if info.Cluster == nil {
		return nil
	}
	remedy := "bring its servers back; see 'nats stream report'"
	if info.Cluster.Leader == "" {
		return []fleet.Finding{{Verdict: fleet.Problem, Text: fmt.Sprintf("stream %s has no leader", info.Config.Name), Remedy: remedy}}
	}
	var found []fleet.Finding
	for _, r := range info.Cluster.Replicas {
		if r.Offline || !r.Current && r.Lag > 0 {
			found = append(found, fleet.Finding{Verdict: fleet.Warning, Text: fmt.Sprintf("stream %s: its copy on %s is behind or away", info.Config.Name, r.Name), Remedy: remedy})
		}
	}
	return found
}

// readStreams reads our streams, those of our buckets, and all others that take
// our subjects.
func readStreams(ctx context.Context, js jetstream.JetStream) (map[string]*jetstream.StreamInfo, error) {
	streams := make(map[string]*jetstream.StreamInfo)
	list := js.ListStreams(ctx, jetstream.WithStreamListSubject(subjects.AllSubjects))
	for info := range list.Info() {
		streams[info.Config.Name] = info
	}
	if err := list.Err(); err != nil {
		return nil, err
	}
	usual, err := draw(nil)
	if err != nil {
		return nil, err
	}
	for _, b := range usual.buckets {
		s, err := js.Stream(ctx, "KV_"+b.Bucket)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("bucket %s: %w", b.Bucket, err)
		}
		streams["KV_"+b.Bucket] = s.CachedInfo()
	}
	return streams, nil
}

// blueprint writes down what gateways would create where nothing exists: it is
// a JetStream as far as subjects.EnsureStreams needs one.
type blueprint struct {
	jetstream.JetStream
	streams []jetstream.StreamConfig
	buckets []jetstream.KeyValueConfig
}

func (b *blueprint) Stream(context.Context, string) (jetstream.Stream, error) {
	return nil, jetstream.ErrStreamNotFound
}

func (b *blueprint) CreateStream(_ context.Context, cfg jetstream.StreamConfig) (jetstream.Stream, error) {
	b.streams = append(b.streams, cfg)
	return nil, nil
}

func (b *blueprint) CreateKeyValue(_ context.Context, cfg jetstream.KeyValueConfig) (jetstream.KeyValue, error) {
	b.buckets = append(b.buckets, cfg)
	return nil, nil
}

// all is every stream, with those that buckets are made of.
func (b *blueprint) all() []jetstream.StreamConfig {
	list := slices.Clone(b.streams)
	for _, kv := range b.buckets {
		list = append(list, jetstream.StreamConfig{
			Name: subjects.KVStream(kv.Bucket), Subjects: []string{subjects.KVSubject(kv.Bucket, ">")}, Storage: kv.Storage, MaxAge: kv.TTL,
			MaxMsgsPerSubject: int64(max(kv.History, 1)), Discard: jetstream.DiscardNew, AllowDirect: true,
		})
	}
	return list
}

// draw is the streams and buckets that a policy needs; nil: the default.
func draw(v *policystore.Version) (blueprint, error) {
	tiers := policy.DefaultTiers()
	if v != nil {
		tiers = v.Policy.Tiers
	}
	var b blueprint
	if err := subjects.EnsureStreams(context.Background(), &b, tiers, 1); err != nil {
		return b, fmt.Errorf("draw up the streams: %w", err)
	}
	return b, nil
}
