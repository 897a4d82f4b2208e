package chaos

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// Series is something of a part that was counted again and again under an even load. It has to stay as it is.
type Series struct {
	Part string `json:"part"`
	What What   `json:"what"`
	// Samples are what was counted, in the order of time.
	Samples []Sample `json:"samples"`
}

// Sample is a number at a time.
type Sample struct {
	At Seconds `json:"at"`
	N  float64 `json:"n"`
}

// What is counted.
type What string

const (
	Heap        What = "heap"        // bytes that are in use after a garbage collection
	Memory      What = "memory"      // bytes that the process has
	Goroutines  What = "goroutines"  // of the process
	Descriptors What = "descriptors" // that the process has open
	Streams     What = "streams"     // of the broker, those of buckets included
	Consumers   What = "consumers"   // of the broker
	Keys        What = "keys"        // in all buckets
	Waiting     What = "waiting"     // messages in the queues
)

// allowances are how much each may have grown by the end of a run, and as a part of what it was. They are for chance: what
// grows with each request passes them within minutes.
var allowances = map[What]struct{ least, part float64 }{
	Heap:        {3 << 20, 0.10},
	Memory:      {24 << 20, 0.20}, // the collector lets garbage pile up
	Goroutines:  {20, 0.10},
	Descriptors: {10, 0.10},
	Streams:     {0.5, 0},
	Consumers:   {0.5, 0},
	Keys:        {1.5, 0},
	Waiting:     {20, 0},
}

// warmUp is the part of a run that does not count: caches fill.
const warmUp = 1.0 / 3

// steadily is how many more of all pairs of samples have to rise than to fall, if something grows.
const steadily = 0.5

// Growth is how a series has changed after the warm-up.
type Growth struct {
	Series
	First, Last float64 // about, at both ends of what counts
	PerHour     float64 // the slope: the median of those between any two samples
	Grown       float64 // by that slope
	Allowed     float64
	Grows       bool
}

// Growth judges a series. One with fewer than ten samples after the warm-up is not judged.
func (s Series) Growth() (g Growth) {
	g.Series = s
	counts := s.Samples[int(float64(len(s.Samples))*warmUp):]
	if len(counts) < 10 {
		return g
	}
	var slopes []float64
	rise := 0
	for i, a := range counts {
		for _, b := range counts[i+1:] {
			if b.At > a.At {
				slopes = append(slopes, (b.N-a.N)/float64(b.At-a.At))
				rise += cmp.Compare(b.N, a.N)
			}
		}
	}
	slices.Sort(slopes)
	slope := slopes[len(slopes)/2]
	g.PerHour, g.Grown = slope*3600, slope*float64(counts[len(counts)-1].At-counts[0].At)
	tenth := max(len(counts)/10, 1)
	g.First, g.Last = median(counts[:tenth]), median(counts[len(counts)-tenth:])
	a := allowances[s.What]
	g.Allowed = max(a.least, a.part*median(counts))
	g.Grows = g.Grown > g.Allowed && float64(rise) > steadily*float64(len(slopes))
	return g
}

func median(samples []Sample) float64 {
	var n []float64
	for _, s := range samples {
		n = append(n, s.N)
	}
	slices.Sort(n)
	return n[len(n)/2]
}

// WriteGrowth writes a table, and returns those that grow.
func WriteGrowth(to io.Writer, all []Series) (grow []Growth, err error) {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "PART\tWHAT\tFIRST\tLAST\tPER HOUR\tGROWN\tALLOWED\t")
	for _, s := range all {
		g, unit, mark := s.Growth(), 1.0, ""
		if s.What == Heap || s.What == Memory {
			unit = 1 << 20
		}
		if g.Grows {
			grow, mark = append(grow, g), "  GROWS"
		}
		fmt.Fprintf(w, "%s\t%s\t%.1f\t%.1f\t%+.1f\t%+.1f\t%.1f\t%s\n", s.Part, s.What, g.First/unit, g.Last/unit, g.PerHour/unit, g.Grown/unit, g.Allowed/unit, mark)
	}
	return grow, w.Flush()
}
