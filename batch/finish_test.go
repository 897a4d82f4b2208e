package batch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/gateway"
	"github.com/pulley-lb/pulley/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const twoLines = `{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"model":"m"}}
{"custom_id":"b","method":"POST","url":"/v1/embeddings","body":{"model":"m"}}
`

// fixture is a batch of two lines that a service owns, and that has not begun.
type fixture struct {
	t     *testing.T
	owner *run
	batch record
	input *file
}

func serviceOn(t *testing.T, env *testenv.Env, name string) *Service {
	nc, _ := env.Connect(name)
	s, err := New(Config{}, nc)
	if err == nil {
		err = s.ensure(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func ownedBatch(t *testing.T, s *Service) *fixture {
	ctx, who := t.Context(), gateway.Caller{Tenant: "acme"}
	w := s.store.newWriter(ctx, newID("file-"), time.Hour, s.room)
	io.WriteString(w, twoLines)
	f, err := s.finishFile(ctx, who.Tenant, w, file{ID: w.id, Name: "in", Purpose: purposeInput, Lines: 2}, 2*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	b := &record{ID: newID("batch_"), Endpoint: "/v1/embeddings", Window: "1h", Keep: 7200, Owner: s.id}
	if err := s.accept(ctx, who, b, f, time.Hour); err != nil {
		t.Fatal(err)
	}
	rec, seq, err := s.store.batch(ctx, who.Tenant, b.ID)
	if err != nil {
		t.Fatal(err)
	}
	r := &run{s: s, id: b.ID, tenant: who.Tenant, log: slog.New(slog.DiscardHandler), nudge: make(chan struct{}, 1), writes: make(chan recordWrite), rec: rec, last: seq}
	return &fixture{t, r, *rec, f}
}

// finishes has the owner make the files of the batch.
func (x *fixture) finishes(logged uint64) error {
	ctx, stop := context.WithCancelCause(x.t.Context())
	done := make(chan struct{})
	go func() { // until stop
		defer close(done)
		if err := x.owner.beats(ctx, func() {}); err != nil {
			stop(err)
		}
	}()
	b := x.batch
	b.Ending = Completed
	err := x.owner.finish(ctx, &b, x.input, make([]bool, 2), logged)
	stop(nil)
	<-done
	return err
}

func (x *fixture) now() *record {
	b, _, err := x.owner.s.store.batch(x.t.Context(), "acme", x.batch.ID)
	if err != nil {
		x.t.Fatal(err)
	}
	return b
}

// A service that was frozen before it made the files of a batch, and wakes when another has ended it, leaves that one's alone.
func TestLateOwnerLeavesFilesAlone(t *testing.T) {
	testenv.Run(t, func(t *testing.T, env *testenv.Env) {
		frozen, other := serviceOn(t, env, "frozen"), serviceOn(t, env, "other")
		x := ownedBatch(t, frozen)
		p := testenv.Start(func(ctx context.Context) error {
			other.Run(ctx, func(w http.ResponseWriter, r *http.Request, _ gateway.Caller, _ string) {
				io.WriteString(w, `{"answer":1}`)
			})
			return nil
		})
		defer p.Stop()
		testenv.Eventually(t, "another has ended the batch", time.Minute, func() bool { return x.now().Status == Completed })
		ended := x.now()
		if err := x.finishes(0); !errors.Is(err, errLost) {
			t.Errorf("the late owner: %v", err)
		}
		if b := x.now(); b.Status != Completed || b.OutputID != ended.OutputID || b.Progress != ended.Progress {
			t.Errorf("the late owner has changed the batch: %+v", b)
		}
		files, err := frozen.store.filesOf(t.Context(), "acme")
		if err != nil || len(files) != 2 {
			t.Fatalf("%d files, %v", len(files), err)
		}
		var got bytes.Buffer
		for data, err := range frozen.store.content(t.Context(), files[1]) {
			if err != nil {
				t.Fatal(err)
			}
			got.Write(data)
		}
		if n := strings.Count(got.String(), `{"answer":1}`); files[1].ID != ended.OutputID || n != 2 {
			t.Errorf("%d answers in the output file: %s", n, got.String())
		}
	})
}

// A batch does not end with fewer results than its log has.
func TestLogThatIsReadInPart(t *testing.T) {
	testenv.Run(t, func(t *testing.T, env *testenv.Env) {
		x := ownedBatch(t, serviceOn(t, env, "a"))
		if err := x.finishes(7); err == nil || x.now().Status.ended() {
			t.Errorf("error %v, the batch is %s", err, x.now().Status)
		}
		if err := x.finishes(0); err != nil || !x.now().Status.ended() {
			t.Errorf("error %v, the batch is %s", err, x.now().Status)
		}
	})
}
