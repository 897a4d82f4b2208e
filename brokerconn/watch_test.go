package brokerconn_test

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/broker"
	"github.com/pulley-lb/pulley/brokerconn"
	"github.com/pulley-lb/pulley/subjects"
	"github.com/pulley-lb/pulley/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// watched calls test with a watch that runs.
func watched(t *testing.T, nc *nats.Conn, test func(w *brokerconn.Watch)) {
	t.Helper()
	w := brokerconn.New(nc, slog.New(slog.DiscardHandler))
	ctx, end := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { w.Run(ctx) })
	defer running.Wait()
	defer end()
	time.Sleep(1050 * time.Millisecond) // between two pings
	test(w)
}

// A part of a cluster moves to another server soon enough that gateways do not take a worker for lost.
func TestMovesFromAFrozenServer(t *testing.T) {
	for _, after := range []time.Duration{0, 50 * time.Millisecond, 130 * time.Millisecond, 199 * time.Millisecond, 7 * time.Second} {
		testenv.Run(t, func(t *testing.T, env *testenv.Env) {
			nc, links := env.ConnectCluster("part")
			watched(t, nc, func(w *brokerconn.Watch) {
				time.Sleep(after)
				links[0].Freeze()
				frozen := time.Now()
				deaf := time.Duration(0)
				for nc.ConnectedUrl() != "nats://10.0.0.2:4222" {
					if now := time.Now(); deaf == 0 && !w.Hears(now) {
						deaf = now.Sub(frozen)
					}
					if time.Since(frozen) > 5*time.Second {
						t.Fatalf("frozen %v after a ping: still at %s", after, nc.ConnectedUrl())
					}
					time.Sleep(10 * time.Millisecond)
				}
				if took := time.Since(frozen); took > subjects.WorkerDeadline-subjects.HeartbeatEvery-100*time.Millisecond {
					t.Errorf("frozen %v after a ping: moved after %v", after, took)
				}
				if deaf == 0 || deaf > subjects.WorkerDeadline-2*subjects.HeartbeatEvery+10*time.Millisecond {
					t.Errorf("frozen %v after a ping: in doubt after %v", after, deaf)
				}
				testenv.Eventually(t, "it hears again", time.Second, func() bool { return w.Hears(time.Now()) })
				links[0].Thaw()
				time.Sleep(10 * time.Second)
				if nc.ConnectedUrl() != "nats://10.0.0.2:4222" || nc.Stats().Reconnects != 1 {
					t.Errorf("it moved %d times, and is at %s", nc.Stats().Reconnects, nc.ConnectedUrl())
				}
			})
		})
	}
}

// A single server is waited for.
func TestStaysAtASingleServer(t *testing.T) {
	for _, frozen := range []time.Duration{300 * time.Millisecond, 5 * time.Second, 20 * time.Second} {
		testenv.Run(t, func(t *testing.T, env *testenv.Env) {
			nc, link := env.Connect("part")
			watched(t, nc, func(w *brokerconn.Watch) {
				link.Freeze()
				time.Sleep(frozen)
				if hears := w.Hears(time.Now()); hears != (frozen < 500*time.Millisecond) {
					t.Errorf("frozen for %v: hears %v", frozen, hears)
				}
				link.Thaw()
				time.Sleep(500 * time.Millisecond)
				if !w.Hears(time.Now()) {
					t.Errorf("frozen for %v: deaf afterwards", frozen)
				}
				if n := nc.Stats().Reconnects; n != 0 {
					t.Errorf("frozen for %v: %d reconnects", frozen, n)
				}
			})
		})
	}
}

// If one server after the other answers for a moment only, the connection does not hop from one to the next all the time.
func TestMovesSeldom(t *testing.T) {
	testenv.Run(t, func(t *testing.T, env *testenv.Env) {
		nc, links := env.ConnectCluster("part")
		watched(t, nc, func(*brokerconn.Watch) {
			for range 20 {
				at := links[0]
				if nc.ConnectedUrl() == "nats://10.0.0.2:4222" {
					at = links[1]
				}
				at.Freeze()
				time.Sleep(900 * time.Millisecond)
				at.Thaw()
				time.Sleep(100 * time.Millisecond)
			}
			if n := nc.Stats().Reconnects; n > 5 {
				t.Errorf("moved %d times in 20 s", n)
			}
		})
	})
}

func TestHearsNobodyWithoutAConnection(t *testing.T) {
	testenv.Run(t, func(t *testing.T, env *testenv.Env) {
		nc, link := env.Connect("part")
		watched(t, nc, func(w *brokerconn.Watch) {
			link.Cut(true)
			time.Sleep(10 * time.Millisecond)
			if w.Hears(time.Now()) {
				t.Error("hears without a connection")
			}
			link.Mend()
			time.Sleep(time.Second)
			if !w.Hears(time.Now()) {
				t.Error("deaf after it has connected again")
			}
		})
	})
}

// A calm part that looks after each of its heartbeats, as a worker does that runs nothing, is at another server before gateways
// take it for lost.
func TestCalmMovesInTime(t *testing.T) {
	for _, after := range []time.Duration{0, 20 * time.Millisecond, 250 * time.Millisecond, 499 * time.Millisecond, 5 * time.Second} {
		testenv.Run(t, func(t *testing.T, env *testenv.Env) {
			nc, links := env.ConnectCluster("part")
			watched(t, nc, func(w *brokerconn.Watch) {
				w.Calm(true)
				var heard time.Time
				beat := time.NewTicker(subjects.HeartbeatEvery)
				defer beat.Stop()
				beats := func(until time.Time, done func() bool) {
					for time.Now().Before(until) && !done() {
						select {
						case now := <-beat.C:
							heard = now
							w.Look()
						case <-time.After(10 * time.Millisecond):
						}
					}
				}
				beats(time.Now().Add(time.Second+after), func() bool { return false })
				links[0].Freeze()
				if last := heard; !last.IsZero() {
					beats(last.Add(5*time.Second), func() bool { return nc.ConnectedUrl() == "nats://10.0.0.2:4222" })
					if took := time.Since(last); took > subjects.WorkerDeadline-100*time.Millisecond {
						t.Errorf("frozen %v after a beat: moved %v after the last heartbeat that was heard", after, took)
					}
				}
				testenv.Eventually(t, "it hears again", time.Second, func() bool { return w.Hears(time.Now()) })
			})
		})
	}
}

// Whatever comes from the server shows that it is there, and its silence is noticed as soon as without that.
func TestTrafficShowsThatTheServerIsThere(t *testing.T) {
	for _, calm := range []bool{false, true} {
		testenv.Run(t, func(t *testing.T, env *testenv.Env) {
			nc, link := env.Connect("part")
			watched(t, nc, func(w *brokerconn.Watch) {
				w.Calm(calm)
				sub, err := nc.Subscribe("x", func(*nats.Msg) {})
				if err != nil {
					t.Fatal(err)
				}
				defer sub.Unsubscribe()
				for range 100 {
					nc.Publish("x", nil)
					time.Sleep(50 * time.Millisecond)
					if !w.Hears(time.Now()) {
						t.Fatalf("calm %v: deaf while messages come", calm)
					}
				}
				link.Freeze()
				frozen := time.Now()
				for w.Hears(time.Now()) && time.Since(frozen) < 5*time.Second {
					time.Sleep(10 * time.Millisecond)
				}
				most := subjects.WorkerDeadline - 2*subjects.HeartbeatEvery + 10*time.Millisecond
				if calm {
					most = subjects.WorkerDeadline - subjects.HeartbeatEvery
				}
				if deaf := time.Since(frozen); deaf > most {
					t.Errorf("calm %v: in doubt after %v, want at most %v", calm, deaf, most)
				}
				link.Thaw()
			})
		})
	}
}

// clockSet is t, a time that time.Now returned, as it would have been if the clock had been set by some seconds before: what it
// shows differs, how much time has passed does not.
func clockSet(t *testing.T, at time.Time, by time.Duration) time.Time {
	t.Helper()
	was := at.Unix()
	wall := (*uint64)(unsafe.Pointer(&at)) // seconds since 1885 in bits 30 to 62, as there is a monotonic reading
	*wall += uint64(by/time.Second) << 30
	if at.Unix() != was+int64(by/time.Second) {
		t.Fatal("the layout of time.Time has changed")
	}
	return at
}

// A clock that is set, by whatever, does not change whether a part hears its server.
func TestClockIsSet(t *testing.T) {
	nc := testenv.Broker(t, broker.Config{})
	for _, by := range []time.Duration{0, time.Hour, -time.Hour, 2 * time.Second, -2 * time.Second, 24 * 365 * time.Hour} {
		for _, calm := range []bool{false, true} {
			w := brokerconn.New(nc, slog.New(slog.DiscardHandler))
			w.Calm(calm)
			now := time.Now()
			if !w.Hears(clockSet(t, now, by)) {
				t.Errorf("set by %v, calm %v: hears nobody, though the server has just answered", by, calm)
			}
			for _, silent := range []time.Duration{1200 * time.Millisecond, 10 * time.Second, 10 * time.Minute} {
				if w.Hears(clockSet(t, now.Add(silent), by)) {
					t.Errorf("set by %v, calm %v: hears a server that has been silent for %v", by, calm, silent)
				}
			}
		}
	}
}
