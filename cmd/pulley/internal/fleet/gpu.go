package fleet

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
	"github.com/pulley-lb/pulley/gpu"
	"github.com/pulley-lb/pulley/subjects"
)

// GPU is a GPU of a host, as the workers that use it tell. Where a host has
// none to tell of, it is the host, with the reason.
type GPU struct {
	Host    string   `json:"host"`
	Workers []string `json:"workers"` // that use it, by name
	// Status is ok, throttled, strained, fenced, stale or unknown; off where nobody
	// asks. Reason is why it is not ok, Remedy what to do.
	Status  string       `json:"status"`
	Reason  string       `json:"reason,omitempty"`
	Remedy  string       `json:"remedy,omitempty"`
	Driver  string       `json:"driver,omitempty"`
	Failure *gpu.Failure `json:"failure,omitempty"`
	*subjects.GPU
}

// Path is what a verb takes for it.
func (g *GPU) Path() string {
	if g.GPU == nil {
		return g.Host
	}
	return g.Host + "/" + g.Label()
}

// order is the place of a GPU on its host.
func (g *GPU) order() int {
	switch {
	case g.GPU == nil:
		return -1
	case g.Instance != nil:
		return g.Index<<8 + g.Instance.Number
	}
	return g.Index << 8
}

// take takes what another worker tells of the same GPU: the newest holds, but a
// fence that anybody has seen a reason for stands.
func (g *GPU) take(told *subjects.GPU, nvml *subjects.NVML) {
	newest := *g.GPU
	if told.At.After(g.At) {
		newest = *told
	}
	if newest.Fenced == "" {
		fenced := cmp.Or(g.Fenced, told.Fenced)
		newest.Fenced, newest.Since = fenced, latestOf(g.Since, told.Since)
		if fenced == "" {
			newest.Since = time.Time{}
		}
	}
	newest.Strain = cmp.Or(newest.Strain, g.Strain, told.Strain)
	g.GPU = &newest
	g.Driver = cmp.Or(nvml.Driver, g.Driver)
	g.Failure = cmp.Or(g.Failure, nvml.Failure)
}

// judge says in a word how the GPU is.
func (g *GPU) judge() {
	if g.GPU == nil {
		switch {
		case g.Failure != nil:
			g.Reason, g.Remedy = g.Failure.Error(), g.Failure.Remedy()
		case g.Status == "":
			g.Status, g.Reason = "off", "its workers do not ask NVML"
		default:
			g.Reason = "its workers have not heard of a GPU yet"
		}
		return
	}
	g.Status, g.Reason, g.Remedy = GPUStatus(*g.GPU)
	if g.Failure != nil && g.Status != "fenced" {
		g.Reason, g.Remedy = g.Failure.Error(), g.Failure.Remedy()
	}
}

// StatusText is the state for a table.
func (g *GPU) StatusText() string {
	switch g.Status {
	case "fenced":
		return "fenced: " + g.Reason
	case "throttled", "strained":
		return g.Status + " (" + g.Reason + ")"
	}
	return g.Status
}

// GPUs are the GPUs that workers tell of, each once, by host and number.
func GPUs(list []subjects.Heartbeat) []GPU {
	type key struct{ host, device string }
	seen := make(map[key]*GPU)
	for i := range list {
		h := &list[i]
		if h.NVML == nil || len(h.NVML.GPUs) == 0 {
			k := key{host: h.Host}
			if seen[k] == nil {
				seen[k] = &GPU{Host: h.Host}
			}
			g := seen[k]
			g.Workers = append(g.Workers, h.Name)
			if h.NVML != nil {
				g.Driver, g.Failure = h.NVML.Driver, h.NVML.Failure
				g.Status = "unknown"
			}
			continue
		}
		for j := range h.NVML.GPUs {
			told := &h.NVML.GPUs[j]
			k := key{h.Host, cmp.Or(told.UUID, told.Label())}
			g := seen[k]
			if g == nil {
				g = &GPU{Host: h.Host, GPU: told}
				seen[k] = g
			}
			g.Workers = append(g.Workers, h.Name)
			g.take(told, h.NVML)
		}
	}
	var gpus []GPU
	for k, g := range seen {
		if k.device == "" && slices.ContainsFunc(list, func(h subjects.Heartbeat) bool { return h.Host == k.host && h.NVML != nil && len(h.NVML.GPUs) > 0 }) && g.Failure == nil {
			continue // another of its workers tells
		}
		g.judge()
		slices.Sort(g.Workers)
		gpus = append(gpus, *g)
	}
	slices.SortFunc(gpus, func(a, b GPU) int {
		return cmp.Or(strings.Compare(a.Host, b.Host), cmp.Compare(a.order(), b.order()), strings.Compare(a.Path(), b.Path()))
	})
	return orEmpty(gpus)
}

func latestOf(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// GPUStatus is how a worker's GPU is, in a word, with the reason and what to do.
func GPUStatus(g subjects.GPU) (status, reason, remedy string) {
	slowed := g.Throttle != nil && (g.Throttle.Hard() || g.Throttle.Hot())
	switch {
	case g.Fenced != "":
		return "fenced", g.Fenced, Unfence(g.Snapshot)
	case g.State == gpu.Unknown:
		return "unknown", "it has not answered for half a minute", (&gpu.Failure{Kind: gpu.Silent}).Remedy()
	case g.State == gpu.Stale:
		return "stale", "it has not answered for seconds", ""
	case slowed:
		return "throttled", ThrottleText(g.Snapshot), "see to its cooling and its power supply: 'nvidia-smi -q -d PERFORMANCE,TEMPERATURE' says more"
	case g.Strain != "":
		return "strained", g.Strain, ""
	}
	return "ok", "", ""
}

// Unfence says how a fence ends.
func Unfence(g gpu.Snapshot) string {
	switch {
	case g.Rows != nil && g.Rows.Failed:
		return "the GPU has no spare memory left: have it exchanged; until then let its worker run without it (gpus=)"
	case g.Recovery != nil && *g.Recovery != gpu.RecoveryNone:
		return fmt.Sprintf("%v, then start the engine anew", *g.Recovery)
	case g.Lost != "":
		return "see 'dmesg | grep -i nvrm'; reset the GPU ('nvidia-smi -r') or restart the machine: the fence falls when the driver was loaded anew and the GPU answers"
	}
	return "start the engine anew: the fence falls a minute after the last error, when the engine is new and the GPU answers"
}

func GPUStatusStyle(state string) term.Style {
	word, _, _ := strings.Cut(state, " ")
	switch strings.TrimSuffix(word, ":") {
	case "ok":
		return term.Green
	case "fenced":
		return term.Red
	case "off":
		return term.Unstyled
	}
	return term.Yellow
}
