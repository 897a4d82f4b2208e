package batch

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	lookEvery  = 2 * time.Second // for batches without an owner
	cleanEvery = 10 * time.Minute

	// restAfter is how long a batch is left alone here after it could not go on.
	restAfter = 5 * time.Second

	// orphanAfter is how old content without a record must be to be removed: longer than any upload takes.
	orphanAfter = 24 * time.Hour
)

// Run runs batches until ctx is done.
func (s *Service) Run(ctx context.Context, do gateway.Do) {
	for ; ctx.Err() == nil; sleep(ctx, time.Second) {
		err := s.ensure(ctx)
		if err == nil {
			break
		}
		s.log.Debug("files and batches are not available yet", "err", err)
	}
	s.ready.Store(ctx.Err() == nil)
	if err := s.store.putSettings(ctx, Settings{s.cfg.Disk}); err != nil && ctx.Err() == nil {
		s.log.Debug("cannot store the settings of files and batches", "err", err)
	}
	var parts sync.WaitGroup
	defer parts.Wait()
	parts.Go(func() { s.cleanLoop(ctx) })
	o := &others{seen: make(map[string]sighting), rests: make(map[string]time.Time)}
	ended := make(chan string, 16)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		if err := s.look(ctx, do, o, &parts, ended); err != nil && ctx.Err() == nil {
			s.log.Debug("cannot look for batches", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case id := <-ended:
			o.rests[id] = time.Now().Add(restAfter)
		case <-s.changed:
			for _, r := range s.owned() {
				select {
				case r.nudge <- struct{}{}:
				default:
				}
			}
		}
	}
}

func (s *Service) ensure(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return subjects.EnsureBatchStreams(ctx, s.store.js, s.cfg.Replicas)
}

// owned are the batches that this service runs.
func (s *Service) owned() (list []*run) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.runs {
		list = append(list, r)
	}
	return list
}

// others is what Run knows of batches that it does not run.
type others struct {
	seen  map[string]sighting  // by id
	rests map[string]time.Time // batches that could not go on here are left alone until then
}

// sighting is a record of a batch as it was seen first.
type sighting struct {
	seq uint64
	at  time.Time
}

// look takes the batches that have no owner, as many as may run here.
func (s *Service) look(ctx context.Context, do gateway.Do, o *others, parts *sync.WaitGroup, ended chan<- string) error {
	open, err := s.store.open(ctx)
	if err != nil {
		return err
	}
	now, owned, tenants := time.Now(), make(map[string]bool), make(map[string]int)
	for _, r := range s.owned() {
		owned[r.id] = true
		tenants[r.tenant]++
	}
	known := make(map[string]bool)
	for _, b := range open {
		known[b.ID] = true
	}
	for id := range o.seen {
		if !known[id] {
			delete(o.seen, id)
		}
	}
	for id, until := range o.rests {
		if !now.Before(until) {
			delete(o.rests, id)
		}
	}
	slices.SortStableFunc(open, func(a, b openBatch) int { // first those of tenants that have the least
		return cmp.Or(cmp.Compare(tenants[a.Tenant], tenants[b.Tenant]), strings.Compare(a.ID, b.ID))
	})
	for _, b := range open {
		if owned[b.ID] || !o.rests[b.ID].IsZero() {
			continue
		}
		rec, seq, err := s.store.batch(ctx, b.Tenant, b.ID)
		switch {
		case errors.Is(err, errNotFound) && now.Sub(createdAt(b.ID)) < time.Minute: // it is about to be written
			continue
		case errors.Is(err, errNotFound), err == nil && rec.Status.ended():
			if err := s.store.closeBatch(ctx, b.Tenant, b.ID, rec.hiddenInput()); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		case len(owned) >= s.cfg.Running || !o.free(rec, seq, now, s.id):
			continue
		}
		rec.Owner = s.id
		rec.Beat++
		if seq, err = s.store.putBatch(ctx, rec, seq); errors.Is(err, errChanged) {
			continue
		} else if err != nil {
			return err
		}
		owned[b.ID] = true
		s.start(ctx, do, rec, seq, parts, ended)
	}
	return nil
}

// free says whether a batch has no owner that lives.
func (o *others) free(b *record, seq uint64, now time.Time, self string) bool {
	if b.Owner == "" || b.Owner == self {
		return true
	}
	last, known := o.seen[b.ID]
	if !known || last.seq != seq {
		o.seen[b.ID] = sighting{seq, now}
		return false
	}
	return now.Sub(last.at) >= deadAfter
}

// start runs a batch that is this service's. parts waits for it.
func (s *Service) start(ctx context.Context, do gateway.Do, b *record, seq uint64, parts *sync.WaitGroup, ended chan<- string) {
	r := &run{
		s: s, id: b.ID, tenant: b.Tenant, do: do, log: s.log.With("batch", b.ID, "tenant", b.Tenant), nudge: make(chan struct{}, 1), writes: make(chan recordWrite), rec: b, last: seq,
		progress: b.Progress, hidden: b.hiddenInput(),
	}
	s.mu.Lock()
	s.runs[b.ID] = r
	s.mu.Unlock()
	parts.Go(func() {
		r.log.Info("batch taken", "status", b.Status)
		err := r.own(ctx)
		s.mu.Lock()
		delete(s.runs, b.ID)
		s.mu.Unlock()
		if err == nil {
			r.log.Info("batch ended", "status", r.rec.Status, "completed", r.rec.Progress.Completed, "failed", r.rec.Progress.Failed)
			s.wake() // there may be room for another one
			return
		}
		if ctx.Err() == nil {
			r.log.Warn("batch interrupted", "err", err)
		}
		if !errors.Is(err, errLost) {
			r.release(context.WithoutCancel(ctx))
		}
		select {
		case ended <- b.ID:
		case <-ctx.Done():
		}
	})
}

// release leaves a batch to other services, if the broker answers.
func (r *run) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := r.write(ctx, func(b *record) { b.Owner = "" }); err != nil {
		r.log.Debug("cannot release the batch", "err", err)
	}
}

// cleanLoop removes what has expired, until ctx is done.
func (s *Service) cleanLoop(ctx context.Context) {
	for sleep(ctx, time.Minute); ctx.Err() == nil; sleep(ctx, cleanEvery) {
		if err := s.clean(ctx); err != nil && ctx.Err() == nil {
			s.log.Debug("cannot remove expired files", "err", err)
		}
	}
}

// clean removes files that have expired, and content of which there is no file: of uploads whose gateway died.
func (s *Service) clean(ctx context.Context) error {
	stream, err := s.store.js.Stream(ctx, subjects.FilesStream)
	if err != nil {
		return err
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(subjects.FirstPieces))
	if err != nil {
		return err
	}
	kept, now := make(map[string]bool), time.Now() // files that have records by now: content older than an upload has one
	all, err := s.store.files(ctx, subjects.FileRecords)
	if err != nil {
		return err
	}
	for _, f := range all {
		if now.Before(f.Expires) {
			kept[f.ID] = true
		} else if err := s.store.removeFile(ctx, f); err != nil {
			return err
		}
	}
	for subject := range info.State.Subjects {
		token := strings.Split(subject, ".")[2]
		id, err := subjects.Untoken(token)
		if err != nil || kept[id] || now.Sub(createdAt(id)) < orphanAfter {
			continue
		}
		if err := s.store.remove(ctx, subjects.FilesStream, subjects.FileContent(id)+".>"); err != nil {
			return err
		}
	}
	return nil
}
