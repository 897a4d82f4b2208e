package chaos

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pulley-lb/pulley/engine/sim"
)

// RequestHeader carries the id of a request from its client to the engines, which note it.
const RequestHeader = "X-Chaos-Request"

// poisonHeader orders the engine that gets a request to crash.
const poisonHeader = "X-Chaos-Poison"

// Mode is how an engine behaves.
type Mode string

const (
	Works   Mode = ""        // as it should
	Hangs   Mode = "hang"    // nothing comes any more, not even for a health check; connections stay
	Errs    Mode = "error"   // requests get a 500
	Babbles Mode = "garbage" // requests get 200, and a text that is no answer
	Cuts    Mode = "cut"     // streams break off after a few tokens
	Stops   Mode = "short"   // streams end after a few tokens as if that were all, without their last event
)

// shortAfter is how many writes of a stream an engine that breaks it off lets pass.
const shortAfter = 6

// Engine is a simulated engine that notes each run, and misbehaves when it is told to. It runs in this process, so that its
// notes have the clock of the clients, and none is lost when it crashes.
type Engine struct {
	Name  string
	Slots int

	sim     *sim.Engine
	now     func() Seconds
	proxy   *Proxy // between worker and engine
	server  *http.Server
	crashes atomic.Int64

	mu     sync.Mutex
	mode   Mode
	thawed chan struct{} // closed while the engine does not hang
	hits   int           // what the mode has struck
	down   bool
	life   context.Context // ends when it crashes
	die    context.CancelFunc
	runs   []Execution
}

// NewEngine starts an engine with a token each pace.
func NewEngine(name string, slots int, pace time.Duration, now func() Seconds) (*Engine, error) {
	s, err := sim.New(sim.Config{Name: name, Models: []string{Model}, Slots: slots, ITLBase: pace, TTFT: pace})
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	e := &Engine{Name: name, Slots: slots, sim: s, now: now, thawed: make(chan struct{})}
	close(e.thawed)
	e.life, e.die = context.WithCancel(context.Background())
	if e.proxy, err = NewProxy(l.Addr().String()); err != nil {
		l.Close()
		return nil, err
	}
	e.server = &http.Server{Handler: e}
	go e.server.Serve(l) // ends with Close
	return e, nil
}

// URL is where its worker reaches it.
func (e *Engine) URL() string { return "http://" + e.proxy.Addr() }

// Close stops it.
func (e *Engine) Close() {
	e.SetMode(Works)
	e.proxy.Close()
	e.server.Close()
}

// SetMode changes how it behaves from now on, running requests included. It returns how often the mode before struck.
func (e *Engine) SetMode(m Mode) (hits int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	hits, e.hits = e.hits, 0
	if m == Hangs && e.mode != Hangs {
		e.thawed = make(chan struct{})
	} else if m != Hangs && e.mode == Hangs {
		close(e.thawed)
	}
	e.mode = m
	return hits
}

// Crash breaks all that runs, and refuses connections until Restart. It returns how many connections broke.
func (e *Engine) Crash() int {
	e.mu.Lock()
	if e.down {
		e.mu.Unlock()
		return 0
	}
	e.down = true
	die := e.die
	e.mu.Unlock()
	e.crashes.Add(1)
	before := e.proxy.cuts.Load()
	die()
	e.proxy.Refuse()
	return int(e.proxy.cuts.Load() - before)
}

// Restart ends a crash.
func (e *Engine) Restart() error {
	e.mu.Lock()
	e.life, e.die = context.WithCancel(context.Background())
	e.down = false
	e.mu.Unlock()
	return e.proxy.Heal()
}

// Runs returns what it ran so far.
func (e *Engine) Runs() []Execution {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]Execution(nil), e.runs...)
}

func (e *Engine) begin(request string) (index int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.runs = append(e.runs, Execution{Request: request, Engine: e.Name, Start: e.now()})
	return len(e.runs) - 1
}

func (e *Engine) end(index int, how How) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.runs[index].End, e.runs[index].How = e.now(), how
}

// strike says how a request is to be treated when it comes, and counts what is struck. Only a hang strikes what is no request
// of a client.
func (e *Engine) strike(request bool) (m Mode, thawed chan struct{}, life context.Context) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.mode == Hangs || request && (e.mode == Errs || e.mode == Babbles) { // the other modes strike what is written
		e.hits++
		return e.mode, e.thawed, e.life
	}
	return Works, e.thawed, e.life
}

func (e *Engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := r.Header.Get(RequestHeader)
	mode, thawed, life := e.strike(id != "")
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(life, cancel)()
	out := &engineWriter{ResponseWriter: w, engine: e, ctx: ctx, request: id != ""}
	if id != "" {
		index := e.begin(id)
		defer func() { e.end(index, out.how(r.Context(), life)) }()
	}
	if id != "" && r.Header.Get(poisonHeader) != "" {
		e.Crash()
		go func() { // as a supervisor does
			time.Sleep(time.Second)
			e.Restart()
		}()
		panic(http.ErrAbortHandler)
	}
	switch mode {
	case Hangs:
		select {
		case <-thawed:
		case <-ctx.Done():
			panic(http.ErrAbortHandler)
		}
	case Errs:
		http.Error(w, `{"error":{"message":"CUDA error: device-side assert triggered","type":"server_error"}}`, http.StatusInternalServerError)
		return
	case Babbles:
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, "<html><body>It works!</body></html>")
		return
	}
	e.sim.ServeHTTP(out, r.WithContext(ctx))
}

// engineWriter lets what an engine writes pass as its mode says.
type engineWriter struct {
	http.ResponseWriter
	engine  *Engine
	ctx     context.Context
	request bool // of a client
	writes  int
	ended   bool // early, by a mode
	whole   bool // the end of an answer was written
}

// how is how a run has ended. client ends when the worker has closed the connection, and life when the engine has crashed.
func (w *engineWriter) how(client, life context.Context) How {
	switch {
	case w.whole && !w.ended:
		return Finished
	case life.Err() == nil && client.Err() != nil:
		return Aborted
	}
	return Failed
}

func (w *engineWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *engineWriter) Write(b []byte) (int, error) {
	if !w.request {
		return w.ResponseWriter.Write(b)
	}
	e := w.engine
	e.mu.Lock()
	mode, thawed := e.mode, e.thawed
	e.mu.Unlock()
	w.writes++
	stream := strings.HasPrefix(w.Header().Get("Content-Type"), "text/event-stream")
	switch {
	case w.ended:
		return len(b), nil
	case mode == Hangs:
		e.hit()
		select {
		case <-thawed:
		case <-w.ctx.Done():
			return 0, w.ctx.Err()
		}
	case mode == Cuts && stream && w.writes > shortAfter:
		e.hit()
		panic(http.ErrAbortHandler)
	case mode == Stops && stream && w.writes > shortAfter:
		e.hit()
		w.ended = true
		return len(b), nil
	}
	n, err := w.ResponseWriter.Write(b)
	w.whole = err == nil && (!stream || bytes.Contains(b, []byte("[DONE]")))
	return n, err
}

func (e *Engine) hit() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.hits++
}
