package gpu

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// closer calls a function on its first Close.
type closer func()

func (c closer) Close() error { c(); return nil }

// fakeChild is a child in the test's own time.
type fakeChild struct {
	*child
	out  chan []byte
	exit func() // ends the child
}

// newFakeChild makes a child. A deaf one ends only when the test ends it.
func newFakeChild(deaf bool) *fakeChild {
	c := &fakeChild{out: make(chan []byte)}
	done, silent := make(chan struct{}), make(chan struct{})
	c.exit = sync.OnceFunc(func() { close(done) })
	mute := sync.OnceFunc(func() { close(silent) })
	lines := make(chan []byte)
	go func() {
		defer close(lines)
		for {
			select {
			case <-done:
				return
			case <-silent:
				return
			case b := <-c.out:
				select {
				case lines <- b:
				case <-silent:
				}
			}
		}
	}()
	obey := func() {
		if !deaf {
			c.exit()
		}
	}
	c.child = &child{lines: lines, done: done, stdin: closer(obey), stdout: closer(mute), kill: func() error { obey(); return nil },
		complaint: func() string { return "" }}
	return c
}

// print writes a line if the child still runs.
func (c *fakeChild) print(line []byte) {
	select {
	case c.out <- line:
	case <-c.done:
	}
}

func line(gpus ...Snapshot) []byte {
	now := time.Now()
	for i := range gpus {
		if gpus[i].At.IsZero() {
			gpus[i].At = now
		}
	}
	b, err := json.Marshal(Reading{At: now, GPUs: gpus})
	if err != nil {
		panic(err)
	}
	return b
}

func known(uuid string) Snapshot { return Snapshot{Device: Device{UUID: uuid}} }

// scripted is a sampler whose children do, in turn, what these functions say, and then nothing. It runs in a bubble
// until the test ends.
// starts returns when each was started.
func scripted(t *testing.T, deaf bool, lives ...func(*fakeChild)) (s *Sampler, starts func() []time.Duration) {
	t.Helper()
	s, err := NewSampler(Config{Command: []string{"scripted"}, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	var mu sync.Mutex
	var at []time.Duration
	var children []*fakeChild
	var living sync.WaitGroup
	s.start = func(Config) (*child, error) {
		c := newFakeChild(deaf)
		mu.Lock()
		defer mu.Unlock()
		if n := len(at); n < len(lives) {
			living.Go(func() { lives[n](c) })
		}
		at = append(at, time.Since(began))
		children = append(children, c)
		return c.child, nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan time.Time)
	go func() {
		s.Run(ctx)
		ended <- time.Now()
	}()
	t.Cleanup(func() {
		stopped := time.Now()
		cancel()
		if took := (<-ended).Sub(stopped); took > 3*time.Second {
			t.Errorf("Run took %v to end", took)
		}
		for _, c := range children {
			c.exit()
		}
		living.Wait()
	})
	return s, func() []time.Duration {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(at)
	}
}

func TestPausesGrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dies := func(c *fakeChild) { c.exit() }
		lives := func(c *fakeChild) {
			for range 70 {
				c.print(line(known("GPU-1")))
				time.Sleep(time.Second)
			}
			c.exit()
		}
		s, starts := scripted(t, false, dies, dies, dies, dies, dies, dies, dies, dies, lives, dies)
		time.Sleep(10 * time.Minute)
		var pauses []string
		at := starts()
		for i := range 9 {
			pauses = append(pauses, (at[i+1] - at[i]).Round(time.Second).String())
		}
		// The two seconds of patience are not part of a pause: these children die at once.
		if got, want := strings.Join(pauses, " "), "1s 2s 4s 8s 16s 32s 1m0s 1m0s 1m11s"; got != want {
			t.Errorf("pauses %s, want %s", got, want)
		}
		if r, _ := s.Latest(); r.Failure == nil || r.State != Unknown {
			t.Errorf("failure %v, state %s", r.Failure, r.State)
		}
	})
}

func TestReadingsAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		idle, err := NewSampler(Config{})
		if err != nil {
			t.Fatal(err)
		}
		if r, age := idle.Latest(); r.State != Unknown || len(r.GPUs) != 0 || age != 0 {
			t.Errorf("before all: %s, %d GPUs, age %v", r.State, len(r.GPUs), age)
		}
		s, _ := scripted(t, false, func(c *fakeChild) {
			c.print([]byte(`garbage`))
			c.print([]byte(`{"at":"2026-01-01T00:00:00Z","gpus":7}`))
			c.print(line(known("GPU-1"), Snapshot{Device: Device{UUID: "GPU-2"}, At: time.Now().Add(-5 * time.Second)}))
		})
		for _, step := range []struct {
			after time.Duration
			want  string
		}{
			{0, "fresh fresh stale 0s"}, {3 * time.Second, "fresh fresh stale 3s"}, {3001 * time.Millisecond, "stale stale stale 3.001s"},
			{26 * time.Second, "stale stale unknown 26s"}, {31 * time.Second, "unknown unknown unknown 31s"},
		} {
			synctest.Wait()
			_, age := s.Latest()
			time.Sleep(step.after - age)
			r, age := s.Latest()
			if got := fmt.Sprintf("%s %s %s %v", r.State, r.GPUs[0].State, r.GPUs[1].State, age); got != step.want {
				t.Errorf("after %v: %s, want %s", step.after, got, step.want)
			}
		}
	})
}

func TestSilentChildIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, starts := scripted(t, false, func(c *fakeChild) { c.print(line(known("GPU-1"))) })
		time.Sleep(32 * time.Second)
		if at := starts(); len(at) != 2 || at[1] != 31*time.Second {
			t.Errorf("started at %v, want again at 31s", at)
		}
		if r, _ := s.Latest(); r.Failure == nil || r.Failure.Kind != Silent {
			t.Errorf("failure %v", r.Failure)
		}
		time.Sleep(40 * time.Second)
		if n := len(starts()); n != 2 {
			t.Errorf("%d children, want 2: a starting one has a minute", n)
		}
	})
}

// TestNoGPUAnswers has a child that keeps printing what it read once.
func TestNoGPUAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, starts := scripted(t, false, func(c *fakeChild) {
			read := time.Now()
			for range 40 {
				c.print(line(Snapshot{Device: Device{UUID: "GPU-1"}, At: read}))
				time.Sleep(time.Second)
			}
		})
		time.Sleep(35 * time.Second)
		if r, _ := s.Latest(); r.Failure == nil || r.Failure.Kind != Silent || len(starts()) != 2 {
			t.Errorf("failure %v, %d children", r.Failure, len(starts()))
		}
	})
}

// TestStuckChildrenAreLeftAlone has children that cannot be ended, as when the driver hangs: there are never more
// than two.
func TestStuckChildrenAreLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := make(chan *fakeChild, 1)
		s, starts := scripted(t, true, func(c *fakeChild) { first <- c })
		time.Sleep(time.Hour)
		if n := len(starts()); n != 2 {
			t.Errorf("%d children, want 2", n)
		}
		if r, _ := s.Latest(); r.Failure == nil || r.Failure.Kind != Silent {
			t.Errorf("failure %v", r.Failure)
		}
		(<-first).exit() // the driver releases it
		time.Sleep(2 * time.Minute)
		if n := len(starts()); n != 3 {
			t.Errorf("%d children, want a third", n)
		}
	})
}

// TestDevicesAreRemembered has a GPU that is lost and then disappears, over two children.
func TestDevicesAreRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		xid := Snapshot{Device: Device{UUID: "GPU-1", Index: 1}, XIDs: []XID{{At: time.Now(), Code: 79}}}
		s, _ := scripted(t, false, func(c *fakeChild) {
			c.print(line(known("GPU-0"), xid))
			c.exit()
		}, func(c *fakeChild) {
			c.print([]byte(strings.Replace(string(line(known("GPU-0"))), `"gpus"`, `"partial":true,"gpus"`, 1)))
			time.Sleep(time.Second)
			c.print(line(known("GPU-0"), Snapshot{Device: Device{Index: 1}, Lost: "is lost"}))
			time.Sleep(time.Second)
			c.print(line(known("GPU-0")))
		})
		var got []string
		for range 3 {
			time.Sleep(1100 * time.Millisecond)
			r, _ := s.Latest()
			text := fmt.Sprint(len(r.GPUs))
			if g, ok := r.GPU("GPU-1"); ok {
				text += fmt.Sprintf(" %s %v", g.Lost, g.XIDs)
			}
			got = append(got, text)
		}
		want := []string{"1", "2 is lost [XID 79 (fallen off the bus)]", "2 is no longer there [XID 79 (fallen off the bus)]"}
		if !slices.Equal(got, want) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	})
}

func TestXIDsAreBounded(t *testing.T) {
	s, err := NewSampler(Config{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		r, err := parseReading(line(Snapshot{Device: Device{UUID: "GPU-0"}, XIDs: []XID{{At: time.Now(), Code: i}}}), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		s.receive(r)
	}
	r, _ := s.Latest()
	list := r.GPUs[0].XIDs
	if len(list) != mostXIDs || list[0].Code != 84 || list[15].Code != 99 || list[15].Seq != 100 {
		t.Errorf("XIDs %v", list)
	}
}

func TestUnsupportedBuildIsAskedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, starts := scripted(t, false, func(c *fakeChild) {
			b, _ := json.Marshal(Reading{At: time.Now(), Failure: &Failure{Kind: Unsupported}})
			c.print(b)
		})
		time.Sleep(time.Hour)
		if r, _ := s.Latest(); r.Failure == nil || r.Failure.Kind != Unsupported || len(starts()) != 1 {
			t.Errorf("failure %v, %d children, want 1", r.Failure, len(starts()))
		}
	})
}

func TestConfigIsChecked(t *testing.T) {
	for _, cfg := range []Config{{Interval: -1}, {Hang: -1}, {Pause: -1}} {
		if _, err := NewSampler(cfg); err == nil {
			t.Errorf("%+v is taken", cfg)
		}
	}
}

// TestChildrenThatDie starts real processes that are not probes.
func TestChildrenThatDie(t *testing.T) {
	if _, err := exec.LookPath("sh"); err != nil {
		t.Skip("no sh")
	}
	tests := map[string]struct{ script, want string }{
		"a missing function":       {`echo "pulley: symbol lookup error: undefined symbol: nvmlNew" >&2; exit 127`, "it called a function that the driver does not have: pulley: symbol lookup error: undefined symbol: nvmlNew"},
		"an exit":                  {`exit 3`, "exit status 3"},
		"a signal":                 {`kill -SEGV $$`, "segmentation fault"},
		"an end without a word":    {`true`, "it ended"},
		"output that another took": {`sleep 60 & exit 4`, "no line"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := NewSampler(Config{Command: []string{"sh", "-c", tt.script}, Hang: 500 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			if f := s.runChild(t.Context()); !strings.Contains(f.Error(), tt.want) {
				t.Errorf("failure %q, want %q", f.Error(), tt.want)
			}
		})
	}
	s, _ := NewSampler(Config{Command: []string{"/nonexistent/pulley"}})
	if f := s.runChild(t.Context()); f.Kind != Crashed {
		t.Errorf("failure %v", f)
	}
}

// TestClockOfTheChild converts the times of a line to this process's clock.
func TestClockOfTheChild(t *testing.T) {
	now := time.Now()
	r, err := parseReading([]byte(`{"at":"2001-01-01T00:00:10Z","gpus":[{"uuid":"GPU-0","index":0,"at":"2001-01-01T00:00:08Z",
		"xids":[{"at":"2001-01-01T00:00:09Z","code":31}],"throttle":["idle","0x1000"]},{"uuid":"GPU-1","index":1,"at":"0001-01-01T00:00:00Z"}]}`), now)
	if err != nil {
		t.Fatal(err)
	}
	if g := r.GPUs[0]; now.Sub(g.At) != 2*time.Second || now.Sub(g.XIDs[0].At) != time.Second || *g.Throttle != 0x1001 {
		t.Errorf("read %v ago, XID %v ago, throttle %v", now.Sub(g.At), now.Sub(g.XIDs[0].At), *g.Throttle)
	}
	if !r.GPUs[1].At.IsZero() {
		t.Errorf("a GPU that was never read was read at %v", r.GPUs[1].At)
	}
}

func TestThrottleInWords(t *testing.T) {
	for bits := range Throttle(1 << 11) {
		b, err := json.Marshal(bits)
		if err != nil {
			t.Fatal(err)
		}
		var back Throttle
		if err := json.Unmarshal(b, &back); err != nil || back != bits {
			t.Fatalf("%#x is %s is %#x: %v", uint64(bits), b, uint64(back), err)
		}
	}
	if err := json.Unmarshal([]byte(`["no such"]`), new(Throttle)); err == nil {
		t.Error("an unknown reason is taken")
	}
}

// TestAbsentIsNotZero: a missing value has no field in the JSON, and a zero has one.
func TestAbsentIsNotZero(t *testing.T) {
	b, err := json.Marshal(known("GPU-0"))
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"uuid":"GPU-0","index":0,"at":"0001-01-01T00:00:00Z","watches_xids":false}`; string(b) != want {
		t.Errorf("a GPU without values:\n got %s\nwant %s", b, want)
	}
	s := known("GPU-0")
	s.Temperature, s.Utilization, s.Processes, s.Throttle, s.Rows = new(0), new(Utilization{}), []Process{}, new(Throttle(0)), new(Rows{})
	if b, err = json.Marshal(s); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"temperature":0`, `"utilization":{"gpu":0,"memory":0}`, `"processes":[]`, `"throttle":[]`, `"rows":{"correctable":0,`} {
		if !bytes.Contains(b, []byte(want)) {
			t.Errorf("no %s in %s", want, b)
		}
	}
}

func FuzzParseReading(f *testing.F) {
	f.Add(line(known("GPU-0"), Snapshot{Lost: "is lost", XIDs: []XID{{Code: 79}}, Throttle: new(ThrottlePowerCap)}))
	f.Add([]byte(`{"at":"2026-01-01T00:00:00Z","failure":{"kind":"no-driver"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		now := time.Now()
		r, err := parseReading(b, now)
		if err != nil {
			return
		}
		for _, g := range r.GPUs {
			if g.At.After(now) {
				t.Errorf("read in the future: %v", g.At)
			}
			Sick(Snapshot{}, g)
		}
		if _, err := json.Marshal(r); err != nil {
			t.Errorf("it does not go out again: %v", err)
		}
	})
}
