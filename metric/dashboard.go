package metric

import (
	"encoding/json"
	"fmt"
)

// panel is a graph of the dashboard: expressions with the names of their lines.
type panel struct {
	title, unit string
	lines       [][2]string
}

type row struct {
	title  string
	panels []panel
}

func sumBy(by string, m *Metric, selects string) string {
	if m.Kind == Counter {
		return fmt.Sprintf("sum by (%s) (rate(%s%s[$__rate_interval]))", by, m.Name, selects)
	}
	return fmt.Sprintf("sum by (%s) (%s%s)", by, m.Name, selects)
}

func maxBy(by string, m *Metric, selects string) string {
	return fmt.Sprintf("max by (%s) (%s%s)", by, m.Name, selects)
}

func quantiles(m *Metric) (lines [][2]string) {
	for _, q := range []string{"0.5", "0.95", "0.99"} {
		lines = append(lines, [2]string{
			fmt.Sprintf("histogram_quantile(%s, sum by (le, pool) (rate(%s_bucket{pool=~\"$pool\"}[$__rate_interval])))", q, m.Name), "{{pool}} p" + q[2:],
		})
	}
	return lines
}

const ofPool = `{pool=~"$pool"}`

func rows() []row {
	return []row{
		{"Requests", []panel{
			{"Requests by outcome", "reqps", [][2]string{{sumBy("outcome, class", Requests, ofPool), "{{outcome}} {{class}}"}}},
			{"Time to the first token", "s", quantiles(FirstToken)},
			{"Time between tokens", "s", quantiles(InterToken)},
			{"Time of a request", "s", quantiles(Duration)},
			{"Tokens", "short", [][2]string{{sumBy("pool, direction", Tokens, ofPool), "{{pool}} {{direction}}"}}},
			{"Error answers by code", "reqps", [][2]string{{sumBy("code", Errors, "") + " > 0", "{{code}}"}}},
		}},
		{"Queues", []panel{
			{"Waiting", "short", [][2]string{{sumBy("pool, tier", QueueWaiting, ofPool), "{{pool}} {{tier}}"}}},
			{"Oldest wait", "s", [][2]string{{maxBy("pool, tier", QueueOldest, ofPool), "{{pool}} {{tier}}"}}},
			{"Time in the queue", "s", quantiles(QueueTime)},
			{"Work, in seconds of the workers there are", "s", [][2]string{{sumBy("pool", DemandTime, ofPool), "{{pool}}"}}},
			{"In flight and slots", "short", [][2]string{{sumBy("pool", QueueRunning, ofPool), "{{pool}} in flight"}, {maxBy("pool", PoolSlots, ofPool), "{{pool}} slots"}}},
			{"Refused", "reqps", [][2]string{{sumBy("pool, tier, reason", Refused, ofPool) + " > 0", "{{pool}} {{tier}} {{reason}}"}}},
		}},
		{"Workers", []panel{
			{"States", "short", [][2]string{{fmt.Sprintf("sum by (state) (max by (worker, host, state) (%s))", WorkerState.Name), "{{state}}"}}},
			{"Capacity and what binds it", "short", [][2]string{{maxBy("worker, bound", WorkerCredits, ""), "{{worker}} {{bound}}"}}},
			{"In flight", "short", [][2]string{{maxBy("worker", WorkerInFlight, ""), "{{worker}}"}}},
			{"Rung of the next bid", "short", [][2]string{{maxBy("worker, pool", WorkerRung, ofPool), "{{worker}} {{pool}}"}}},
			{"Headroom", "percentunit", [][2]string{{maxBy("worker", WorkerHeadroom, ""), "{{worker}}"}}},
			{"KV cache of engines", "percentunit", [][2]string{{maxBy("worker", EngineKV, ""), "{{worker}}"}}},
		}},
		{"Failures", []panel{
			{"Attempts that failed", "short", [][2]string{{sumBy("pool, class", FailedTries, ofPool) + " > 0", "{{pool}} {{class}}"}}},
			{"Retries and failovers", "short", [][2]string{{sumBy("pool", Retries, ofPool), "{{pool}} retries"}, {sumBy("pool", Failovers, ofPool), "{{pool}} failovers"}}},
			{"Dead letters", "short", [][2]string{{sumBy("pool", DeadLetters, ofPool), "{{pool}}"}}},
			{"Clients that left", "reqps", [][2]string{{sumBy("pool, window", Cancelled, ofPool), "{{pool}} {{window}}"}}},
		}},
		{"GPUs", []panel{
			{"Temperature", "celsius", [][2]string{{maxBy("host, gpu", GPUTemperature, ""), "{{host}} {{gpu}}"}}},
			{"Power", "watt", [][2]string{{maxBy("host, gpu", GPUPower, ""), "{{host}} {{gpu}}"}}},
			{"Memory in use", "bytes", [][2]string{{maxBy("host, gpu", GPUMemory, `{state="used"}`), "{{host}} {{gpu}}"}}},
			{"Utilization", "percentunit", [][2]string{{maxBy("host, gpu", GPUUtilization, ""), "{{host}} {{gpu}}"}}},
			{"Throttled", "short", [][2]string{{maxBy("host, gpu, reason", GPUThrottled, "") + " > 0", "{{host}} {{gpu}} {{reason}}"}}},
			{"XIDs", "short", [][2]string{{maxBy("host, gpu, xid", GPUXIDs, ""), "{{host}} {{gpu}} XID {{xid}}"}}},
		}},
		{"Broker and policy", []panel{
			{"Gateways with a broker", "short", [][2]string{{"sum(" + BrokerConnected.Name + ")", "connected"}, {"count(" + BrokerConnected.Name + ")", "all"}}},
			{"Requests in streams", "short", [][2]string{{maxBy("stream", StreamMessages, ""), "{{stream}}"}}},
			{"Streams with a leader", "short", [][2]string{{maxBy("stream", StreamReady, ""), "{{stream}}"}}},
			{"Policy in force", "short", [][2]string{{"max by (instance) (" + PolicyRevision.Name + ")", "{{instance}}"}}},
		}},
	}
}

// Dashboard returns a dashboard for Grafana, as JSON.
func Dashboard() []byte {
	type object = map[string]any
	source := object{"type": "prometheus", "uid": "${source}"}
	var panels []object
	y, id := 0, 0
	place := func(x, width, height int) (int, object) {
		id++
		return id, object{"x": x, "y": y, "w": width, "h": height}
	}
	for _, r := range rows() {
		n, at := place(0, 24, 1)
		panels = append(panels, object{"id": n, "type": "row", "title": r.title, "gridPos": at, "collapsed": false, "panels": []object{}})
		y++
		for i, p := range r.panels {
			n, at := place(i%3*8, 8, 8)
			var targets []object
			for j, l := range p.lines {
				targets = append(targets, object{"refId": string(rune('A' + j)), "expr": l[0], "legendFormat": l[1], "datasource": source})
			}
			panels = append(panels, object{
				"id": n, "type": "timeseries", "title": p.title, "gridPos": at, "datasource": source, "targets": targets,
				"fieldConfig": object{"defaults": object{"unit": p.unit, "min": 0}, "overrides": []object{}},
				"options":     object{"tooltip": object{"mode": "multi", "sort": "desc"}},
			})
			if i%3 == 2 || i == len(r.panels)-1 {
				y += 8
			}
		}
	}
	b, err := json.MarshalIndent(object{
		"title": "Pulley", "uid": "pulley", "schemaVersion": 39, "version": 1, "editable": true, "refresh": "10s", "tags": []string{"pulley", "llm"},
		"time": object{"from": "now-1h", "to": "now"},
		"templating": object{"list": []object{
			{"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
			{
				"name": "pool", "label": "Pool", "type": "query", "datasource": source, "query": "label_values(" + PoolWorkers.Name + ", pool)",
				"includeAll": true, "multi": true, "allValue": ".*", "current": object{"text": "All", "value": "$__all"}, "refresh": 2,
			},
		}},
		"panels": panels,
	}, "", "  ")
	if err != nil {
		panic(err) // of texts and numbers
	}
	return append(b, '\n')
}
