package ops

import (
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/subjects"
)

func TestLiveCompletion(t *testing.T) {
	s := newSite(t)
	s.serve("llama", "org/qwen:7b")
	s.answer()
	s.ok("route set chat --to llama")
	s.ok("key add --tenant acme")
	s.die("batch", "llama", "x")
	id := ""
	for id = range s.keys() {
		break
	}
	s.workers = []subjects.Heartbeat{clitest.Beat("gpu-1", subjects.Ready, 3, "llama")}
	s.held = []subjects.RequestDetail{held("01", "llama", "batch", "queued", time.Second)}
	tests := map[string]string{
		"tier rm":                     "priority\tshare 8|standard\tshare 4|batch\tshare 1",
		"tier rm batch":               "priority\tshare 8|standard\tshare 4",
		"tier set batch":              "",
		"pool pause":                  "llama|org/qwen:7b",
		"route rm":                    "chat\tto llama",
		"route shift":                 "chat\tto llama|llama\tpool|org/qwen:7b\tpool",
		"route set llama --to":        "llama|org/qwen:7b",
		"worker drain":                "gpu-1\tready, 3 of 8 slots in use",
		"key rm":                      id + "\tacme",
		"key rm " + id:                "",
		"key add --tenant":            "acme",
		"key add --tier":              "priority\tshare 8|standard\tshare 4|batch\tshare 1",
		"request cancel":              "0197b2f0-7d4c-7e1a-9a4e-3f1c5be2a901\tllama queued, 1.0s",
		"queue ls --tier":             "priority\tshare 8|standard\tshare 4|batch\tshare 1",
		"dead retry":                  `1` + "\t" + `llama: crashed \x1b[2J worker gpu-1 twice`,
		"queue ls --output":           "table|wide|json|yaml",
		"request ls --state":          "queued|running|answering",
		"pool set llama --balance":    "price|least-loaded|weighted|round-robin|sticky",
		"policy rollback 1":           "",
		"queue peek llama --tier":     "priority\tshare 8|standard\tshare 4|batch\tshare 1",
		"worker weight gpu-1":         "",
		"route promote":               "",
		"pool set llama --spill":      "llama|org/qwen:7b",
		"request ls --worker":         "gpu-1\tready, 3 of 8 slots in use",
		"tier set standard --storage": "memory|file",
	}
	for line, want := range tests {
		t.Run(line, func(t *testing.T) {
			t.Setenv("PULLEY_NATS", s.url) // as a shell would have it
			_, stdout, _ := clitest.Run(testRoot(), append(append([]string{"__complete"}, strings.Fields(line)...), "")...)
			lines := strings.Split(strings.TrimSuffix(stdout, "\n"), "\n")
			if got := strings.Join(lines[:len(lines)-1], "|"); got != want {
				t.Errorf("completion of %q = %q, want %q", line, got, want)
			}
		})
	}
}

// Without a broker, or with a wrong setting, completion quickly ends without names and
// without output.
func TestCompletionIsSilentAlone(t *testing.T) {
	for _, args := range []string{"--nats nats://127.0.0.1:1", "--creds /nowhere", "--nats nats://"} {
		began := time.Now()
		line := append([]string{"__complete", "tier", "rm"}, strings.Fields(args)...)
		_, stdout, _ := clitest.Run(testRoot(), append(line, "")...)
		if stdout != ":4\n" || time.Since(began) > 2*cli.CompletionTimeout {
			t.Errorf("%s: %q after %v, want no names", args, stdout, time.Since(began))
		}
	}
}
