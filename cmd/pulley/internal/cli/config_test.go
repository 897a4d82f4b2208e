package cli_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
)

// newEchoCommand makes a command with a flag of each kind that prints their values, with a
// subcommand.
func newEchoCommand() *cobra.Command {
	var (
		listen  string
		slots   int
		wait    time.Duration
		engines []string
		routes  []string
		size    int64
	)
	cmd := &cobra.Command{Use: "echo", RunE: func(cmd *cobra.Command, _ []string) error {
		fmt.Fprintf(cmd.OutOrStdout(), "listen=%s slots=%d wait=%s engines=%q routes=%q size=%d", listen, slots, wait, engines, routes, size)
		return nil
	}}
	fs := cmd.Flags()
	fs.StringVar(&listen, "listen", "default", "")
	fs.IntVar(&slots, "slots", 1, "")
	fs.DurationVar(&wait, "wait", time.Second, "")
	fs.StringArrayVar(&engines, "engine", nil, "")
	fs.StringSliceVar(&routes, "routes", []string{"r"}, "")
	cli.SizeVar(fs, &size, "size", 1<<20, "")

	ls := &cobra.Command{Use: "ls", RunE: func(cmd *cobra.Command, _ []string) error {
		fmt.Fprintf(cmd.OutOrStdout(), "ls listen=%s", cmd.Flag("listen").Value)
		return nil
	}}
	ls.Flags().String("listen", "default", "")
	cmd.AddCommand(ls)
	return cmd
}

// echoRoot is a command line with echo and another command, whose flags may be in a
// configuration file too.
func echoRoot() *cobra.Command {
	return cli.NewRoot("", "test", newEchoCommand(), newOtherCommand())
}

func newOtherCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "broker", Short: "Be another command", RunE: func(*cobra.Command, []string) error { return nil }}
	cmd.Flags().String("listen", "default", "")
	cmd.Flags().String("store-dir", "", "")
	return cmd
}

func TestConfiguration(t *testing.T) {
	tests := map[string]struct {
		args string
		env  map[string]string
		file string
		want string // a part of stdout
	}{
		"default":                            {"echo", nil, "", "listen=default slots=1 wait=1s engines=[] routes=[\"r\"] size=1048576"},
		"file":                               {"echo", nil, "listen: file\nslots: 3\nwait: 2m\nsize: 8MiB\n", "listen=file slots=3 wait=2m0s engines=[] routes=[\"r\"] size=8388608"},
		"environment over file":              {"echo", map[string]string{"PULLEY_LISTEN": "env"}, "listen: file\nslots: 3\n", "listen=env slots=3"},
		"flag over environment":              {"echo --listen flag", map[string]string{"PULLEY_LISTEN": "env"}, "listen: file\n", "listen=flag"},
		"empty variable counts as unset":     {"echo", map[string]string{"PULLEY_LISTEN": ""}, "listen: file\n", "listen=file"},
		"section over top level":             {"echo", nil, "echo: {listen: section}\nlisten: file\n", "listen=section"},
		"top level for the rest":             {"echo", nil, "echo: {listen: section}\nslots: 3\n", "listen=section slots=3"},
		"section of another command":         {"echo", nil, "broker: {listen: other}\n", "listen=default"},
		"section of a subcommand":            {"echo ls", nil, "echo:\n  listen: section\n  ls: {listen: inner}\n", "ls listen=inner"},
		"subcommand takes the outer":         {"echo ls", nil, "echo: {listen: section}\nlisten: file\n", "ls listen=section"},
		"subcommand's section is its own":    {"echo", nil, "echo: {ls: {listen: inner}}\n", "listen=default"},
		"list in the file":                   {"echo", nil, "engine: [\"a,slots=1\", b]\nroutes: [x, y]\n", `engines=["a,slots=1" "b"] routes=["x" "y"]`},
		"one value for a list":               {"echo", nil, "engine: a\nroutes: x,y\n", `engines=["a"] routes=["x" "y"]`},
		"empty list":                         {"echo", nil, "routes: []\n", `routes=[]`},
		"list in the environment":            {"echo", map[string]string{"PULLEY_ENGINE": "a,slots=1; b\nc\n", "PULLEY_ROUTES": "x,y;z"}, "", `engines=["a,slots=1" "b" "c"] routes=["x" "y" "z"]`},
		"list given by flag is not added to": {"echo --engine z", map[string]string{"PULLEY_ENGINE": "a;b"}, "engine: [c]\n", `engines=["z"]`},
		"variable in the file":               {"echo", map[string]string{"HOST": "h"}, "listen: ${HOST}:80\nengine: [\"${HOST}\", \"$${HOST}\", \"$HOST\"]\n", `listen=h:80 slots=1 wait=1s engines=["h" "${HOST}" "$HOST"]`},
		"alias in the file":                  {"echo", nil, "listen: &a x\necho: {listen: *a}\n", "listen=x"},
		"empty file":                         {"echo", nil, "# nothing\n", "listen=default"},
		"flags of all commands":              {"echo", nil, "echo: {log-level: warn}\nstore-dir: x\n", "listen=default"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for k, v := range tt.env {
				t.Setenv(k, v)
			}
			if tt.file != "" {
				t.Setenv("PULLEY_CONFIG", clitest.WriteFile(t, "pulley.yaml", tt.file))
			}
			code, stdout, stderr := clitest.Run(echoRoot(), strings.Fields(tt.args)...)
			if code != 0 || stderr != "" || !strings.Contains(stdout+" ", tt.want) {
				t.Errorf("exit code %d, stdout %q, stderr %q; want 0 and %q", code, stdout, stderr, tt.want)
			}
		})
	}
}

func TestConfigurationErrors(t *testing.T) {
	tests := map[string]struct {
		env  map[string]string
		file string
		want []string // parts of stderr; FILE stands for the path
	}{
		"unknown key":               {nil, "slots: 3\n\nlisen: x\n", []string{`FILE:3: unknown key "lisen"; did you mean "listen"?`}},
		"unknown section":           {nil, "ecco: {listen: x}\n", []string{`FILE:1: unknown key "ecco"; did you mean "echo"?`}},
		"unknown key in a section":  {nil, "echo:\n  slot: 3\n", []string{`FILE:2: unknown key "slot"; did you mean "slots"?`}},
		"unknown key, no idea":      {nil, "zzzzzzzz: 1\n", []string{"FILE:1: unknown key \"zzzzzzzz\"\n"}},
		"in another's section":      {nil, "broker: {slots: 3}\n", []string{`FILE:1: unknown key "slots"`}},
		"all of them":               {nil, "lisen: x\nslot: 3\n", []string{"FILE:1: ", "FILE:2: "}},
		"wrong type":                {nil, "\nslots: many\n", []string{`FILE:2: slots: invalid value "many": must be a whole number`}},
		"wrong duration":            {nil, "wait: 30\n", []string{`FILE:1: wait: invalid value "30": must be a duration such as 30s`}},
		"wrong size":                {nil, "size: big\n", []string{`FILE:1: size: invalid value "big": must be a number of bytes such as 8MiB`}},
		"list for one value":        {nil, "listen: [a, b]\n", []string{"FILE:1: listen: must be one value, not a list"}},
		"section for a value":       {nil, "listen: {a: b}\n", []string{"FILE:1: listen: must be a value, not a section"}},
		"value for a section":       {nil, "echo: 3\n", []string{"FILE:1: echo: is a command; its settings must be indented below it"}},
		"list in a list":            {nil, "engine: [[a]]\n", []string{"FILE:1: engine: must be a plain value"}},
		"no value":                  {nil, "listen:\n", []string{"FILE:1: listen: has no value"}},
		"key twice":                 {nil, "slots: 1\nlisten: a\nslots: 2\n", []string{"FILE:3: slots: given twice"}},
		"unset variable":            {nil, "listen: ${NOT_SET_HERE}\n", []string{`FILE:1: listen: environment variable "NOT_SET_HERE" is not set`}},
		"variable not closed":       {nil, "listen: ${HOME\n", []string{`FILE:1: listen: "${HOME" is not closed`}},
		"no mapping":                {nil, "- a\n", []string{"FILE:1: must be 'key: value' lines"}},
		"two documents":             {nil, "slots: 1\n---\nslots: 2\n", []string{"FILE:2: must be one YAML document"}},
		"not YAML":                  {nil, "listen: a\n  slots: [\n", []string{"FILE:2: "}},
		"wrong type in environment": {map[string]string{"PULLEY_SLOTS": "many"}, "", []string{`PULLEY_SLOTS: invalid value "many": must be a whole number`}},
		"no such file":              {map[string]string{"PULLEY_CONFIG": "/nowhere.yaml"}, "", []string{"--config: /nowhere.yaml: no such file"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for k, v := range tt.env {
				t.Setenv(k, v)
			}
			path := ""
			if tt.file != "" {
				path = clitest.WriteFile(t, "pulley.yaml", tt.file)
				t.Setenv("PULLEY_CONFIG", path)
			}
			code, _, stderr := clitest.Run(echoRoot(), "echo")
			if code != cli.ExitUsage || !strings.HasSuffix(stderr, "run 'pulley echo --help'\n") {
				t.Errorf("exit code %d, stderr %q; want %d and a hint at --help", code, stderr, cli.ExitUsage)
			}
			for _, want := range tt.want {
				if want = strings.ReplaceAll(want, "FILE", path); !strings.Contains(stderr, want) {
					t.Errorf("stderr %q, want %q", stderr, want)
				}
			}
		})
	}
}

func TestConfigFlagOverEnvironment(t *testing.T) {
	t.Setenv("PULLEY_CONFIG", "/nowhere.yaml")
	file := clitest.WriteFile(t, "a.yaml", "listen: a\n")
	_, stdout, stderr := clitest.Run(echoRoot(), "echo", "--config", file)
	if !strings.HasPrefix(stdout, "listen=a ") {
		t.Errorf("stdout %q, stderr %q; want the file of --config", stdout, stderr)
	}
}

func TestUnknownEnvironmentIsWarnedOf(t *testing.T) {
	t.Setenv("PULLEY_LISEN", "x")
	t.Setenv("PULLEY_STORE_DIR", "x") // another command's
	t.Setenv("PULLEY_GATEWAY_SERVICE_HOST", "x")
	t.Setenv("PULLEY_PORT_8080_TCP_ADDR", "x")
	code, _, stderr := clitest.Run(echoRoot(), "echo")
	if code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if n := strings.Count(stderr, "\n"); n != 1 || !strings.Contains(stderr, `msg="unknown environment variable" name=PULLEY_LISEN did_you_mean=PULLEY_LISTEN`) {
		t.Errorf("stderr %q, want one warning, of PULLEY_LISEN", stderr)
	}
}
