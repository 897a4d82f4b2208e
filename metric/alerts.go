package metric

import (
	"fmt"
	"strings"
)

// alert is a rule of Prometheus. Its expression is made of metrics of the table.
type alert struct {
	name, expr, hold string // hold: how long it must be true
	severity         string // critical: requests fail or wait; warning: they may soon
	summary          string
	help             string // what to do
}

// one is the expression that a metric of a selection is a value, by these labels.
func one(m *Metric, selects, by string, is string) string {
	return fmt.Sprintf("max by (%s) (%s%s) %s", by, m.Name, selects, is)
}

// alerts are rules to begin with. Values of several gateways are of the same thing, or of their own requests: the rules hold
// however many there are.
func alerts() []alert {
	return []alert{
		{"PulleyEngineDown", one(WorkerState, `{state="down"}`, "worker, host", "== 1"), "15s", "critical",
			"the engine of worker {{ $labels.worker }} on {{ $labels.host }} does not answer",
			"pulley worker info {{ $labels.worker }} says why; its requests continue on other workers of the pool, if there are any"},
		{"PulleyWorkerLost", one(WorkerState, `{state="lost"}`, "worker, host", "== 1"), "0s", "critical",
			"worker {{ $labels.worker }} on {{ $labels.host }} has stopped sending heartbeats",
			"see whether the process runs, and reaches the broker; its requests continue on other workers"},
		{"PulleyWorkerFenced", one(WorkerFenced, "", "worker, host, reason", "== 1"), "0s", "critical",
			"worker {{ $labels.worker }} on {{ $labels.host }} is fenced: {{ $labels.reason }}",
			"pulley worker info {{ $labels.worker }} has the reason and the remedy; docs/headroom.md says how each fence ends"},
		{"PulleyGPUFenced", one(GPUFenced, "", "host, gpu, UUID, reason", "== 1"), "0s", "critical",
			"GPU {{ $labels.gpu }} on {{ $labels.host }} is fenced: {{ $labels.reason }}",
			"pulley gpu info has the reason and the remedy"},
		{"PulleyGPUUnreadable", one(NVMLUp, "", "worker, host", "== 0"), "2m", "warning",
			"worker {{ $labels.worker }} on {{ $labels.host }} cannot read its GPUs",
			"pulley gpu ls and pulley doctor say why"},
		{"PulleyGPUThrottled", one(GPUThrottled, `{reason=~"hw_.*|thermal"}`, "host, gpu, UUID, reason", "== 1"), "5m", "warning",
			"GPU {{ $labels.gpu }} on {{ $labels.host }} is throttled: {{ $labels.reason }}",
			"look at its cooling and its power supply; its worker accepts less meanwhile"},
		{"PulleyQueueStuck", fmt.Sprintf("(max by (pool, tier) (%s) > 60) and on (pool, tier) (sum by (pool, tier) (rate(%s_count[2m])) == 0)", QueueOldest.Name, QueueTime.Name), "30s", "critical",
			"requests of pool {{ $labels.pool }} (tier {{ $labels.tier }}) wait, and no worker takes one",
			"pulley queue ls and pulley doctor say why: no worker, a paused pool, or workers that are full"},
		{"PulleyQueueFull", fmt.Sprintf("sum by (pool, tier) (increase(%s{reason=\"full\"}[5m])) > 0", Refused.Name), "1m", "warning",
			"the queue of pool {{ $labels.pool }} (tier {{ $labels.tier }}) is full: clients get 429",
			"add workers, or set a larger queue with pulley tier set"},
		{"PulleyPoolWithoutWorker", fmt.Sprintf("(sum by (pool) (%s) > 0) and on (pool) (max by (pool) (%s) == 0)", DemandSlots.Name, PoolWorkers.Name), "15s", "critical",
			"requests of pool {{ $labels.pool }} wait, and no worker serves it",
			"start one, or see why the workers that it had are down"},
		{"PulleyBrokerLost", BrokerConnected.Name + " == 0", "10s", "critical",
			"gateway {{ $labels.instance }} has no connection to the broker",
			"see whether the brokers run; requests that run go on, new ones wait for 15 s and then get 503"},
		{"PulleyWorkerWithoutBroker", WorkerConnected.Name + " == 0", "10s", "critical",
			"worker {{ $labels.worker }} on {{ $labels.host }} has no connection to the broker",
			"see whether the brokers run, and whether the worker reaches them"},
		{"PulleyStreamWithoutLeader", one(StreamReady, "", "stream", "== 0"), "30s", "critical",
			"stream {{ $labels.stream }} does not answer: its tier accepts no requests",
			"most of the brokers that have it must run"},
		{"PulleyStreamReplicaMissing", fmt.Sprintf(`max by (stream) (%[1]s{state="current"}) < max by (stream) (%[1]s{state="configured"})`, StreamReplicas.Name), "5m", "warning",
			"stream {{ $labels.stream }} has fewer copies than configured", "a broker is away or behind"},
		{"PulleyBrokerSilent", one(BrokerHeard, "", "server", "== 0"), "10s", "warning",
			"broker {{ $labels.server }} is silent: the other members of its cluster do not hear it",
			"start it again, or see its log, its disk and its network"},
		{"PulleyGatewayNotReady", GatewayReady.Name + " == 0", "1m", "critical",
			"gateway {{ $labels.instance }} accepts no requests", "its /readyz says why"},
		{"PulleyPolicyStale", PolicyStale.Name + " == 1", "1m", "warning",
			"gateway {{ $labels.instance }} cannot read the policy; the last one stays in force", "see whether the brokers run"},
		{"PulleyPoolsFail", one(WorkerFailing, "", "worker, host", "> 0"), "1m", "warning",
			"requests of {{ $value }} pools fail on worker {{ $labels.worker }}", "pulley worker info {{ $labels.worker }} says why"},
		{"PulleyDeadLetters", fmt.Sprintf("sum by (pool) (increase(%s[10m])) > 0", DeadLetters.Name), "0s", "warning",
			"requests of pool {{ $labels.pool }} became dead letters", "pulley dead ls has the reasons"},
		{"PulleyStreamsBreak", fmt.Sprintf(`sum by (pool) (rate(%[1]s{outcome="failed",class="2xx"}[5m])) / sum by (pool) (rate(%[1]s[5m])) > 0.01`, Requests.Name), "5m", "warning",
			"more than 1 % of the answers of pool {{ $labels.pool }} break off", "see the attempts that fail, and the workers' logs"},
		{"PulleyDeliveriesUnclaimed", fmt.Sprintf("sum by (pool) (increase(%s[10m])) > 0", Unclaimed.Name), "0s", "warning",
			"something takes requests of pool {{ $labels.pool }} and does not run them", "docs/security.md says how to find it"},
	}
}

// Alerts returns the rules as a file of Prometheus.
func Alerts() string {
	var b strings.Builder
	b.WriteString("# Generated from package metric: go generate ./metric\ngroups:\n  - name: pulley\n    rules:\n")
	for _, a := range alerts() {
		fmt.Fprintf(&b, "      - alert: %s\n        expr: %s\n        for: %s\n        labels:\n          severity: %s\n        annotations:\n          summary: %s\n          description: %s\n",
			a.name, quote(a.expr), a.hold, a.severity, quote(a.summary), quote(a.help))
	}
	return b.String()
}

// quote writes a text as YAML.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
