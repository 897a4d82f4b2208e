package broker

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
)

// logBridge is the server's logger. The server reports in its log, and only there, that it could not start; fatal
// receives the first such report. Likewise gaveUp receives why the server has given up a stream or JetStream.
type logBridge struct {
	*slog.Logger
	fatal  chan error  // buffered, 1
	gaveUp chan string // buffered, 1
}

func newLogBridge(l *slog.Logger) *logBridge {
	return &logBridge{
		Logger: cmp.Or(l, slog.New(slog.DiscardHandler)),
		fatal:  make(chan error, 1),
		gaveUp: make(chan string, 1),
	}
}

func (l *logBridge) Noticef(format string, v ...any) { l.Debug(line(format, v)) }
func (l *logBridge) Debugf(format string, v ...any)  { l.Debug(line(format, v)) }
func (l *logBridge) Tracef(format string, v ...any)  { l.Debug(line(format, v)) }

func (l *logBridge) Warnf(format string, v ...any) {
	text := line(format, v)
	l.Warn(text)
	l.noteGivenUp(text)
}

func (l *logBridge) Errorf(format string, v ...any) {
	text := line(format, v)
	l.Error(text)
	l.noteGivenUp(text)
}

// givenUp are in what the server logs when it does not write to a stream, a consumer or a log of a cluster any more, or has
// switched JetStream off. It does not take that back.
var givenUp = []string{"critical write error", "disabling jetstream", "will be disabled"}

func (l *logBridge) noteGivenUp(text string) {
	lower := strings.ToLower(text)
	if !slices.ContainsFunc(givenUp, func(s string) bool { return strings.Contains(lower, s) }) {
		return
	}
	select {
	case l.gaveUp <- text:
	default:
	}
}

// Fatalf neither ends the process, as the server's own loggers do, nor logs: Run returns the error.
func (l *logBridge) Fatalf(format string, v ...any) {
	select {
	case l.fatal <- errors.New(line(format, v)):
	default:
	}
}

// forget drops what the last server has given up.
func (l *logBridge) forget() {
	select {
	case <-l.gaveUp:
	default:
	}
}

func line(format string, v []any) string {
	return "nats: " + strings.TrimSpace(fmt.Sprintf(format, v...))
}
