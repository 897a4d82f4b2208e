package chaos

import (
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"time"
)

// Strike is a fault that is planned.
type Strike struct {
	Kind   string        // name of a kind of faults
	Target int           // which of the parts that the kind can strike
	Hold   time.Duration // how long it lasts
	Quiet  time.Duration // before it
}

func (s Strike) String() string {
	return fmt.Sprintf("%s %d for %.1f s, after %.1f s", s.Kind, s.Target, s.Hold.Seconds(), s.Quiet.Seconds())
}

// Plan is the faults of a run: each of the kinds once in an order drawn from the seed, then again in another order. It is a
// function of its arguments, and does not end: a run takes what it has time for.
func Plan(seed uint64, kinds []string, t Topology, quiet time.Duration) func() Strike {
	t = t.withDefaults()
	rng := rand.New(rand.NewPCG(seed, 2))
	var turn []string
	return func() Strike {
		if len(turn) == 0 {
			turn = slices.Clone(kinds)
			rng.Shuffle(len(turn), func(i, j int) { turn[i], turn[j] = turn[j], turn[i] })
		}
		k := effects[turn[0]]
		s := Strike{Kind: turn[0], Target: rng.IntN(max(k.targets(t), 1)), Quiet: quiet/2 + time.Duration(rng.Int64N(int64(quiet)))}
		turn = turn[1:]
		s.Hold = k.hold[0]
		if more := k.hold[1] - k.hold[0]; more > 0 {
			s.Hold += time.Duration(rng.Int64N(int64(more)))
		}
		return s
	}
}

// part is a kind of parts, and how many a fleet has.
func ofBrokers(t Topology) int  { return t.Brokers }
func ofGateways(t Topology) int { return t.Gateways }
func ofWorkers(t Topology) int  { return t.Workers }
func ofOne(Topology) int        { return 1 }

// Effect is what a kind of faults may do to requests. What it may not do is a violation.
type Effect struct {
	targets func(Topology) int
	hold    [2]time.Duration // least and most

	// What is struck, in a word or two for tables.
	Says string
	// Promise is what clients may rely on.
	Promise string

	breaksEngine  bool // streams that run on the engine of the target may break
	breaksGateway bool // requests of the target may break
	ownTarget     bool // requests at the target may wait until it works again
	isolates      bool // a run on the engine of the target may go on beside the one that follows it
	anyEngine     bool // the two above hold for every engine: which one it strikes is not known before

	elects bool // of a cluster, it makes the others elect another leader, and that is all

	disk bool // of a single broker, it strikes only requests of tiers on disk, until its end; then the broker starts again
	deaf bool // nothing can be told to workers meanwhile
	two  bool // it takes two engines away, not one

	// stall is how long requests may wait although a worker is free, from the start of the fault; or from its end, if
	// fromEnd.
	stall   Seconds
	fromEnd bool
	// recovery bounds the time until answers come at half of the rate before, from the same instant.
	recovery Seconds
	// refuses is after how long a fault that lasts refuses requests with an error; 0: never.
	refuses Seconds
}

// Bounds that hold while nothing strikes, or whatever does.
const (
	stallBound  Seconds = 1    // a request waits while a worker is free
	cancelBound Seconds = 2    // a request runs on after its client has left
	lateBound   Seconds = 0.25 // a run starts after the end of its request: what a message takes
	twiceBound  Seconds = 0.1  // two runs of one request overlap: what a refusal takes

	electionBound Seconds = 6 // requests wait for another leader of a cluster: up to 5 s of silence, and one to go on
)

// effects are the kinds of faults.
var effects = map[string]Effect{
	"broker-kill": {targets: ofBrokers, hold: [2]time.Duration{time.Second, 2 * time.Second},
		Says:    "broker, SIGKILL and restart",
		Promise: "of a cluster: requests wait for the election; alone: until it is back. Streams go on",
		deaf:    true, stall: 8, fromEnd: false, recovery: 8},
	"broker-freeze": {targets: ofBrokers, hold: [2]time.Duration{3 * time.Second, 6 * time.Second},
		Says:    "broker, SIGSTOP",
		Promise: "requests wait until it goes on, or another one leads. Streams go on",
		deaf:    true, stall: 8, recovery: 8},
	"broker-restart": {targets: ofBrokers,
		Says:    "broker, SIGTERM and restart",
		Promise: "of a cluster: nothing that a client notices; alone: requests wait until it is back",
		deaf:    true, stall: 1, fromEnd: true, recovery: 1},
	"brokers-kill": {targets: ofOne, hold: [2]time.Duration{time.Second, 2 * time.Second},
		Says:    "all brokers, SIGKILL and restart",
		Promise: "requests wait until they are back, and streams go on",
		deaf:    true, stall: 5, fromEnd: true, recovery: 5},
	"broker-outage": {targets: ofOne, hold: [2]time.Duration{18 * time.Second, 20 * time.Second},
		Says:    "all brokers, gone for 20 s",
		Promise: "streams go on afterwards; new requests wait for 15 s, then get 503 and are never run",
		deaf:    true, stall: 5, fromEnd: true, recovery: 5, refuses: 15},

	"disk-full": {targets: ofBrokers, hold: [2]time.Duration{10 * time.Second, 14 * time.Second},
		Says:    "broker, full disk",
		Promise: "alone: requests of tiers on disk wait, then get 503 that says so; all others go on. Of a cluster: requests wait for the election. Once there is room, the broker starts again by itself",
		disk:    true, elects: true, deaf: true, stall: 5, fromEnd: true, recovery: 5, refuses: 8},
	"disk-read-only": {targets: ofBrokers, hold: [2]time.Duration{6 * time.Second, 10 * time.Second},
		Says:    "broker, read-only store",
		Promise: "alone, as if the broker were gone: requests wait for 15 s, then get 503. Of a cluster: requests wait for the election. Once it can be written, it starts again by itself",
		elects:  true, deaf: true, stall: 5, fromEnd: true, recovery: 5, refuses: 15},
	"disk-hang": {targets: ofBrokers, hold: [2]time.Duration{6 * time.Second, 12 * time.Second},
		Says:    "broker, disk hangs",
		Promise: "alone: requests of tiers on disk wait until it goes on, or for 15 s and get 503; all others go on. Of a cluster: requests wait for the election",
		disk:    true, elects: true, deaf: true, stall: 3, recovery: 3, refuses: 15},
	"disk-slow": {targets: ofBrokers, hold: [2]time.Duration{4 * time.Second, 6 * time.Second},
		Says:    "broker, writes take 0.4 s",
		Promise: "requests of tiers on disk take longer. All others do not",
		disk:    true, stall: 3, recovery: 3},

	"gateway-kill": {targets: ofGateways, hold: [2]time.Duration{time.Second, 2 * time.Second},
		Says:          "gateway, SIGKILL and restart",
		Promise:       "the connections of its clients break; workers stop working for them within 2 s",
		breaksGateway: true, stall: 2, recovery: 2},
	"gateway-freeze": {targets: ofGateways, hold: [2]time.Duration{3 * time.Second, 5 * time.Second},
		Says:     "gateway, SIGSTOP",
		Promise:  "its clients wait until it goes on; the others notice nothing",
		isolates: true, anyEngine: true, ownTarget: true, stall: 2, recovery: 2},
	"gateway-restart": {targets: ofGateways, hold: [2]time.Duration{0, 0},
		Says:    "gateway, SIGTERM and restart",
		Promise: "nothing: it finishes what it has",
		stall:   1, recovery: 1},

	"worker-kill": {targets: ofWorkers, hold: [2]time.Duration{time.Second, 2 * time.Second},
		Says:         "worker, SIGKILL and restart",
		Promise:      "its streams end with an error event; all else is answered by another worker within 2 s",
		breaksEngine: true, stall: 2, recovery: 2},
	"worker-freeze": {targets: ofWorkers, hold: [2]time.Duration{4 * time.Second, 6 * time.Second},
		Says:         "worker, SIGSTOP",
		Promise:      "as if it were killed",
		breaksEngine: true, isolates: true, stall: 2, recovery: 2},
	"worker-restart": {targets: ofWorkers, hold: [2]time.Duration{0, 0},
		Says:    "worker, SIGTERM and restart",
		Promise: "nothing: it finishes what it has",
		stall:   1, recovery: 1},

	"engine-crash": {targets: ofWorkers, hold: [2]time.Duration{time.Second, 3 * time.Second},
		Says:         "engine, crash and restart",
		Promise:      "its streams end with an error event; all else is answered by another worker within 2 s",
		breaksEngine: true, stall: 2, recovery: 2},
	"engine-hang": {targets: ofWorkers, hold: [2]time.Duration{4 * time.Second, 6 * time.Second},
		Says:         "engine, hangs",
		Promise:      "requests without a first byte move to another worker within 4 s; streams wait",
		breaksEngine: true, isolates: true, ownTarget: true, stall: 4, recovery: 4},
	"engine-error": {targets: ofWorkers, hold: [2]time.Duration{2 * time.Second, 3 * time.Second},
		Says:    "engine, answers 500",
		Promise: "another worker answers",
		stall:   2, recovery: 2},
	"engine-garbage": {targets: ofWorkers, hold: [2]time.Duration{2 * time.Second, 3 * time.Second},
		Says:    "engine, answers no answer",
		Promise: "another worker answers",
		stall:   2, recovery: 2},
	"engine-cut": {targets: ofWorkers, hold: [2]time.Duration{1 * time.Second, 2 * time.Second},
		Says:         "engine, cuts streams",
		Promise:      "its streams end with an error event, never with `[DONE]`",
		breaksEngine: true, stall: 2, recovery: 2},
	"engine-short": {targets: ofWorkers, hold: [2]time.Duration{1 * time.Second, 2 * time.Second},
		Says:         "engine, ends streams early",
		Promise:      "its streams end with an error event, never with `[DONE]`",
		breaksEngine: true, stall: 2, recovery: 2},

	"net-worker-broker-cut": {targets: ofWorkers, hold: [2]time.Duration{3 * time.Second, 5 * time.Second},
		Says:         "network worker–broker, cut",
		Promise:      "the worker counts as lost: as if it were killed",
		breaksEngine: true, isolates: true, stall: 2, recovery: 2},
	"net-worker-broker-blip": {targets: ofWorkers, hold: [2]time.Duration{400 * time.Millisecond, 600 * time.Millisecond},
		Says:    "network worker–broker, cut for 0.5 s",
		Promise: "streams pause, and go on",
		stall:   2, recovery: 2},
	"net-worker-broker-slow": {targets: ofWorkers, hold: [2]time.Duration{2 * time.Second, 4 * time.Second},
		Says:    "network worker–broker, +100 ms",
		Promise: "nothing",
		stall:   1, recovery: 1},
	"net-gateway-broker-cut": {targets: ofGateways, hold: [2]time.Duration{3 * time.Second, 5 * time.Second},
		Says:     "network gateway–broker, cut",
		Promise:  "the gateway's requests wait, and its streams go on when the network is back",
		isolates: true, anyEngine: true, ownTarget: true, deaf: true, stall: 2, recovery: 2},
	"net-gateway-broker-slow": {targets: ofGateways, hold: [2]time.Duration{2 * time.Second, 4 * time.Second},
		Says:    "network gateway–broker, +100 ms",
		Promise: "nothing",
		stall:   1, recovery: 1},
	"net-worker-engine-cut": {targets: ofWorkers, hold: [2]time.Duration{3 * time.Second, 5 * time.Second},
		Says:         "network worker–engine, cut",
		Promise:      "as an engine that hangs",
		breaksEngine: true, isolates: true, ownTarget: true, stall: 4, recovery: 4},
	"net-worker-engine-slow": {targets: ofWorkers, hold: [2]time.Duration{2 * time.Second, 4 * time.Second},
		Says:    "network worker–engine, +100 ms",
		Promise: "nothing",
		stall:   1, recovery: 1},

	"delivery-swallowed": {targets: ofOne, hold: [2]time.Duration{2 * time.Second, 2 * time.Second},
		Says:    "a delivery that nobody takes",
		Promise: "the request is taken back within 2 s",
		stall:   2, recovery: 1},
	"poison": {targets: ofOne, hold: [2]time.Duration{3 * time.Second, 3 * time.Second},
		Says:         "a request that crashes engines",
		Promise:      "it crashes two engines at most, and its client is told not to try again",
		breaksEngine: true, anyEngine: true, two: true, stall: 2, recovery: 2},
	"policy-change": {targets: ofOne, hold: [2]time.Duration{2 * time.Second, 2 * time.Second},
		Says:    "policy, changed five times",
		Promise: "nothing",
		stall:   1, recovery: 1},
	"cancel-burst": {targets: ofOne, hold: [2]time.Duration{2 * time.Second, 2 * time.Second},
		Says:    "20 clients leave at once",
		Promise: "their engines stop within 2 s",
		stall:   1, recovery: 1},
}

// Kinds are the names of all kinds of faults, sorted.
func Kinds() []string {
	var names []string
	for name := range effects {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// NeedsDisks says whether a kind of faults strikes the disks of brokers: see Topology.
func NeedsDisks(kind string) bool { return strings.HasPrefix(kind, "disk-") }

// Says is what a kind of faults strikes, in a word or two.
func Says(kind string) string { return effects[kind].Says }

// Choose returns the kinds that a list names, separated by commas. A name may have *, as in the names of files. all means all
// of them.
func Choose(list string) (kinds []string, err error) {
	for name := range strings.SplitSeq(list, ",") {
		name = strings.TrimSpace(name)
		if name == "all" {
			name = "*"
		}
		before := len(kinds)
		for _, k := range Kinds() {
			if ok, err := path.Match(name, k); err != nil {
				return nil, fmt.Errorf("kind of faults %q: %w", name, err)
			} else if ok {
				kinds = append(kinds, k)
			}
		}
		if len(kinds) == before {
			return nil, fmt.Errorf("no kind of faults is called %q: %s", name, strings.Join(Kinds(), ", "))
		}
	}
	slices.Sort(kinds)
	return slices.Compact(kinds), nil
}
