package natsconf

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pulley-lb/pulley/subjects"
)

// AccountsConfig is the part of the configuration that all servers have in common: the accounts, with the public keys of the
// users by name.
func (p *Plan) AccountsConfig(public map[string]string) string {
	var b strings.Builder
	b.WriteString("# Accounts of Pulley, written by 'pulley nats-config'. All servers of a cluster need the same.\n# The seeds that belong to these public keys are in the files *.nk: each part gets its own, and no other.\n\naccounts {\n")
	p.writeMain(&b, public)
	if len(p.Monitors) > 0 {
		p.writeMonitor(&b, public)
	}
	for i := range p.Workers {
		p.writeWorker(&b, &p.Workers[i], public)
	}
	b.WriteString("}\n")
	return b.String()
}

// writeMain writes the account of gateways and operators. It has the streams.
func (p *Plan) writeMain(b *strings.Builder, public map[string]string) {
	fmt.Fprintf(b, "\n  # Gateways and operators, and the streams. Both are trusted: whoever may use the APIs of JetStream here can change\n  # every stream, whatever else is denied.\n  %s {\n    jetstream: enabled\n    users: [\n", Account)
	for _, name := range p.Gateways {
		writeUser(b, name, public[name], gatewayPublish, gatewaySubscribe)
	}
	for _, name := range p.Operators {
		writeUser(b, name, public[name], operatorPublish, operatorSubscribe)
	}
	b.WriteString("    ]\n    # What the accounts below may import. Each imports the part with its own id.\n    exports: [\n")
	for _, t := range p.Tiers {
		s := subjects.ReqStream(t)
		writeItem(b, "service", nextPrefix+s+".*", "")
		writeItem(b, "service", ackPrefix+s+".>", "")
		writeItem(b, "service", longAckPrefix+s+".>", "")
	}
	for _, s := range []string{"pulley.gw.*.link.>", "pulley.gw.*.alive.>"} {
		writeItem(b, "service", s, "2s") // some ask for an answer if there is no gateway; the server forgets the way back then
	}
	for _, s := range []string{
		"pulley.gw.*.body.>", "pulley.hb.>", subjects.KVSubject(subjects.WorkersBucket, ">"), subjects.KVSubject(subjects.LearnedBucket, ">"),
		readPolicy, subjects.DirectGet(subjects.KVStream(subjects.LearnedBucket)) + ".>",
	} {
		writeItem(b, "service", s, "10s")
	}
	if len(p.Monitors) > 0 {
		for _, s := range monitorAsks {
			fmt.Fprintf(b, "      {service: %q, response: stream, threshold: %q}\n", s, "10s")
		}
		for _, s := range monitorReads {
			if s != readPolicy {
				writeItem(b, "service", s, "10s")
			}
		}
	}
	for _, s := range []string{"pulley.wk.>", subjects.AllGateways, subjects.PolicyChanges} {
		writeItem(b, "stream", s, "")
	}
	if len(p.Monitors) > 0 {
		for _, s := range []string{subjects.AllHeartbeats, subjects.AllEvents} {
			writeItem(b, "stream", s, "")
		}
	}
	b.WriteString("    ]\n")
	if len(p.Workers) > 0 {
		b.WriteString("    imports: [\n")
		for i := range p.Workers {
			w := &p.Workers[i]
			for _, id := range w.ids() {
				writeImport(b, "service", accountOf(w), subjects.WorkerDrain(id+".*"))
			}
		}
		b.WriteString("    ]\n")
	}
	b.WriteString("  }\n")
}

// What a gateway publishes and subscribes to. It creates streams and consumers, changes routes that shift, and moves keys. Its page
// lists the requests of the other gateways, and cancels requests and drains workers for an operator.
var (
	gatewayPublish = []string{
		subjects.AllReqs, "pulley.dead.>", "pulley.gw.>", "pulley.wk.>", subjects.AffinityReports, subjects.UsageReports, subjects.ShiftReports, subjects.DemandReports,
		subjects.PolicyChanges, subjects.AllEvents, subjects.AllUsage, "$JS.API.>", "$JS.ACK.>", subjects.KVSubject(subjects.PolicyBucket, ">"),
		subjects.KVSubject(subjects.KeysBucket, ">"), subjects.KVSubject(subjects.PoolsBucket, ">"), "_INBOX.>", "_R_.>",
		subjects.AskRequests, subjects.AskResults, subjects.DoCancel, "pulley.drain.>", "pulley.file.>", "pulley.batch.>", "pulley.result.>", subjects.AllBackground,
		subjects.AllIdempotency,
	}
	gatewaySubscribe = []string{
		"pulley.gw.>", subjects.AllHeartbeats, subjects.AffinityReports, subjects.UsageReports, subjects.ShiftReports, subjects.DemandReports, subjects.PolicyChanges,
		"pulley.ask.>", "pulley.do.>", "_INBOX.>", subjects.AllBackground, subjects.AllIdempotency,
	}
)

// What an operator publishes and subscribes to.
var (
	operatorPublish = []string{
		"pulley.ask.>", "pulley.do.>", "pulley.drain.>", "pulley.gw.*.there", subjects.PolicyChanges, subjects.AllEvents, "$JS.API.>", "$JS.ACK.>",
		subjects.KVSubject(subjects.PolicyBucket, ">"), subjects.KVSubject(subjects.KeysBucket, ">"), subjects.KVSubject(subjects.PoolsBucket, ">"),
		subjects.AllBackground, // cancels background responses
	}
	operatorSubscribe = []string{subjects.AllHeartbeats, subjects.AllGateways, subjects.AllEvents, subjects.PolicyChanges, "_INBOX.>"}
)

const (
	nextPrefix    = "$JS.API.CONSUMER.MSG.NEXT."
	ackPrefix     = "$JS.ACK."
	longAckPrefix = "$JS.ACK.*.*." // with domain and account
)

var readPolicy = subjects.DirectGet(subjects.KVStream(subjects.PolicyBucket))

// What a monitor asks: gateways, which answer with several messages, and the APIs of JetStream that only read. Bodies of
// requests, dead letters and keys are not among it.
var (
	monitorAsks  = []string{subjects.AskRequests, subjects.AskWorkers, subjects.AskResults}
	monitorReads = []string{
		"$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST", "$JS.API.STREAM.INFO.*",
		"$JS.API.CONSUMER.NAMES.*", "$JS.API.CONSUMER.LIST.*", "$JS.API.CONSUMER.INFO.*.*", readPolicy,
		subjects.DirectGetKey(subjects.PolicyBucket, subjects.PolicyKey), subjects.DirectGetKey(subjects.PoolsBucket, ">"),
		subjects.DirectGetKey(subjects.WorkersBucket, ">"),
	}
)

func (p *Plan) writeMonitor(b *strings.Builder, public map[string]string) {
	fmt.Fprintf(b, "\n  # Monitors: they read the state of the fleet, and no content of requests.\n  %s {\n    users: [\n", MonitorAccount)
	for _, name := range p.Monitors {
		fmt.Fprintf(b, "      {nkey: %s} # %s\n", public[name], name)
	}
	b.WriteString("    ]\n    imports: [\n")
	for _, s := range slices.Concat(monitorAsks, monitorReads) {
		writeImport(b, "service", Account, s)
	}
	for _, s := range []string{subjects.AllHeartbeats, subjects.AllGateways, subjects.AllEvents, subjects.PolicyChanges} {
		writeImport(b, "stream", Account, s)
	}
	b.WriteString("    ]\n  }\n")
}

func accountOf(w *Worker) string { return workerAccount + w.ID }

// writeWorker writes the account of a worker: the queues that it may pull from, and its own subjects.
func (p *Plan) writeWorker(b *strings.Builder, w *Worker, public map[string]string) {
	b.WriteString("\n")
	if len(w.Pools) > 0 {
		fmt.Fprintf(b, "  # May pull from the pools %q.\n", w.Pools)
	}
	fmt.Fprintf(b, "  %q {\n    users: [\n      {nkey: %s} # %s\n    ]\n    exports: [\n", accountOf(w), public[WorkerUser(w.ID)], WorkerUser(w.ID))
	for _, id := range w.ids() {
		writeItem(b, "service", subjects.WorkerDrain(id+".*"), "")
	}
	b.WriteString("    ]\n    imports: [\n")
	for _, t := range p.Tiers {
		for _, queue := range p.queues(w) {
			s := subjects.ReqStream(t) + "." + queue
			writeImport(b, "service", Account, nextPrefix+s)
			writeImport(b, "service", Account, ackPrefix+s+".>")
			writeImport(b, "service", Account, longAckPrefix+s+".>")
		}
	}
	for _, id := range w.ids() {
		start := id + ".*"
		for _, s := range []string{
			subjects.GatewayLink("*", start), subjects.GatewayAlive("*", start), subjects.GatewayBody("*", start), subjects.Heartbeats(start),
			subjects.KVSubject(subjects.WorkersBucket, start),
			subjects.KVSubject(subjects.LearnedBucket, subjects.LearnedKey("", id)), subjects.DirectGetKey(subjects.LearnedBucket, subjects.LearnedKey("", id)),
		} {
			writeImport(b, "service", Account, s)
		}
		writeImport(b, "stream", Account, subjects.Worker(id)+".>")
	}
	writeImport(b, "service", Account, readPolicy)
	for _, s := range []string{subjects.AllGateways, subjects.PolicyChanges} {
		writeImport(b, "stream", Account, s)
	}
	b.WriteString("    ]\n  }\n")
}

// queues are the consumers of a stream that a worker may pull from: all, or those of its pools: the shared lane, its own home
// lanes and those of other workers of the pool, and the lanes for long requests.
func (p *Plan) queues(w *Worker) (consumers []string) {
	if len(w.Pools) == 0 {
		return []string{"*"}
	}
	for _, pool := range w.Pools {
		lanes := []string{subjects.Shared}
		for i := range p.Workers {
			if p.Workers[i].shares(pool) {
				lanes = append(lanes, p.Workers[i].ids()...)
			}
		}
		for _, n := range w.Lengths {
			lanes = append(lanes, subjects.LongLane(n))
		}
		for _, lane := range lanes {
			consumers = append(consumers, subjects.ReqConsumer(pool, lane))
		}
	}
	return consumers
}

func writeUser(b *strings.Builder, name, key string, publish, subscribe []string) {
	fmt.Fprintf(b, "      { # %s\n        nkey: %s\n        permissions {\n          publish { allow: [%s] }\n          subscribe { allow: [%s] }\n        }\n      }\n",
		name, key, quoted(publish), quoted(subscribe))
}

func quoted(list []string) string {
	var b strings.Builder
	for i, s := range list {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%q", s)
	}
	return b.String()
}

func writeItem(b *strings.Builder, kind, subject, threshold string) {
	if threshold == "" {
		fmt.Fprintf(b, "      {%s: %q}\n", kind, subject)
		return
	}
	fmt.Fprintf(b, "      {%s: %q, threshold: %q}\n", kind, subject, threshold)
}

func writeImport(b *strings.Builder, kind, account, subject string) {
	fmt.Fprintf(b, "      {%s: {account: %q, subject: %q}}\n", kind, account, subject)
}
