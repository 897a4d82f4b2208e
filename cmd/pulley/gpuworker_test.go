//go:build linux && cgo

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
	"github.com/pulley-lb/pulley/engine/sim"
	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/gpu/fakenvml"
	"github.com/pulley-lb/pulley/subjects"
)

// gpuWorker is the process of a worker beside an engine, on a machine with a fake NVML.
type gpuWorker struct {
	t      *testing.T
	name   string
	lib    *fakenvml.Library
	nc     *nats.Conn
	beats  *nats.Subscription
	cmd    *exec.Cmd
	stderr clitest.Buffer
	ended  chan error
	over   bool // its end was waited for
}

// await waits for a heartbeat that satisfies a condition. Heartbeats must never stop.
func (w *gpuWorker) await(what string, is func(h subjects.Heartbeat) bool) subjects.Heartbeat {
	w.t.Helper()
	var h subjects.Heartbeat
	began := time.Now()
	for last := began; time.Since(began) < time.Minute; {
		m, err := w.beats.NextMsg(maxSilence)
		var now subjects.Heartbeat
		if err == nil {
			err = json.Unmarshal(m.Data, &now)
		}
		if err != nil || time.Since(last) > maxSilence {
			w.t.Fatalf("%s: no heartbeat for %v: %v; the last: %+v\n%s", what, maxSilence, err, h, &w.stderr)
		}
		if now.Name != w.name { // another test's
			continue
		}
		if h, last = now, time.Now(); is(h) {
			return h
		}
	}
	b, _ := json.Marshal(h)
	w.t.Fatalf("%s: not within a minute; the last heartbeat: %s\n%s", what, b, &w.stderr)
	return h
}

// stop ends the worker as a service manager does. The worker and its probe must end soon
// after.
func (w *gpuWorker) stop() {
	w.t.Helper()
	if w.over {
		return
	}
	w.over = true
	w.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-w.ended:
		if err != nil {
			w.t.Errorf("after SIGTERM: %v\n%s", err, &w.stderr)
		}
	case <-time.After(time.Minute):
		w.t.Errorf("it does not end\n%s", &w.stderr)
	}
	if left := probesOf(w.lib); len(left) > 0 {
		w.t.Errorf("probes are left: %v", left)
	}
}

func fakeEngine(t *testing.T) string {
	t.Helper()
	eng, err := sim.New(sim.Config{Models: []string{"m"}, Slots: 16, ITLBase: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(eng)
	t.Cleanup(server.Close)
	return server.URL
}

// startGPUWorker starts a worker with these flags, and with these keys of --engine.
func startGPUWorker(t *testing.T, lib *fakenvml.Library, url, flags, keys string) *gpuWorker {
	t.Helper()
	w := &gpuWorker{t: t, name: fmt.Sprintf("w-%x", time.Now().UnixNano()), lib: lib, ended: make(chan error, 1)}
	var err error
	if w.nc, err = nats.Connect(url); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.nc.Close)
	if w.beats, err = w.nc.SubscribeSync(subjects.AllHeartbeats); err != nil {
		t.Fatal(err)
	}
	w.nc.Flush()
	w.cmd = pulleyProcess(t, fmt.Sprintf("worker --nats %s --nvml-library %s --drain-timeout 3s %s --engine %s,name=%s%s", url, lib.Path, flags, fakeEngine(t), w.name, keys))
	w.cmd.Stderr = &w.stderr
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { w.ended <- w.cmd.Wait() }() // stop waits for it, or the test's end kills it
	t.Cleanup(w.stop)
	return w
}

// maxSilence between two heartbeats would mean that the worker is blocked. It allows for
// a busy machine: the interval is half a second.
const maxSilence = 10 * time.Second

// probesOf returns the processes that use a library.
func probesOf(lib *fakenvml.Library) (pids []string) {
	environs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, name := range environs {
		b, _ := os.ReadFile(name)
		for v := range bytes.SplitSeq(b, []byte{0}) {
			if bytes.HasPrefix(v, []byte("BE_PULLEY=gpu-probe ")) && bytes.Contains(v, []byte(lib.Path)) {
				pids = append(pids, filepath.Base(filepath.Dir(name)))
			}
		}
	}
	return pids
}

func hasGPUs(n int) func(h subjects.Heartbeat) bool {
	return func(h subjects.Heartbeat) bool {
		return h.State == subjects.Ready && h.NVML != nil && h.NVML.Failure == nil && len(h.NVML.GPUs) == n && h.NVML.GPUs[0].State == gpu.Fresh
	}
}

func scripted(t *testing.T, count int, lines ...string) *fakenvml.Library {
	lib := fakenvml.New(t)
	lib.Set(t, append(lines, fmt.Sprintf("count=%d", count))...)
	return lib
}

// TestWorkerOnEveryMachine runs a worker on machines of every kind: it starts, and
// accepts requests or says why not.
func TestWorkerOnEveryMachine(t *testing.T) {
	url, _ := clitest.Broker(t, broker.Config{})
	type machine struct {
		lib         func(t *testing.T) *fakenvml.Library
		flags, keys string
		story       func(t *testing.T, w *gpuWorker)
	}
	h100 := func(t *testing.T) *fakenvml.Library {
		return scripted(t, 2, append(fakenvml.H100(0), fakenvml.H100(1)...)...)
	}
	none := func(t *testing.T) *fakenvml.Library {
		return &fakenvml.Library{Path: t.TempDir() + "/libnvidia-ml.so.1"}
	}
	tests := map[string]machine{
		"two H100": {h100, "", "", func(t *testing.T, w *gpuWorker) {
			h := w.await("both", hasGPUs(2))
			if g := h.NVML.GPUs[0]; g.Name != "NVIDIA H100 80GB HBM3" || h.NVML.Driver != "580.65.06" || h.NVML.Mode != "auto" || g.Fenced != "" {
				t.Errorf("NVML %+v", h.NVML)
			}
			if h.Capacity == nil || h.Capacity.Profile != "balanced" || h.Capacity.Total < 1 {
				t.Errorf("room %+v", h.Capacity)
			}
		}},
		"one of two": {h100, "--profile latency --slo-itl 40ms", ",gpus=1", func(t *testing.T, w *gpuWorker) {
			h := w.await("one", hasGPUs(1))
			if h.NVML.GPUs[0].Index != 1 || h.Capacity.Profile != "latency" {
				t.Errorf("GPU %+v, profile %s", h.NVML.GPUs[0].Device, h.Capacity.Profile)
			}
			if h.Weight < 1.6 || h.Weight > 1.7 {
				t.Errorf("weight %v, want that of an H100, 1.64", h.Weight)
			}
		}},
		"a split A100": {func(t *testing.T) *fakenvml.Library { return scripted(t, 1, fakenvml.SplitA100(0)...) }, "", ",gpus=0:1", func(t *testing.T, w *gpuWorker) {
			h := w.await("an instance", hasGPUs(1))
			if g := h.NVML.GPUs[0]; g.Label() != "0:1" || g.Memory == nil || g.Utilization != nil {
				t.Errorf("GPU %+v", g)
			}
		}},
		"a GB10 without memory of its own": {func(t *testing.T) *fakenvml.Library { return scripted(t, 1, fakenvml.GB10(0)...) }, "", "", func(t *testing.T, w *gpuWorker) {
			if h := w.await("a GB10", hasGPUs(1)); h.NVML.GPUs[0].Memory == nil || !h.NVML.GPUs[0].Memory.Host {
				t.Errorf("memory %+v", h.NVML.GPUs[0].Memory)
			}
		}},
		"an old driver": {func(t *testing.T) *fakenvml.Library {
			lib := fakenvml.NewOld(t)
			lib.Set(t, append(fakenvml.H100(0), "count=1")...)
			return lib
		}, "", "", func(t *testing.T, w *gpuWorker) { w.await("an H100", hasGPUs(1)) }},
		"no library": {none, "", "", func(t *testing.T, w *gpuWorker) {
			h := w.await("the reason", func(h subjects.Heartbeat) bool {
				return h.NVML != nil && h.NVML.Failure != nil && h.State == subjects.Ready
			})
			if h.NVML.Failure.Kind != gpu.NoLibrary || h.Capacity.Total < 1 {
				t.Errorf("failure %v, room %+v", h.NVML.Failure, h.Capacity)
			}
		}},
		"no library, and it is required": {none, "--nvml required", "", func(t *testing.T, w *gpuWorker) {
			h := w.await("a fence", func(h subjects.Heartbeat) bool {
				return h.State == subjects.Fenced && h.NVML != nil && h.NVML.Failure != nil && strings.Contains(h.Reason, "libnvidia-ml.so.1")
			})
			if h.NVML.Mode != "required" || h.Capacity.Total != 0 || h.Slots != 0 {
				t.Errorf("NVML %+v, room %+v, %d slots", h.NVML, h.Capacity, h.Slots)
			}
		}},
		"NVML off": {h100, "--nvml off", "", func(t *testing.T, w *gpuWorker) {
			w.await("ready", func(h subjects.Heartbeat) bool { return h.State == subjects.Ready && h.NVML == nil })
			if pids := probesOf(w.lib); len(pids) > 0 {
				t.Errorf("probes run: %v", pids)
			}
		}},
		"a GPU that is lost": {h100, "", "", func(t *testing.T, w *gpuWorker) {
			w.await("both", hasGPUs(2))
			w.lib.Set(t, "1.ret=15")
			h := w.await("a fence", func(h subjects.Heartbeat) bool { return h.State == subjects.Fenced })
			if !strings.Contains(h.Reason, "GPU 1: GPU is lost") || h.NVML.GPUs[1].Fenced == "" || h.NVML.GPUs[0].Fenced != "" {
				t.Errorf("reason %q, GPUs %+v", h.Reason, h.NVML.GPUs)
			}
		}},
		"XIDs": {h100, "", "", func(t *testing.T, w *gpuWorker) {
			w.await("both", func(h subjects.Heartbeat) bool {
				return hasGPUs(2)(h) && h.NVML.GPUs[0].WatchesXIDs && h.NVML.GPUs[1].WatchesXIDs
			})
			w.lib.Set(t, "xid=1:0:31") // an error of a program: the engine answers, so the worker stays ready
			w.await("XID 31", func(h subjects.Heartbeat) bool { return h.State == subjects.Ready && len(h.NVML.GPUs[0].XIDs) == 1 })
			w.lib.Set(t, "xid=2:1:79")
			h := w.await("a fence", func(h subjects.Heartbeat) bool { return h.State == subjects.Fenced && strings.Contains(h.Reason, "79") })
			if h.Reason != "GPU 1: XID 79 (fallen off the bus)" || h.NVML.GPUs[1].Fenced == "" {
				t.Errorf("reason %q, GPUs %+v", h.Reason, h.NVML.GPUs)
			}
			if d := h.Capacity.Decisions; len(d) == 0 || !strings.Contains(d[len(d)-1].Text, "XID 79") {
				t.Errorf("decisions %+v", d)
			}
		}},
		"a driver that hangs": {h100, "", "", func(t *testing.T, w *gpuWorker) {
			w.await("both", hasGPUs(2))
			w.lib.Set(t, "sleep.0.nvmlDeviceGetMemoryInfo_v2=30000", "sleep.1.nvmlDeviceGetMemoryInfo_v2=30000")
			h := w.await("stale GPUs", func(h subjects.Heartbeat) bool {
				return len(h.NVML.GPUs) == 2 && h.NVML.GPUs[0].State == gpu.Stale && h.NVML.GPUs[1].State == gpu.Stale
			})
			if h.State != subjects.Ready || h.Capacity.GPU != "stale" {
				t.Errorf("state %s, %s", h.State, h.Capacity.GPU)
			}
		}},
		"a driver that hangs from the start": {func(t *testing.T) *fakenvml.Library {
			return scripted(t, 1, append(fakenvml.H100(0), "sleep.nvmlInit_v2=30000")...)
		}, "", "", func(t *testing.T, w *gpuWorker) {
			for range 4 {
				w.await("ready", func(h subjects.Heartbeat) bool { return h.State == subjects.Ready && h.NVML != nil })
			}
		}},
		"an upgrade of the driver": {h100, "", "", func(t *testing.T, w *gpuWorker) {
			w.await("both", hasGPUs(2))
			w.lib.Upgrade(t, "590.10")
			w.lib.Set(t, "init=18", "all.580.65.06=9") // the old driver is unloaded, the new one not yet loaded
			h := w.await("a failure", func(h subjects.Heartbeat) bool { return h.NVML.Failure != nil && h.NVML.Failure.Kind == gpu.Mismatch })
			if h.State != subjects.Ready {
				t.Errorf("state %s (%s)", h.State, h.Reason)
			}
			w.lib.Set(t, "init=")
			w.await("the new driver", func(h subjects.Heartbeat) bool { return hasGPUs(2)(h) && h.NVML.Driver == "590.10" })
		}},
	}
	for name, m := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := startGPUWorker(t, m.lib(t), url, m.flags, m.keys)
			m.story(t, w)
			w.stop()
		})
	}
}

// The probe of a worker that is killed ends too.
func TestProbeOfAKilledWorkerEnds(t *testing.T) {
	url, _ := clitest.Broker(t, broker.Config{})
	w := startGPUWorker(t, scripted(t, 1, fakenvml.H100(0)...), url, "", "")
	w.await("an H100", hasGPUs(1))
	w.cmd.Process.Kill()
	<-w.ended
	w.over = true
	for began := time.Now(); len(probesOf(w.lib)) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Since(began) > 10*time.Second {
			t.Fatalf("probes are left: %v", probesOf(w.lib))
		}
	}
}

// TestFleetOfGPUs tests a worker's process with a gateway: requests while the driver
// hangs, then a GPU that fails, with the events, metrics and listings that follow.
func TestFleetOfGPUs(t *testing.T) {
	url, _ := clitest.Broker(t, broker.Config{})
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	var events clitest.Buffer
	if _, err := nc.Subscribe(subjects.AllEvents, func(m *nats.Msg) { events.Write(append(m.Data, '\n')) }); err != nil {
		t.Fatal(err)
	}
	ingress, admin := clitest.Gateway(t, nc)
	lib := scripted(t, 2, append(fakenvml.H100(0), fakenvml.H100(1)...)...)
	w := startGPUWorker(t, lib, url, "", ",gpus=1")
	w.await("a GPU", hasGPUs(1))
	chat := func() error {
		client := http.Client{Timeout: 30 * time.Second}
		resp, err := client.Post(ingress+"/v1/chat/completions", "application/json", strings.NewReader(`{"model":"m","max_tokens":5,"messages":[{"role":"user","content":"Hello"}]}`))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s %v: %s", resp.Status, err, b)
		}
		return nil
	}
	if err := chat(); err != nil {
		t.Fatal(err)
	}
	lib.Set(t, "sleep.1.nvmlDeviceGetMemoryInfo_v2=30000")
	w.await("a stale GPU", func(h subjects.Heartbeat) bool { return h.NVML.GPUs[0].State == gpu.Stale })
	if err := chat(); err != nil {
		t.Errorf("while the driver hangs: %v", err)
	}
	lib.Set(t, "sleep.1.nvmlDeviceGetMemoryInfo_v2=", "xid=1:1:79")
	w.await("a fence", func(h subjects.Heartbeat) bool { return h.State == subjects.Fenced })
	events.WaitFor(t, `"kind":"worker-fenced"`)
	events.WaitFor(t, "XID 79 (fallen off the bus)")

	verb := func(args string) string {
		t.Helper()
		code, stdout, stderr := clitest.Run(newRootCommand(), append(strings.Fields(args), "--nats", url)...)
		if code != 0 {
			t.Errorf("pulley %s: exit code %d, %s", args, code, stderr)
		}
		return stdout
	}
	for args, wants := range map[string][]string{
		"gpu ls":        {"fenced: XID 79 (fallen off the bus)", "remedy: restart the engine"},
		"gpu info":      {"H100", "XID 79 (fallen off the bus)"},
		"worker ls":     {"fenced", "0/0  fence", "GPU 1: XID 79"},
		"top --once":    {"fenced", "is fenced: XID 79"},
		"worker info w": {"in flight       0 of 0: no request may start: GPU 1: XID 79 (fallen off the bus)\n", "\nlatest decisions\n"},
	} {
		out := verb(args)
		for _, want := range wants {
			if !strings.Contains(out, want) {
				t.Errorf("pulley %s: no %q in\n%s", args, want, out)
			}
		}
	}

	page := scrape(t, admin)
	host, _ := os.Hostname()
	for _, want := range []string{
		`pulley_worker_fenced{host="H",reason="xid",worker="W"} 1`, `pulley_worker_credits{bound="fence",host="H",worker="W"} 0`,
		`pulley_worker_in_flight{host="H",worker="W"} 0`, `pulley_worker_factor_ratio{host="H",worker="W"} 0`, `pulley_nvml_up{host="H",worker="W"} 1`,
		`pulley_gpu_fenced{G,reason="xid"} 1`, `pulley_gpu_xid_total{G,xid="79"} 1`, `pulley_gpu_memory_bytes{G,state="total"} 8.5520809984e+10`,
		`pulley_gpu_utilization_ratio{G} 0.97`, `pulley_gpu_temperature_celsius{G} 64`, `pulley_gpu_power_watts{G} 655.21`,
		`pulley_gpu_throttled{G,reason="power_cap"} 1`, `pulley_gpu_throttled{G,reason="hw_thermal"} 0`, `pulley_nvml_sample_age_seconds{G} `,
	} {
		want = strings.ReplaceAll(want, "G", `UUID="GPU-1f2e3d4c-0000-4000-8000-000000000001",gpu="1",host="H",modelName="NVIDIA H100 80GB HBM3"`)
		want = strings.ReplaceAll(strings.ReplaceAll(want, `"H"`, `"`+host+`"`), `"W"`, `"`+w.name+`"`)
		if !strings.Contains(page, "\n"+want) {
			t.Errorf("no metric %s", want)
		}
	}
	w.stop()
	for began := time.Now(); strings.Contains(scrape(t, admin), "\npulley_gpu_") || strings.Contains(scrape(t, admin), "\npulley_worker_"); time.Sleep(50 * time.Millisecond) {
		if time.Since(began) > 10*time.Second {
			t.Fatalf("metrics of a worker that is gone:\n%s", scrape(t, admin))
		}
	}
}

func scrape(t *testing.T, admin string) string {
	t.Helper()
	resp, err := http.Get(admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %v: %s", resp.Status, err, b)
	}
	return string(b)
}
