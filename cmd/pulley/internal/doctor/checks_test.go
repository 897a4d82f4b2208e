package doctor

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/batch"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

// healthy returns an examination without findings.
func healthy(t *testing.T) *examination {
	t.Helper()
	snapshot := clitest.SnapshotAtNoon()
	snapshot.Workers, snapshot.Lanes, snapshot.Requests, snapshot.Held = snapshot.Workers[:1], snapshot.Lanes[1:2], nil, nil
	snapshot.Complete()
	e := &examination{
		server: "nats://broker-1:4222", version: "2.12.0", maxPayload: 1 << 20, account: &jetstream.AccountInfo{}, fleet: snapshot,
		streams: make(map[string]*jetstream.StreamInfo), keys: map[string]policy.Key{"k1": {ID: "k1", Tenant: "acme"}},
	}
	var err error
	if e.expected, err = expectedStreams(snapshot.Policy); err != nil {
		t.Fatal(err)
	}
	for _, cfg := range e.expected.all() {
		e.streams[cfg.Name] = &jetstream.StreamInfo{Config: cfg}
	}
	e.streams[subjects.UsageStream] = &jetstream.StreamInfo{Config: jetstream.StreamConfig{Name: subjects.UsageStream, Subjects: []string{subjects.AllUsage}}}
	for _, cfg := range append(batchStreams(), backgroundStreams()...) {
		e.streams[cfg.Name] = &jetstream.StreamInfo{Config: cfg}
	}
	e.stored.at = clitest.Noon
	e.stored.open = []batch.Open{openBatch(func(*batch.Open) {})}
	return e
}

// openBatch is a batch that goes on at noon, but for what change changes.
func openBatch(change func(*batch.Open)) batch.Open {
	b := batch.Open{
		ID: "batch_1", Tenant: "acme", Status: batch.InProgress, Lines: 9, Done: 3, Owned: true, Written: clitest.Noon.Add(-2 * time.Second), Moved: clitest.Noon.Add(-time.Minute),
		Until: clitest.Noon.Add(time.Hour),
	}
	change(&b)
	return b
}

func TestFindingsFitTheTerminal(t *testing.T) {
	p := term.Page{Terminal: term.Terminal{Width: 60, Height: 24}}
	findingsView([]fleet.Finding{{Check: "streams", Verdict: fleet.Problem, Text: strings.Repeat("word ", 30), Remedy: strings.Repeat("remedy ", 20)}}).Print(&p)
	if got := p.String(); strings.Contains(got, "…") || strings.Count(got, "word") != 30 || strings.Count(got, "\n") < 8 {
		t.Errorf("got\n%s", got)
	}
}

func TestNoFindings(t *testing.T) {
	for _, d := range healthy(t).findings() {
		if d.Verdict != fleet.OK || d.Text == "" || d.Remedy != "" {
			t.Errorf("%+v", d)
		}
	}
}

func TestFindings(t *testing.T) {
	snapshot := func(change func(*fleet.Snapshot)) func(*examination) {
		return func(e *examination) {
			change(&e.fleet)
			e.fleet.Complete()
		}
	}
	worker := func(change func(*fleet.WorkerStatus)) func(*examination) {
		return snapshot(func(s *fleet.Snapshot) { change(&s.Workers[0]) })
	}
	reporting := func(state subjects.State, gpus ...subjects.GPU) func(*examination) {
		return worker(func(w *fleet.WorkerStatus) { w.State, w.NVML = state, &subjects.NVML{Mode: "auto", GPUs: gpus} })
	}
	failing := func(k gpu.Kind, container bool) func(*examination) {
		return worker(func(w *fleet.WorkerStatus) {
			w.NVML = &subjects.NVML{Mode: "auto", Failure: &gpu.Failure{Kind: k, Container: container}}
		})
	}
	room := func(change func(*fleet.WorkerStatus)) func(*examination) {
		return worker(func(w *fleet.WorkerStatus) {
			w.Capacity = &subjects.Capacity{Profile: "balanced", Total: 16, Bound: policy.BoundKV, Factor: 1, Engine: "fresh", GPU: "missing"}
			w.EngineStatus = &subjects.EngineStatus{Dialect: "vllm", At: clitest.Noon}
			change(w)
		})
	}
	tests := map[string]struct {
		change  func(*examination)
		verdict fleet.Verdict
		check   string
		text    string // in it
		remedy  string // in it
	}{
		"no connection":  {func(e *examination) { e.unreachable = errors.New("cannot reach NATS") }, fleet.Problem, "nats", "cannot reach NATS", "--nats"},
		"old server":     {func(e *examination) { e.version = "2.11.9" }, fleet.Problem, "nats", "version 2.11.9", "2.12"},
		"small payload":  {func(e *examination) { e.maxPayload = 4096 }, fleet.Problem, "nats", "max_payload is 4096 B", "max_payload"},
		"not allowed":    {func(e *examination) { e.denied = []string{`publish to "$JS.API.INFO"`} }, fleet.Problem, "permissions", `publish to "$JS.API.INFO"`, "--creds"},
		"no JetStream":   {func(e *examination) { e.accountErr = jetstream.ErrJetStreamNotEnabled }, fleet.Problem, "jetstream", "JetStream is off", "-js"},
		"not in account": {func(e *examination) { e.accountErr = jetstream.ErrJetStreamNotEnabledForAccount }, fleet.Problem, "jetstream", "for this account", "another account"},
		"no leader":      {func(e *examination) { e.accountErr = errors.New("timeout") }, fleet.Problem, "jetstream", "does not answer: timeout", "majority"},
		"nearly full": {func(e *examination) {
			e.account.Store, e.account.Limits.MaxStore = 95<<20, 100<<20
		}, fleet.Warning, "jetstream", "95 MiB of the account's 100 MiB of disk", "limit"},
		"a stream of batches is missing":   {func(e *examination) { delete(e.streams, subjects.ResultsStream) }, fleet.Problem, "batches", "missing: PULLEY_BATCH_RESULTS", "restart a gateway"},
		"a stream of batches is otherwise": {func(e *examination) { e.streams[subjects.FilesStream].Config.AllowMsgTTL = false }, fleet.Problem, "batches", "PULLEY_FILES: message TTL allowed is false", "nats stream edit"},
		"batches have little room": {func(e *examination) {
			e.stored.settings.Disk = 100 << 20
			e.streams[subjects.FilesStream].State.Bytes, e.streams[subjects.ResultsStream].State.Bytes = 60<<20, 35<<20
		}, fleet.Warning, "batches", "95 MiB of 100 MiB are used", "--batch-disk"},
		"batches have no room": {func(e *examination) {
			e.stored.settings.Disk, e.streams[subjects.FilesStream].State.Bytes = 1<<20, 1<<20
		}, fleet.Problem, "batches", "more is refused", "pulley file rm"},
		"batches cannot be read": {func(e *examination) { e.stored.err = errors.New("timeout") }, fleet.Problem, "batches", "cannot be read: timeout", "permissions"},
		"a batch without a gateway": {func(e *examination) {
			e.stored.open = []batch.Open{openBatch(func(b *batch.Open) { b.Owned, b.Written = false, clitest.Noon.Add(-3*time.Minute) })}
		}, fleet.Warning, "batches", "batch_1 of tenant acme, 3 of 9 requests ended: no gateway has taken it for 3m", "--batch-running"},
		"a batch whose gateway died": {func(e *examination) {
			e.stored.open = []batch.Open{openBatch(func(b *batch.Open) { b.Written = clitest.Noon.Add(-3 * time.Minute) })}
		}, fleet.Problem, "batches", "its gateway has written nothing for 3m", "start a gateway"},
		"a batch that does not go on": {func(e *examination) {
			e.stored.open = []batch.Open{openBatch(func(b *batch.Open) { b.Moved = clitest.Noon.Add(-20 * time.Minute) })}
		}, fleet.Warning, "batches", "none has ended for 20m", "pulley pool ls"},
		"many batches": {func(e *examination) {
			e.stored.open = slices.Repeat([]batch.Open{openBatch(func(b *batch.Open) { b.Written = time.Time{} })}, 12)
		}, fleet.Problem, "batches", "; 11 more like it", "start a gateway"},
		"background responses have little room": {func(e *examination) {
			s := e.streams[subjects.BackgroundData]
			s.Config.MaxBytes, s.State.Bytes = 100<<20, 95<<20
		}, fleet.Warning, "background", "PULLEY_BACKGROUND_DATA: 95 MiB of 100 MiB are used", "max-bytes"},
		"a stream of background responses is missing": {func(e *examination) { delete(e.streams, subjects.BackgroundData) }, fleet.Problem, "background", "missing: PULLEY_BACKGROUND_DATA", "restart a gateway"},
		"a stream is missing":                         {func(e *examination) { delete(e.streams, "PULLEY_REQ_BATCH") }, fleet.Problem, "streams", "missing: PULLEY_REQ_BATCH", "gateway"},
		"a bucket is missing":                         {func(e *examination) { delete(e.streams, "KV_PULLEY_WORKERS") }, fleet.Problem, "streams", "missing: KV_PULLEY_WORKERS", "gateway"},
		"a tier has no stream": {func(e *examination) {
			e.expected.streams = append(e.expected.streams, jetstream.StreamConfig{Name: "PULLEY_REQ_GOLD"})
		}, fleet.Problem, "streams", "missing: PULLEY_REQ_GOLD", "gateway"},
		"a stream is otherwise": {func(e *examination) { e.streams["PULLEY_REQ_BATCH"].Config.Retention = jetstream.LimitsPolicy }, fleet.Problem, "streams", "PULLEY_REQ_BATCH: retention is Limits, not WorkQueue", "nats stream edit"},
		"a foreign stream": {func(e *examination) {
			e.streams["AUDIT"] = &jetstream.StreamInfo{Config: jetstream.StreamConfig{Name: "AUDIT", Subjects: []string{"pulley.>"}}}
		}, fleet.Problem, "streams", "AUDIT captures subjects of Pulley: pulley.>", "remove pulley.>"},
		"a copy is away": {func(e *examination) {
			e.streams["PULLEY_REQ_BATCH"].Cluster = &jetstream.ClusterInfo{Leader: "n1", Replicas: []*jetstream.PeerInfo{{Name: "n2", Current: true}, {Name: "n3", Offline: true}}}
		}, fleet.Warning, "streams", "broker n3 is silent", "start it again"},
		"a broker is gone": {func(e *examination) {
			for _, name := range []string{"PULLEY_REQ_BATCH", "KV_PULLEY_POLICY"} {
				e.streams[name].Cluster = &jetstream.ClusterInfo{Leader: "n1", Replicas: []*jetstream.PeerInfo{{Name: "n2", Current: true, Active: time.Second}, {Name: "n3", Current: true, Active: 7 * time.Second, Lag: 7}}}
			}
		}, fleet.Warning, "streams", "broker n3 is silent: the others have not heard it for 7.0s", "start it again"},
		"a broker is behind": {func(e *examination) {
			e.streams["PULLEY_REQ_BATCH"].Cluster = &jetstream.ClusterInfo{Leader: "n1", Replicas: []*jetstream.PeerInfo{{Name: "n2", Lag: 7}}}
		}, fleet.Warning, "streams", "broker n2: its replica is behind of stream PULLEY_REQ_BATCH", "catches up"},
		"a stream without a leader": {func(e *examination) { e.streams["PULLEY_REQ_BATCH"].Cluster = &jetstream.ClusterInfo{} }, fleet.Problem, "streams", "no leader", "restart the missing servers"},
		"no policy bucket":          {func(e *examination) { e.policyErr = policystore.ErrNoBucket }, fleet.Problem, "policy", "PULLEY_POLICY does not exist", "policy apply"},
		"the policy is damaged": {func(e *examination) {
			e.policyErr = policystore.DamagedError{Revision: 9, Err: errors.New("it is empty")}
			e.history = []policystore.Version{{Revision: 9}, {Revision: 8}, {Revision: 7, Policy: policy.Default()}, {Revision: 6, Policy: policy.Default()}}
		}, fleet.Problem, "policy", "revision 9 is damaged: it is empty", "pulley policy rollback 7"},
		"a key is damaged": {func(e *examination) {
			e.keys = map[string]policy.Key{"aaaaaaaaaa": {ID: "aaaaaaaaaa", Damage: "unexpected end"}}
		}, fleet.Problem, "keys", "key aaaaaaaaaa is damaged, and no client can use it: unexpected end", "pulley key rm aaaaaaaaaa"},
		"all policies are damaged": {func(e *examination) {
			e.policyErr = policystore.DamagedError{Revision: 9, Err: errors.New("it is empty")}
		}, fleet.Problem, "policy", "damaged", "policy apply -f"},
		"no gateway":     {snapshot(func(s *fleet.Snapshot) { s.Gateways = nil }), fleet.Problem, "gateways", "no gateway", "pulley gateway"},
		"no worker":      {snapshot(func(s *fleet.Snapshot) { s.Workers = nil }), fleet.Problem, "workers", "no worker", "pulley worker --engine URL"},
		"engine down":    {worker(func(w *fleet.WorkerStatus) { w.State, w.Reason = subjects.Down, "connection refused" }), fleet.Problem, "workers", "fast: engine down: connection refused", "start the engine at http://fast"},
		"worker lost":    {worker(func(w *fleet.WorkerStatus) { w.Lost = 3 * time.Second }), fleet.Problem, "workers", "fast is lost: no heartbeat for 3.0s", "host-fast"},
		"engine refuses": {worker(func(w *fleet.WorkerStatus) { w.State = subjects.Paused }), fleet.Warning, "workers", "fast is paused", "fewer slots"},
		"worker fenced": {worker(func(w *fleet.WorkerStatus) {
			w.State, w.Reason = subjects.Fenced, "the engine has stalled: for 10s it had requests but produced no token, and its GPU was idle"
		}), fleet.Problem, "workers", "fast is fenced: the engine has stalled", "pulley worker info fast"},
		"GPU fenced": {reporting(subjects.Fenced, clitest.GPU(2, clitest.Lost)), fleet.Problem, "gpus", "GPU host-fast/2 (fast) is fenced: XID 79 (fallen off the bus)", "reset the GPU"},
		"GPU needs a new engine": {reporting(subjects.Fenced, clitest.GPU(0, func(g *subjects.GPU) { g.Fenced = "XID 94 (contained ECC error)" })), fleet.Problem, "gpus",
			"is fenced: XID 94", "restart the engine"},
		"GPU to be exchanged": {reporting(subjects.Fenced, clitest.GPU(0, func(g *subjects.GPU) { g.Fenced, g.Rows = "row remapping failed", &gpu.Rows{Failed: true} })), fleet.Problem, "gpus",
			"is fenced: row remapping failed", "replace the GPU"},
		"GPU hot":                   {reporting(subjects.Ready, clitest.GPU(1, clitest.Hot)), fleet.Warning, "gpus", "GPU host-fast/1 (fast) is throttled: the GPU slows itself down for heat or power (hw_thermal)", "cooling"},
		"GPU shared":                {reporting(subjects.Ready, clitest.GPU(1, func(g *subjects.GPU) { g.Strain = policy.ForeignMemory.String() })), fleet.Warning, "gpus", "strained: another process takes GPU memory", "nvidia-smi"},
		"GPU silent":                {reporting(subjects.Ready, clitest.GPU(1, func(g *subjects.GPU) { g.State = gpu.Unknown })), fleet.Warning, "gpus", "GPU host-fast/1 (fast): no answer for half a minute", "nvidia-smi answers"},
		"no such GPU":               {reporting(subjects.Ready), fleet.Warning, "gpus", "worker fast: NVML shows none of its GPUs", "pulley gpu ls --local --all"},
		"no library":                {failing(gpu.NoLibrary, false), fleet.Warning, "gpus", "NVML not found (libnvidia-ml.so.1, a library of the NVIDIA driver); workers rely on their engines alone", "nvidia-utils"},
		"no library in a container": {failing(gpu.NoLibrary, true), fleet.Warning, "gpus", "host-fast: NVML", "NVIDIA_DRIVER_CAPABILITIES=utility"},
		"no access":                 {failing(gpu.NoAccess, true), fleet.Warning, "gpus", "this container has no access", "recreate the container"},
		"driver upgrade":            {failing(gpu.Mismatch, false), fleet.Warning, "gpus", "have different versions", "restart the machine"},
		"no permission":             {failing(gpu.NoPermission, false), fleet.Warning, "gpus", "may not open", "/dev/nvidiactl"},
		"no driver":                 {failing(gpu.NoDriver, false), fleet.Warning, "gpus", "driver is not loaded", "modprobe nvidia"},
		"gpus= of another machine":  {failing(gpu.NotThere, false), fleet.Warning, "gpus", "host-fast (fast): a GPU named by gpus= was not found", "correct gpus="},
		"driver hangs":              {failing(gpu.Silent, false), fleet.Warning, "gpus", "does not answer", "dmesg"},
		"NVML required": {worker(func(w *fleet.WorkerStatus) {
			w.State, w.NVML = subjects.Fenced, &subjects.NVML{Mode: "required", Failure: &gpu.Failure{Kind: gpu.NoGPU}}
		}), fleet.Problem, "gpus", "host-fast: no NVIDIA GPU found; with --nvml required workers accept no requests", "otherwise ignore this"},
		"metrics are old": {room(func(w *fleet.WorkerStatus) {
			w.Capacity.Engine, w.EngineStatus.At = "stale", clitest.Noon.Add(-7*time.Second)
		}), fleet.Warning, "headroom", "worker fast: the engine's metrics are 7.0s old", "http://fast/metrics"},
		"no metrics": {room(func(w *fleet.WorkerStatus) { w.Capacity.Engine, w.EngineStatus.Dialect = "missing", "sglang" }), fleet.Warning, "headroom", "no metrics of its engine (sglang)", "--enable-metrics"},
		"infeasible": {room(func(w *fleet.WorkerStatus) { w.Capacity.Infeasible, w.Capacity.AloneMS = true, 62 }), fleet.Warning, "headroom", "cannot meet its objective: a request that runs alone takes 62 ms per token", "--slo-itl"},
		"too many slots": {room(func(w *fleet.WorkerStatus) {
			w.Capacity.Bound, w.Capacity.Limit, w.Capacity.PaceMS, w.Capacity.TargetMS = policy.BoundLimit, 40, 30, 30
			w.Capacity.Terms = map[policy.Bound]float64{policy.BoundSlots: 256, policy.BoundLimit: 40}
		}), fleet.Warning, "headroom", "worker fast has 256 slots, but can use only about 40", "remove slots="},
		"a wrong key": {worker(func(w *fleet.WorkerStatus) {
			w.State, w.DownClass, w.Reason = subjects.Down, subjects.DownCredentials, "GET /v1/models: 401 Unauthorized: the engine refuses the API key in /etc/key"
		}), fleet.Problem, "workers", "worker fast: engine down: GET /v1/models: 401 Unauthorized: the engine refuses the API key in /etc/key", "key-file="},
		"a wrong authority": {worker(func(w *fleet.WorkerStatus) {
			w.State, w.DownClass, w.Reason = subjects.Down, subjects.DownCertificate, "x509: certificate signed by unknown authority"
		}), fleet.Problem, "workers", "certificate signed by unknown authority", "tls-ca="},
		"a web page": {worker(func(w *fleet.WorkerStatus) {
			w.State, w.DownClass, w.Reason = subjects.Down, subjects.DownPage, `GET /v1/models: an HTML page ("Open WebUI"), not JSON`
		}), fleet.Problem, "workers", `an HTML page ("Open WebUI"), not JSON`, "http://fast/v1/models must list the models"},
		"an engine that does not run": {worker(func(w *fleet.WorkerStatus) {
			w.State, w.Reason = subjects.Down, "connection refused"
		}), fleet.Problem, "workers", "connection refused", "start the engine at http://fast"},
		"cordoned": {worker(func(w *fleet.WorkerStatus) { w.State, w.Name = subjects.Cordoned, "my gpu" }), fleet.Warning, "workers", "my gpu is cordoned", "uncordon 'my gpu'"},
		"no worker for a pool": {snapshot(func(s *fleet.Snapshot) {
			s.Lanes = append(s.Lanes, fleet.Lane{Pool: "mistral", Tier: "batch", Waiting: 3})
		}), fleet.Problem, "pools", "mistral: 3 requests waiting, and no live worker", "--engine URL,model=mistral"},
		"paused pool": {snapshot(func(s *fleet.Snapshot) {
			s.Policy.Policy.Pools = map[string]policy.Pool{"qwen": {Paused: true}}
		}), fleet.Warning, "pools", "qwen is paused: 0 requests waiting", "pulley pool resume qwen"},
		"no bids": {snapshot(func(s *fleet.Snapshot) {
			s.Requests = []subjects.RequestInfo{{ID: "x", Pool: "qwen", Tier: "standard", State: "queued", AgeMS: 20_000}}
		}), fleet.Warning, "pools", "qwen: a request has waited for 20s although there are 10 free slots", "CONSUMER.MSG.NEXT"},
		"route to nowhere": {snapshot(func(s *fleet.Snapshot) {
			s.Policy.Policy.Routes = map[string]policy.Route{"gpt-*": {To: []policy.Target{{Pool: "qwen", Weight: 1}, {Pool: "nowhere", Weight: 1}}}}
		}), fleet.Warning, "pools", "route gpt-* leads to pool nowhere", "route set 'gpt-*' --to POOL"},
		"queue full": {snapshot(func(s *fleet.Snapshot) { s.Held = map[fleet.PoolTier]int{{Pool: "qwen", Tier: "standard"}: 2000} }), fleet.Warning, "tiers", "pool qwen, tier standard: the queue is full with 2000", "--max-queue 4000"},
		"no such tier": {snapshot(func(s *fleet.Snapshot) {
			s.Lanes = append(s.Lanes, fleet.Lane{Pool: "qwen", Tier: "gold"})
		}), fleet.Warning, "tiers", "tier gold", "pulley tier rm gold"},
		"requests in no such tier": {snapshot(func(s *fleet.Snapshot) {
			s.Lanes = append(s.Lanes, fleet.Lane{Pool: "qwen", Tier: "gold", Waiting: 2})
		}), fleet.Problem, "tiers", "2 requests in tier gold", "pulley tier set gold"},
		"expired key": {func(e *examination) {
			e.keys["k1"] = policy.Key{ID: "k1", Tenant: "acme", Expires: clitest.Noon.Add(-time.Hour)}
		}, fleet.Warning, "keys", "k1 of tenant acme expired 1h00m ago", "pulley key set k1 --expires"},
		"key of no tier": {func(e *examination) {
			e.keys["k1"] = policy.Key{ID: "k1", Tenant: "acme", Tiers: []string{"gold"}}
		}, fleet.Warning, "keys", "allows tier gold", "pulley tier set gold"},
		"dead letters": {func(e *examination) {
			e.streams["PULLEY_DEAD"].State = jetstream.StreamState{Msgs: 2, LastTime: clitest.Noon.Add(-time.Minute)}
		}, fleet.Warning, "dead letters", "2 requests, the last 1m00s ago", "pulley dead ls"},
	}
	for about, tt := range tests {
		e := healthy(t)
		tt.change(e)
		found := slices.DeleteFunc(e.findings(), func(d fleet.Finding) bool { return d.Verdict == fleet.OK })
		if len(found) != 1 {
			t.Errorf("%s: found %+v, want one thing", about, found)
			continue
		}
		if d := found[0]; d.Verdict != tt.verdict || d.Check != tt.check || !strings.Contains(d.Text, tt.text) || !strings.Contains(d.Remedy, tt.remedy) {
			t.Errorf("%s: found %+v, want a %s of %s with %q and %q", about, d, tt.verdict, tt.check, tt.text, tt.remedy)
		}
	}
}

func TestAtLeast(t *testing.T) {
	for version, want := range map[string]bool{"2.12.0": true, "2.12.0-RC.1": true, "v2.15.2": true, "3.0.0": true, "2.11.9": false, "1.99": false, "": true, "dev": true} {
		if got := atLeast(version, minServer); got != want {
			t.Errorf("%q: %v", version, got)
		}
	}
}
