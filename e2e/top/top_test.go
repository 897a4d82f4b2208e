// Package top drives pulley top through a real terminal: tmux, of 80 by 24 as
// over ssh. It is one of the suites of e2e/run, which says where the binary is.
package top

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/charmbracelet/x/ansi"
	"github.com/pulley-lb/pulley/e2e/process"
)

func TestTop(t *testing.T) {
	f := start(t)
	term := f.terminal(80, 24, "TERM=xterm", "LANG=C.UTF-8")

	term.shows("1 gateway  2 workers  8 slots")
	term.shows("no problems")
	term.shows(`\d+(\.\d)? req/s  .*policy default`)
	term.shows(`(?m)^\[1 pools \(1\)\]  2 tiers \(3\)   3 workers \(2\)   4 requests \(\d+\)`)
	term.shows(`(?m)^sim +ready +2 of 2 +█+░* [1-8]/8 +\d+ +\d+`) // under load
	term.shows(`(?m)^fast +ready +sim +█`)
	term.shows(`…[0-9a-f]{12}  sim +standard +(queued|running|answering)`)
	term.fits()

	t.Log("keys")
	term.press("2")
	term.shows(`\[2 tiers`)
	term.shows(`priority +8 .*\n.*standard +4 .*\n.*batch +1 `)
	term.press("Tab", "j", "Enter")
	term.shows(`(?m)^worker +slow$`)
	term.shows(`(?m)^engine +sim at http://127`)
	term.press("Escape")
	term.shows(`WORKER▴`)
	term.press("S")
	term.shows(`WORKER▾.*\n *slow`)
	term.press("/", "f", "a", "s", "t", "Enter")
	term.shows(`filter: fast`)
	term.showsNot(`(?m)^slow +ready`)
	term.press("4")
	term.shows(`AGE▾`)
	term.press("Escape", "p")
	term.shows(`PAUSED \d\d:\d\d:\d\d`)
	frozen := term.screen()
	time.Sleep(1200 * time.Millisecond)
	if got := term.screen(); got != frozen {
		t.Errorf("paused, and it went on:\n%s\nafter\n%s", got, frozen)
	}
	term.press("p", "?")
	term.shows(`sort by the next column`)
	term.press("?", "1")
	term.showsNot(`PAUSED`)

	t.Log("sizes")
	term.resize(132, 40)
	term.shows(`(?m)^sim .*\n(.*\n){30,}.*q quit\s*$`)
	term.fits()
	term.resize(40, 12)
	term.shows(`(?m)^pulley.*\n(.*\n){10}tab/1-4`)
	term.fits()
	term.resize(80, 24)
	term.shows(`TAKEN/S`)

	t.Log("what happens is seen")
	f.run("pool", "pause", "sim")
	term.shows(`pool sim is paused`)
	term.shows(`policy +pool pause sim`)
	f.run("pool", "resume", "sim")
	term.showsNot(`is paused`)
	second := f.pulley("gateway", "--nats", f.nats, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
	term.shows("2 gateways")
	second.Process.Kill()
	term.shows("1 gateway  2 workers")

	t.Log("the broker dies, and comes back")
	f.up.Process.Kill()
	f.up.Wait()
	term.shows("no connection to NATS for .*reconnecting")
	term.fits()
	f.startUp()
	term.showsNot("no connection")
	term.shows("1 gateway  2 workers  8 slots")
	term.shows("no problems")

	term.press("q")
	term.shows(`\A\s*left with 0`)

	t.Log("old terminals")
	var olds []*terminal
	for _, name := range []string{"screen", "linux", "vt100"} {
		olds = append(olds, f.terminal(80, 24, "TERM="+name, "LC_ALL=C"))
	}
	for _, old := range olds {
		old.shows(`(?m)^fast +ready +sim +[#.]{7} \d/4`)
		old.fits()
		old.press("C-c")
		old.shows(`left with 0`)
	}
	dumb := f.terminal(80, 24, "TERM=dumb")
	dumb.shows(`use --once`)
	dumb.shows(`left with 2`)
	if text := f.run("top", "--once"); !strings.Contains(text, "1 gateway  2 workers") || strings.Contains(text, "\x1b") {
		t.Errorf("top --once:\n%q", text)
	}
}

// fleet is pulley up, two simulated engines, and load on them.
type fleet struct {
	t             *testing.T
	bin           string
	dir           string
	upArgs        []string
	nats, gateway string
	up            *exec.Cmd
	socket        string // of tmux
	terminals     int
}

func start(t *testing.T) *fleet {
	t.Helper()
	if _, err := exec.LookPath("tmux"); err != nil {
		t.Skip("tmux is not installed: it is Debian's package tmux")
	}
	free := process.Addresses(t, 2)
	f := &fleet{t: t, bin: process.Pulley(t), dir: t.TempDir(), nats: free[0], gateway: free[1]}
	f.socket = filepath.Join(f.dir, "tmux")
	t.Cleanup(func() { exec.Command("tmux", "-S", f.socket, "kill-server").Run() })

	f.upArgs = []string{"up", "--listen", f.gateway, "--admin", "", "--nats-listen", f.nats, "--store-dir", filepath.Join(f.dir, "store")}
	for name, itl := range map[string]string{"fast": "10ms", "slow": "30ms"} {
		engine := process.Addresses(t, 1)[0]
		f.pulley("sim", "--listen", engine, "--name", name, "--slots", "4", "--itl", itl)
		process.Eventually(f.t, "engine "+name, func() bool { return process.OK("http://" + engine + "/health") })
		f.upArgs = append(f.upArgs, "--engine", fmt.Sprintf("http://%s,name=%s,slots=4", engine, name))
	}
	f.startUp()
	f.pulley("bench", "--url", "http://"+f.gateway, "--model", "sim", "--concurrency", "16", "--duration", "2m")
	return f
}

// startUp starts pulley up, and waits until it answers.
func (f *fleet) startUp() {
	f.t.Helper()
	f.up = f.pulley(f.upArgs...)
	process.Eventually(f.t, "the gateway", func() bool { return process.Serves(f.gateway, "sim") })
}

// pulley starts pulley, and kills it at the end.
func (f *fleet) pulley(args ...string) *exec.Cmd {
	f.t.Helper()
	cmd := exec.Command(f.bin, args...)
	cmd.Env = process.Environ()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if f.t.Failed() {
			f.t.Logf("pulley %s:\n%s", args[0], out.String())
		}
	})
	return cmd
}

// run runs a verb of pulley's to its end.
func (f *fleet) run(args ...string) string {
	f.t.Helper()
	cmd := exec.Command(f.bin, append(args, "--nats", f.nats)...)
	cmd.Env = process.Environ()
	out, err := cmd.CombinedOutput()
	if err != nil {
		f.t.Errorf("pulley %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// terminal is a window of tmux in which pulley top runs.
type terminal struct {
	f             *fleet
	name          string
	width, height int
}

// terminal runs pulley top in a terminal of its own.
func (f *fleet) terminal(width, height int, env ...string) *terminal {
	f.t.Helper()
	f.terminals++
	x := &terminal{f, fmt.Sprintf("top%d", f.terminals), width, height}
	command := fmt.Sprintf("env -u LC_ALL -u LC_CTYPE -u SSH_TTY %s %s top --nats %s; echo left with $?; sleep 60", strings.Join(env, " "), f.bin, f.nats)
	x.tmux("-u", "-f", "/dev/null", "new-session", "-d", "-s", x.name, "-x", fmt.Sprint(width), "-y", fmt.Sprint(height), command)
	return x
}

func (x *terminal) tmux(args ...string) string {
	x.f.t.Helper()
	cmd := exec.Command("tmux", append([]string{"-S", x.f.socket}, args...)...)
	cmd.Env = process.Environ()
	out, err := cmd.CombinedOutput()
	if err != nil {
		x.f.t.Fatalf("tmux %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// press types keys, by tmux's names.
func (x *terminal) press(keys ...string) {
	x.f.t.Helper()
	for _, k := range keys {
		x.tmux("send-keys", "-t", x.name, k)
		time.Sleep(60 * time.Millisecond) // an Escape and the next key are two, not one with Alt
	}
}

func (x *terminal) resize(width, height int) {
	x.f.t.Helper()
	x.tmux("resize-window", "-t", x.name, "-x", fmt.Sprint(width), "-y", fmt.Sprint(height))
	x.width, x.height = width, height
}

func (x *terminal) screen() string {
	x.f.t.Helper()
	return x.tmux("capture-pane", "-p", "-t", x.name)
}

// shows waits until the screen matches.
func (x *terminal) shows(pattern string) { x.f.t.Helper(); x.wait(pattern, true) }

// showsNot waits until the screen does not match.
func (x *terminal) showsNot(pattern string) { x.f.t.Helper(); x.wait(pattern, false) }

func (x *terminal) wait(pattern string, want bool) {
	x.f.t.Helper()
	re := regexp.MustCompile(pattern)
	for end := time.Now().Add(15 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		seen := x.screen()
		if re.MatchString(seen) == want {
			return
		}
		if time.Now().After(end) {
			x.f.t.Fatalf("%s: in vain for %q to match: %v\n%s", x.name, pattern, want, seen)
		}
	}
}

// fits checks that the screen is filled from its first line to its last, and
// that no line was broken.
func (x *terminal) fits() {
	x.f.t.Helper()
	lines := strings.Split(strings.TrimSuffix(x.screen(), "\n"), "\n")
	if len(lines) != x.height || !strings.HasPrefix(lines[0], "pulley") || !strings.HasPrefix(lines[len(lines)-1], "tab/1-4") {
		x.f.t.Errorf("%d lines, want %d from 'pulley' to the keys:\n%s", len(lines), x.height, strings.Join(lines, "\n"))
	}
	for _, l := range lines {
		if ansi.StringWidth(l) > x.width {
			x.f.t.Errorf("a line of more than %d: %q", x.width, l)
		}
	}
}
