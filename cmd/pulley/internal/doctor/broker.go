package doctor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/plain"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	// minPayload is enough for the headers of a request, and for frames of a useful size.
	minPayload = 64 << 10

	// nearlyFull is the fraction of an account's storage from which on there is a warning.
	nearlyFull = 0.9
)

// minServer is the first version of nats-server with prioritized pull consumers.
var minServer = []int{2, 12}

func (e *examination) findConnection() []fleet.Finding {
	if e.unreachable != nil {
		return []fleet.Finding{fleet.NewProblem(e.unreachable.Error(), "check the server and the credentials: --nats, --context, --creds")}
	}
	var found []fleet.Finding
	if !atLeast(e.version, minServer) {
		found = append(found, fleet.NewProblem(fmt.Sprintf("%s has version %s: bids need prioritized pull consumers", e.server, e.version),
			"upgrade nats-server to 2.12 or later"))
	}
	if e.maxPayload < minPayload {
		found = append(found, fleet.NewProblem(fmt.Sprintf("max_payload is %s: too small for requests and answers", term.Bytes(e.maxPayload)),
			"set max_payload in the configuration of the server to 1MB, its default"))
	}
	return found
}

// atLeast compares a version such as 2.12.3-RC.1 with a minimum. An unknown version passes.
func atLeast(version string, minimum []int) bool {
	var major, minor int
	if _, err := fmt.Sscanf(strings.TrimPrefix(version, "v"), "%d.%d", &major, &minor); err != nil {
		return true // missing, or a development build
	}
	return slices.Compare([]int{major, minor}, minimum) >= 0
}

func (e *examination) findDenied() []fleet.Finding {
	if len(e.denied) == 0 {
		return nil
	}
	return []fleet.Finding{fleet.NewProblem("NATS denies this user to "+strings.Join(e.denied, ", "),
		"connect as an operator (--creds, --context), or allow it in the permissions of the account; the results below are incomplete")}
}

func (e *examination) findJetStream() []fleet.Finding {
	switch {
	case errors.Is(e.accountErr, jetstream.ErrJetStreamNotEnabled), errors.Is(e.accountErr, nats.ErrNoResponders):
		return []fleet.Finding{fleet.NewProblem("JetStream is off: requests cannot be queued", "start nats-server with -js, or use 'pulley broker'")}
	case errors.Is(e.accountErr, jetstream.ErrJetStreamNotEnabledForAccount):
		return []fleet.Finding{fleet.NewProblem("JetStream is off for this account", "enable it in the configuration of the account, or connect to another account")}
	case e.accountErr != nil && len(e.denied) > 0:
		return []fleet.Finding{{Verdict: fleet.Unknown, Text: "could not be read, see permissions"}}
	case e.accountErr != nil:
		return []fleet.Finding{fleet.NewProblem(fmt.Sprintf("JetStream does not answer: %s", plain.Error(e.accountErr)),
			"check that a majority of the cluster's servers is up; see the log of "+e.server)}
	}
	var found []fleet.Finding
	for _, s := range []struct {
		name string
		used uint64
		max  int64
	}{{"memory", e.account.Memory, e.account.Limits.MaxMemory}, {"disk", e.account.Store, e.account.Limits.MaxStore}} {
		if s.max > 0 && float64(s.used) >= nearlyFull*float64(s.max) {
			found = append(found, fleet.NewWarning(fmt.Sprintf("streams use %s of the account's %s of %s", term.Bytes(int64(s.used)), term.Bytes(s.max), s.name),
				"raise the limit of the account; new requests are refused when it is reached"))
		}
	}
	return found
}

// deniedList collects the operations that NATS denies. NATS reports them asynchronously.
type deniedList struct {
	mu   sync.Mutex
	what map[string]bool
}

func (l *deniedList) onError(_ *nats.Conn, _ *nats.Subscription, err error) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return
	}
	// The text is: Permissions Violation for Publish to "$JS.API.INFO"
	_, what, found := strings.Cut(err.Error(), "Violation for ")
	if !found {
		what = plain.Error(err)
	}
	what, _, _ = strings.Cut(what, " using queue")
	what = strings.Replace(what, "Subscription to", "subscribe to", 1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.what == nil {
		l.what = make(map[string]bool)
	}
	l.what[lowerFirst(what)] = true
}

func (l *deniedList) sorted() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Sorted(maps.Keys(l.what))
}

func lowerFirst(s string) string { return strings.ToLower(s[:1]) + s[1:] }

// findStreams compares the streams and buckets with those that a gateway would create.
func (e *examination) findStreams() []fleet.Finding {
	if e.streamsErr != nil {
		return []fleet.Finding{fleet.NewProblem(fmt.Sprintf("streams cannot be read: %s", plain.Error(e.streamsErr)), "see permissions and jetstream above")}
	}
	var found []fleet.Finding
	expected := make(map[string]bool)
	var missing []string
	for _, want := range e.expected.all() {
		expected[want.Name] = true
		info := e.streams[want.Name]
		if info == nil {
			missing = append(missing, want.Name)
			continue
		}
		if differ := differences(info.Config, want); len(differ) > 0 {
			found = append(found, fleet.NewProblem(fmt.Sprintf("stream %s: %s", want.Name, strings.Join(differ, "; ")),
				"gateways do not change existing streams: correct it with 'nats stream edit', or remove the stream while it is empty and let a gateway create it again"))
		}
		if info.Cluster != nil && info.Cluster.Leader == "" {
			found = append(found, fleet.NewProblem(fmt.Sprintf("stream %s has no leader", info.Config.Name), "restart the missing servers: a majority of its replicas must run"))
		}
	}
	found = append(found, replicaFindings(e.streams)...)
	if len(missing) > 0 {
		found = slices.Insert(found, 0, fleet.NewProblem("missing: "+strings.Join(missing, ", "),
			"start a gateway: it creates them within seconds; if one runs, see gateways below for why it cannot"))
	}
	for _, name := range slices.Sorted(maps.Keys(e.streams)) {
		if strings.HasPrefix(name, fleet.ReqStreamPrefix) || expected[name] || slices.Contains(serviceStreams, name) {
			continue // the check of tiers reports streams of tiers that are not in the policy
		}
		found = append(found, fleet.NewProblem(fmt.Sprintf("stream %s captures subjects of Pulley: %s", name, strings.Join(e.streams[name].Config.Subjects, ", ")),
			"remove pulley.> from its subjects: it prevents the creation of Pulley's streams, and answers requests that are meant for gateways"))
	}
	return found
}

// serviceStreams are those that gateways create when they are first needed, or not at all.
var serviceStreams = []string{
	subjects.UsageStream, subjects.FilesStream, subjects.RecordsStream, subjects.ResultsStream,
	subjects.BackgroundJobs, subjects.BackgroundStates, subjects.BackgroundData, subjects.IdempotencyStream, subjects.IdempotencyUses,
}

// differences lists the settings of a stream that differ from the expected ones.
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
	differ("max messages per subject", max(got.MaxMsgsPerSubject, 0), want.MaxMsgsPerSubject) // -1 and 0 both mean no limit
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

// replicaFindings reports the brokers that are silent, or whose replicas lag, each once.
func replicaFindings(streams map[string]*jetstream.StreamInfo) (found []fleet.Finding) {
	silent, behind := make(map[string]time.Duration), make(map[string][]string) // streams by broker
	for _, name := range slices.Sorted(maps.Keys(streams)) {
		if streams[name].Cluster == nil {
			continue
		}
		for _, r := range streams[name].Cluster.Replicas {
			if s := subjects.SilentMember(r); s > 0 {
				silent[r.Name] = max(silent[r.Name], s)
			} else if !r.Current && r.Lag > 0 {
				behind[r.Name] = append(behind[r.Name], name)
			}
		}
	}
	of := func(names []string) string {
		if len(names) == 1 {
			return "stream " + names[0]
		}
		return fmt.Sprintf("%d streams, such as %s", len(names), names[0])
	}
	for _, broker := range slices.Sorted(maps.Keys(silent)) {
		found = append(found, fleet.SilentBroker(broker, silent[broker]))
		delete(behind, broker)
	}
	for _, broker := range slices.Sorted(maps.Keys(behind)) {
		found = append(found, fleet.NewWarning(fmt.Sprintf("broker %s: its replica is behind of %s", broker, of(behind[broker])), "it catches up by itself; if it does not, see its log, disk and network"))
	}
	return found
}

// readStreams reads Pulley's streams, the streams of its buckets, and all other streams that capture its subjects.
func readStreams(ctx context.Context, js jetstream.JetStream) (map[string]*jetstream.StreamInfo, error) {
	streams := make(map[string]*jetstream.StreamInfo)
	list := js.ListStreams(ctx, jetstream.WithStreamListSubject(subjects.AllSubjects))
	for info := range list.Info() {
		streams[info.Config.Name] = info
	}
	if err := list.Err(); err != nil {
		return nil, err
	}
	usual, err := expectedStreams(nil)
	if err != nil {
		return nil, err
	}
	for _, b := range usual.buckets {
		s, err := js.Stream(ctx, subjects.KVStream(b.Bucket))
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("bucket %s: %w", b.Bucket, err)
		}
		streams[subjects.KVStream(b.Bucket)] = s.CachedInfo()
	}
	return streams, nil
}

// streamRecorder records the streams and buckets that gateways would create on an empty broker: it is a JetStream as
// far as subjects.EnsureStreams needs one.
type streamRecorder struct {
	jetstream.JetStream
	streams []jetstream.StreamConfig
	buckets []jetstream.KeyValueConfig
}

func (b *streamRecorder) Stream(context.Context, string) (jetstream.Stream, error) {
	return nil, jetstream.ErrStreamNotFound
}

func (b *streamRecorder) CreateStream(_ context.Context, cfg jetstream.StreamConfig) (jetstream.Stream, error) {
	b.streams = append(b.streams, cfg)
	return nil, nil
}

func (b *streamRecorder) CreateKeyValue(_ context.Context, cfg jetstream.KeyValueConfig) (jetstream.KeyValue, error) {
	b.buckets = append(b.buckets, cfg)
	return nil, nil
}

// all returns all streams, including those of the buckets.
func (b *streamRecorder) all() []jetstream.StreamConfig {
	list := slices.Clone(b.streams)
	for _, kv := range b.buckets {
		list = append(list, jetstream.StreamConfig{
			Name: subjects.KVStream(kv.Bucket), Subjects: []string{subjects.KVSubject(kv.Bucket, ">")}, Storage: kv.Storage, MaxAge: kv.TTL,
			MaxMsgsPerSubject: int64(max(kv.History, 1)), Discard: jetstream.DiscardNew, AllowDirect: true,
		})
	}
	return list
}

// expectedStreams returns the streams and buckets for a policy; nil is the default one.
func expectedStreams(v *policystore.Version) (streamRecorder, error) {
	tiers := policy.DefaultTiers()
	if v != nil {
		tiers = v.Policy.Tiers
	}
	var b streamRecorder
	if err := subjects.EnsureStreams(context.Background(), &b, tiers, 1); err != nil {
		return b, fmt.Errorf("list the expected streams: %w", err)
	}
	return b, nil
}
