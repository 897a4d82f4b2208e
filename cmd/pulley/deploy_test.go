package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
)

// The commands in the systemd units and in the compose file have flags that exist, and values that they take.
func TestCommandsOfDeploy(t *testing.T) {
	var lines []string
	units, _ := filepath.Glob("../../deploy/systemd/*.service")
	for _, unit := range units {
		for line := range strings.Lines(read(t, unit)) {
			if command, ok := strings.CutPrefix(strings.TrimSpace(line), "ExecStart=/usr/bin/pulley "); ok {
				lines = append(lines, command)
			}
		}
	}
	if len(lines) != 3 {
		t.Fatalf("commands of the units: %q, want those of broker, gateway and worker", lines)
	}
	var compose struct {
		Services map[string]struct{ Command string }
	}
	if err := yaml.Unmarshal([]byte(read(t, "../../deploy/compose.yaml")), &compose); err != nil {
		t.Fatal(err)
	}
	if len(compose.Services) != 3 {
		t.Errorf("%d services in the compose file, want 3", len(compose.Services))
	}
	for _, service := range compose.Services {
		lines = append(lines, service.Command)
	}
	for _, line := range lines {
		cmd, flags, err := newRootCommand().Find(strings.Fields(line))
		if err == nil {
			err = cmd.ParseFlags(flags)
		}
		if err != nil || cmd.RunE == nil || cmd.Flags().NArg() > 0 {
			t.Errorf("pulley %s: %v, arguments %q", line, err, cmd.Flags().Args())
		}
	}
}

// Each key of the configuration file that the packages install belongs to a flag, and its value is one that the flag takes.
func TestConfigurationOfDeploy(t *testing.T) {
	for _, args := range []string{"broker", "gateway", "worker"} {
		root := newRootCommand()
		cmd, _, err := root.Find(strings.Fields(args))
		if err != nil {
			t.Fatal(err)
		}
		ran := false
		cmd.RunE = func(*cobra.Command, []string) error { ran = true; return nil }
		root.SetArgs([]string{args, "--config", "../../deploy/pulley.yaml"})
		if err := root.Execute(); err != nil || !ran {
			t.Errorf("pulley %s with deploy/pulley.yaml: %v", args, err)
		}
	}
}

// systemd accepts the units, where it is installed.
func TestUnits(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	root := t.TempDir()
	bin := filepath.Join(root, "usr/bin/pulley")
	if err := os.MkdirAll(filepath.Dir(bin), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bin, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	units, _ := filepath.Glob("../../deploy/systemd/*.service")
	for _, unit := range units {
		text := strings.ReplaceAll(read(t, unit), "/usr/bin/pulley", bin)
		text = strings.ReplaceAll(text, "man:"+strings.TrimSuffix(filepath.Base(unit), ".service")+"(1) ", "")
		copied := filepath.Join(root, filepath.Base(unit))
		if err := os.WriteFile(copied, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), "systemd-analyze", "verify", "--man=no", copied).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", unit, err, out)
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
