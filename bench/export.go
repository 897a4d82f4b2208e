package bench

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"html/template"
	"io"
	"strconv"
	"time"
)

// WriteCSV writes a line for each target and round, with a header. Times are in milliseconds; what was not measured is empty.
func (c *Comparison) WriteCSV(w io.Writer) error {
	out := csv.NewWriter(w)
	head := []string{"target", "url", "model", "round", "started", "seconds", "requests", "succeeded", "failed", "requests_per_second", "output_tokens_per_second", "input_tokens", "output_tokens"}
	for _, d := range new(Result).distributions() {
		for _, p := range percentiles {
			head = append(head, column(d.name)+"_"+p.name+"_ms")
		}
		head = append(head, column(d.name)+"_max_ms", column(d.name)+"_mean_ms")
	}
	out.Write(head)
	for _, target := range c.Targets {
		for round, r := range target.Runs {
			line := []string{r.Name, r.URL, r.Model, strconv.Itoa(round + 1), r.Started.UTC().Format(time.RFC3339), number(r.Elapsed), strconv.FormatInt(r.Requests, 10), strconv.FormatInt(r.Succeeded, 10),
				strconv.FormatInt(r.Failed, 10), number(r.RequestsPerSecond), number(r.OutputTokensPerSecond), strconv.FormatInt(r.InputTokens, 10), strconv.FormatInt(r.OutputTokens, 10)}
			for _, d := range r.distributions() {
				var cells []time.Duration
				for _, p := range percentiles {
					cells = append(cells, d.Percentile(p.percent))
				}
				for _, cell := range append(cells, d.Percentile(100), d.Mean()) {
					text := ""
					if !d.IsZero() {
						text = number(cell.Seconds() * 1000)
					}
					line = append(line, text)
				}
			}
			out.Write(line)
		}
	}
	out.Flush()
	return out.Error()
}

func number(x float64) string { return strconv.FormatFloat(x, 'f', 3, 64) }

// column returns the name of a distribution as part of a column's.
func column(name string) string {
	b := []byte(name)
	for i, c := range b {
		switch {
		case c >= 'A' && c <= 'Z':
			b[i] = c + 'a' - 'A'
		case c == '-' || c == ' ':
			b[i] = '_'
		}
	}
	return string(b)
}

// WriteHTML writes the comparison as a page that needs nothing else: the table, and the plot of the latencies.
func (c *Comparison) WriteHTML(w io.Writer) error {
	var table, picture bytes.Buffer
	if err := c.WriteTable(&table); err != nil {
		return err
	}
	p, err := draw(c.Totals())
	if err != nil {
		return fmt.Errorf("plot: %w", err)
	}
	svg, err := p.WriterTo(plotWidth, plotHeight, "svg")
	if err != nil {
		return fmt.Errorf("plot: %w", err)
	}
	if _, err := svg.WriteTo(&picture); err != nil {
		return fmt.Errorf("plot: %w", err)
	}
	_, drawing, _ := bytes.Cut(picture.Bytes(), []byte("<svg")) // without the declaration of XML
	first := c.Targets[0].Total
	return reportPage.Execute(w, map[string]any{
		"Model": first.Model, "Started": first.Started.UTC().Format(time.RFC3339), "Table": table.String(), "Plot": template.HTML("<svg" + string(drawing)),
	})
}

var reportPage = template.Must(template.New("report").Parse(`<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>pulley bench: {{.Model}}, {{.Started}}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; background: #fff; }
h1 { font-size: 1.3rem; }
pre { overflow-x: auto; background: #f4f5f7; padding: 1rem; border-radius: 6px; font-size: .85rem; }
svg { max-width: 100%; height: auto; background: #fff; }
</style>
<h1>pulley bench: {{.Model}}</h1>
<p>{{.Started}}</p>
<pre>{{.Table}}</pre>
{{.Plot}}
</html>
`))
