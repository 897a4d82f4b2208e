package main

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
)

func TestLogFileFollowsRotation(t *testing.T) {
	for about, rotate := range map[string]func(path string) error{
		"renamed": func(path string) error { return os.Rename(path, path+".1") },
		"removed": os.Remove,
		"replaced": func(path string) error {
			if err := os.Rename(path, path+".1"); err != nil {
				return err
			}
			return os.WriteFile(path, nil, 0o600)
		},
		"truncated": func(path string) error { return os.Truncate(path, 0) },
	} {
		for how, moveOn := range map[string]func(*logFile) error{
			"by itself":    func(l *logFile) error { l.looked = l.looked.Add(-2 * fileLook); return nil },
			"when told to": (*logFile).reopen,
		} {
			path := filepath.Join(t.TempDir(), "access.log")
			if err := os.WriteFile(path, []byte("before\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			l, err := openLogFile(path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.file.Close() })
			write := func(line string) {
				t.Helper()
				if _, err := l.Write([]byte(line)); err != nil {
					t.Errorf("%s, %s: %v", about, how, err)
				}
			}
			write("old\n")
			if err := rotate(path); err != nil {
				t.Fatal(err)
			}
			if err := moveOn(l); err != nil {
				t.Fatal(err)
			}
			write("new\n")
			if got, err := os.ReadFile(path); string(got) != "new\n" {
				t.Errorf("%s, %s: the file has %q, %v", about, how, got, err)
			}
			if got, err := os.ReadFile(path + ".1"); err == nil && string(got) != "before\nold\n" {
				t.Errorf("%s, %s: the old file has %q", about, how, got)
			}
		}
	}
}

// A directory that is away for a while costs lines, and no more than that.
func TestLogFileComesBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "logs")
	path := filepath.Join(dir, "access.log")
	if _, err := openLogFile(path); err == nil {
		t.Error("a log in no directory opens")
	}
	os.Mkdir(dir, 0o700)
	l, err := openLogFile(path)
	if err != nil {
		t.Fatal(err)
	}
	os.RemoveAll(dir)
	if l.reopen() == nil {
		t.Error("reopened in no directory")
	}
	if _, err := l.Write([]byte("lost\n")); err == nil {
		t.Error("written in no directory")
	}
	os.Mkdir(dir, 0o700)
	if _, err := l.Write([]byte("new\n")); err != nil {
		t.Error(err)
	}
	l.file.Close()
	if got, _ := os.ReadFile(path); string(got) != "new\n" {
		t.Errorf("the file has %q", got)
	}
}

func TestAccessLogFlags(t *testing.T) {
	dir := t.TempDir()
	for args, says := range map[string]string{
		"--access-log-format xml":                   "must be text or json",
		"--access-log " + dir:                       "is a directory",
		"--access-log " + dir + "/none/access.log":  "no such file",
		"--access-log stdout --access-log-sample 2": "must be from 0 to 1",
		"--access-log stderr --access-log-slow -1s": "must not be negative",
	} {
		code, _, out := clitest.Run(newRootCommand(), strings.Fields("up --listen 127.0.0.1:0 --admin= --nats-listen 127.0.0.1:0 --store-dir "+dir+"/store "+args)...)
		if code != 2 || !strings.Contains(out, says) {
			t.Errorf("%s: exit code %d, %s", args, code, out)
		}
	}
}

// The whole process: lines of requests, a rotation with SIGHUP, and the end.
func TestAccessLogOfAProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	engine, _ := oneEngine(t) // without a model the banner comes late
	cmd, url, stop := upProcess(t, nil, "--nvml off --engine "+engine+" --access-log "+path+" --access-log-format json")
	has := func(path, text string) {
		t.Helper()
		var got []byte
		for range 500 {
			if got, _ = os.ReadFile(path); strings.Contains(string(got), text) {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Fatalf("%s has %q, want %s in it", filepath.Base(path), got, text)
	}
	ask := func(path string) {
		t.Helper()
		resp, err := http.Get(url + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	ask("/first")
	has(path, `"path":"/first"`)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	cmd.Process.Signal(syscall.SIGHUP)
	for range 500 { // until it has opened the file
		if _, err := os.Stat(path); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	ask("/second")
	has(path, `"path":"/second"`)
	has(path+".1", `"path":"/first"`)
	ask("/last")
	stop()
	has(path, `"path":"/last"`)
}
