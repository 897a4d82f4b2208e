package doctor

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

func testRoot() *cobra.Command { return cli.NewRoot("", "test", NewCommand()) }

// runDoctor runs pulley doctor -o json.
func runDoctor(t *testing.T, args ...string) (code int, found []fleet.Finding) {
	t.Helper()
	code, stdout, stderr := clitest.Run(testRoot(), append([]string{"doctor", "-o", "json"}, args...)...)
	var report struct {
		OK    bool
		Found []fleet.Finding
	}
	if err := json.Unmarshal([]byte(stdout), &report); err != nil {
		t.Fatalf("exit code %d, stdout %q, stderr %q: %v", code, stdout, stderr, err)
	}
	if report.OK != (code == cli.ExitOK) || !report.OK && stderr != fmt.Sprintf("pulley: %s\n", term.Count(problems(report.Found), "problem")) {
		t.Errorf("exit code %d, ok %v, stderr %q", code, report.OK, stderr)
	}
	return code, report.Found
}

func wantFinding(t *testing.T, found []fleet.Finding, v fleet.Verdict, check, text string) {
	t.Helper()
	if !slices.ContainsFunc(found, func(d fleet.Finding) bool {
		return d.Verdict == v && d.Check == check && strings.Contains(d.Text, text)
	}) {
		t.Errorf("no %s of %s with %q in %+v", v, check, text, found)
	}
}

func TestDoctorExaminesABroker(t *testing.T) {
	t.Parallel()
	url, _ := clitest.Broker(t, broker.Config{})
	code, found := runDoctor(t, "--nats", url)
	if code != cli.ExitFailed {
		t.Errorf("exit code %d on an empty broker", code)
	}
	wantFinding(t, found, fleet.Problem, "streams", "missing: PULLEY_REQ_PRIORITY, PULLEY_REQ_STANDARD, PULLEY_REQ_BATCH, PULLEY_DEAD, KV_PULLEY_WORKERS")
	wantFinding(t, found, fleet.Problem, "policy", "PULLEY_POLICY does not exist")
	wantFinding(t, found, fleet.Problem, "gateways", "no gateway")

	nc := clitest.StandIn(t, url)
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
	if code, found = runDoctor(t, "--nats", url); code != cli.ExitOK {
		t.Errorf("exit code %d on a sound one: %+v", code, found)
	}
	wantFinding(t, found, fleet.OK, "workers", "1 worker with 4 slots, 1 in flight")
	wantFinding(t, found, fleet.OK, "pools", "1 pool, 3 requests waiting")

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
	if code, found = runDoctor(t, "--nats", url); code != cli.ExitFailed {
		t.Errorf("exit code %d", code)
	}
	wantFinding(t, found, fleet.Problem, "policy", "revision 3 is damaged")
	wantFinding(t, found, fleet.Problem, "streams", "AUDIT captures subjects of Pulley: pulley.ask.>, audit")
	wantFinding(t, found, fleet.Problem, "streams", "missing: PULLEY_REQ_BATCH")
	if i := slices.IndexFunc(found, func(d fleet.Finding) bool { return d.Check == "policy" }); found[i].Remedy != "pulley policy rollback 2" {
		t.Errorf("remedy %q", found[i].Remedy)
	}
}

func TestDoctorWithoutPermissions(t *testing.T) {
	t.Parallel()
	url, _ := clitest.Broker(t, broker.Config{ConfigFile: clitest.WriteFile(t, "nats.conf", `authorization { users: [
		{user: ann, password: s3cret, permissions: {publish: "pulley.ask.>", subscribe: {deny: "pulley.hb.>"}}} ] }`)})
	code, found := runDoctor(t, "--nats", url, "--nats-user", "ann", "--nats-password-file", clitest.WriteFile(t, "p", "s3cret"))
	if code != cli.ExitFailed {
		t.Errorf("exit code %d", code)
	}
	wantFinding(t, found, fleet.Problem, "permissions", `publish to "$JS.API.INFO"`)
	wantFinding(t, found, fleet.Problem, "permissions", `subscribe to "pulley.hb.>"`)
	wantFinding(t, found, fleet.Unknown, "keys", "could not be read")
	wantFinding(t, found, fleet.Unknown, "dead letters", "could not be read")
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
	wantFinding(t, found, fleet.Problem, "jetstream", "JetStream is off")
}

func TestDoctorWithoutABroker(t *testing.T) {
	code, found := runDoctor(t, "--nats", "127.0.0.1:1")
	if code != cli.ExitFailed || len(found) != 1 {
		t.Errorf("exit code %d, found %+v", code, found)
	}
	wantFinding(t, found, fleet.Problem, "nats", "cannot reach NATS at nats://127.0.0.1:1: connection refused")
}
