package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/batch"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/plain"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	// unwritten is how old the record of a batch may be that a gateway runs. It writes the record every two seconds, and another one
	// takes the batch after eight.
	unwritten = 30 * time.Second

	// unmoved is for how long no request of a batch may end until there is a warning.
	unmoved = 10 * time.Minute
)

// stored is what is stored of batches.
type stored struct {
	at       time.Time
	settings batch.Settings
	open     []batch.Open
	err      error
}

func readStored(ctx context.Context, nc *nats.Conn) (s stored) {
	s.settings, s.open, s.err = batch.Examine(ctx, nc)
	s.at = time.Now()
	return s
}

// expectedBy returns the streams that a function would create on an empty broker.
func expectedBy(create func(jetstream.JetStream) error) []jetstream.StreamConfig {
	var b streamRecorder
	if err := create(&b); err != nil {
		panic(err) // the recorder does not fail
	}
	return b.streams
}

func batchStreams() []jetstream.StreamConfig {
	return expectedBy(func(js jetstream.JetStream) error { return subjects.EnsureBatchStreams(context.Background(), js, 1) })
}

func backgroundStreams() []jetstream.StreamConfig {
	return expectedBy(func(js jetstream.JetStream) error {
		return subjects.EnsureBackground(context.Background(), js, subjects.BackgroundLimits{Replicas: 1})
	})
}

// storage compares streams that gateways create together with those that there are. It returns how many there are.
func (e *examination) storage(of string, expected []jetstream.StreamConfig) (there int, found []fleet.Finding) {
	var missing []string
	for _, want := range expected {
		info := e.streams[want.Name]
		if info == nil {
			missing = append(missing, want.Name)
			continue
		}
		there++
		if want.Name == subjects.BackgroundJobs { // by the settings of the gateway that made it
			want.MaxAge, want.MaxMsgsPerSubject = info.Config.MaxAge, info.Config.MaxMsgsPerSubject
		}
		if differ := differences(info.Config, want); len(differ) > 0 {
			found = append(found, fleet.NewProblem(fmt.Sprintf("stream %s: %s", want.Name, strings.Join(differ, "; ")),
				"gateways do not change existing streams: correct it with 'nats stream edit', or remove the stream and restart a gateway, "+
					"which loses what it stores of "+of))
		}
		if most := info.Config.MaxBytes; most > 0 {
			found = append(found, nearlyFullOf("stream "+want.Name, int64(info.State.Bytes), most,
				"raise its max-bytes with 'nats stream edit', or keep "+of+" for a shorter time")...)
		}
	}
	if there > 0 && len(missing) > 0 {
		found = append(found, fleet.NewProblem("missing: "+strings.Join(missing, ", "),
			"restart a gateway: it creates them; what they stored of "+of+" is lost"))
	}
	return there, found
}

// nearlyFullOf warns of storage that has little room left.
func nearlyFullOf(what string, used, most int64, remedy string) []fleet.Finding {
	text := fmt.Sprintf("%s: %s of %s are used", what, term.Bytes(used), term.Bytes(most))
	switch {
	case used >= most:
		return []fleet.Finding{fleet.NewProblem(text+"; more is refused", remedy)}
	case float64(used) >= nearlyFull*float64(most):
		return []fleet.Finding{fleet.NewWarning(text+"; more is refused when it is full", remedy)}
	}
	return nil
}

func (e *examination) findBatches() []fleet.Finding {
	if e.streamsErr != nil {
		return []fleet.Finding{{Verdict: fleet.Unknown, Text: "could not be read, see streams"}}
	}
	there, found := e.storage("files and batches", batchStreams())
	if e.stored.err != nil && there > 0 {
		return append(found, fleet.NewProblem("batches cannot be read: "+plain.Error(e.stored.err), "see streams and permissions above"))
	}
	if most := e.stored.settings.Disk; most > 0 {
		var used int64
		for _, name := range []string{subjects.FilesStream, subjects.ResultsStream} {
			if info := e.streams[name]; info != nil {
				used += int64(info.State.Bytes)
			}
		}
		found = append(found, nearlyFullOf("files and results of batches", used, most,
			"remove files with 'pulley file rm', or raise --batch-disk of the gateways")...)
	}
	return append(found, e.stored.findings()...)
}

// findings are about batches that do not go on.
func (s *stored) findings() (found []fleet.Finding) {
	var waiting, left, stuck []fleet.Finding
	for _, b := range s.open {
		name, silent := "batch "+b.ID, s.at.Sub(b.Written)
		if b.Tenant != "" {
			name += " of tenant " + b.Tenant
		}
		name += fmt.Sprintf(", %d of %d requests ended", b.Done, b.Lines)
		switch {
		case silent >= unwritten && !b.Owned:
			waiting = append(waiting, fleet.NewWarning(fmt.Sprintf("%s: no gateway has taken it for %s", name, term.Age(silent)),
				"it goes on when a gateway has room; if none is full, start one, or raise --batch-running"))
		case silent >= unwritten:
			left = append(left, fleet.NewProblem(fmt.Sprintf("%s: its gateway has written nothing for %s, and no other has taken it", name, term.Age(silent)),
				"start a gateway; if one runs, see its log for what it says of this batch"))
		case s.at.Sub(b.Moved) >= unmoved && b.Status == batch.InProgress:
			stuck = append(stuck, fleet.NewWarning(fmt.Sprintf("%s: none has ended for %s", name, term.Age(s.at.Sub(b.Moved))),
				"see 'pulley pool ls' for workers of its models, and 'pulley queue ls' for what waits before it; it expires "+term.Clock(b.Until)))
		}
	}
	for _, list := range [][]fleet.Finding{left, stuck, waiting} { // the oldest of each stands for all
		if len(list) > 1 {
			list[0].Text += fmt.Sprintf("; %d more like it", len(list)-1)
		}
		found = append(found, list[:min(len(list), 1)]...)
	}
	return found
}

// batchesText is what is said of batches if nothing is wrong.
func (e *examination) batchesText() string {
	if !slices.ContainsFunc(batchStreams(), func(s jetstream.StreamConfig) bool { return e.streams[s.Name] != nil }) {
		return "no gateway serves files and batches"
	}
	switch n := len(e.stored.open); n {
	case 0:
		return "all have ended"
	case 1:
		return "1 has not ended"
	default:
		return fmt.Sprintf("%d have not ended", n)
	}
}

func (e *examination) findBackground() []fleet.Finding {
	if e.streamsErr != nil {
		return []fleet.Finding{{Verdict: fleet.Unknown, Text: "could not be read, see streams"}}
	}
	_, found := e.storage("background responses", backgroundStreams())
	return found
}

// backgroundText is what is said of background responses if nothing is wrong.
func (e *examination) backgroundText() string {
	states, jobs := e.streams[subjects.BackgroundStates], e.streams[subjects.BackgroundJobs]
	if states == nil || jobs == nil {
		return "none was stored yet"
	}
	return fmt.Sprintf("%d stored, %d of them wait or run", states.State.Msgs, jobs.State.Msgs)
}
