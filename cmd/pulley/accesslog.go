package main

import (
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/gateway"
)

// fileLook is how often a logFile looks whether its file was renamed or removed.
const fileLook = time.Second

// logFile appends to a file, which is created if it does not exist. When the file was renamed or removed, as log rotation does, it
// goes on in a new one: after a second, and at once after reopen. A write that fails is tried again in a file opened anew.
type logFile struct {
	path string

	mu     sync.Mutex
	file   *os.File // nil after an error
	looked time.Time
}

func openLogFile(path string) (*logFile, error) {
	l := &logFile{path: path}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l, l.openLocked()
}

func (l *logFile) openLocked() (err error) {
	if l.file != nil {
		l.file.Close()
	}
	l.looked = time.Now()
	if l.file, err = os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640); err != nil {
		l.file = nil
	}
	return err
}

// Write appends whole lines, all of them to one file.
func (l *logFile) Write(b []byte) (n int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil || time.Since(l.looked) > fileLook && l.movedLocked() {
		if err := l.openLocked(); err != nil {
			return 0, err
		}
	}
	return l.file.Write(b)
}

// movedLocked says that the path does not lead to the open file any more.
func (l *logFile) movedLocked() bool {
	l.looked = time.Now()
	open, err := l.file.Stat()
	if err != nil {
		return true
	}
	there, err := os.Stat(l.path)
	return errors.Is(err, os.ErrNotExist) || err == nil && !os.SameFile(open, there)
}

// reopen opens the file anew.
func (l *logFile) reopen() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.openLocked()
}

// reopenOnHangup reopens the file on each SIGHUP until stop is called.
func (l *logFile) reopenOnHangup(log *slog.Logger) (stop func()) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	var reopening sync.WaitGroup
	reopening.Go(func() {
		for range hangups {
			if err := l.reopen(); err != nil {
				log.Warn("access log not opened again", "err", err)
			}
		}
	})
	return func() {
		signal.Stop(hangups)
		close(hangups)
		reopening.Wait()
	}
}

// accessFlags are those of the access log.
type accessFlags struct {
	to, format string
	sample     float64
	slow       time.Duration
	file       *logFile // nil if it is no file
}

func addAccessFlags(fs *pflag.FlagSet, a *accessFlags) {
	fs.StringVar(&a.to, "access-log", "", "`file` that gets a line for each request, or stdout or stderr; opened again on SIGHUP, and when it was renamed (default: there is none)")
	fs.StringVar(&a.format, "access-log-format", "text", "format of --access-log: text or json")
	fs.DurationVar(&a.slow, "access-log-slow", 0, "how long a request takes from which on it always has a line in --access-log, as errors do; others have none then, unless --access-log-sample is given")
	fs.Float64Var(&a.sample, "access-log-sample", 1, "`share` of the requests, besides errors and slow ones, that have a line in --access-log: 0 to 1")
}

// open opens the log. Its errors are those of usage.
func (a *accessFlags) open(cmd *cobra.Command) (cfg gateway.AccessLog, err error) {
	switch a.format {
	case "text", "json":
	default:
		return cfg, cli.Usagef("--access-log-format %q: must be text or json", a.format)
	}
	cfg = gateway.AccessLog{JSON: a.format == "json", Slow: a.slow}
	if cmd.Flags().Changed("access-log-sample") {
		cfg.Sample = &a.sample
	}
	switch a.to {
	case "":
	case "stdout", "-":
		cfg.Writer = cmd.OutOrStdout()
	case "stderr":
		cfg.Writer = cmd.ErrOrStderr()
	default:
		if a.file, err = openLogFile(a.to); err != nil {
			return cfg, cli.Usagef("--access-log: %w", err)
		}
		cfg.Writer = a.file
	}
	return cfg, nil
}

// during runs a gateway. Meanwhile SIGHUP reopens the log, if it is a file; else that signal ends the process, as usual.
func (a *accessFlags) during(log *slog.Logger, run func() error) error {
	if a.file != nil {
		defer a.file.reopenOnHangup(log)()
	}
	return run()
}
