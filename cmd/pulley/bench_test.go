package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/bench/suite"
)

// pulleyScript is a program that is pulley: a script that starts this test binary as TestBePulley.
func pulleyScript(t *testing.T) string {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("no shell")
	}
	file := filepath.Join(t.TempDir(), "pulley")
	script := fmt.Sprintf("#!/bin/sh\nBE_PULLEY=\"$*\" exec '%s' -test.run='^TestBePulley$'\n", os.Args[0])
	if err := os.WriteFile(file, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}

// lines is a writer that calls a function with what is written. Each write is a line.
type lines func(string)

func (l lines) Write(p []byte) (int, error) { l(string(p)); return len(p), nil }

// runBench runs pulley with args in this process, and fails the test if a process that it has started is left.
func runBench(ctx context.Context, t *testing.T, onLine func(string), args ...string) (stdout string, err error) {
	t.Helper()
	var out, progress bytes.Buffer
	root := newRootCommand()
	root.SetOut(&out)
	root.SetErr(io.MultiWriter(&progress, lines(onLine)))
	root.SetArgs(args)
	err = root.ExecuteContext(ctx)
	pids := regexp.MustCompile(`pid (\d+)`).FindAllStringSubmatch(progress.String(), -1)
	if len(pids) == 0 {
		t.Errorf("no process was started:\n%s", &progress)
	}
	for _, pid := range pids {
		if stat, err := os.ReadFile("/proc/" + pid[1] + "/stat"); err == nil {
			t.Errorf("process %s is left: %s", pid[1], stat)
		}
	}
	return out.String(), err
}

func TestBenchSuiteApart(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a fleet of processes")
	}
	out, err := runBench(t.Context(), t, func(string) {}, "bench", "suite", "--apart", "--binary", pulleyScript(t),
		"--workers", "2", "--scenario", "small-16", "--scenario", "stream-64", "--rounds", "1", "--round-time", "400ms", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var report suite.ApartReport
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if len(report.Rows) != 2 || len(report.Idle) != 1 {
		t.Fatalf("%d rows and %d idle fleets, want 2 and 1:\n%s", len(report.Rows), len(report.Idle), out)
	}
	for _, row := range report.Rows {
		var sides []string
		for _, side := range row.Sides {
			sides = append(sides, side.Name)
			if side.RequestsPerSecond.Median <= 0 || side.OfDirect.Median <= 0 || side.Failed > 0 {
				t.Errorf("%s, %s: %+v", row.Scenario, side.Name, side)
			}
			var names []string
			for _, part := range side.Parts {
				names = append(names, part.Name)
				if runtime.GOOS == "linux" && (part.CPUPerRequest.Median <= 0 || part.CPUPerToken.Median <= 0) {
					t.Errorf("%s, %s: no CPU time", row.Scenario, part.Name)
				}
			}
			if got := strings.Join(names, " "); side.Name == "apart" && got != "broker gateway workers" {
				t.Errorf("parts %q, want broker, gateway and workers", got)
			}
		}
		if got := strings.Join(sides, " "); got != "engine yardstick pulley apart" || row.Workers != 2 {
			t.Errorf("%s: sides %q of %d workers", row.Scenario, got, row.Workers)
		}
	}
}

// An interrupt ends a measurement, and all processes of it.
func TestBenchSuiteInterrupted(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a fleet of processes")
	}
	for _, at := range []string{"broker at", "round 1"} {
		ctx, interrupt := context.WithCancel(t.Context())
		_, err := runBench(ctx, t, func(line string) {
			if strings.Contains(line, at) {
				interrupt()
			}
		}, "bench", "suite", "--apart", "--binary", pulleyScript(t), "--workers", "1", "--scenario", "small-16", "--round-time", "100ms")
		interrupt()
		if err == nil {
			t.Errorf("interrupted at %q: no error", at)
		}
	}
}

func TestBenchFleet(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a fleet of processes")
	}
	out, err := runBench(t.Context(), t, func(string) {}, "bench", "fleet", "--binary", pulleyScript(t), "--case", "workers-10", "--case", "bodies",
		"--workers", "4", "--pools", "2", "--gateways", "2", "--rate", "50", "--body", "50000", "--duration", "600ms", "--idle-time", "200ms", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var report struct {
		Rows []struct {
			Case, Title                       string
			Workers, Pools, Gateways, Brokers int
			Idle, Load                        struct {
				Cores  map[string]float64
				Memory map[string]float64 `json:"memory_mib_most"`
			}
			CPU    map[string]float64 `json:"cpu_us_per_request"`
			Pickup struct{ Count int }
			Result struct{ Succeeded, Failed int }
		}
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if len(report.Rows) != 2 {
		t.Fatalf("%d rows, want 2:\n%s", len(report.Rows), out)
	}
	for _, row := range report.Rows {
		if row.Workers != 4 || row.Pools != 2 || row.Gateways != 2 || row.Brokers != 1 || row.Result.Succeeded == 0 || row.Result.Failed > 0 || row.Pickup.Count != row.Result.Succeeded {
			t.Errorf("%s: %+v", row.Case, row)
		}
		for _, part := range []string{"broker", "gateway", "workers"} {
			if runtime.GOOS == "linux" && (row.Load.Cores[part] <= 0 || row.Load.Memory[part] <= 1 || row.CPU[part] <= 0) {
				t.Errorf("%s: no figures of the %s: %+v", row.Case, part, row)
			}
		}
	}
}

func TestBenchFleetInterrupted(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a fleet of processes")
	}
	for _, at := range []string{"workers, pid", ": load"} {
		ctx, interrupt := context.WithCancel(t.Context())
		_, err := runBench(ctx, t, func(line string) {
			if strings.Contains(line, at) {
				interrupt()
			}
		}, "bench", "fleet", "--binary", pulleyScript(t), "--case", "workers-10", "--workers", "3", "--idle-time", "100ms")
		interrupt()
		if err == nil {
			t.Errorf("interrupted at %q: no error", at)
		}
	}
}
