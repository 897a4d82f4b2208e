package main

import (
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
)

func TestConfigCheck(t *testing.T) {
	for about, tt := range map[string]struct {
		file string
		code int
		want []string
	}{
		"nothing":               {"", 0, []string{"is valid: no command has a section"}},
		"shared":                {"nats: nats://broker-1:4222\nlog-level: debug\n", 0, []string{"is valid"}},
		"parts":                 {"nats: nats://broker-1:4222\ngateway: {listen: 127.0.0.1:8080}\nworker:\n  engine: ['http://127.0.0.1:8000,slots=64,name=a']\n", 0, []string{"is valid: sections for gateway, worker"}},
		"unknown key":           {"gateway: {lisen: x}\n", 2, []string{`FILE:1: unknown key "lisen"; did you mean "listen"?`}},
		"values of any command": {"worker:\n  drain-timeout: 30\n  engine: [http://127.0.0.1:8000]\nbench:\n  rate: many\n", 2, []string{"FILE:2: drain-timeout: invalid value", "FILE:5: rate: invalid value"}},
		"several of one":        {"gateway:\n  max-body: big\n  retry-budget: much\n", 2, []string{"FILE:2: max-body: ", "FILE:3: retry-budget: "}},
		"an engine":             {"worker:\n  engine: [http://127.0.0.1:8000, nonsense, 'http://h:1,slots=x']\n", 2, []string{`worker: --engine "nonsense"`, `--engine "http://h:1,slots=x"`}},
		"no engine":             {"worker: {profile: latency}\n", 2, []string{"worker: missing flag: --engine"}},
		"a profile":             {"up: {profile: fast}\n", 2, []string{`up: --profile "fast": must be`}},
		"an address":            {"gateway: {listen: nonsense}\n", 2, []string{`gateway: --listen "nonsense": must be host:port`}},
		"a file of a secret":    {"gateway: {admin-token-file: /nowhere}\n", 2, []string{"gateway: --admin-token-file: /nowhere: no such file"}},
		"a URL of NATS":         {"gateway: {nats: 'nats://'}\n", 2, []string{`gateway: --nats "nats://": must be a URL`}},
		"a broker":              {"broker: {sync: often}\n", 2, []string{`broker: --sync "often": must be always`}},
		"a variable":            {"gateway: {listen: '${NOT_SET_HERE}'}\n", 2, []string{`FILE:1: listen: environment variable "NOT_SET_HERE" is not set`}},
		"not YAML":              {"gateway: [\n", 2, []string{"FILE:"}},
	} {
		t.Run(about, func(t *testing.T) {
			path := clitest.WriteFile(t, "pulley.yaml", tt.file)
			code, stdout, stderr := clitest.Run(newRootCommand(), "config", "check", path)
			for _, want := range tt.want {
				if want = strings.ReplaceAll(want, "FILE", path); !strings.Contains(stdout+stderr, want) {
					t.Errorf("%q, %q; want %q", stdout, stderr, want)
				}
			}
			if code != tt.code {
				t.Errorf("exit code %d, want %d: %s", code, tt.code, stderr)
			}
		})
	}
	for args, want := range map[string]string{"config check": "missing argument: FILE", "config check /nowhere.yaml": "/nowhere.yaml: no such file", "config lint": `did you mean "check"`} {
		if code, _, stderr := clitest.Run(newRootCommand(), strings.Fields(args)...); code != 2 || !strings.Contains(stderr, want) {
			t.Errorf("%s: exit code %d, %q; want 2, %q", args, code, stderr, want)
		}
	}
	t.Setenv("PULLEY_CONFIG", clitest.WriteFile(t, "pulley.yaml", "gateway: {listen: '127.0.0.1:0'}\n"))
	if code, stdout, stderr := clitest.Run(newRootCommand(), "config", "check"); code != 0 || !strings.Contains(stdout, "sections for gateway") {
		t.Errorf("the file of the environment: exit code %d, %q, %q", code, stdout, stderr)
	}
}
