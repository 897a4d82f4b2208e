package bench

import (
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
)

// Plot draws the latency distributions of the results into a file, PNG or SVG by its name: percentiles over a
// logarithmic latency axis, the tail stretched so that p99 and p99.9 can be read off. TTFT is dashed, E2E solid.
func Plot(file string, results ...*Result) error {
	if ext := strings.ToLower(filepath.Ext(file)); ext != ".png" && ext != ".svg" {
		return fmt.Errorf("plot %s: must end in .png or .svg", file)
	}
	p, err := draw(results)
	if err != nil {
		return fmt.Errorf("plot %s: %w", file, err)
	}
	if err := p.Save(plotWidth, plotHeight, file); err != nil {
		return fmt.Errorf("plot %s: %w", file, err)
	}
	return nil
}

const plotWidth, plotHeight = 20 * vg.Centimeter, 13 * vg.Centimeter

func draw(results []*Result) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text = "latency distribution"
	p.Title.Padding = vg.Points(6)
	p.X.Label.Text = "latency"
	p.Y.Label.Text = "percentile"
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, latencyTicks{}
	p.Y.Tick.Marker = percentileTicks{}
	p.Legend.Top, p.Legend.Left = true, true
	p.Add(plotter.NewGrid())
	for i, result := range results {
		for _, d := range []namedDistribution{{"E2E", result.E2E}, {"TTFT", result.TTFT}} {
			if err := addLine(p, i, result.Name, d); err != nil {
				return nil, err
			}
		}
	}
	widenAxes(p)
	return p, nil
}

func addLine(p *plot.Plot, i int, name string, d namedDistribution) error {
	if d.IsZero() {
		return nil
	}
	line, err := plotter.NewLine(tailPoints(d.Distribution))
	if err != nil {
		return err
	}
	line.Color = plotutil.Color(i)
	line.Width = vg.Points(1.5)
	if d.name == "TTFT" {
		line.Dashes = plotutil.Dashes(1)
	}
	p.Add(line)
	p.Legend.Add(name+" "+d.name, line)
	return nil
}

// tailPoints are points of the distribution at equal steps of -log10(1-q), which gives each further nine as much space
// as the one before it: to p99.9, and as much further as there are latencies for it. Beyond these the largest one counts.
func tailPoints(d Distribution) plotter.XYs {
	nines := max(math.Log10(float64(d.Count())), 3)
	const steps = 400
	points := make(plotter.XYs, 0, steps+1)
	for i := range steps + 1 {
		y := nines * float64(i) / steps
		latency := max(d.Percentile(100*(1-math.Pow(10, -y))), time.Microsecond)
		points = append(points, plotter.XY{X: latency.Seconds(), Y: y})
	}
	return points
}

// widenAxes rounds the latency axis to decades, and gives an empty plot an area.
func widenAxes(p *plot.Plot) {
	if p.X.Min > p.X.Max || p.X.Min <= 0 {
		p.X.Min, p.X.Max = 0.001, 1
	}
	p.X.Min = math.Pow(10, math.Floor(math.Log10(p.X.Min)))
	p.X.Max = max(math.Pow(10, math.Ceil(math.Log10(p.X.Max))), p.X.Min*10) * 1.2 // space for the last label
	p.Y.Min, p.Y.Max = 0, max(p.Y.Max, 3)
}

// latencyTicks marks the decades of an axis in seconds, and the steps between them.
type latencyTicks struct{}

func (latencyTicks) Ticks(low, high float64) []plot.Tick {
	var ticks []plot.Tick
	for exponent := -6; exponent <= 4; exponent++ {
		decade := math.Pow(10, float64(exponent))
		for step := 1.0; step < 10; step++ {
			value := decade * step
			if value < low*0.999 || value > high*1.001 {
				continue
			}
			label := ""
			if step == 1 {
				label = axisLatency(exponent)
			}
			ticks = append(ticks, plot.Tick{Value: value, Label: label})
		}
	}
	return ticks
}

func axisLatency(exponent int) string {
	switch {
	case exponent < -3:
		return fmt.Sprintf("%.0f µs", math.Pow(10, float64(exponent+6)))
	case exponent < 0:
		return fmt.Sprintf("%.0f ms", math.Pow(10, float64(exponent+3)))
	default:
		return fmt.Sprintf("%.0f s", math.Pow(10, float64(exponent)))
	}
}

// percentileTicks marks an axis of -log10(1-q).
type percentileTicks struct{}

func (percentileTicks) Ticks(_, high float64) []plot.Tick {
	ticks := []plot.Tick{{Value: 0, Label: "0"}}
	for _, percent := range []float64{50, 90, 95, 99, 99.9, 99.99, 99.999, 99.9999} {
		if y := -math.Log10(1 - percent/100); y <= high*1.001 {
			ticks = append(ticks, plot.Tick{Value: y, Label: fmt.Sprintf("p%g", percent)})
		}
	}
	return ticks
}
