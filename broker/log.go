package broker

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

// logBridge is the server's logger. The server reports in its log, and only there, that it could not start; fatal
// receives the first such report.
type logBridge struct {
	*slog.Logger
	fatal chan error // buffered, 1
}

func newLogBridge(l *slog.Logger) *logBridge {
	return &logBridge{
		Logger: cmp.Or(l, slog.New(slog.DiscardHandler)),
		fatal:  make(chan error, 1),
	}
}

func (l *logBridge) Noticef(format string, v ...any) { l.Debug(line(format, v)) }
func (l *logBridge) Debugf(format string, v ...any)  { l.Debug(line(format, v)) }
func (l *logBridge) Tracef(format string, v ...any)  { l.Debug(line(format, v)) }
func (l *logBridge) Warnf(format string, v ...any)   { l.Warn(line(format, v)) }
func (l *logBridge) Errorf(format string, v ...any)  { l.Error(line(format, v)) }

// Fatalf neither ends the process, as the server's own loggers do, nor logs: Run returns the error.
func (l *logBridge) Fatalf(format string, v ...any) {
	select {
	case l.fatal <- errors.New(line(format, v)):
	default:
	}
}

func line(format string, v []any) string {
	return "nats: " + strings.TrimSpace(fmt.Sprintf(format, v...))
}
