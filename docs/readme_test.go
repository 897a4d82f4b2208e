package docs

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var (
	pasteReadme     = flag.Bool("readme", false, "run the commands of README.md on a clone of the repository: make readme")
	pasteQuickstart = flag.Bool("quickstart", false, "run the commands of quickstart.md on two machines, which are namespaces: make readme; changes /etc/hosts, so that it needs a namespace of mounts")
)

// A block is the commands between two fences of a page.
type block struct {
	line     int
	text     string
	terminal bool // it goes into a terminal of its own, where it does not end
	long     bool // it takes too long to be run here
	desk     string
}

// blocks returns the shell commands of a page, in order.
func blocks(page string) (list []block) {
	var b *block
	note := ""
	line := 0
	for text := range strings.Lines(page) {
		line++
		switch {
		case b == nil && text == "```sh\n":
			b = &block{line: line + 1, terminal: strings.Contains(note, "terminal of its own"), long: strings.Contains(note, "takes long")}
			for word := range strings.FieldsSeq(note) {
				if strings.HasPrefix(word, "desk-") {
					b.desk = strings.Trim(word, ",")
				}
			}
		case b != nil && text == "```\n":
			list = append(list, *b)
			b = nil
		case b != nil:
			b.text += text
		}
		if note = ""; strings.HasPrefix(text, "<!-- readme: ") {
			note = text
		}
	}
	return list
}

func TestBlocks(t *testing.T) {
	got := blocks("a\n```sh\none\ntwo\n```\n```\nnot this\n```\n<!-- readme: takes long -->\n```sh\nthree\n```\n<!-- readme: in a terminal of its own -->\n```sh\nfour\n```\n")
	want := []block{{line: 3, text: "one\ntwo\n"}, {line: 11, text: "three\n", long: true}, {line: 15, text: "four\n", terminal: true}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// Whoever pastes the commands of README.md, one block after the other, sees none fail. The clone that the first one makes is of
// this repository, with what is not committed left out.
func TestReadme(t *testing.T) {
	if !*pasteReadme {
		t.Skip("run by make readme")
	}
	page, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	env := environment(t, home)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	main := openTerminal(ctx, t, home, env)
	defer main.close()
	for _, b := range blocks(string(page)) {
		if b.long {
			t.Logf("README.md:%d: left out, it takes long", b.line)
			continue
		}
		began := time.Now()
		if b.terminal {
			own := openTerminal(ctx, t, home, env)
			defer own.close()
			own.paste(b)
			own.await("Try it:", 10*time.Minute)
		} else {
			main.paste(b)
			main.await(main.mark, 5*time.Minute)
		}
		t.Logf("README.md:%d: %s\n%s", b.line, time.Since(began).Round(time.Millisecond), main.take())
	}
}

// environment is that of a user with an empty home, for whom a clone is one of this repository.
func environment(t *testing.T, home string) []string {
	t.Helper()
	repository, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), "HOME="+home, "PULLEY_CONFIG=", "NATS_URL=", "NATS_CONTEXT=", "PULLEY_NATS=", "OPENAI_API_KEY=", "GOFLAGS=-modcacherw", "GIT_CONFIG_COUNT=1",
		"GIT_CONFIG_KEY_0=url.file://"+repository+".insteadOf", "GIT_CONFIG_VALUE_0=https://github.com/pulley-lb/pulley")
	for _, name := range []string{"GOCACHE", "GOMODCACHE"} { // otherwise below $HOME
		out, err := exec.Command("go", "env", name).Output()
		if err != nil {
			t.Fatal(err)
		}
		env = append(env, name+"="+strings.TrimSpace(string(out)))
	}
	return env
}

// Whoever pastes the commands of quickstart.md has one endpoint of two machines. These are namespaces of the network, with a
// simulated engine in the place of Ollama and cp in that of scp.
func TestQuickstart(t *testing.T) {
	if !*pasteQuickstart {
		t.Skip("run by make readme, where it can have namespaces of its own")
	}
	page, err := os.ReadFile("quickstart.md")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
	}
	file := func(name, text string, mode os.FileMode) string {
		t.Helper()
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	homes := map[string]string{"desk-a": t.TempDir(), "desk-b": t.TempDir()}
	scp := file("scp", "#!/bin/sh\ncp \""+homes["desk-a"]+"/${1#desk-a:}\" \"$2\"\n", 0o755)
	pulley := filepath.Join(t.TempDir(), "pulley")
	run("go", "build", "-o", pulley, "../cmd/pulley")
	run("mount", "--bind", file("hosts", "127.0.0.1 localhost\n10.77.0.1 desk-a\n10.77.0.2 desk-b\n", 0o644), "/etc/hosts")

	open := func(desk string, shell ...string) *terminal {
		env := append(environment(t, homes[desk]), "PATH="+filepath.Dir(scp)+":"+os.Getenv("PATH"))
		term := openTerminal(ctx, t, homes[desk], env, shell...)
		t.Cleanup(term.close)
		return term
	}
	engine := "ip link set lo up; " + pulley + " sim --dialect ollama --listen 127.0.0.1:11434 --model llama3.2:latest --slots 4 --itl 15ms,1ms &\n"
	first := open("desk-a")
	second := open("desk-b", "unshare", "--net")
	second.paste(block{text: "true\n"}) // it is in its namespace then
	second.await(second.mark, 10*time.Second)
	run("ip", "link", "add", "to-b", "type", "veth", "peer", "name", "to-a", "netns", fmt.Sprint(second.cmd.Process.Pid))
	first.paste(block{text: "ip addr add 10.77.0.1/24 dev to-b; ip link set to-b up; " + engine})
	second.paste(block{text: "ip addr add 10.77.0.2/24 dev to-a; ip link set to-a up; " + engine})
	first.await("listening on", time.Minute)
	second.await("listening on", time.Minute)

	n := 0
	for _, b := range blocks(string(page)) {
		term := second
		if b.desk == "desk-a" {
			term = open("desk-a")
		}
		n += strings.Count(b.text, "\n")
		term.paste(b)
		switch {
		case b.terminal && b.desk == "desk-a":
			term.await("Try it:", 10*time.Minute)
		case b.terminal:
			term.await("engine is healthy", time.Minute)
		default:
			term.await(term.mark, time.Minute)
		}
		t.Logf("quickstart.md:%d on %s:\n%s", b.line, b.desk, term.take())
	}
	if n > 5 {
		t.Errorf("%d commands, want five at most", n)
	}
	first.paste(block{text: "pulley/bin/pulley worker ls\n"})
	first.await(first.mark, time.Minute)
	if out := first.take(); strings.Count(out, "llama3.2:latest") < 2 || !strings.Contains(out, "desk-b") {
		t.Errorf("workers:\n%s", out)
	}
}

// terminal is a shell that commands are pasted into.
type terminal struct {
	t    *testing.T
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *output
	mark string // what the shell prints after the block that was pasted last
	n    int
}

// openTerminal starts a shell that ends at the first command that fails. What wraps it, such as unshare, comes last.
func openTerminal(ctx context.Context, t *testing.T, dir string, env []string, wrap ...string) *terminal {
	t.Helper()
	shell := append(wrap, "bash", "-s")
	term := &terminal{t: t, cmd: exec.CommandContext(ctx, shell[0], shell[1:]...), out: new(output)}
	term.cmd.Dir, term.cmd.Env = dir, env
	term.cmd.Stdout, term.cmd.Stderr = term.out, term.out
	term.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that close ends what the commands have started
	var err error
	if term.in, err = term.cmd.StdinPipe(); err == nil {
		err = term.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(term.in, "set -o pipefail\ntrap 'echo \"FAILED with $?: $BASH_COMMAND\"; exit 1' ERR\n")
	return term
}

func (term *terminal) paste(b block) {
	term.n++
	term.mark = fmt.Sprintf("end of block %d", term.n)
	text := b.text
	// Jobs that are killed are no failure of wait.
	text = strings.ReplaceAll(text, "; wait\n", "; wait || true\n")
	if !b.terminal {
		text += "echo; echo '" + term.mark + "'\n"
	}
	if _, err := io.WriteString(term.in, text); err != nil {
		term.t.Fatalf("line %d: %v", b.line, err)
	}
}

// await waits until the shell has printed a text.
func (term *terminal) await(text string, within time.Duration) {
	term.t.Helper()
	for end := time.Now().Add(within); ; time.Sleep(50 * time.Millisecond) {
		out := term.out.String()
		switch {
		case strings.Contains(out, "FAILED with "):
			term.t.Fatalf("a command failed:\n%s", out)
		case time.Now().After(end):
			term.t.Fatalf("no %q within %v:\n%s", text, within, out)
		case strings.Contains(out, text):
			return
		}
	}
}

// take returns what the shell has printed since the last call.
func (term *terminal) take() string { return term.out.take() }

func (term *terminal) close() {
	term.in.Close()
	syscall.Kill(-term.cmd.Process.Pid, syscall.SIGTERM)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		term.cmd.Wait()
	}()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		syscall.Kill(-term.cmd.Process.Pid, syscall.SIGKILL)
		<-ended
	}
}

// output keeps what is written to it.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

func (o *output) take() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.text.String()
	o.text.Reset()
	return s
}
