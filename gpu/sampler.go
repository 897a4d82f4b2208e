package gpu

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Config says how to read the GPUs.
type Config struct {
	// Command is the program that prints readings; --interval and --nvml-library are added to it.
	// Default: this executable with the argument gpu-probe.
	Command []string
	// Library is the path of libnvidia-ml.so.1. Default: where the loader finds it, or where driver
	// containers and WSL have it.
	Library string
	// All includes the devices that the environment hides. Default false.
	All bool
	// Interval is how often the GPUs are read. Default 1 s.
	Interval time.Duration
	// Hang is how long the probe may be silent, or all GPUs may not answer, before the probe is given up. The first
	// line may take twice as long: a GPU without persistence mode takes seconds to wake up. Default 30 s.
	Hang time.Duration
	// Pause is how long to wait before a dead probe is restarted for the first time. Each pause is
	// twice the one before, up to a minute. Default 1 s.
	Pause time.Duration
	// Logger receives reports of probes that die, and of what they complain about. Default: silent.
	Logger *slog.Logger
}

// Sampler keeps the state of the GPUs. Nothing that NVML does blocks it.
type Sampler struct {
	// Fixed after NewSampler.
	cfg   Config
	log   *slog.Logger
	start func(Config) (*child, error)

	mu      sync.Mutex
	latest  Reading
	arrived time.Time // arrival of latest, or start of Run
	failure *Failure
	known   []Snapshot // the last snapshot of each device that was ever identified
	xids    map[string][]XID
	seq     uint64
	stuck   int // children that were given up and still run
}

// NewSampler checks cfg and starts nothing.
func NewSampler(cfg Config) (*Sampler, error) {
	for name, d := range map[string]time.Duration{"Interval": cfg.Interval, "Hang": cfg.Hang, "Pause": cfg.Pause} {
		if d < 0 {
			return nil, fmt.Errorf("gpu: %s %v: must be positive", name, d)
		}
	}
	cfg.Interval = cmp.Or(cfg.Interval, time.Second)
	cfg.Hang = cmp.Or(cfg.Hang, 30*time.Second)
	cfg.Pause = cmp.Or(cfg.Pause, time.Second)
	s := &Sampler{cfg: cfg, log: cfg.Logger, arrived: time.Now(), start: startChild, xids: make(map[string][]XID)}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s, nil
}

// Latest returns the newest reading, each value with its state, and its age; without a reading, how long there has been
// none. Its Failure says why there is no newer one. It never blocks. The caller must not modify what it points to.
func (s *Sampler) Latest() (Reading, time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	r := s.latest
	r.State = stateAt(r.At, now, s.cfg.Interval)
	r.GPUs = slices.Clone(r.GPUs)
	for i := range r.GPUs {
		r.GPUs[i].State = stateAt(r.GPUs[i].At, now, s.cfg.Interval)
	}
	r.Failure = cmp.Or(s.failure, r.Failure)
	return r, now.Sub(s.arrived)
}

// mostStuck is how many children may be stuck at once. Another one would hang like them.
const mostStuck = 2

const longestPause = time.Minute

// Run keeps a probe running until ctx ends. It returns nil, within seconds, even if a child is stuck.
func (s *Sampler) Run(ctx context.Context) error {
	s.mu.Lock()
	s.arrived = time.Now()
	s.mu.Unlock()
	var pause time.Duration
	for {
		began := time.Now()
		if s.mayStart() {
			failure := s.runChild(ctx)
			if ctx.Err() != nil {
				return nil
			}
			s.fail(failure)
			if failure.Kind == Unsupported { // only another build can read GPUs
				<-ctx.Done()
				return nil
			}
		}
		pause = s.nextPause(pause, time.Since(began))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// nextPause is how long to wait after a child that lived so long.
func (s *Sampler) nextPause(before, lived time.Duration) time.Duration {
	if lived > time.Minute {
		return s.cfg.Pause
	}
	return min(max(s.cfg.Pause, 2*before), max(longestPause, s.cfg.Pause))
}

func (s *Sampler) mayStart() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stuck < mostStuck
}

// fail records why there is no probe now. The same reason is logged once.
func (s *Sampler) fail(f *Failure) {
	s.mu.Lock()
	same := s.failure != nil && *s.failure == *f
	s.failure = f
	s.mu.Unlock()
	switch {
	case same:
	case f.Kind == Unsupported || f.Kind == NoGPU:
		s.log.Info("GPUs are not monitored", "reason", f.Error())
	default:
		s.log.Warn("GPUs are not monitored", "reason", f.Error(), "remedy", f.Remedy())
	}
}

// runChild runs a probe until it ends or is given up, and returns why.
func (s *Sampler) runChild(ctx context.Context) *Failure {
	c, err := s.start(s.cfg)
	if err != nil {
		return &Failure{Kind: Crashed, Detail: err.Error()}
	}
	failure := s.listen(ctx, c)
	if !c.end(failure != nil && failure.Kind == Silent) {
		s.log.Warn("GPU probe abandoned: it cannot be killed because the driver hangs", "pid", c.pid)
		s.abandon(c)
	}
	if failure == nil {
		failure = c.death()
	}
	return failure
}

// listen receives a child's lines until they end (nil), the child reports a failure, or it has been
// silent for too long.
func (s *Sampler) listen(ctx context.Context, c *child) *Failure {
	silence := time.NewTimer(2 * s.cfg.Hang)
	defer silence.Stop()
	lastLine := time.Now()
	answered := lastLine
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-silence.C:
			return &Failure{Kind: Silent, Detail: fmt.Sprintf("no line for %v", time.Since(lastLine).Round(time.Millisecond))}
		case line, ok := <-c.lines:
			if !ok {
				return nil
			}
			now := time.Now()
			r, err := parseReading(line, now)
			if err != nil {
				s.log.Debug("invalid line from the GPU probe", "err", err)
				continue // it is not a sign of life
			}
			if r.Failure != nil && r.Failure.Kind != NoneVisible {
				return r.Failure
			}
			lastLine = now
			silence.Reset(s.cfg.Hang)
			s.receive(r)
			if answered = latest(answered, newest(r)); len(r.GPUs) == 0 {
				answered = now
			}
			if now.Sub(answered) > s.cfg.Hang {
				return &Failure{Kind: Silent, Detail: fmt.Sprintf("no GPU has answered for %v", s.cfg.Hang)}
			}
		}
	}
}

func newest(r Reading) time.Time {
	var t time.Time
	for _, g := range r.GPUs {
		t = latest(t, g.At)
	}
	return t
}

// abandon gives up a child that cannot be ended.
func (s *Sampler) abandon(c *child) {
	s.mu.Lock()
	s.stuck++
	s.mu.Unlock()
	go func() { // ends with the child, when the driver releases it
		<-c.done
		s.mu.Lock()
		s.stuck--
		s.mu.Unlock()
	}()
}

// receive stores a reading, and logs what is new in it.
func (s *Sampler) receive(r Reading) {
	s.mu.Lock()
	recovered := s.failure != nil
	reported := s.storeLocked(r)
	s.mu.Unlock()
	for _, e := range reported {
		s.log.Warn("driver reported a GPU error", "gpu", e.gpu, "xid", e.Code, "text", e.String())
	}
	if recovered {
		s.log.Info("GPUs are monitored", "driver", r.Driver, "gpus", len(r.GPUs))
	}
}

// reportedXID is a new XID, and which device it is of.
type reportedXID struct {
	gpu string
	XID
}

// storeLocked stores a reading, adds what the child cannot know because it happened before the child started, and
// returns the new XIDs.
func (s *Sampler) storeLocked(r Reading) (reported []reportedXID) {
	for i := range r.GPUs {
		s.identifyLocked(&r.GPUs[i])
		reported = append(reported, s.rememberXIDsLocked(&r.GPUs[i])...)
	}
	s.failure = nil
	for _, k := range s.known {
		if !r.Partial && !slices.ContainsFunc(r.GPUs, func(g Snapshot) bool { return g.UUID == k.UUID }) {
			r.GPUs = append(r.GPUs, Snapshot{Device: k.Device, At: r.At, Load: k.Load, Lost: lostGone, XIDs: s.xids[k.UUID]})
		}
	}
	for _, g := range r.GPUs {
		s.knowLocked(g)
	}
	s.latest, s.arrived = r, r.At
	return reported
}

const lostGone = "is no longer there"

// identifyLocked fills in the identity of a lost device, which cannot report it any more.
func (s *Sampler) identifyLocked(g *Snapshot) {
	if g.UUID != "" {
		return
	}
	for _, k := range s.known {
		if k.Label() == g.Label() {
			g.Device = k.Device
			return
		}
	}
}

func (s *Sampler) knowLocked(g Snapshot) {
	i := slices.IndexFunc(s.known, func(k Snapshot) bool { return k.UUID == g.UUID })
	switch {
	case g.UUID == "":
	case i < 0:
		s.known = append(s.known, g)
	case g.Lost == lostGone: // keep its last state from when it was there
	default:
		s.known[i] = g
	}
}

// mostXIDs is how many XIDs of a device are kept.
const mostXIDs = 16

// rememberXIDsLocked adds the XIDs of a snapshot to those of its device, and returns them.
func (s *Sampler) rememberXIDsLocked(g *Snapshot) (reported []reportedXID) {
	key := cmp.Or(g.UUID, g.Label())
	list := slices.Clone(s.xids[key]) // readers keep the list that they have
	for _, x := range g.XIDs {
		s.seq++
		x.Seq = s.seq
		list = append(list, x)
		reported = append(reported, reportedXID{key, x})
	}
	if n := len(list) - mostXIDs; n > 0 {
		list = list[n:]
	}
	s.xids[key] = list
	g.XIDs = list
	return reported
}
