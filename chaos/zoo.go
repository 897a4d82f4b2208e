package chaos

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Bug is a known bug that a binary can have on purpose, to show that the checker finds it. The product's own files do not
// know of it: its lines are put into copies of them, of which one binary with all bugs is built. A variable of the
// environment turns one of them on.
type Bug struct {
	Name  string
	Says  string        // what is wrong
	Rule  Rule          // that has to find it
	Kinds []string      // of faults under which it shows
	For   time.Duration // how long they strike
	// Patience is how long clients wait. Default 12 s, so that what never ends does not take a minute.
	Patience time.Duration
	Edits    []Edit
}

// Edit replaces a text of a file of the product, relative to its root. The text occurs once there.
type Edit struct{ File, Old, New string }

// bugVariable is the variable of the environment that turns a bug on.
const bugVariable = "PULLEY_CHAOS_BUG"

// bugFile is put into each package that has bugs.
const bugFile = `package %s

import (
	"os"
	"sync"
)

var chaosBug = os.Getenv("` + bugVariable + `")

var chaosKept struct {
	sync.Mutex
	bytes [][]byte
	files []*os.File
}

// chaosKeep keeps what ought to be given back, if that is the bug.
func chaosKeep() {
	chaosKept.Lock()
	defer chaosKept.Unlock()
	switch chaosBug {
	case "leak-memory":
		chaosKept.bytes = append(chaosKept.bytes, make([]byte, 16<<10))
	case "leak-descriptors":
		if f, err := os.Open(os.DevNull); err == nil {
			chaosKept.files = append(chaosKept.files, f)
		}
	case "leak-goroutines":
		go func() { select {} }()
	}
}
`

// statsVariable is the variable of the environment that names the directory into which each process with the overlay writes how many
// goroutines it has, and how many bytes are in use after a garbage collection.
const statsVariable = "CHAOS_STATS" // not PULLEY_: the command warns of those that it does not know

// statsFile is put into the command.
const statsFile = `package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"
)

func init() {
	dir := os.Getenv("` + statsVariable + `")
	if dir == "" {
		return
	}
	path := filepath.Join(dir, fmt.Sprint(os.Getpid()))
	go func() { // ends with the process
		for {
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			if os.WriteFile(path+".new", fmt.Appendf(nil, "%d %d\n", runtime.NumGoroutine(), m.HeapAlloc), 0o644) == nil {
				os.Rename(path+".new", path)
			}
			time.Sleep(2 * time.Second)
		}
	}()
}
`

// Leak is a bug that lets something grow with each request.
type Leak struct {
	Bug
	Part string // whose
	What What   // grows
}

// Leaks are known bugs that a soak has to find.
var Leaks = []Leak{
	{Bug{Name: "leak-goroutines", Says: "a goroutine of each request never ends"}, "gateway", Goroutines},
	{Bug{Name: "leak-memory", Says: "a gateway keeps 16 KiB of each request"}, "gateway", Heap},
	{Bug{Name: "leak-descriptors", Says: "a file of each request stays open"}, "gateway", Descriptors},
	{Bug{Name: "leak-keys", Says: "each request leaves a key in a bucket"}, "queue", Keys},
}

// leakEdits are those of all of Leaks.
var leakEdits = []Edit{{"gateway/serve.go",
	"	s.requests.remove(r)\n	a, others := r.end()\n",
	"	s.requests.remove(r)\n	chaosKeep()\n	if chaosBug == \"leak-keys\" {\n		s.bus.nc.Publish(\"$KV.PULLEY_LEARNED.leak-\"+r.wire.ID.String(), nil)\n	}\n	a, others := r.end()\n"}}

// Bugs are the known bugs.
var Bugs = []Bug{
	{
		Name: "lost-delivery", Says: "a delivery that no worker takes is not taken back before the broker gives up on it",
		Rule: RuleLost, Kinds: []string{"delivery-swallowed"}, For: 4 * time.Second,
		Edits: []Edit{{"gateway/stall.go",
			"		now, at := time.Now(), r.target.Load()\n",
			"		if chaosBug == \"lost-delivery\" {\n			return\n		}\n		now, at := time.Now(), r.target.Load()\n"}},
	},
	{
		Name: "retry-not-handed-back", Says: "what a worker failed is not handed back to the queue",
		Rule: RuleStalled, Kinds: []string{"engine-error"}, For: 4 * time.Second,
		Edits: []Edit{
			{"gateway/publisher.go",
				"	seq, _ := r.waiting()\n	if d, err := subjects.ParseAck(ack); err == nil && d.StreamSeq == seq {\n",
				"	if chaosBug == \"retry-not-handed-back\" {\n		return nil\n	}\n	seq, _ := r.waiting()\n	if d, err := subjects.ParseAck(ack); err == nil && d.StreamSeq == seq {\n"},
			{"gateway/stall.go",
				"		if info == nil || info.NumAckPending == 0 {\n",
				"		if info == nil || info.NumAckPending == 0 || chaosBug == \"retry-not-handed-back\" {\n"},
		},
	},
	{
		Name: "left-overtakes-frames", Says: "that a worker has left is handled before its last frames",
		Rule: RuleBroken, Kinds: []string{"worker-restart"}, For: 12 * time.Second,
		Edits: []Edit{{"gateway/watch.go",
			"			w.bus.nc.Publish(subjects.GatewayLeft(w.bus.id, h.Worker), nil)\n",
			"			if chaosBug == \"left-overtakes-frames\" {\n				w.onLeft(h.Worker)\n				return\n			}\n			w.bus.nc.Publish(subjects.GatewayLeft(w.bus.id, h.Worker), nil)\n"},
			{"worker/worker.go",
				"	w.links.await()\n",
				"	if chaosBug != \"left-overtakes-frames\" {\n		w.links.await()\n	}\n"},
			{"gateway/link.go", // a gateway that has much to do
				"	number, oldest, items, err := subjects.ParseLink(msg)\n",
				"	if chaosBug == \"left-overtakes-frames\" {\n		time.Sleep(2 * time.Millisecond)\n	}\n	number, oldest, items, err := subjects.ParseLink(msg)\n"}},
	},
	{
		Name: "settlement-lost", Says: "an answered request is not settled, and stays in the queue",
		Rule: RuleLeft, Kinds: []string{"policy-change"}, For: time.Second,
		Edits: []Edit{{"gateway/serve.go",
			"		s.blame(r, a, ans)\n",
			"		if chaosBug == \"settlement-lost\" {\n			return\n		}\n		s.blame(r, a, ans)\n"}},
	},
	{
		Name: "broken-as-whole", Says: "a stream that breaks off ends with [DONE]",
		Rule: RuleTruncated, Kinds: []string{"engine-cut"}, For: 2 * time.Second,
		Edits: []Edit{{"gateway/answer.go",
			"		last := *e\n",
			"		last := *e\n		if chaosBug == \"broken-as-whole\" {\n			return a.lastEvent([]byte(\"data: [DONE]\\n\\n\"))\n		}\n"}},
	},
	{
		Name: "retry-after-first-byte", Says: "an answer that breaks off is begun again behind what the client has",
		Rule: RuleWrong, Kinds: []string{"engine-cut"}, For: 2 * time.Second,
		Edits: []Edit{{"gateway/serve.go",
			"	if ans.begun {\n		return true, ans.refuse(api.Errorf(http.StatusBadGateway, \"upstream_lost\"",
			"	if ans.begun && chaosBug != \"retry-after-first-byte\" {\n		return true, ans.refuse(api.Errorf(http.StatusBadGateway, \"upstream_lost\""}},
	},
	{
		Name: "drop-on-full", Says: "frames are dropped when the handler of a request is slow",
		Rule: RuleWrong, Kinds: []string{"net-gateway-broker-slow"}, For: 2 * time.Second,
		Edits: []Edit{{"gateway/request.go",
			"	r.events = append(r.events, ev)\n",
			"	if chaosBug == \"drop-on-full\" && len(r.events) > 0 && ev.Kind == subjects.KindData && r.begun {\n		return true\n	}\n	r.events = append(r.events, ev)\n"},
			{"gateway/serve.go", // what is dropped shows where handlers are slow
				"	events := r.take()\n",
				"	if chaosBug == \"drop-on-full\" {\n		time.Sleep(30 * time.Millisecond)\n	}\n	events := r.take()\n"}},
	},
	{
		Name: "cancel-not-passed", Says: "a worker runs on what is cancelled",
		Rule: RuleRunsOn, Kinds: []string{"cancel-burst"}, For: 3 * time.Second,
		Edits: []Edit{{"worker/run.go",
			"		w.attempts.onCancel(m, w.vitals.latest.Load())\n",
			"		if chaosBug != \"cancel-not-passed\" {\n			w.attempts.onCancel(m, w.vitals.latest.Load())\n		}\n"}},
	},
	{
		Name: "run-twice", Says: "a request is published twice, and a worker whose claim is refused goes on",
		Rule: RuleTwice, Kinds: []string{"policy-change"}, For: time.Second,
		Edits: []Edit{
			{"gateway/publisher.go",
				"	r.message.copies++\n	return p.send(r)\n",
				"	r.message.copies++\n	if chaosBug == \"run-twice\" && r.message.copies == 1 {\n		defer func() {\n			if m, err := r.wire.Msg(r.target.Load().lane, r.body, time.Minute); err == nil {\n				m.Header.Del(subjects.HeaderMsgID)\n				p.bus.nc.PublishMsg(m)\n			}\n		}()\n	}\n	return p.send(r)\n"},
			{"worker/attempts.go",
				"func (as *attempts) onCancel(m *nats.Msg, known *verdicts) {\n",
				"func (as *attempts) onCancel(m *nats.Msg, known *verdicts) {\n	if chaosBug == \"run-twice\" {\n		return\n	}\n"},
			{"worker/run.go",
				"		w.attempts.onRefusal(n, ",
				"		if chaosBug == \"run-twice\" {\n			return\n		}\n		w.attempts.onRefusal(n, "},
		},
	},
	{
		Name: "poison-unbounded", Says: "engines that crash under a request do not count",
		Rule: RulePoison, Kinds: []string{"poison"}, For: 2 * time.Second,
		Edits: []Edit{{"gateway/request.go",
			"	case class == subjects.FailCrashed:\n		r.history.Failures++\n		r.history.Crashes++\n",
			"	case class == subjects.FailCrashed && chaosBug == \"poison-unbounded\":\n	case class == subjects.FailCrashed:\n		r.history.Failures++\n		r.history.Crashes++\n"}},
	},
	{
		Name: "poison-retried-by-clients", Says: "clients are not told that a request that crashes engines is not worth another try",
		Rule: RulePoison, Kinds: []string{"poison"}, For: 2 * time.Second,
		Edits: []Edit{{"gateway/serve.go",
			"Code: \"dead_lettered\", NoRetry: true,",
			"Code: \"dead_lettered\", NoRetry: chaosBug != \"poison-retried-by-clients\","}},
	},
	{
		Name: "out-of-order", Says: "two pieces of an answer change places",
		Rule: RuleWrong, Kinds: []string{"policy-change"}, For: time.Second,
		Edits: []Edit{{"gateway/serve.go",
			"			err = ans.data(ev.Data, i == len(events)-1)\n",
			"			if swapped, ok := chaosSwap(r, ev.Data); ok {\n				for _, b := range swapped {\n					err = ans.data(b, true)\n				}\n				break\n			}\n			err = ans.data(ev.Data, i == len(events)-1)\n"},
			{"gateway/serve.go",
				"// onFail decides what becomes of a request whose attempt failed, and does it.\n",
				chaosSwap + "\n// onFail decides what becomes of a request whose attempt failed, and does it.\n"}},
	},
	{
		Name: "no-resend", Says: "a worker does not send again what a broker lost",
		Rule: RuleBroken, Kinds: []string{"broker-kill"}, For: 3 * time.Second,
		Edits: []Edit{
			{"worker/link.go",
				"	if late := now.Sub(l.sentAt) >= resendAfter<<min(l.resent, 3); len(l.kept) > 0 && (lost || late) {\n",
				"	if late := now.Sub(l.sentAt) >= resendAfter<<min(l.resent, 3); len(l.kept) > 0 && (lost || late) && chaosBug != \"no-resend\" {\n"},
			{"worker/link.go", "	if ack.Again {\n", "	if ack.Again && chaosBug != \"no-resend\" {\n"},
		},
	},
	{
		Name: "refused-runs-later", Says: "what was refused because the queue could not be reached is published when it can be",
		Rule: RuleRefusedRun, Kinds: []string{"broker-outage"}, For: 2 * time.Second, Patience: 30 * time.Second,
		Edits: []Edit{{"gateway/publisher.go",
			"			p.bus.log.Error(\"cannot publish a request\", \"id\", r.wire.ID, \"err\", err, \"why\", why)\n",
			"			p.bus.log.Error(\"cannot publish a request\", \"id\", r.wire.ID, \"err\", err, \"why\", why)\n			if m, err := r.wire.Msg(r.target.Load().lane, r.body, time.Minute); err == nil && chaosBug == \"refused-runs-later\" {\n				time.AfterFunc(8*time.Second, func() { p.bus.nc.PublishMsg(m) })\n			}\n"}},
	},
	{
		Name: "bodies-mixed-up", Says: "an engine now and then gets the body of another request",
		Rule: RuleWrong, Kinds: []string{"policy-change"}, For: time.Second,
		Edits: []Edit{
			{"worker/run.go",
				"	path := a.req.Path\n	a.body = body\n",
				"	body = chaosMix(body)\n	path := a.req.Path\n	a.body = body\n"},
			{"worker/run.go",
				"// fetchBody returns the body of a request.",
				chaosMix + "\n// fetchBody returns the body of a request."},
		},
	},
	{
		Name: "second-end", Says: "a stream has its last event twice",
		Rule: RuleRepeated, Kinds: []string{"policy-change"}, For: time.Second,
		Edits: []Edit{{"gateway/answer.go",
			"	a.whole, a.usage = true, *usage\n",
			"	if chaosBug == \"second-end\" && a.events {\n		a.write([]byte(\"data: [DONE]\\n\\n\"))\n	}\n	a.whole, a.usage = true, *usage\n"}},
	},
	{
		Name: "lost-worker-not-failed-over", Says: "the requests of a worker that is killed wait until the broker gives up on it",
		Rule: RuleStalled, Kinds: []string{"worker-kill"}, For: 8 * time.Second,
		Edits: []Edit{
			{"gateway/watch.go",
				"func (w *watch) failOver(ctx context.Context, gone goneWorker) {\n",
				"func (w *watch) failOver(ctx context.Context, gone goneWorker) {\n	if chaosBug == \"lost-worker-not-failed-over\" {\n		return\n	}\n"},
			{"gateway/watch.go",
				"		r.checkListed(now, ",
				"		if chaosBug == \"lost-worker-not-failed-over\" {\n			continue\n		}\n		r.checkListed(now, "},
		},
	},
}

// chaosSwap holds back one piece in seven of an answer that has begun until the next has been written.
const chaosSwap = `var chaosHeld sync.Map

func chaosSwap(r *request, b []byte) ([][]byte, bool) {
	if chaosBug != "out-of-order" || !r.wire.Stream || !r.begun {
		return nil, false
	}
	if held, ok := chaosHeld.LoadAndDelete(r); ok {
		return [][]byte{b, held.([]byte)}, true
	}
	if time.Now().UnixNano()%7 == 0 {
		chaosHeld.Store(r, b)
		return nil, true
	}
	return nil, false
}
`

const chaosMix = `var (
	chaosMu   sync.Mutex
	chaosN    int
	chaosLast []byte
)

func chaosMix(body []byte) []byte {
	if chaosBug != "bodies-mixed-up" {
		return body
	}
	chaosMu.Lock()
	defer chaosMu.Unlock()
	if chaosN++; chaosN%20 == 0 {
		return chaosLast
	}
	chaosLast = body
	return body
}
`

// WriteOverlay writes copies of the files of the product at root, with all bugs in them, into a directory, and returns the
// file that go build takes as -overlay. It is an error if the text that an edit replaces is not there, or there twice: the
// product has changed, and so has the edit to be.
func WriteOverlay(root, dir string) (overlay string, err error) {
	if root, err = filepath.Abs(root); err != nil {
		return "", err
	}
	texts := make(map[string]string)
	var failed []error
	for _, b := range slices.Concat(Bugs, []Bug{{Name: "leaks", Edits: leakEdits}}) {
		for _, e := range b.Edits {
			if _, read := texts[e.File]; !read {
				text, err := os.ReadFile(filepath.Join(root, e.File))
				if err != nil {
					return "", err
				}
				texts[e.File] = string(text)
			}
			if n := strings.Count(texts[e.File], e.Old); n != 1 {
				failed = append(failed, fmt.Errorf("bug %s: %s has %d times, not once:\n%s", b.Name, e.File, n, e.Old))
				continue
			}
			texts[e.File] = strings.Replace(texts[e.File], e.Old, e.New, 1)
		}
	}
	if err := errors.Join(failed...); err != nil {
		return "", err
	}
	packages := make(map[string]bool)
	for file := range texts {
		packages[filepath.Dir(file)] = true
	}
	for name := range packages {
		texts[name+"/chaosbug.go"] = fmt.Sprintf(bugFile, filepath.Base(name))
	}
	texts["cmd/pulley/chaosstats.go"] = statsFile
	replace := make(map[string]string)
	for file, text := range texts {
		if strings.Contains(text, "sync.") && !strings.Contains(text, "\t\"sync\"\n") {
			text = strings.Replace(text, "import (\n", "import (\n\t\"sync\"\n", 1)
		}
		to := filepath.Join(dir, strings.ReplaceAll(file, "/", "_"))
		if err := os.WriteFile(to, []byte(text), 0o644); err != nil {
			return "", err
		}
		replace[filepath.Join(root, file)] = to
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	overlay = filepath.Join(dir, "overlay.json")
	return overlay, os.WriteFile(overlay, b, 0o644)
}
