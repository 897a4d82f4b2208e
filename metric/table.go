package metric

import (
	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/subjects"
)

// The buckets are those of vLLM's histograms, so that panels of both can be laid over each other. Whole requests have some
// below and above, for embeddings and for batches.
var (
	waitBuckets    = []float64{0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560}
	tokenBuckets   = []float64{0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80}
	requestBuckets = []float64{0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680}
)

// The values of labels that are fixed words.
var (
	Outcomes = []string{"answered", "refused", "cancelled", "failed"}
	Classes  = []string{"2xx", "3xx", "4xx", "5xx", "none"}
	Reasons  = []string{"full", "too_late", "max_wait", "retry_budget"}
	Windows  = []string{"queued", "before_first_byte", "answering"}
	Failures = []string{
		string(subjects.FailRefused), string(subjects.FailMisfit), string(subjects.FailCredentials), string(subjects.FailEngine), string(subjects.FailCrashed),
		string(subjects.FailTruncated), string(subjects.FailStalled), string(subjects.FailDraining), string(subjects.FailBody), "worker_lost",
	}
	Directions    = []string{"input", "output"}
	CopyOutcomes  = []string{"sent", "dropped"}
	CheapOutcomes = []string{"answered", "refused", "cancelled", "failed", "queued"}
	KeyRefusals   = []string{"missing", "wrong", "expired", "rotated", "starting"}
	KeyLimits     = []string{"requests", "tokens", "concurrency"}
	LineOutcomes  = []string{"written", "dropped", "failed"}
	Codes         = []string{
		"body_share_full", "body_timeout", "cancelled_by_operator", "dead_lettered", "deadline_exceeded", "deadline_unreachable", "gateway_memory_full",
		"gateway_stopping", "headers_too_large", "internal_error", "invalid_api_key", "invalid_request", "invalid_resume", "method_not_allowed", "model_not_allowed",
		"model_not_found", "no_slot", "no_worker", "not_found", "path_not_allowed", "purged", "queue_full", "queue_timeout", "queue_unavailable",
		"rate_limit_exceeded", "request_too_large", "starting", "tier_not_allowed", "too_many_wrong_keys", "unsupported_encoding", "upstream_error",
		"upstream_invalid", "upstream_lost", "upstream_misconfigured", "websocket_not_supported",
	}
	States = []string{
		string(subjects.Ready), string(subjects.Paused), string(subjects.Busy), string(subjects.Down), string(subjects.Fenced),
		string(subjects.Cordoned), string(subjects.Draining), StateLost, Other,
	}
	fenceClasses = []string{
		string(gpu.FenceLost), string(gpu.FenceResetRequired), string(gpu.FenceRowRemap), string(gpu.FenceRecovery), string(gpu.FenceXID), string(gpu.FenceECC),
		string(subjects.FenceStalled), string(subjects.FenceNVML), string(subjects.FenceHung), string(subjects.FenceFrozen), Other,
	}
)

// StateLost is the state of a worker whose heartbeats have stopped, as its gateway says.
const StateLost = "lost"

func bounds() (all []string) {
	for _, b := range policy.Bounds {
		all = append(all, string(b))
	}
	return append(all, string(subjects.Down), string(subjects.Cordoned), string(subjects.Draining), Other)
}

func throttles() (all []string) {
	for bit := gpu.Throttle(1); gpu.AllThrottle()[bit] != ""; bit <<= 1 {
		all = append(all, gpu.AllThrottle()[bit])
	}
	return all
}

type values = map[string][]string

var (
	gateways  = []Part{OfGateway}
	brokers   = []Part{OfBroker}
	onlyOwn   = []Part{OfWorker}
	ofBeats   = []Part{OfGateway, OfWorker}
	queued    = []string{"pool", "tier"}
	ofWorkers = []string{"worker", "host"}
	ofGPUs    = []string{"host", "gpu", "UUID", "modelName"} // as dcgm-exporter has them
)

const pooled = "for each pool that has a worker or is in the policy, and each tier"

// of makes entries of a section.
type of struct {
	section string
	parts   []Part
	when    string
}

func (o of) entry(k Kind, name, unit, help string, labels []string, v values, buckets []float64) *Metric {
	return define(Metric{
		Name: name, Kind: k, Unit: unit, Labels: labels, Help: help, Values: v, Parts: o.parts, When: o.when, section: o.section, buckets: buckets,
	})
}

func (o of) counter(name, unit, help string, labels []string, v values) *Metric {
	return o.entry(Counter, "pulley_"+name, unit, help, labels, v, nil)
}

func (o of) gauge(name, unit, help string, labels []string, v values) *Metric {
	return o.entry(Gauge, "pulley_"+name, unit, help, labels, v, nil)
}

func (o of) histogram(name, help string, labels []string, buckets []float64) *Metric {
	return o.entry(Histogram, "pulley_"+name, "seconds", help, labels, nil, buckets)
}

func (o of) dcgm(k Kind, name, unit, help string, more ...string) *Metric {
	return o.entry(k, name, unit, help, append([]string{"gpu", "UUID", "device", "modelName", "Hostname"}, more...), nil, nil)
}

func (o of) engine(name, unit, help string) *Metric {
	return o.entry(Gauge, name, unit, help, []string{"model_name"}, nil, nil)
}

var perRequest = of{"Requests", gateways, pooled}

// Requests.
var (
	Requests = perRequest.counter("requests_total", "requests", "Requests that ended, by outcome and by the class of the status that their client got: failed are those with a 5xx, and answers that broke off (2xx).",
		[]string{"pool", "tier", "outcome", "class"}, values{"outcome": Outcomes, "class": Classes})
	Refused = perRequest.counter("refused_total", "requests", "Requests that a queue refused, by reason.",
		[]string{"pool", "tier", "reason"}, values{"reason": Reasons})
	Errors = of{"Requests", gateways, ""}.counter("errors_total", "answers", "Error answers, by code, also of requests that reached no queue.",
		[]string{"code"}, values{"code": Codes})
	QueueTime      = perRequest.histogram("queue_seconds", "Time from a request's arrival to its claim by a worker.", queued, waitBuckets)
	FirstByte      = perRequest.histogram("time_to_first_byte_seconds", "Time from a request's arrival to the first byte of its answer, whether that streams or not.", queued, waitBuckets)
	FirstToken     = perRequest.histogram("time_to_first_token_seconds", "Time from a request's arrival to the first piece of its answer, of those that stream (TTFT).", queued, waitBuckets)
	InterToken     = perRequest.histogram("inter_token_seconds", "Time between two pieces of an answer that streams, as they come from the worker; with most engines a piece is a token.", queued, tokenBuckets)
	Duration       = perRequest.histogram("request_seconds", "Time from a request's arrival to its end.", queued, requestBuckets)
	Tokens         = perRequest.counter("tokens_total", "tokens", "Tokens that engines reported.", []string{"pool", "tier", "direction"}, values{"direction": Directions})
	FailedTries    = perRequest.counter("attempts_failed_total", "attempts", "Attempts that failed, by class.", []string{"pool", "tier", "class"}, values{"class": Failures})
	Retries        = perRequest.counter("retries_total", "attempts", "Attempts that followed a failed one of the same request, not counting those for want of a slot.", queued, nil)
	Failovers      = perRequest.counter("failovers_total", "attempts", "Retries after the worker was lost, its engine crashed or hung, or its first byte was late.", queued, nil)
	Cancelled      = perRequest.counter("cancelled_total", "requests", "Requests whose client disconnected, by what it was waiting for.", []string{"pool", "window"}, values{"window": Windows})
	Broken         = perRequest.counter("broken_streams_total", "streams", "Streams that ended with an error event.", []string{"pool"}, nil)
	DeadLetters    = perRequest.counter("dead_letters_total", "requests", "Requests that became dead letters.", queued, nil)
	Mirrored       = of{"Requests", gateways, "for each mirror in the policy"}.counter("mirrored_total", "requests", "Copies of requests for mirrors; dropped for lack of capacity.", []string{"pool", "outcome"}, values{"outcome": CopyOutcomes})
	Cheap          = perRequest.counter("cheap_calls_total", "calls", "Calls that need no slot, such as to count tokens; queued are those that went on like a request.", []string{"pool", "outcome"}, values{"outcome": CheapOutcomes})
	Unclaimed      = perRequest.counter("deliveries_unclaimed_total", "deliveries", "Deliveries that no worker claimed in time, and that were taken back.", []string{"pool"}, nil)
	AuthRefused    = of{"Requests", gateways, ""}.counter("auth_refused_total", "requests", "Requests refused for their API key.", []string{"reason"}, values{"reason": KeyRefusals})
	RateLimited    = of{"Requests", gateways, ""}.counter("rate_limited_total", "requests", "Requests refused by a limit of their API key.", []string{"limit"}, values{"limit": KeyLimits})
	AccessLogLines = of{"Requests", gateways, "if there is an access log"}.counter("access_log_lines_total", "lines", "Lines of the access log; dropped are those that came faster than they could be written.", []string{"outcome"}, values{"outcome": LineOutcomes})
	InFlight       = of{"Requests", gateways, ""}.gauge("requests_in_flight", "requests", "Requests that the gateway holds now, waiting or running.", nil, nil)
	BodyBytes      = of{"Requests", gateways, ""}.gauge("request_body_bytes", "bytes", "Bytes of request bodies that the gateway holds now.", nil, nil)
	queues         = of{"Queues and pools", gateways, pooled}
	pools          = of{"Queues and pools", gateways, "for each pool that has a worker or is in the policy"}
	QueueWaiting   = queues.gauge("queue_waiting_requests", "requests", "Requests of this gateway that wait for a worker.", queued, nil)
	QueueOldest    = queues.gauge("queue_oldest_wait_seconds", "seconds", "How long the oldest of them has waited; 0 if none waits.", queued, nil)
	QueueRunning   = queues.gauge("queue_in_flight_requests", "requests", "Requests of this gateway that a worker runs.", queued, nil)
	QueueMax       = queues.gauge("queue_max_requests", "requests", "How many requests may wait, in all gateways together (max queue of the tier).", queued, nil)
	PoolWorkers    = pools.gauge("pool_workers", "workers", "Workers of a pool that accept requests.", []string{"pool"}, nil)
	PoolSlots      = pools.gauge("pool_slots", "requests", "Requests that these workers may have in flight.", []string{"pool"}, nil)
	PoolFree       = pools.gauge("pool_free_slots", "requests", "Requests that they may start now.", []string{"pool"}, nil)
	DemandSlots    = pools.gauge("pool_demand_slots", "requests", "Requests of this gateway that wait or run: how many slots they would fill.", []string{"pool"}, nil)
	DemandTime     = of{"Queues and pools", gateways, "for each pool, unless it has work and no worker that has measured how long that takes"}.gauge("pool_demand_seconds", "seconds", "Work of this gateway over the capacity that the pool's workers have measured: how long they take for what waits, and for as much as will come within 30 s if what runs is what is usual.", []string{"pool"}, nil)
)

var broker = of{"Broker and policy", gateways, ""}
var cluster = of{"Broker and policy", gateways, "for each member of a cluster of brokers that has a replica of a queue"}
var stream = of{"Broker and policy", gateways, "for each tier, once its stream was asked for its state"}

// The broker as a gateway sees it, and the policy.
var (
	BrokerConnected  = broker.gauge("broker_connected", "", "1 if the gateway has a connection to the broker, and the broker answers.", nil, nil)
	BrokerReconnects = broker.counter("broker_reconnects_total", "connections", "Connections to the broker after the first one.", nil, nil)
	BrokerHeard      = cluster.gauge("broker_heard", "", "1 if the other members of the brokers' cluster hear this one, 0 if they have not heard it for 2.5 s.", []string{"server"}, nil)
	StreamLeader     = stream.gauge("stream_leader", "", "1, labelled with the server that leads the stream of a tier.", []string{"stream", "leader"}, nil)
	StreamReady      = stream.gauge("stream_has_leader", "", "1 if the stream answered when it was last asked, at most 5 s ago.", []string{"stream"}, nil)
	StreamReplicas   = stream.gauge("stream_replicas", "servers", "Servers that have a copy of the stream, by the configuration and in fact.", []string{"stream", "state"}, values{"state": {"configured", "current"}})
	StreamMessages   = stream.gauge("stream_messages", "requests", "Requests that the stream has, waiting or running, of all gateways.", []string{"stream"}, nil)
	StreamBytes      = stream.gauge("stream_bytes", "bytes", "Bytes that the stream has.", []string{"stream"}, nil)
	StreamMax        = stream.gauge("stream_max_messages_per_subject", "requests", "Bound of the stream for each pool and lane.", []string{"stream"}, nil)
	StreamMaxBytes   = stream.gauge("stream_max_bytes", "bytes", "Bound of the stream's size; -1 if it has none of its own.", []string{"stream"}, nil)
	PolicyRevision   = broker.gauge("policy_revision", "", "Revision of the policy in force; 0 is the default.", nil, nil)
	PolicyAge        = broker.gauge("policy_age_seconds", "seconds", "Time since this gateway put that revision in force.", nil, nil)
	PolicyStale      = broker.gauge("policy_stale", "", "1 if the policy cannot be read, so that the last valid revision stays in force.", nil, nil)
	DirectWorkers    = broker.gauge("direct_workers", "workers", "Workers whose answers come on a connection of their own, not through the broker.", nil, nil)
	GatewayReady     = broker.gauge("gateway_ready", "", "1 if the gateway accepts requests, as /readyz says.", nil, nil)
	BuildInfo        = of{"Broker and policy", gateways, ""}.gauge("build_info", "", "1, labelled with the version.", []string{"version", "gateway"}, nil)
)

var worker = of{"Workers", ofBeats, "for each worker"}
var nvml = of{"Workers", ofBeats, "for each worker, unless NVML is off"}

// Workers, by their last heartbeat.
var (
	WorkerState = of{"Workers", ofBeats, "for each worker; 10 minutes longer for one that is lost"}.gauge("worker_state", "",
		"1 for the state that a worker is in, 0 for all others. down: its engine does not answer; fenced: its engine or a GPU is faulty; lost: its heartbeats have stopped.",
		[]string{"worker", "host", "state"}, values{"state": States})
	WorkerBeat     = of{"Workers", gateways, "for each worker"}.gauge("worker_heartbeat_age_seconds", "seconds", "Time since the last heartbeat of a worker came.", ofWorkers, nil)
	WorkerCredits  = worker.gauge("worker_credits", "requests", "Capacity: requests that a worker may have in flight, labelled with what binds it. 0 while it accepts none.", []string{"worker", "host", "bound"}, values{"bound": bounds()})
	WorkerBounds   = worker.gauge("worker_bound_requests", "requests", "Requests in flight that each bound alone would allow.", []string{"worker", "host", "bound"}, values{"bound": bounds()})
	WorkerInFlight = worker.gauge("worker_in_flight", "requests", "Requests in flight on a worker.", ofWorkers, nil)
	WorkerPrefills = worker.gauge("worker_prefills", "requests", "Requests in flight that have had no first token.", ofWorkers, nil)
	WorkerRung     = of{"Workers", ofBeats, "for each pool of each worker"}.gauge("worker_rung", "", "Rung of the price of a worker's next bid in a pool: 0 is the lowest, 9 the highest.", []string{"worker", "host", "pool"}, nil)
	WorkerHeadroom = worker.gauge("worker_headroom_ratio", "", "Free share of the resource that a worker has least of, 0 to 1; 0 while it accepts no requests.", ofWorkers, nil)
	WorkerFactor   = worker.gauge("worker_factor_ratio", "", "Factor by which a strained GPU reduces a worker's capacity; 0 if the worker is fenced.", ofWorkers, nil)
	WorkerFenced   = worker.gauge("worker_fenced", "", "1 if a worker takes no requests because its engine or a GPU is faulty. The reason is empty if it is not.", []string{"worker", "host", "reason"}, values{"reason": fenceClasses})
	WorkerFailing  = worker.gauge("worker_failing_pools", "pools", "Pools whose requests fail at a worker, so that it tries one at a time.", ofWorkers, nil)
	WorkerSuspect  = worker.gauge("worker_suspect_pools", "pools", "Pools for which a worker's engine shows no progress, so that it gets few requests.", ofWorkers, nil)
	WorkerNote     = worker.gauge("worker_note", "", "1 if a worker is much slower or smaller than is usual in one of its pools, else 0.", []string{"worker", "host", "kind"}, values{"kind": {policy.NoteSlow, policy.NoteSmall}})
	WorkerTries    = worker.counter("worker_attempts_total", "attempts", "Attempts that ended on a worker since it started: done are those with a whole answer.", []string{"worker", "host", "outcome"}, values{"outcome": {"done", "failed"}})
	EngineRunning  = of{"Workers", ofBeats, "for each worker whose engine reports it"}.gauge("worker_engine_running_requests", "requests", "Requests that the engine runs, by its own report.", ofWorkers, nil)
	EngineWaiting  = of{"Workers", ofBeats, "for each worker whose engine reports it"}.gauge("worker_engine_waiting_requests", "requests", "Requests that wait in the engine, by its own report.", ofWorkers, nil)
	EngineKV       = of{"Workers", ofBeats, "for each worker whose engine reports it"}.gauge("worker_engine_kv_usage_ratio", "", "Used share of the engine's KV cache, 0 to 1, by its own report.", ofWorkers, nil)
	NVMLUp         = nvml.gauge("nvml_up", "", "1 if a worker can read its GPUs.", ofWorkers, nil)
)

var local = of{"Workers, on their own admin port", onlyOwn, ""}

// Workers, as they measure themselves.
var (
	WorkerConnected  = local.gauge("worker_broker_connected", "", "1 if the worker has a connection to the broker, and the broker answers.", ofWorkers, nil)
	WorkerReconnects = local.counter("worker_broker_reconnects_total", "connections", "Connections to the broker after the first one.", ofWorkers, nil)
	WorkerFirst      = local.histogram("worker_time_to_first_token_seconds", "Time from the start of an attempt to the first piece of its answer, of those that stream.", ofWorkers, waitBuckets)
	WorkerInterToken = local.histogram("worker_inter_token_seconds", "Time between two events of an answer that streams, as they come from the engine.", ofWorkers, tokenBuckets)
	WorkerAnswer     = local.histogram("worker_attempt_seconds", "Time from the start of an attempt to the end of its answer, of those with a whole one.", ofWorkers, requestBuckets)
)

var gpus = of{"GPUs", ofBeats, "for each GPU that reports it"}

// GPUs.
var (
	NVMLAge        = gpus.gauge("nvml_sample_age_seconds", "seconds", "Time since a GPU was last sampled.", ofGPUs, nil)
	GPUMemory      = gpus.gauge("gpu_memory_bytes", "bytes", "Memory of a GPU by state.", append(ofGPUs[:4:4], "state"), values{"state": {"total", "used", "free", "reserved"}})
	GPUUtilization = gpus.gauge("gpu_utilization_ratio", "", "Share of the time in which a kernel ran on the GPU.", ofGPUs, nil)
	GPUTemperature = gpus.gauge("gpu_temperature_celsius", "°C", "Temperature of a GPU.", ofGPUs, nil)
	GPUMemoryTemp  = gpus.gauge("gpu_memory_temperature_celsius", "°C", "Temperature of a GPU's memory.", ofGPUs, nil)
	GPUPower       = gpus.gauge("gpu_power_watts", "W", "Power that a GPU draws.", ofGPUs, nil)
	GPUPowerLimit  = gpus.gauge("gpu_power_limit_watts", "W", "Power limit in force on a GPU.", ofGPUs, nil)
	GPUClock       = gpus.gauge("gpu_sm_clock_hertz", "Hz", "Clock rate of the multiprocessors.", ofGPUs, nil)
	GPUThrottled   = gpus.gauge("gpu_throttled", "", "1 if the clocks of a GPU are throttled for this reason.", append(ofGPUs[:4:4], "reason"), values{"reason": throttles()})
	GPUECC         = gpus.counter("gpu_ecc_uncorrected_total", "errors", "Uncorrectable memory errors since the driver was loaded.", ofGPUs, nil)
	GPURows        = gpus.gauge("gpu_row_remap_failed", "", "1 if a memory row could not be remapped.", ofGPUs, nil)
	GPUXIDs        = of{"GPUs", ofBeats, "for each XID that a GPU has had"}.counter("gpu_xid_total", "errors", "XID errors since this part first saw the GPU.", append(ofGPUs[:4:4], "xid"), nil)
	GPUFenced      = of{"GPUs", ofBeats, "for each GPU"}.gauge("gpu_fenced", "", "1 if a GPU is fenced: no requests may run on it. The reason is empty if it is not.", append(ofGPUs[:4:4], "reason"), values{"reason": fenceClasses})
)

var dcgm = of{"GPUs under dcgm-exporter's names", ofBeats, "for each GPU that reports it"}

// GPUs under the names, labels and units of dcgm-exporter, for dashboards that are made for it.
var (
	DCGMUtilization = dcgm.dcgm(Gauge, "DCGM_FI_DEV_GPU_UTIL", "%", "Share of the time in which a kernel ran on the GPU.")
	DCGMMemoryUtil  = dcgm.dcgm(Gauge, "DCGM_FI_DEV_MEM_COPY_UTIL", "%", "Share of the time in which the GPU's memory was accessed.")
	DCGMUsed        = dcgm.dcgm(Gauge, "DCGM_FI_DEV_FB_USED", "MiB", "Used memory of a GPU.")
	DCGMFree        = dcgm.dcgm(Gauge, "DCGM_FI_DEV_FB_FREE", "MiB", "Free memory of a GPU.")
	DCGMReserved    = dcgm.dcgm(Gauge, "DCGM_FI_DEV_FB_RESERVED", "MiB", "Memory that the driver reserves.")
	DCGMTemperature = dcgm.dcgm(Gauge, "DCGM_FI_DEV_GPU_TEMP", "°C", "Temperature of a GPU.")
	DCGMMemoryTemp  = dcgm.dcgm(Gauge, "DCGM_FI_DEV_MEMORY_TEMP", "°C", "Temperature of a GPU's memory.")
	DCGMPower       = dcgm.dcgm(Gauge, "DCGM_FI_DEV_POWER_USAGE", "W", "Power that a GPU draws.")
	DCGMClock       = dcgm.dcgm(Gauge, "DCGM_FI_DEV_SM_CLOCK", "MHz", "Clock rate of the multiprocessors.")
	DCGMMemoryClock = dcgm.dcgm(Gauge, "DCGM_FI_DEV_MEM_CLOCK", "MHz", "Clock rate of the memory.")
	DCGMXID         = dcgm.dcgm(Gauge, "DCGM_FI_DEV_XID_ERRORS", "", "The last XID; 0 if there was none.")
	DCGMECC         = dcgm.dcgm(Counter, "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", "errors", "Uncorrectable memory errors since the driver was loaded.")
	DCGMRows        = dcgm.dcgm(Counter, "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS", "rows", "Memory rows that were remapped for uncorrectable errors.")
	DCGMSoftRows    = dcgm.dcgm(Counter, "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS", "rows", "Memory rows that were remapped for correctable errors.")
	DCGMRowFailure  = dcgm.dcgm(Gauge, "DCGM_FI_DEV_ROW_REMAP_FAILURE", "", "1 if a memory row could not be remapped.")
)

var engine = of{"A gateway as an engine", gateways, "for each pool that has a worker or is in the policy"}

// A gateway as an engine, under vLLM's names.
var (
	VLLMRunning = engine.engine("vllm:num_requests_running", "requests", "Requests of this gateway that workers run.")
	VLLMWaiting = engine.engine("vllm:num_requests_waiting", "requests", "Requests of this gateway that wait for a worker.")
	VLLMKV      = engine.engine("vllm:kv_cache_usage_perc", "", "Used share of the KV cache, 0 to 1: the mean over the engines of the pool that report it, else the share of slots in use; 1 without a worker that accepts requests.")
)

var node = of{"Brokers (pulley broker and pulley up)", brokers, ""}

// A broker that runs in this process.
var (
	NodeReady       = node.gauge("broker_ready", "", "1 if the broker accepts connections.", nil, nil)
	NodeConnections = node.gauge("broker_connections", "connections", "Connections of clients.", nil, nil)
	NodeMessages    = node.counter("broker_messages_total", "messages", "Messages from and to clients and other brokers.", []string{"direction"}, values{"direction": {"in", "out"}})
	NodeBytes       = node.counter("broker_bytes_total", "bytes", "Bytes of these messages.", []string{"direction"}, values{"direction": {"in", "out"}})
	NodeSlow        = node.counter("broker_slow_consumers_total", "connections", "Connections that were closed because they did not read what was sent to them.", nil, nil)
	NodeRoutes      = node.gauge("broker_routes", "connections", "Connections to other members of the cluster.", nil, nil)
	NodeMemory      = node.gauge("broker_jetstream_memory_bytes", "bytes", "Size of the streams in memory, and its bound.", []string{"state"}, values{"state": {"used", "max"}})
	NodeStore       = node.gauge("broker_jetstream_store_bytes", "bytes", "Size of the streams on disk, and its bound.", []string{"state"}, values{"state": {"used", "max"}})
	NodeErrors      = node.counter("broker_jetstream_api_errors_total", "requests", "Requests to the API of JetStream that were refused.", nil, nil)
	NodeLeader      = node.gauge("broker_meta_leader", "", "1 if this broker leads the cluster, or is alone.", nil, nil)
)
