package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

// healthy is an examination that finds nothing.
func healthy(t *testing.T) *examination {
	t.Helper()
	fleet := fleetAtNoon()
	fleet.Workers, fleet.Queues, fleet.Requests, fleet.held = fleet.Workers[:1], fleet.Queues[1:2], nil, nil
	fleet.complete()
	e := &examination{
		server: "nats://broker-1:4222", version: "2.12.0", maxPayload: 1 << 20, account: &jetstream.AccountInfo{}, fleet: fleet,
		streams: make(map[string]*jetstream.StreamInfo), keys: map[string]policy.Key{"k1": {ID: "k1", Tenant: "acme"}},
	}
	var err error
	if e.expected, err = draw(fleet.Policy); err != nil {
		t.Fatal(err)
	}
	for _, cfg := range e.expected.all() {
		e.streams[cfg.Name] = &jetstream.StreamInfo{Config: cfg}
	}
	return e
}

func TestDoctorFindsNothing(t *testing.T) {
	for _, d := range healthy(t).findings() {
		if d.Verdict != fine || d.Text == "" || d.Remedy != "" {
			t.Errorf("%+v", d)
		}
	}
}

func TestDoctorFinds(t *testing.T) {
	fleet := func(change func(*snapshot)) func(*examination) {
		return func(e *examination) {
			change(&e.fleet)
			e.fleet.complete()
		}
	}
	worker := func(change func(*workerSeen)) func(*examination) {
		return fleet(func(s *snapshot) { change(&s.Workers[0]) })
	}
	told := func(state subjects.State, gpus ...subjects.GPU) func(*examination) {
		return worker(func(w *workerSeen) { w.State, w.NVML = state, &subjects.NVML{Mode: "auto", GPUs: gpus} })
	}
	failing := func(k gpu.Kind, container bool) func(*examination) {
		return worker(func(w *workerSeen) {
			w.NVML = &subjects.NVML{Mode: "auto", Failure: &gpu.Failure{Kind: k, Container: container}}
		})
	}
	room := func(change func(*workerSeen)) func(*examination) {
		return worker(func(w *workerSeen) {
			w.Capacity = &subjects.Capacity{Profile: "balanced", Total: 16, Bound: policy.BoundKV, Factor: 1, Engine: "fresh", GPU: "missing"}
			w.EngineStatus = &subjects.EngineStatus{Dialect: "vllm", At: noon}
			change(w)
		})
	}
	tests := map[string]struct {
		change  func(*examination)
		verdict verdict
		check   string
		text    string // in it
		remedy  string // in it
	}{
		"no connection":  {func(e *examination) { e.unreachable = errors.New("cannot reach NATS") }, problem, "nats", "cannot reach NATS", "--nats"},
		"old server":     {func(e *examination) { e.version = "2.11.9" }, problem, "nats", "version 2.11.9", "2.12"},
		"small payload":  {func(e *examination) { e.maxPayload = 4096 }, problem, "nats", "max_payload is 4096 B", "max_payload"},
		"not allowed":    {func(e *examination) { e.denied = []string{`publish to "$JS.API.INFO"`} }, problem, "permissions", `publish to "$JS.API.INFO"`, "--creds"},
		"no JetStream":   {func(e *examination) { e.accountErr = jetstream.ErrJetStreamNotEnabled }, problem, "jetstream", "JetStream is off", "-js"},
		"not in account": {func(e *examination) { e.accountErr = jetstream.ErrJetStreamNotEnabledForAccount }, problem, "jetstream", "for this account", "another account"},
		"no leader":      {func(e *examination) { e.accountErr = errors.New("timeout") }, problem, "jetstream", "does not answer: timeout", "majority"},
		"nearly full": {func(e *examination) {
			e.account.Store, e.account.Limits.MaxStore = 95<<20, 100<<20
		}, warning, "jetstream", "95 MiB of the account's 100 MiB of disk", "limit"},
		"a stream is missing": {func(e *examination) { delete(e.streams, "PULLEY_REQ_BATCH") }, problem, "streams", "PULLEY_REQ_BATCH: not there", "gateway"},
		"a bucket is missing": {func(e *examination) { delete(e.streams, "KV_PULLEY_WORKERS") }, problem, "streams", "KV_PULLEY_WORKERS: not there", "gateway"},
		"a tier has no stream": {func(e *examination) {
			e.expected.streams = append(e.expected.streams, jetstream.StreamConfig{Name: "PULLEY_REQ_GOLD"})
		}, problem, "streams", "PULLEY_REQ_GOLD: not there", "gateway"},
		"a stream is otherwise": {func(e *examination) { e.streams["PULLEY_REQ_BATCH"].Config.Retention = jetstream.LimitsPolicy }, problem, "streams", "PULLEY_REQ_BATCH: retention is Limits, not WorkQueue", "nats stream edit"},
		"a foreign stream": {func(e *examination) {
			e.streams["AUDIT"] = &jetstream.StreamInfo{Config: jetstream.StreamConfig{Name: "AUDIT", Subjects: []string{"pulley.>"}}}
		}, problem, "streams", "AUDIT takes subjects of Pulley's: pulley.>", "take pulley.> out"},
		"a copy is away": {func(e *examination) {
			e.streams["PULLEY_REQ_BATCH"].Cluster = &jetstream.ClusterInfo{Leader: "n1", Replicas: []*jetstream.PeerInfo{{Name: "n2", Current: true}, {Name: "n3", Offline: true}}}
		}, warning, "streams", "its copy on n3", "servers back"},
		"a stream leads nobody": {func(e *examination) { e.streams["PULLEY_REQ_BATCH"].Cluster = &jetstream.ClusterInfo{} }, problem, "streams", "no leader", "servers back"},
		"no policy bucket":      {func(e *examination) { e.policyErr = policystore.ErrNoBucket }, problem, "policy", "PULLEY_POLICY is not there", "policy apply"},
		"the policy is damaged": {func(e *examination) {
			e.policyErr = policystore.DamagedError{Revision: 9, Err: errors.New("it is empty")}
			e.history = []policystore.Version{{Revision: 9}, {Revision: 8}, {Revision: 7, Policy: policy.Default()}, {Revision: 6, Policy: policy.Default()}}
		}, problem, "policy", "revision 9 is damaged: it is empty", "pulley policy rollback 7"},
		"all policies are damaged": {func(e *examination) {
			e.policyErr = policystore.DamagedError{Revision: 9, Err: errors.New("it is empty")}
		}, problem, "policy", "damaged", "policy apply -f"},
		"no gateway":     {fleet(func(s *snapshot) { s.Gateways = nil }), problem, "gateways", "no gateway", "pulley gateway"},
		"no worker":      {fleet(func(s *snapshot) { s.Workers = nil }), problem, "workers", "no worker", "pulley worker --engine URL"},
		"engine down":    {worker(func(w *workerSeen) { w.State, w.Reason = subjects.Down, "connection refused" }), problem, "workers", "fast: engine down: connection refused", "start the engine at http://fast"},
		"worker lost":    {worker(func(w *workerSeen) { w.Lost = 3 * time.Second }), problem, "workers", "fast is lost: silent for 3.0s", "host-fast"},
		"engine refuses": {worker(func(w *workerSeen) { w.State = subjects.Paused }), warning, "workers", "fast paused", "fewer slots"},
		"worker fenced": {worker(func(w *workerSeen) {
			w.State, w.Reason = subjects.Fenced, "the engine has stalled: it has requests, and no token and an idle GPU for 10s"
		}), problem, "workers", "fast is fenced: the engine has stalled", "pulley worker info fast"},
		"GPU fenced": {told(subjects.Fenced, toldGPU(2, lost)), problem, "gpus", "GPU host-fast/2 (fast) is fenced: XID 79 (fallen off the bus)", "reset the GPU"},
		"GPU needs a new engine": {told(subjects.Fenced, toldGPU(0, func(g *subjects.GPU) { g.Fenced = "XID 94 (contained ECC error)" })), problem, "gpus",
			"is fenced: XID 94", "start the engine anew"},
		"GPU to be exchanged": {told(subjects.Fenced, toldGPU(0, func(g *subjects.GPU) { g.Fenced, g.Rows = "row remapping failed", &gpu.Rows{Failed: true} })), problem, "gpus",
			"is fenced: row remapping failed", "exchanged"},
		"GPU hot":                   {told(subjects.Ready, toldGPU(1, hot)), warning, "gpus", "GPU host-fast/1 (fast) is throttled: the GPU slows itself down for heat or power (hw_thermal)", "cooling"},
		"GPU shared":                {told(subjects.Ready, toldGPU(1, func(g *subjects.GPU) { g.Strain = policy.ForeignMemory.String() })), warning, "gpus", "strained: another process takes GPU memory", "nvidia-smi"},
		"GPU silent":                {told(subjects.Ready, toldGPU(1, func(g *subjects.GPU) { g.State = gpu.Unknown })), warning, "gpus", "GPU host-fast/1 (fast): it has not answered for half a minute", "nvidia-smi answers"},
		"no such GPU":               {told(subjects.Ready), warning, "gpus", "worker fast: NVML shows none of its GPUs", "pulley gpu ls --local --all"},
		"no library":                {failing(gpu.NoLibrary, false), warning, "gpus", "libnvidia-ml.so.1, is not here; workers go by their engines alone", "nvidia-utils"},
		"no library in a container": {failing(gpu.NoLibrary, true), warning, "gpus", "host-fast: NVML", "NVIDIA_DRIVER_CAPABILITIES=utility"},
		"no access":                 {failing(gpu.NoAccess, true), warning, "gpus", "this container has no access", "container anew"},
		"driver upgrade":            {failing(gpu.Mismatch, false), warning, "gpus", "of different versions", "restart the machine"},
		"no permission":             {failing(gpu.NoPermission, false), warning, "gpus", "may not open", "/dev/nvidiactl"},
		"no driver":                 {failing(gpu.NoDriver, false), warning, "gpus", "driver is not loaded", "modprobe nvidia"},
		"gpus= of another machine":  {failing(gpu.NotThere, false), warning, "gpus", "host-fast (fast): a GPU that the engine is said to run on is not here", "correct gpus="},
		"driver hangs":              {failing(gpu.Silent, false), warning, "gpus", "does not answer", "dmesg"},
		"NVML required": {worker(func(w *workerSeen) {
			w.State, w.NVML = subjects.Fenced, &subjects.NVML{Mode: "required", Failure: &gpu.Failure{Kind: gpu.NoGPU}}
		}), problem, "gpus", "host-fast: there is no NVIDIA GPU here; with --nvml required workers take nothing", "nothing to do if there should be none"},
		"metrics are old": {room(func(w *workerSeen) { w.Capacity.Engine, w.EngineStatus.At = "stale", noon.Add(-7*time.Second) }), warning, "headroom", "worker fast: the engine's metrics are 7.0s old", "http://fast/metrics"},
		"no metrics":      {room(func(w *workerSeen) { w.Capacity.Engine, w.EngineStatus.Dialect = "missing", "sglang" }), warning, "headroom", "its engine (sglang) tells nothing of its load", "--enable-metrics"},
		"infeasible":      {room(func(w *workerSeen) { w.Capacity.Infeasible, w.Capacity.AloneMS = true, 62 }), warning, "headroom", "cannot meet its objective: a request alone has 62 ms between two tokens", "--slo-itl"},
		"too many slots": {room(func(w *workerSeen) {
			w.Capacity.Bound, w.Capacity.Limit, w.Capacity.PaceMS, w.Capacity.TargetMS = policy.BoundLimit, 40, 30, 30
			w.Capacity.Terms = map[policy.Bound]float64{policy.BoundSlots: 256, policy.BoundLimit: 40}
		}), warning, "headroom", "worker fast has 256 slots, and does well with about 40", "leave slots= out"},
		"cordoned": {worker(func(w *workerSeen) { w.State, w.Name = subjects.Cordoned, "my gpu" }), warning, "workers", "my gpu is cordoned", "uncordon 'my gpu'"},
		"waiting for nobody": {fleet(func(s *snapshot) {
			s.Queues = append(s.Queues, queueSeen{Pool: "mistral", Tier: "batch", Waiting: 3})
		}), problem, "pools", "mistral: 3 requests waiting, and no live worker", "--engine URL,model=mistral"},
		"paused pool": {fleet(func(s *snapshot) {
			s.Policy.Policy.Pools = map[string]policy.Pool{"qwen": {Paused: true}}
		}), warning, "pools", "qwen is paused: 0 requests waiting", "pulley pool resume qwen"},
		"nobody bids": {fleet(func(s *snapshot) {
			s.Requests = []subjects.RequestInfo{{ID: "x", Pool: "qwen", Tier: "standard", State: "queued", AgeMS: 20_000}}
		}), warning, "pools", "qwen: a request waits for 20s beside 10 free slots", "CONSUMER.MSG.NEXT"},
		"route to nowhere": {fleet(func(s *snapshot) {
			s.Policy.Policy.Routes = map[string]policy.Route{"gpt-*": {To: []policy.Target{{Pool: "qwen", Weight: 1}, {Pool: "nowhere", Weight: 1}}}}
		}), warning, "pools", "route gpt-* leads to pool nowhere", "route set 'gpt-*' --to POOL"},
		"queue full": {fleet(func(s *snapshot) { s.held = map[poolTier]int{{"qwen", "standard"}: 2000} }), warning, "tiers", "pool qwen, tier standard: the queue is full with 2000", "--max-queue 4000"},
		"no such tier": {fleet(func(s *snapshot) {
			s.Queues = append(s.Queues, queueSeen{Pool: "qwen", Tier: "gold"})
		}), warning, "tiers", "tier gold", "nats stream rm PULLEY_REQ_GOLD"},
		"requests in no such tier": {fleet(func(s *snapshot) {
			s.Queues = append(s.Queues, queueSeen{Pool: "qwen", Tier: "gold", Waiting: 2})
		}), problem, "tiers", "2 requests in tier gold", "pulley tier set gold"},
		"expired key": {func(e *examination) {
			e.keys["k1"] = policy.Key{ID: "k1", Tenant: "acme", Expires: noon.Add(-time.Hour)}
		}, warning, "keys", "k1 of tenant acme expired 1h00m ago", "pulley key rotate k1"},
		"key of no tier": {func(e *examination) {
			e.keys["k1"] = policy.Key{ID: "k1", Tenant: "acme", Tiers: []string{"gold"}}
		}, warning, "keys", "allows tier gold", "pulley tier set gold"},
		"dead letters": {func(e *examination) {
			e.streams["PULLEY_DEAD"].State = jetstream.StreamState{Msgs: 2, LastTime: noon.Add(-time.Minute)}
		}, warning, "dead letters", "2 requests, the last 1m00s ago", "pulley dead ls"},
	}
	for about, tt := range tests {
		e := healthy(t)
		tt.change(e)
		found := slices.DeleteFunc(e.findings(), func(d diagnosis) bool { return d.Verdict == fine })
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
		if got := atLeast(version, leastServer); got != want {
			t.Errorf("%q: %v", version, got)
		}
	}
}

func TestFindingsFitTheTerminal(t *testing.T) {
	b, err := findingsView([]diagnosis{{"streams", problem, strings.Repeat("word ", 30), strings.Repeat("remedy ", 20)}}).render("table", terminal{width: 60, height: 24})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), "…") || strings.Count(string(b), "word") != 30 || strings.Count(string(b), "\n") < 8 {
		t.Errorf("got\n%s", b)
	}
}

// standIn is a gateway and a worker as far as they can be heard.
func standIn(t *testing.T, url string) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	ref := subjects.Reference{Gateway: "gw1", Pools: map[string]subjects.PoolReference{"m": {Held: map[string]int{"batch": 3}}}}
	beat := subjects.Heartbeat{Worker: "w1-000000", Name: "w1", State: subjects.Ready, Slots: 4, InFlight: 1, Pools: []subjects.PoolStatus{{Pool: "m"}}}
	if _, err := nc.Subscribe(subjects.AskRequests, func(m *nats.Msg) {
		m.Respond([]byte(`[{"id":"r1","pool":"m","tier":"standard","state":"running","worker":"w1-000000","age_ms":50}]`))
		m.Respond(nil)
	}); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var beating sync.WaitGroup
	beating.Go(func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			beat.Done++
			publishJSON(nc, subjects.GatewayRef("gw1"), ref)
			publishJSON(nc, subjects.Heartbeats(beat.Worker), beat)
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	})
	t.Cleanup(func() {
		close(stop)
		beating.Wait()
		nc.Close()
	})
	return nc
}

// runDoctor runs pulley doctor -o json.
func runDoctor(t *testing.T, args ...string) (code int, found []diagnosis) {
	t.Helper()
	code, stdout, stderr := runRoot(newRootCommand(), append([]string{"doctor", "-o", "json"}, args...)...)
	var report struct {
		OK    bool
		Found []diagnosis
	}
	if err := json.Unmarshal([]byte(stdout), &report); err != nil {
		t.Fatalf("exit code %d, stdout %q, stderr %q: %v", code, stdout, stderr, err)
	}
	if report.OK != (code == exitOK) || !report.OK && stderr != fmt.Sprintf("pulley: %s\n", count(problems(report.Found), "problem")) {
		t.Errorf("exit code %d, ok %v, stderr %q", code, report.OK, stderr)
	}
	return code, report.Found
}

func wantFinding(t *testing.T, found []diagnosis, v verdict, check, text string) {
	t.Helper()
	if !slices.ContainsFunc(found, func(d diagnosis) bool {
		return d.Verdict == v && d.Check == check && strings.Contains(d.Text, text)
	}) {
		t.Errorf("no %s of %s with %q in %+v", v, check, text, found)
	}
}

func TestDoctorExaminesABroker(t *testing.T) {
	t.Parallel()
	url, _ := startBroker(t, broker.Config{})
	code, found := runDoctor(t, "--nats", url)
	if code != exitFailed {
		t.Errorf("exit code %d on an empty broker", code)
	}
	wantFinding(t, found, problem, "streams", "PULLEY_REQ_PRIORITY, PULLEY_REQ_STANDARD, PULLEY_REQ_BATCH, PULLEY_DEAD, KV_PULLEY_WORKERS")
	wantFinding(t, found, problem, "policy", "PULLEY_POLICY is not there")
	wantFinding(t, found, problem, "gateways", "no gateway")

	nc := standIn(t, url)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if err := subjects.EnsureStreams(t.Context(), js, policy.DefaultTiers(), 1); err != nil {
		t.Fatal(err)
	}
	for _, tier := range policy.DefaultTiers() {
		if err := subjects.EnsureConsumer(t.Context(), js, tier.Name, "m", subjects.Shared); err != nil {
			t.Fatal(err)
		}
	}
	if code, found = runDoctor(t, "--nats", url); code != exitOK {
		t.Errorf("exit code %d on a sound one: %+v", code, found)
	}
	wantFinding(t, found, fine, "workers", "1 worker with 4 slots, 1 in flight")
	wantFinding(t, found, fine, "pools", "1 pool, 3 requests waiting")

	store, err := policystore.Open(t.Context(), nc)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 2 {
		if _, err := store.Update(t.Context(), "test", "test", func(p *policy.Policy) error { p.Tiers[0].Share = 20 + n; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	kv, err := js.KeyValue(t.Context(), subjects.PolicyBucket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.PutString(t.Context(), "policy", `{"policy":{"tiers":[]}}`); err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "AUDIT", Subjects: []string{"pulley.ask.>", "audit"}}); err != nil {
		t.Fatal(err)
	}
	if err := js.DeleteStream(t.Context(), "PULLEY_REQ_BATCH"); err != nil {
		t.Fatal(err)
	}
	if code, found = runDoctor(t, "--nats", url); code != exitFailed {
		t.Errorf("exit code %d", code)
	}
	wantFinding(t, found, problem, "policy", "revision 3 is damaged")
	wantFinding(t, found, problem, "streams", "AUDIT takes subjects of Pulley's: pulley.ask.>, audit")
	wantFinding(t, found, problem, "streams", "PULLEY_REQ_BATCH: not there")
	if i := slices.IndexFunc(found, func(d diagnosis) bool { return d.Check == "policy" }); found[i].Remedy != "pulley policy rollback 2" {
		t.Errorf("remedy %q", found[i].Remedy)
	}
}

func TestDoctorWithoutPermissions(t *testing.T) {
	t.Parallel()
	url, _ := startBroker(t, broker.Config{ConfigFile: writeFile(t, "nats.conf", `authorization { users: [
		{user: ann, password: s3cret, permissions: {publish: "pulley.ask.>", subscribe: {deny: "pulley.hb.>"}}} ] }`)})
	code, found := runDoctor(t, "--nats", url, "--nats-user", "ann", "--nats-password-file", writeFile(t, "p", "s3cret"))
	if code != exitFailed {
		t.Errorf("exit code %d", code)
	}
	wantFinding(t, found, problem, "permissions", `publish to "$JS.API.INFO"`)
	wantFinding(t, found, problem, "permissions", `subscribe to "pulley.hb.*"`)
	wantFinding(t, found, unknown, "keys", "could not be read")
	wantFinding(t, found, unknown, "dead letters", "could not be read")
}

func TestDoctorWithoutJetStream(t *testing.T) {
	t.Parallel()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	go s.Start() // ends with Shutdown
	t.Cleanup(s.Shutdown)
	if !s.ReadyForConnections(5 * time.Second) {
		t.Fatal("no server")
	}
	_, found := runDoctor(t, "--nats", s.ClientURL())
	wantFinding(t, found, problem, "jetstream", "JetStream is off")
}

func TestDoctorWithoutABroker(t *testing.T) {
	code, found := runDoctor(t, "--nats", "127.0.0.1:1")
	if code != exitFailed || len(found) != 1 {
		t.Errorf("exit code %d, found %+v", code, found)
	}
	wantFinding(t, found, problem, "nats", "cannot reach NATS at nats://127.0.0.1:1: connection refused")
}

func TestTopOnce(t *testing.T) {
	t.Parallel()
	url, _ := startBroker(t, broker.Config{})
	standIn(t, url)
	code, stdout, stderr := runRoot(newRootCommand(), "top", "-o", "json", "--nats", url)
	var s struct {
		Gateways []string
		Totals   struct{ Workers, Slots, Waiting int }
		Pools    []struct{ Pool string }
		Workers  []struct {
			DonePerSecond float64 `json:"done_per_second"`
		}
		Requests []struct{ ID string }
	}
	if err := json.Unmarshal([]byte(stdout), &s); err != nil {
		t.Fatalf("exit code %d, stdout %q, stderr %q: %v", code, stdout, stderr, err)
	}
	if code != exitOK || !slices.Equal(s.Gateways, []string{"gw1"}) || s.Totals.Slots != 4 || s.Totals.Waiting != 3 || len(s.Pools) != 1 || len(s.Requests) != 1 {
		t.Errorf("exit code %d, got %+v", code, s)
	}
	if got := s.Workers[0].DonePerSecond; got < 3 || got > 7 {
		t.Errorf("%v done/s, want about 5", got)
	}
}

func TestTopNeedsATerminal(t *testing.T) {
	url, _ := startBroker(t, broker.Config{})
	code, _, stderr := runRoot(newRootCommand(), "top", "--nats", url)
	if code != exitUsage || !strings.Contains(stderr, "say --once") {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
}
