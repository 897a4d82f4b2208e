package worker

import (
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/pulley-lb/pulley/api"
)

// mostIdle bounds the runners that wait for an attempt.
const mostIdle = 64

// runners run attempts. A goroutine that has run one waits for the next, with its stack and with what else is in
// runner. Without that, a small request takes 11 % more CPU, and a stream of 100 tokens 3 to 8 % (pulley up, 16
// clients, engines that take no time). 7 % of the 11 are for the stack alone: calling an engine takes a deep one, which
// a new goroutine grows step by step, copying it each time.
type runners struct {
	run     func(*attempt)
	waiting chan *attempt // to a runner that waits; closed by close
	idle    atomic.Int32  // number of runners that wait
	all     sync.WaitGroup
}

// runner is what a goroutine keeps from one attempt to the next.
type runner struct {
	path      string        // of the last call of the engine
	call      *http.Request // that call, without header and body; later ones are copied from it
	inspector api.Inspector
	local     local
}

func newRunners(run func(*attempt)) *runners {
	return &runners{run: run, waiting: make(chan *attempt)}
}

func (rs *runners) start(a *attempt) {
	select {
	case rs.waiting <- a:
	default:
		rs.all.Go(func() { rs.loop(a) }) // ends when mostIdle others wait, or with close
	}
}

func (rs *runners) loop(a *attempt) {
	r := new(runner)
	for ok := true; ok; {
		a.runner = r
		rs.run(a)
		if rs.idle.Add(1) <= mostIdle {
			a, ok = <-rs.waiting
		} else {
			ok = false
		}
		rs.idle.Add(-1)
	}
}

// close ends the runners, and returns when the attempts that they run have ended. start must not be called any more.
func (rs *runners) close() {
	close(rs.waiting)
	rs.all.Wait()
}
